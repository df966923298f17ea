#!/usr/bin/env bash
# Builds a model for a board with onnxruntime-genai's official builder: models/build.sh REPOSITORY-OR-FOLDER OUT
#
#   BLOCK=128   weights that share a scale: 16, 32, 64, 128 or 256
#   KV=8        bits of keys and values: 8 (measured scales; builds twice) or 32
#   CORPUS=FILE texts to measure the scales with, separated by empty lines; without it, the builder's own
#   PYTHON      a Python with onnxruntime-genai, onnxruntime, onnx, onnx-ir, torch and transformers (models/README.md)
#
# The result is OUT, a folder for `promptd model import`.
set -euo pipefail
model=${1:?a repository of the hub, or a folder with the original weights} out=${2:?the folder to make}
block=${BLOCK:-128} kv=${KV:-8} python=${PYTHON:-python3}
[ ! -e "$out" ] || { echo "build.sh: $out is there already" >&2; exit 1; }
case $kv in 8 | 32) ;; *) echo "build.sh: KV is 8 or 32, not $kv" >&2; exit 2 ;; esac
"$python" -c 'import onnxruntime_genai, onnx, onnx_ir, torch, transformers' \
    || { echo "build.sh: $python lacks what the builder needs; models/README.md has the line to install it" >&2; exit 1; }

work=$(mktemp -d "$(dirname "$out")/.build-XXXXXX")
trap 'rm -rf "$work"' EXIT
# A folder is given by -i, a repository by -m.
if [ -d "$model" ]; then from=(-i "$model"); else from=(-m "$model"); fi
options=("int4_block_size=$block" int4_accuracy_level=4 prune_lm_head=true op_types_to_quantize=MatMul/Gather)
build() {
    "$python" -m onnxruntime_genai.models.builder "${from[@]}" -o "$1" -p int4 -e cpu -c "$work/cache" --extra_options "${options[@]}"
}
build "$work/plain"
result=$work/plain
if [ "$kv" = 8 ]; then
    "$python" -m onnxruntime_genai.models.quantization.kv_cache_calibration --model "$work/plain" --tokenizer "$model" \
        --quant-type int8_per_tensor --out "$work/kv-scales.json" ${CORPUS:+--corpus-file "$CORPUS"}
    options+=(kv_cache_quant_scheme=int8_per_tensor "kv_cache_scale_file=$work/kv-scales.json")
    build "$work/kv8"
    result=$work/kv8
fi
# By a rename: a folder that is there is whole.
mv "$result" "$out"
echo "$out: promptd model check $out; promptd model import $out"
