"""Writes small trained models in the other layouts that promptd reads, and a damaged or foreign one where a refusal is tested.

    relayout.py GENAI_FOLDER PLAIN_FOLDER INT4_FOLDER OUT

GENAI_FOLDER is an onnxruntime-genai folder with GroupQueryAttention, PLAIN_FOLDER an Optimum-like one without contrib
operators, INT4_FOLDER as the first with weights in four bits without zero points, all of the same model. OUT gets a folder for each layout. Values are kept, so the answers have to be the same.
"""
import copy
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


def load(folder):
    return onnx.load(folder / "model.onnx")


def write(model, folder, name, data, source):
    """The graph under `name` with its weights in `data` beside it, and the source's other files."""
    folder.mkdir(parents=True)
    target = folder / name
    target.parent.mkdir(exist_ok=True)
    onnx.save(model, target, save_as_external_data=True, all_tensors_to_one_file=True, location=data, size_threshold=512)
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "genai_config.json":
            shutil.copy(file, folder / file.name)


def rename(graph, names):
    for port in [*graph.input, *graph.output]:
        port.name = names.get(port.name, port.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def renamed(genai, out):
    """Every name of the graph comes from genai_config.json."""
    model = load(genai)
    config = json.loads((genai / "genai_config.json").read_text())
    decoder = config["model"]["decoder"]
    layers = decoder["num_hidden_layers"]
    names = {"input_ids": "tokens", "attention_mask": "mask", "logits": "scores"}
    for layer in range(layers):
        for part in ("key", "value"):
            names[f"past_key_values.{layer}.{part}"] = f"{part}_{layer}_in"
            names[f"present.{layer}.{part}"] = f"{part}_{layer}_out"
    rename(model.graph, names)
    write(model, out, "decoder.onnx", "weights.bin", genai)
    decoder["filename"] = "decoder.onnx"
    decoder["inputs"].update(input_ids="tokens", attention_mask="mask", past_key_names="key_%d_in", past_value_names="value_%d_in")
    decoder["outputs"].update(logits="scores", present_key_names="key_%d_out", present_value_names="value_%d_out")
    (out / "genai_config.json").write_text(json.dumps(config))


def not_shared(genai, out):
    """past_present_share_buffer is false."""
    shutil.copytree(genai, out)
    path = out / "genai_config.json"
    config = json.loads(path.read_text())
    config["search"]["past_present_share_buffer"] = False
    path.chmod(0o644)
    path.write_text(json.dumps(config))


def pruned(genai, out):
    """Logits of the last token only, as the builder's `prune_lm_head` makes them."""
    model = load(genai)
    graph = model.graph
    last = next(node for node in graph.node if "logits" in node.output)
    graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), "prune_at"))
    gather = helper.make_node("Gather", [last.input[0], "prune_at"], ["pruned_hidden"], axis=1)
    graph.node.insert(list(graph.node).index(last), gather)
    last.input[0] = "pruned_hidden"
    graph.output[0].type.tensor_type.shape.dim[1].ClearField("dim_param")
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = 1
    write(model, out, "model.onnx", "model.onnx.data", genai)
    shutil.copy(genai / "genai_config.json", out)


def int8_cache(genai, out):
    """Keys and values of the cache in int8, one scale for each tensor; what they round makes other answers."""
    model = load(genai)
    graph = model.graph
    for port in [*graph.input, *graph.output]:
        if port.name.startswith(("past_key_values", "present")):
            port.type.tensor_type.elem_type = TensorProto.INT8
    # Rotated keys and values of this model stay within.
    graph.initializer.append(numpy_helper.from_array(np.array([8 / 127], np.float32), "cache_scale"))
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input.extend(["", "", "", "cache_scale", "cache_scale"])
            for name, value in (("k_quant_type", "PER_TENSOR"), ("v_quant_type", "PER_TENSOR"), ("kv_cache_bit_width", 8)):
                node.attribute.append(helper.make_attribute(name, value))
    write(model, out, "model.onnx", "model.onnx.data", genai)
    shutil.copy(genai / "genai_config.json", out)


def hidden_states(genai, out):
    """Hidden states beside the logits, as the builder's `include_hidden_states` makes them."""
    model = load(genai)
    give_hidden(model.graph, "hidden_states", TensorProto.FLOAT)
    write(model, out, "model.onnx", "model.onnx.data", genai)
    shutil.copy(genai / "genai_config.json", out)


