#!/usr/bin/env bash
# Builds promptd for a board on an x86-64 machine: cross/build.sh ARCH [--gcc] [CARGO ARGUMENTS…]
#
#   ARCH    aarch64 or x86_64
#   --gcc   link with Debian's gcc-aarch64-linux-gnu instead of zig; the result then needs glibc 2.34
#
# A program that needs a newer glibc than that is an error (cross/glibc.sh).
#
# By default zig (PyPI's `ziglang`) links, and the result runs with glibc 2.31. The standard library of aarch64 is rustup's
# where it is installed (`rustup target add aarch64-unknown-linux-gnu`), else that of Debian's rustc-web, which cross/debian.sh
# fetches without root. The program is left in TARGET/cross/build/ARCH[-gcc]/…/release/promptd, and its path is printed.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${1:?aarch64 or x86_64}
shift
linker=zig
glibc=2.31
if [ "${1:-}" = --gcc ]; then linker=gcc; glibc=2.34; shift; fi
top=$PWD
target_dir=${CARGO_TARGET_DIR:-target}
mkdir -p "$target_dir/cross"
tools=$(realpath "$target_dir/cross")
triple=$arch-unknown-linux-gnu
variable=$(echo "$triple" | tr 'a-z-' 'A-Z_')
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

toolchain=
if [ ! -d "$(rustc --print sysroot)/lib/rustlib/$triple/lib" ]; then
    cross/debian.sh toolchain "$tools/toolchain" >&2
    export RUSTC=$tools/toolchain/bin/rustc
    # Cargo asks this one for its version instead of rustup's.
    toolchain=debian
fi

build=$tools/build/$arch${toolchain:+-$toolchain}
if [ "$linker" = gcc ]; then
    build=$build-gcc
    compiler=$arch-linux-gnu-gcc
    command -v "$compiler" >/dev/null || { echo "build.sh: $compiler is missing (Debian: gcc-${arch/_/-}-linux-gnu)" >&2; exit 1; }
    export "CARGO_TARGET_${variable}_LINKER=$compiler"
else
    if [ ! -x "$tools/zig/bin/python" ] || ! "$tools/zig/bin/python" -m ziglang version >/dev/null 2>&1; then
        "${PYTHON:-python3}" -m venv "$tools/zig"
        "$tools/zig/bin/python" -m pip install --quiet --disable-pip-version-check ziglang==0.15.1
    fi
    export ZIG="$tools/zig/bin/python -m ziglang"
    mkdir -p "$build"
    for tool in "cc:$top/cross/zig-cc $arch" "ar:$ZIG ar"; do
        printf '#!/bin/sh\nexec %s "$@"\n' "${tool#*:}" > "$build/${tool%%:*}"
        chmod +x "$build/${tool%%:*}"
    done
    export "CARGO_TARGET_${variable}_LINKER=$build/cc" "CC_${triple//-/_}=$build/cc" "AR_${triple//-/_}=$build/ar"
    export ZIG_GLOBAL_CACHE_DIR=${ZIG_GLOBAL_CACHE_DIR:-$tools/zig-cache}
fi
# No path of this machine is kept: two builds in two folders give the same bytes.
registry=${CARGO_HOME:-$HOME/.cargo}
sysroot=$("${RUSTC:-rustc}" --print sysroot)
map="--remap-path-prefix=$top=promptd --remap-path-prefix=$registry=cargo --remap-path-prefix=$sysroot=rust"
export "CARGO_TARGET_${variable}_RUSTFLAGS=$map"
export CFLAGS="${CFLAGS:-} -ffile-prefix-map=$registry=cargo -ffile-prefix-map=$top=promptd"
export CARGO_TARGET_DIR=$build
cargo build --release --locked --target "$triple" "$@" >&2
program=$build/$triple/release/promptd
"$top/cross/glibc.sh" "$program" "$glibc"
echo "$program"
