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
# onnxruntime-genai before 0.18 knows the first two by the longer names; 0.18.0 passes over those without a word.
options=("block_size=$block" accuracy_level=4 "int4_block_size=$block" int4_accuracy_level=4 prune_lm_head=true op_types_to_quantize=MatMul/Gather)
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
# An option that a version of the builder does not know is no error there: what came out is looked at.
"$python" - "$result/model.onnx" "$block" "$kv" <<'CHECK'
import sys
import onnx
graph, block, kv = onnx.load(sys.argv[1], load_external_data=False).graph, int(sys.argv[2]), int(sys.argv[3])
blocks = {(a.name, a.i) for node in graph.node if node.op_type == "MatMulNBits" for a in node.attribute if a.name in ("block_size", "accuracy_level")}
if blocks != {("block_size", block), ("accuracy_level", 4)}:
    sys.exit(f"build.sh: the builder made weights of {sorted(blocks)}, not of blocks of {block} and accuracy level 4; does this version call the options otherwise?")
keys = {i.type.tensor_type.elem_type for i in graph.input if i.name.startswith("past_key_values.")}
if keys != {onnx.TensorProto.INT8 if kv == 8 else onnx.TensorProto.FLOAT}:
    sys.exit(f"build.sh: the builder made keys and values of type {sorted(keys)}, not of {kv} bits")
CHECK
# By a rename: a folder that is there is whole.
mv "$result" "$out"
echo "$out: promptd model check $out; promptd model import $out"
