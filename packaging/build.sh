#!/usr/bin/env bash
# Makes the package of one architecture: packaging/build.sh amd64|arm64 [--program FILE] [arguments of package.py]
#
# Without --program it is built first (cross/build.sh). The man pages and completions of `make docs` have to be there.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=${1:?amd64 or arm64}
shift
case $arch in
amd64) machine=x86_64 ;;
arm64) machine=aarch64 ;;
*) echo "build.sh: $arch is neither amd64 nor arm64" >&2; exit 2 ;;
esac
target=${CARGO_TARGET_DIR:-target}
python=${PYTHON:-python3}
library=$target/cross/onnxruntime-$machine
program=
if [ "${1:-}" = --program ]; then program=$2; shift 2; fi
"$python" cross/fetch-onnxruntime.py "$library" --arch "$machine"
if [ -z "$program" ]; then
    program=$(cross/build.sh "$machine")
else
    # A program of another build may bring its symbols along.
    stripped=$target/cross/stripped-$arch
    strip -o "$stripped" "$program"
    program=$stripped
fi
test -e "$target/docs/promptd.1" || { echo "build.sh: there is no $target/docs: run \`make docs\`" >&2; exit 1; }
docs=$target/docs-$arch
rm -rf "$docs" && cp -r "$target/docs" "$docs"
"$python" packaging/parts.py --target "$machine-unknown-linux-gnu" --library "$library" --model models/demo \
    --sbom "$docs/sbom.cdx.json" --notices "$docs/THIRD-PARTY"
"$python" packaging/package.py --arch "$arch" --program "$program" --library "$library" --docs "$docs" \
    --out "$target/packages" "$@"
