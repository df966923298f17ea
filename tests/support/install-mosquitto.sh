#!/bin/sh
# Makes sure that mosquitto, mosquitto_rr and curl are there: from the system's packages, and only if they are missing.
set -eu
PATH=$PATH:/usr/sbin:/usr/local/sbin
have() { command -v "$1" >/dev/null 2>&1; }
missing=
have mosquitto || missing="$missing mosquitto"
have mosquitto_rr || missing="$missing mosquitto-clients"
have curl || missing="$missing curl"
[ -n "$missing" ] || exit 0
if ! have apt-get; then
    echo "Please install$missing with this system's package manager, then run the same command again." >&2
    exit 1
fi
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
echo "installing$missing …"
export DEBIAN_FRONTEND=noninteractive
# A broker that starts by itself on port 1883 is nothing a test should leave behind: policy-rc.d's 101 says "do not start".
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod +x "$policy"
    made=yes
fi
# `--no-install-recommends`: a minimal system stays minimal. A fresh machine often updates itself meanwhile, which is waited for.
wait="-o DPkg::Lock::Timeout=300"
status=0
{ $sudo apt-get $wait update -qq && $sudo apt-get $wait install -y -qq --no-install-recommends $missing >/dev/null; } || status=$?
[ -z "$made" ] || $sudo rm -f "$policy"
exit "$status"
