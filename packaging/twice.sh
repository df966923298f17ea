#!/usr/bin/env bash
# Builds the package in two copies of the last commit, in folders of different names, and compares the bytes. ARCH=amd64 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${ARCH:-amd64}
target=$(realpath "${CARGO_TARGET_DIR:-target}")
mkdir -p "$target/twice"
export SOURCE_DATE_EPOCH
# One commit for both copies, whatever is committed meanwhile.
commit=$(git rev-parse HEAD)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct "$commit")
for folder in one another/deeper; do
    copy=$target/twice/$folder
    rm -rf "$copy" && mkdir -p "$copy"
    git archive "$commit" | tar -x -C "$copy"
    # Tools are shared, with what writes the manual pages; what is in the program is not.
    mkdir -p "$copy/target/cross"
    for tool in toolchain zig "onnxruntime-x86_64" "onnxruntime-aarch64"; do
        [ ! -e "$target/cross/$tool" ] || ln -s "$target/cross/$tool" "$copy/target/cross/$tool"
    done
    (cd "$copy" && CARGO_TARGET_DIR=$target "${CARGO:-cargo}" run --quiet --locked --example docs -- "$copy/target/docs")
    (cd "$copy" && unset CARGO_TARGET_DIR && packaging/build.sh "$arch")
done
sha256sum "$target"/twice/one/target/packages/* "$target"/twice/another/deeper/target/packages/*
for file in "$target"/twice/one/target/packages/*; do
    cmp "$file" "$target/twice/another/deeper/target/packages/$(basename "$file")"
done
echo "the same bytes"