def hidden_states_alone(genai, out):
    """No logits, as the builder's `exclude_lm_head` makes it: its configuration names none."""
    model = load(genai)
    graph = model.graph
    give_hidden(graph, "hidden_states", TensorProto.FLOAT)
    last = next(node for node in graph.node if "logits" in node.output)
    graph.node.remove(last)
    graph.output.remove(next(port for port in graph.output if port.name == "logits"))
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
    write(model, out, "model.onnx", "model.onnx.data", genai)
    config = json.loads((genai / "genai_config.json").read_text())
    del config["model"]["decoder"]["outputs"]["logits"]
    (out / "genai_config.json").write_text(json.dumps(config))
    (out / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}]))
    (out / "1_Pooling").mkdir()
    width = config["model"]["decoder"]["hidden_size"]
    modes = {f"pooling_mode_{mode}": mode == "lasttoken" for mode in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}
    (out / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": width, **modes}))


def hidden_states_in_half(plain, out):
    """Hidden states in half precision under Optimum's name, from a graph without contrib operators."""
    model = load(plain)
    give_hidden(model.graph, "last_hidden_state", TensorProto.FLOAT16)
    write(model, out, "onnx/model.onnx", "model.onnx_data", plain)


def give_hidden(graph, name, kind):
    """What goes into the last layer becomes an output."""
    last = next(node for node in graph.node if "logits" in node.output)
    inside = last.input[0]
    if kind == TensorProto.FLOAT:
        rename(graph, {inside: name})
    else:
        at = list(graph.node).index(last)
        graph.node.insert(at, helper.make_node("Cast", [inside], [name], to=kind))
    weights = {tensor.name: tensor for tensor in graph.initializer}
    width = weights[last.input[1]].dims[0]
    graph.output.append(helper.make_tensor_value_info(name, kind, ["batch_size", "sequence_length", width]))


def reference_vectors(out):
    """Vectors by a plain loop over ONNX Runtime: the whole text in one step, its hidden states pooled and made as long as 1."""
    texts = [[1], [1, 403, 407, 261, 378], [1, *(np.random.default_rng(7).integers(3, 512, 150).tolist())]]
    pools = {"mean": lambda rows: rows.mean(axis=0), "last": lambda rows: rows[-1]}
    told = []
    for name, graph, hidden, pool in (
        ("hidden-states", "model.onnx", "hidden_states", "mean"),
        ("hidden-states-alone", "model.onnx", "hidden_states", "last"),
        ("hidden-states-half", "onnx/model.onnx", "last_hidden_state", "mean"),
    ):
        session = onnxruntime.InferenceSession(out / name / graph, providers=["CPUExecutionProvider"])
        for ids in texts:
            feed = {}
            for port in session.get_inputs():
                if port.name == "input_ids":
                    feed[port.name] = np.array([ids], np.int64)
                elif port.name == "attention_mask":
                    feed[port.name] = np.ones((1, len(ids)), np.int64)
                elif port.name == "position_ids":
                    feed[port.name] = np.arange(len(ids), dtype=np.int64)[None]
                else:
                    feed[port.name] = np.zeros((1, port.shape[1], 0, port.shape[3]), np.float32)
            rows = session.run([hidden], feed)[0][0].astype(np.float64)
            vector = pools[pool](rows)
            told.append({"folder": name, "ids": ids, "vector": (vector / np.linalg.norm(vector)).tolist()})
    (out / "vectors.json").write_text(json.dumps(told))


def transformers_js(plain, out):
    """Several precisions in onnx/; the four-bit one (here the same weights) must be taken."""
    write(load(plain), out, "onnx/model_q4.onnx", "model_q4.onnx_data", plain)
    onnx.save(load(plain), out / "onnx" / "model.onnx", save_as_external_data=True, location="model.onnx_data", size_threshold=512)
    (out / "onnx" / "model_fp16.onnx").write_bytes(b"nobody opens this one")


def with_past_alone(plain, out):
    """The name that Optimum gave to the graph for later steps, beside no other."""
    write(load(plain), out, "decoder_with_past_model.onnx", "decoder_with_past_model.onnx_data", plain)


def zero_points(genai, out):
    """A zero point for each block: where the codes leave room, codes and zero point are one more or one less than they were."""
    model = load(genai)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    moved = 0
    for node in model.graph.node:
        if node.op_type != "MatMulNBits":
            continue
        assert len(node.input) == 3 or not node.input[3], "it has zero points already"
        tensor = weights[node.input[1]]
        packed = numpy_helper.to_array(tensor)  # [rows, blocks, bytes]
        codes = np.stack([packed & 15, packed >> 4], axis=-1).astype(np.int8)
        least, most = codes.min(axis=(2, 3)), codes.max(axis=(2, 3))
        by = np.where(most < 15, 1, np.where(least > 0, -1, 0)).astype(np.int8)
        moved += np.count_nonzero(by)
        codes = (codes + by[:, :, None, None]).astype(np.uint8)
        tensor.CopyFrom(numpy_helper.from_array(codes[..., 0] | codes[..., 1] << 4, tensor.name))
        points = (8 + by).astype(np.uint8)
        points = np.pad(points, ((0, 0), (0, points.shape[1] % 2)), constant_values=8)
        name = f"{tensor.name}.zero_points"
        flat = (points[:, 0::2] | points[:, 1::2] << 4).reshape(-1)
        shape = packed.shape[:1] + (-1,)
        model.graph.initializer.append(numpy_helper.from_array(flat.reshape(shape), name))
        del node.input[3:]
        node.input.append(name)
    assert moved, "no block leaves room"
    write(model, out, "model.onnx", "model.onnx.data", genai)
    shutil.copy(genai / "genai_config.json", out)


def logits_to_keep(plain, out):
    """Newer exports ask of how many tokens logits are wanted."""
    model = load(plain)
    graph = model.graph
    last = next(node for node in graph.node if "logits" in node.output)
    for name, value in (("keep_zero", 0), ("keep_axis", 1), ("keep_end", 2**62)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.int64), name))
    graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
    cut = [
        helper.make_node("Neg", ["num_logits_to_keep"], ["keep_from_scalar"]),
        helper.make_node("Unsqueeze", ["keep_from_scalar", "keep_zero"], ["keep_from"]),
        helper.make_node("Slice", [last.input[0], "keep_from", "keep_end", "keep_axis"], ["kept_hidden"]),
    ]
    at = list(graph.node).index(last)
    for node in reversed(cut):
        graph.node.insert(at, node)
    last.input[0] = "kept_hidden"
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "num_logits"
    write(model, out, "onnx/model.onnx", "model.onnx_data", plain)


