#!/usr/bin/env bash
# Asks apt whether a package can be installed in each Debian that it is for, by that Debian's own index: installable.sh DEB…
#
# Nothing is installed and nothing of this machine's apt is changed: the indexes lie in TARGET/package-indexes, for the architecture of
# each package, and apt resolves on an empty system. Other systems are asked where their mirror is named:
#
#   DEBIAN_MIRROR   without it, the one this machine's apt uses
#   UBUNTU_MIRROR   of amd64 (http://archive.ubuntu.com/ubuntu), UBUNTU_PORTS_MIRROR of arm64 (http://ports.ubuntu.com/ubuntu-ports)
set -euo pipefail
cd "$(dirname "$0")/../.."
[ $# -gt 0 ] || { echo "installable.sh: which package?" >&2; exit 2; }
debian=${DEBIAN_MIRROR:-$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | head -1)}
[ -n "$debian" ] || { echo "installable.sh: this machine's apt names no Debian mirror; set DEBIAN_MIRROR to one" >&2; exit 1; }
debian_keys=/usr/share/keyrings/debian-archive-keyring.gpg ubuntu_keys=/usr/share/keyrings/ubuntu-archive-keyring.gpg
indexes=$(realpath "${CARGO_TARGET_DIR:-target}")/package-indexes

# One Debian: install NAME ARCHITECTURE "SOURCE" DEB
install() {
    local name=$1 arch=$2 source=$3 deb=$4 root said
    root=$indexes/$name-$arch
    mkdir -p "$root"/{lists/partial,archives/partial,parts}
    : > "$root/status"
    echo "$source" > "$root/sources.list"
    cat > "$root/apt.conf" <<CONF
Dir::State "$root";
Dir::State::lists "$root/lists";
Dir::State::status "$root/status";
Dir::Cache "$root";
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "$root/parts";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "";
Acquire::Languages "none";
# What a mirror keeps of an old release may be past its date.
Acquire::Check-Valid-Until "false";
CONF
    export APT_CONFIG=$root/apt.conf
    apt-get update -qq
    said=$(apt-get --simulate --no-install-recommends install "$(realpath "$deb")" 2>&1) \
        || { echo "$said"; echo "installable.sh: $(basename "$deb") cannot be installed in $name" >&2; exit 1; }
    echo "$name $arch: $(basename "$deb") can be installed, with $(echo "$said" | grep -c '^Inst ') packages in all:" \
        "$(echo "$said" | sed -n 's/^Inst \(libc6\|libstdc++6\) (\([^ ]*\).*/\1 \2/p' | sort | paste -sd ,)"
}

for deb in "$@"; do
    arch=$(dpkg-deb -f "$deb" Architecture)
    for suite in bullseye bookworm trixie; do
        install "$suite" "$arch" "deb [signed-by=$debian_keys] $debian $suite main" "$deb"
    done
    case $arch in amd64) ubuntu=${UBUNTU_MIRROR:-} ;; *) ubuntu=${UBUNTU_PORTS_MIRROR:-} ;; esac
    if [ -z "$ubuntu" ]; then
        echo "Ubuntu $arch: not asked (UBUNTU_MIRROR, UBUNTU_PORTS_MIRROR name none)"
        continue
    fi
    [ -e "$ubuntu_keys" ] || { echo "installable.sh: $ubuntu_keys is missing (package ubuntu-archive-keyring)" >&2; exit 1; }
    for suite in focal jammy noble; do
        install "$suite" "$arch" "deb [signed-by=$ubuntu_keys] $ubuntu $suite main universe" "$deb"
    done
done
