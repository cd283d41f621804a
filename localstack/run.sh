#!/usr/bin/env bash
# S3 on this machine without containers: LocalStack in a virtual environment of its own (its packages and spotckpt's
# want different versions), with a bucket.
#
#   localstack/run.sh                 starts it and stays until Ctrl-C; prints what to export
#   localstack/run.sh -- COMMAND ...  starts it, runs the command with the right environment, and stops it again
#
# The demonstration on it: localstack/run.sh -- spotckpt demo --s3-port 4566
#
# PYTHON (3.11, for these versions), SPOTCKPT_LOCALSTACK_VENV, SPOTCKPT_BUCKET and PORT may be set.
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
venv=${SPOTCKPT_LOCALSTACK_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/spotckpt/localstack-venv}
port=${PORT:-4566}
url="http://127.0.0.1:$port"
export SPOTCKPT_BUCKET=${SPOTCKPT_BUCKET:-spotckpt}

python=${PYTHON:-python3.11}
command -v "$python" >/dev/null || { echo "run.sh: there is no $python; set PYTHON to a Python 3.11" >&2; exit 1; }
install() {
    [[ ! -e $venv/ready ]] || return 0
    echo "run.sh: installing LocalStack into $venv (once, under a minute)" >&2
    "$python" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check \
        'localstack-core[base-runtime]==4.13.1' 'cbor2<6' 'pyopenssl<26' 'localstack-twisted==25.5.0'
    touch "$venv/ready"
}
# One installs, the others wait: several may be started at once.
mkdir -p "$(dirname -- "$venv")"
exec {lock}>"$venv.lock"
flock "$lock"
install
exec {lock}>&-

# Its own files go with it, but for the objects: LocalStack leaves them in /tmp/localstack-s3-storage, a fixed place.
scratch=$(mktemp -d)
log=$scratch/localstack.log
server=
finish() {
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        for _ in $(seq 50); do kill -0 "$server" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$server" 2>/dev/null || true
    fi
    rm -rf -- "$scratch"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# An IPv4 address in GATEWAY_LISTEN would bind all interfaces; the mapped form stays on loopback.
TMPDIR=$scratch SERVICES=s3 EAGER_SERVICE_LOADING=1 DNS_ADDRESS=0 DISABLE_EVENTS=1 SKIP_SSL_CERT_DOWNLOAD=1 \
    GATEWAY_LISTEN="[::ffff:127.0.0.1]:$port" FILESYSTEM_ROOT="$scratch/root" \
    "$venv/bin/python" -m localstack.runtime.main >"$log" 2>&1 &
server=$!

ready() {
    "$venv/bin/python" - "$url/_localstack/health" <<'PYTHON'
import json, sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    with opener.open(sys.argv[1], timeout=2) as reply:
        sys.exit(json.load(reply)["services"].get("s3") != "running")
except OSError:
    sys.exit(1)
PYTHON
}
for _ in $(seq 120); do
    ready && break
    if ! kill -0 "$server" 2>/dev/null; then
        echo "run.sh: LocalStack ended:" >&2
        tail -n 20 "$log" >&2
        exit 1
    fi
    sleep 0.25
done
ready || { echo "run.sh: LocalStack does not answer at $url" >&2; exit 1; }

export AWS_ENDPOINT_URL_S3=$url AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1
"$venv/bin/python" "$here/bucket.py" >&2

if [[ ${1:-} == -- ]]; then
    shift
    "$@"
else
    echo "export AWS_ENDPOINT_URL_S3=$url AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test AWS_DEFAULT_REGION=us-east-1"
    echo "export SPOTCKPT_URI=s3://$SPOTCKPT_BUCKET/my-run"
    wait "$server"
fi
