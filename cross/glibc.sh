#!/usr/bin/env bash
# Fails where a program needs a newer glibc than it may: cross/glibc.sh FILE VERSION. Reads the versions of the symbols it imports, so
# it works for any architecture.
set -euo pipefail
file=${1:?a file} most=${2:?a version}
readelf=$(command -v readelf || command -v llvm-readelf) || { echo "glibc.sh: readelf is missing (Debian: binutils)" >&2; exit 1; }
needs=$("$readelf" --version-info --wide "$file" | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -1)
[ -n "$needs" ] || { echo "glibc.sh: $file imports nothing from glibc" >&2; exit 1; }
newest=$(printf '%s\nGLIBC_%s\n' "$needs" "$most" | sort -V | tail -1)
if [ "$newest" != "GLIBC_$most" ]; then
    echo "glibc.sh: $file needs $needs, but it shall run with $most:" >&2
    "$readelf" --dyn-syms --wide "$file" | grep "$needs" >&2
    exit 1
fi
echo "$file: $needs is the newest it needs; $most is what it may" >&2
