#!/usr/bin/env python3
"""Write a folder of onnxruntime-genai in half precision, as an export for CUDA is: everything in single precision becomes half.

    half.py FOLDER OUT

Weights in four bits stay as they are, and so do the scales of 8-bit keys and values, which kernels want in single precision. Tensors are
copied one by one, so that a model of 7 billion parameters takes little memory.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
PAGE = 4096


def kept(graph):
    """Names of tensors that stay in single precision."""
    return {name for node in graph.node if node.op_type == "GroupQueryAttention" for name in node.input[12:14]}


def converted(tensor, data, exact):
    """Its element type and bytes in the new folder."""
    if tensor.data_location == TensorProto.EXTERNAL:
        place = {entry.key: entry.value for entry in tensor.external_data}
        begin = int(place.get("offset", 0))
        raw = data[begin : begin + int(place["length"])]
    elif tensor.data_type == FLOAT:
        raw = numpy_helper.to_array(tensor).reshape(-1).view(np.uint8)
    else:
        return tensor.data_type, None
    if tensor.data_type != FLOAT or tensor.name in exact:
        return tensor.data_type, raw
    return HALF, raw.view(np.float32).astype(np.float16).view(np.uint8)


def main():
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True)
    config = json.loads((source / "genai_config.json").read_text())
    name = config["model"]["decoder"]["filename"]
    model = onnx.load(source / name, load_external_data=False)
    graph, exact = model.graph, kept(model.graph)
    data = np.memmap(source / f"{name}.data", np.uint8, "r")
    with open(out / f"{name}.data", "wb") as file:
        for tensor in graph.initializer:
            kind, raw = converted(tensor, data, exact)
            if raw is None:
                continue
            file.write(b"\0" * (-file.tell() % PAGE))
            begin = file.tell()
            raw.tofile(file)
            dims = list(tensor.dims)
            own = tensor.name
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.data_location = own, kind, TensorProto.EXTERNAL
            tensor.dims.extend(dims)
            for key, value in (("location", f"{name}.data"), ("offset", begin), ("length", raw.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
    for port in [*graph.input, *graph.output, *graph.value_info]:
        if port.type.tensor_type.elem_type == FLOAT:
            port.type.tensor_type.elem_type = HALF
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == FLOAT:
                attribute.i = HALF
            elif attribute.HasField("t") and attribute.t.data_type == FLOAT:
                attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t).astype(np.float16)))
    onnx.save(model, out / name)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja"):
            shutil.copy(file, out / file.name)


if __name__ == "__main__":
    main()
