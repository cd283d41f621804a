#!/bin/sh
# Installs units, user and directories, from a checkout and as root; may be run again. What is in /etc/spotckpt stays.
set -eu
cd "$(dirname "$0")"
install -D -m 644 -t /etc/systemd/system spotckpt-agent.service spotckpt-train@.service
install -D -m 644 spotckpt.sysusers.conf /etc/sysusers.d/spotckpt.conf
install -D -m 644 spotckpt.tmpfiles.conf /etc/tmpfiles.d/spotckpt.conf
systemd-sysusers /etc/sysusers.d/spotckpt.conf
systemd-tmpfiles --create /etc/tmpfiles.d/spotckpt.conf
[ -e /etc/spotckpt/agent.env ] || install -m 640 -g spotckpt agent.env.example /etc/spotckpt/agent.env
systemctl daemon-reload
