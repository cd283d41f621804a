#!/usr/bin/env bash
# Boots systemd as PID 1 of namespaces of its own, on a copy-on-write view of this machine's root; nothing it writes stays.
#
#   boot.sh TREE VENV PYTHON VERSION SHARED CONSOLE SHM
#
# TREE appears at /srv/spotckpt, the virtual environment VENV of PYTHON/bin/VERSION at /opt/spotckpt, SHARED at /shared, and
# the terminal CONSOLE as /dev/console; /dev/shm has the size SHM. Before systemd starts, SHARED/install runs in the new root as in a checkout, and
# SHARED/root is copied over it.
#
# Runs as the first process of `unshare --pid --fork --mount --uts --ipc --cgroup`. The network is this machine's.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin # chroot is there, and not in everybody's
tree=$1 venv=$2 python=$3 version=$4 shared=$5 console=$6 shm=$7

mount --make-rprivate /
top=$shared/machine # of this namespace only
mkdir "$top"
mount -t tmpfs -o mode=755 tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
root=$top/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys" # a kernel has only one set of these
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o "mode=1777,size=$shm" tmpfs "$root/dev/shm"
mount --bind "$console" "$root/dev/console"
for place in run tmp var/tmp; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
chmod 755 "$root/run"

# The tree and the environment, open to the services' user wherever they lie and whoever made them; Python itself may lie
# in somebody's home, which services do not see, and the environment's own path is not seen either.
view() {
    mkdir -p "$top/$2-upper" "$top/$2-work" "$root/$3"
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$top/$2-upper,workdir=$top/$2-work" "$root/$3"
    chmod 755 "$root/$3"
}
view "$tree" tree srv/spotckpt
view "$venv" venv opt/spotckpt
view "$python" python opt/python
ln -sfn "/opt/python/bin/$version" "$root/opt/spotckpt/bin/python"
printf 'home = /opt/python/bin\n' >"$root/opt/spotckpt/pyvenv.cfg"
printf '#!/opt/spotckpt/bin/python\nfrom spotckpt.cli.main import main\nmain()\n' >"$root/opt/spotckpt/bin/spotckpt"
echo /opt/python/lib >"$root/etc/ld.so.conf.d/0-python.conf" # its own libpython before the distribution's
chroot "$root" /sbin/ldconfig
mkdir -p "$root/shared"
mount --bind "$shared" "$root/shared"
chroot "$root" bash -euo pipefail -c 'cd /srv/spotckpt && . /shared/install'
cp -a --no-preserve=ownership "$shared/root/." "$root/"

cd "$root"
pivot_root . mnt
umount -l /mnt
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test SYSTEMD_COLORS=0 SYSTEMD_UNIT_PATH=/etc/systemd/boot:/etc/systemd/system \
    /lib/systemd/systemd --system --unit=multi-user.target --log-target=console --log-level=info --show-status=yes
