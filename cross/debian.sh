#!/usr/bin/env bash
# Fetches Debian packages without root into a folder of one's own, for cross building and for running what was built.
#
#   cross/debian.sh toolchain DIR   a rustc that has the standard library of aarch64 (where rustup has none); about 700 MB
#   cross/debian.sh qemu DIR        qemu-aarch64 10 or newer: version 7 crashes while ONNX Runtime reads the CPU caches
#   cross/debian.sh sysroot DIR     the C and C++ libraries that an aarch64 program is started with
#
# The mirror is the one this machine's apt uses; DEBIAN_MIRROR and DEBIAN_SECURITY_MIRROR name others. Nothing of this machine's
# apt is changed: foreign architectures and other releases stay inside the folder.
set -euo pipefail
what=${1:?toolchain, qemu or sysroot} into=${2:?a folder}
[ ! -e "$into/.done" ] || exit 0
mkdir -p "$into"
into=$(realpath "$into")

mirror() {
    # The first mirror of this machine's apt whose release is wanted.
    apt-get indextargets --format '$(SITE) $(RELEASE)' 'Created-By: Packages' 2>/dev/null \
        | awk -v want="$1" '$2 ~ want { print $1; exit }'
}
main=${DEBIAN_MIRROR:-$(mirror '^[a-z]+$')}
security=${DEBIAN_SECURITY_MIRROR:-$(mirror '-security$')}
[ -n "$main" ] || { echo "debian.sh: this machine's apt names no Debian mirror; set DEBIAN_MIRROR to one" >&2; exit 1; }
keys=/usr/share/keyrings/debian-archive-keyring.gpg
[ -e "$keys" ] || { echo "debian.sh: $keys is missing (package debian-archive-keyring)" >&2; exit 1; }

apt=$into/apt
mkdir -p "$apt"/{state/lists/partial,cache/archives/partial,parts} "$into/debs"
: > "$apt/status"
{
    echo "deb [signed-by=$keys] $main bookworm main"
    case $what in
    # Only these two: newer releases bring a libllvm that needs a newer libc.
    toolchain) echo "deb [signed-by=$keys] ${security:-$main-security} bookworm-security main" ;;
    qemu) echo "deb [signed-by=$keys] $main bookworm-backports main" ;;
    esac
} > "$apt/sources.list"
cat > "$apt/apt.conf" <<CONF
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/parts";
APT::Architecture "amd64";
APT::Architectures { "amd64"; "arm64"; };
APT::Sandbox::User "";
Acquire::Languages "none";
CONF
export APT_CONFIG=$apt/apt.conf
apt-get update -qq

newest() { apt-cache madison "$1" | awk 'NR == 1 { print $3 }'; }
cd "$into/debs"
case $what in
toolchain)
    version=$(newest rustc-web:amd64)
    series=$(echo "$version" | cut -d. -f1-2)
    llvm=$(apt-cache depends "rustc-web:amd64=$version" "libstd-rust-web-$series:amd64=$version" | grep -o 'libllvm[0-9]*' | sort -u)
    apt-get download -qq "rustc-web:amd64=$version" "libstd-rust-web-$series:amd64=$version" \
        "libstd-rust-web-dev:amd64=$version" "libstd-rust-web-dev:arm64=$version" $llvm
    ;;
qemu) apt-get download -qq -t bookworm-backports qemu-user:amd64 ;;
sysroot) apt-get download -qq libc6:arm64 libstdc++6:arm64 libgcc-s1:arm64 ;;
*) echo "debian.sh: $what is none of toolchain, qemu, sysroot" >&2; exit 2 ;;
esac
mkdir -p "$into/tree"
for package in *.deb; do dpkg-deb -x "$package" "$into/tree"; done
if [ "$what" = toolchain ]; then
    mkdir -p "$into/bin"
    cat > "$into/bin/rustc" <<WRAPPER
#!/bin/sh
LD_LIBRARY_PATH=$into/tree/usr/lib/x86_64-linux-gnu exec $into/tree/usr/bin/rustc "\$@"
WRAPPER
    chmod +x "$into/bin/rustc"
    "$into/bin/rustc" --version
fi
cd "$into"
rm -rf debs apt
touch "$into/.done"