def merged(plain, out):
    """Optimum's legacy decoder_model_merged: an If over use_cache_branch, whose first branch looks at no past."""
    model = load(plain)
    graph = model.graph
    weights = list(graph.initializer)
    outputs = [port.name for port in graph.output]

    def branch(name, with_past):
        sub = onnx.GraphProto(name=name)
        names = {}
        for node in graph.node:
            new = copy.deepcopy(node)
            new.name = f"{name}/{node.name}"
            new.input[:] = [names.get(i, i) for i in node.input]
            for output in node.output:
                names[output] = f"{name}/{output}" if output else ""
            new.output[:] = [names[o] for o in node.output]
            sub.node.append(new)
        if not with_past:
            # A past of no tokens, whatever is given.
            for port in graph.input:
                if port.name.startswith("past_key_values"):
                    dims = [d.dim_value for d in port.type.tensor_type.shape.dim]
                    shape = np.zeros((1, dims[1], 0, dims[3]), np.float32)
                    sub.initializer.append(numpy_helper.from_array(shape, f"{name}/{port.name}"))
                    for node in sub.node:
                        node.input[:] = [f"{name}/{port.name}" if i == port.name else i for i in node.input]
        for port in graph.output:
            new = copy.deepcopy(port)
            new.name = names[port.name]
            sub.output.append(new)
        return sub

    choice = helper.make_node("If", ["use_cache_flag"], outputs, then_branch=branch("then", True), else_branch=branch("else", False))
    flag = helper.make_node("Squeeze", ["use_cache_branch"], ["use_cache_flag"])
    del graph.node[:]
    graph.node.extend([flag, choice])
    graph.input.append(helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1]))
    assert list(graph.initializer) == weights
    write(model, out, "onnx/decoder_model_merged.onnx", "decoder_model_merged.onnx_data", plain)


def foreign(plain, out):
    """Graphs of other kinds; each must be refused by name."""
    def one(name, change):
        model = load(plain)
        change(model.graph)
        write(model, out / name, "model.onnx", "model.onnx_data", plain)

    def input_named(name):
        return lambda graph: graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["a", "b"]))

    def node_of(operator, domain):
        return lambda graph: graph.node.append(helper.make_node(operator, ["input_ids"], ["extra"], domain=domain))

    one("encoder-decoder", input_named("encoder_hidden_states"))
    one("vision", input_named("pixel_values"))
    one("paged", input_named("block_table"))
    one("mixture-of-experts", node_of("QMoE", "com.microsoft"))
    one("custom-operator", node_of("Magic", "com.example"))


def main():
    genai, plain, int4, out = map(Path, sys.argv[1:5])
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    renamed(genai, out / "genai-renamed")
    not_shared(genai, out / "genai-not-shared")
    pruned(genai, out / "genai-pruned")
    int8_cache(genai, out / "int8-cache")
    transformers_js(plain, out / "transformers-js")
    logits_to_keep(plain, out / "logits-to-keep")
    merged(plain, out / "optimum-merged")
    with_past_alone(plain, out / "optimum-with-past")
    zero_points(int4, out / "int4-zero-points")
    hidden_states(genai, out / "hidden-states")
    hidden_states_alone(genai, out / "hidden-states-alone")
    hidden_states_in_half(plain, out / "hidden-states-half")
    reference_vectors(out)
    foreign(plain, out / "foreign")


if __name__ == "__main__":
    main()
