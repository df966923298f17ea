#!/usr/bin/env python3
"""Time promptd beside llama.cpp, onnxruntime-genai and a bare ONNX Runtime loop on the same shape of model.

One pass of a contender is one process that loads its model and measures everything once. Passes take turns
(A B C D A B C D ...), so that what disturbs the machine disturbs all; what counts is the median of the ratios of
passes that ran one after the other.

    peers.py --promptd target/release/promptd --library target/onnxruntime/libonnxruntime.so.1.32.0 \
        --onnx models/7b --gguf models/7b.gguf --passes 5 --json peers-7b.json
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

TAIL = 16
STREAM_PROMPT = 64


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--promptd", type=Path)
    p.add_argument("--library", type=Path)
    p.add_argument("--store", type=Path, help="promptd's prepared copies")
    p.add_argument("--spinning", action="store_true", help="promptd spins while a step runs")
    p.add_argument("--onnx", type=Path, required=True, help="model folder for promptd, genai and the bare loop")
    p.add_argument("--gguf", type=Path, help="the same shape for llama.cpp")
    p.add_argument("--only", default="promptd,llama.cpp,genai,loop")
    p.add_argument("--passes", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--prompts", default="128,512")
    p.add_argument("--depths", default="0,512")
    p.add_argument("--streams", default="1,2,4,8")
    p.add_argument("--shared", type=int, default=512)
    p.add_argument("--keys", type=int, default=4, help="long keys of the schema that promptd's answer is held to; 0: none")
    p.add_argument("--tokens", type=int, default=32)
    p.add_argument("--processor-time", action="store_true",
                   help="time by the processor time of each contender, for machines that do other things; with --threads 1")
    p.add_argument("--json", type=Path)
    p.add_argument("--worker", choices=("llama.cpp", "genai", "loop"), help=argparse.SUPPRESS)
    a = p.parse_args()
    if a.processor_time:
        global clock
        clock = time.process_time
    for name in ("prompts", "depths", "streams"):
        setattr(a, name, [int(n) for n in getattr(a, name).split(",") if n])
    return a


def context(a):
    """Tokens of context that everything needs."""
    needs = [n + 1 for n in a.prompts] + [d + a.tokens + 2 for d in a.depths] + [STREAM_PROMPT + a.tokens + 2]
    return max(needs + [a.shared + TAIL + 1])


def memory():
    """Bytes of this process that cannot be given back, of files, and the peak."""
    of = {}
    for line in open("/proc/self/status"):
        key, _, rest = line.partition(":")
        if key in ("RssAnon", "RssFile", "VmHWM"):
            of[key] = int(rest.split()[0]) * 1024
    return {"anonymous": of["RssAnon"], "file": of["RssFile"], "peak": of["VmHWM"]}


clock = time.perf_counter


def timed(work):
    begun = clock()
    work()
    return clock() - begun


# ---- contenders: each has first_token(tokens), write(depth, count), together(streams, count), shared(tokens) ----------


class Loop:
    """A bare ONNX Runtime loop: past and present share one buffer, nothing is sampled but the largest logit."""

    def __init__(self, a):
        import numpy as np
        import onnxruntime as ort

        self.np, self.ort, self.most = np, ort, context(a)
        options = ort.SessionOptions()
        options.intra_op_num_threads = a.threads
        options.inter_op_num_threads = 1
        options.enable_mem_pattern = False
        if not a.spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = ort.InferenceSession(str(a.onnx / "model.onnx"), options, providers=["CPUExecutionProvider"])
        self.vocab = self.session.get_outputs()[0].shape[-1]
        self.rng = np.random.default_rng(1)
        self.caches = {}

    def tokens(self, rows, count):
        return self.rng.integers(3, min(self.vocab, 30000), (rows, count), dtype=self.np.int64)

    def binding(self, rows):
        if rows not in self.caches:
            np, kinds = self.np, {"tensor(float)": "float32", "tensor(int8)": "int8", "tensor(uint8)": "uint8"}
            binding, kept = self.session.io_binding(), []
            for past in self.session.get_inputs():
                if past.name.startswith("past_"):
                    kept.append(self.ort.OrtValue.ortvalue_from_numpy(
                        np.zeros((rows, past.shape[1], self.most, past.shape[3]), kinds[past.type])))
                    binding.bind_ortvalue_input(past.name, kept[-1])
                    binding.bind_ortvalue_output(past.name.replace("past_key_values", "present"), kept[-1])
            self.caches = {rows: (binding, kept)}
        return self.caches[rows][0]

    def step(self, ids, total):
        binding = self.binding(len(ids))
        binding.bind_cpu_input("input_ids", ids)
        binding.bind_cpu_input("attention_mask", self.np.ones((len(ids), total), self.np.int64))
        binding.bind_output("logits", "cpu")
        self.session.run_with_iobinding(binding)
        return binding.get_outputs()[-1].numpy()[:, -1].argmax(axis=1).astype(self.np.int64)[:, None]

    def read(self, ids):
        """In chunks of 128, as promptd does."""
        for begin in range(0, ids.shape[1], 128):
            end = min(begin + 128, ids.shape[1])
            last = self.step(ids[:, begin:end], end)
        return last

    def first_token(self, count):
        ids = self.tokens(1, count)
        return timed(lambda: self.read(ids))

    def write(self, depth, count):
        depth = max(depth, 1)
        last = self.read(self.tokens(1, depth))

        def work():
            nonlocal last
            for at in range(count):
                last = self.step(last, depth + at + 1)

        return timed(work) / count

    def together(self, streams, count):
        last = self.step(self.tokens(streams, STREAM_PROMPT), STREAM_PROMPT)

        def work():
            nonlocal last
            for at in range(count):
                last = self.step(last, STREAM_PROMPT + at + 1)

        return streams * count / timed(work)

    def shared(self, count):
        ids = self.tokens(1, count + TAIL)
        first = timed(lambda: self.read(ids))
        tail = self.tokens(1, TAIL)
        return first, timed(lambda: self.step(tail, count + TAIL))


class Genai:
    """onnxruntime-genai on the same folder."""

    def __init__(self, a):
        import numpy as np
        import onnxruntime_genai as og

        self.np, self.og, self.most = np, og, context(a)
        config = og.Config(str(a.onnx))
        session = {"intra_op_num_threads": a.threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.rng = np.random.default_rng(1)

    def generator(self, rows=1):
        params = self.og.GeneratorParams(self.model)
        params.set_search_options(max_length=self.most, min_length=self.most, do_sample=False, batch_size=rows)
        return self.og.Generator(self.model, params)

    def tokens(self, count, rows=1):
        ids = self.rng.integers(3, 30000, (rows, count), dtype=self.np.int32)
        return ids if rows > 1 else ids[0]

    def first_token(self, count):
        generator, ids = self.generator(), self.tokens(count)
        return timed(lambda: (generator.append_tokens(ids), generator.generate_next_token()))

    def run(self, generator, count):
        for _ in range(count):
            generator.generate_next_token()

    def write(self, depth, count):
        generator = self.generator()
        generator.append_tokens(self.tokens(max(depth, 1)))
        generator.generate_next_token()
        return timed(lambda: self.run(generator, count)) / count

    def together(self, streams, count):
        generator = self.generator(streams)
        generator.append_tokens(self.tokens(STREAM_PROMPT, streams))
        generator.generate_next_token()
        return streams * count / timed(lambda: self.run(generator, count))

    def shared(self, count):
        generator, ids = self.generator(), self.tokens(count + TAIL)
        first = timed(lambda: (generator.append_tokens(ids), generator.generate_next_token()))
        tail = self.tokens(TAIL)

        def work():
            generator.rewind_to(count)
            generator.append_tokens(tail)
            generator.generate_next_token()

        return first, timed(work)


class Llama:
    """llama.cpp, as llama-cpp-python builds it from its sources, by its C interface."""

    def __init__(self, a):
        import llama_cpp as lib
        import numpy as np

        self.lib, self.np, self.rng = lib, np, np.random.default_rng(1)
        lib.llama_backend_init()
        quiet = lib.llama_log_callback(lambda *_: None)
        self.quiet = quiet
        lib.llama_log_set(quiet, None)
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = lib.llama_model_load_from_file(str(a.gguf).encode(), params)
        params = lib.llama_context_default_params()
        most = max(a.streams, default=1)
        params.n_ctx = max(context(a), most * (STREAM_PROMPT + a.tokens + 2))
        params.n_batch, params.n_ubatch, params.n_seq_max = 512, 512, most
        params.n_threads = params.n_threads_batch = a.threads
        if hasattr(params, "kv_unified"):
            params.kv_unified = True
        self.context = lib.llama_init_from_model(self.model, params)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.batch = lib.llama_batch_init(512, 0, most)

    def tokens(self, count):
        return self.rng.integers(3, min(self.vocab, 30000), count).tolist()

    def clear(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), True)

    def decode(self, rows):
        """rows: (token, position, sequence, wanted)"""
        batch = self.batch
        batch.n_tokens = len(rows)
        for index, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[index], batch.pos[index] = token, position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            batch.logits[index] = wanted
        if self.lib.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")

    def greedy(self, index):
        logits = self.lib.llama_get_logits_ith(self.context, index)
        return int(self.np.ctypeslib.as_array(logits, shape=(self.vocab,)).argmax())

    def read(self, tokens, sequence=0, start=0):
        for begin in range(0, len(tokens), 512):
            part = tokens[begin : begin + 512]
            last = begin + len(part) == len(tokens)
            self.decode([(token, start + begin + i, sequence, last and i == len(part) - 1)
                         for i, token in enumerate(part)])
        return self.greedy(len(part) - 1)

    def first_token(self, count):
        self.clear()
        tokens = self.tokens(count)
        return timed(lambda: self.read(tokens))

    def write(self, depth, count):
        self.clear()
        depth = max(depth, 1)
        last = self.read(self.tokens(depth))

        def work():
            nonlocal last
            for at in range(count):
                self.decode([(last, depth + at, 0, True)])
                last = self.greedy(0)

        return timed(work) / count

    def together(self, streams, count):
        self.clear()
        last = [self.read(self.tokens(STREAM_PROMPT), sequence) for sequence in range(streams)]

        def work():
            nonlocal last
            for at in range(count):
                self.decode([(token, STREAM_PROMPT + at, sequence, True) for sequence, token in enumerate(last)])
                last = [self.greedy(index) for index in range(streams)]

        return streams * count / timed(work)

    def shared(self, count):
        self.clear()
        tokens = self.tokens(count + TAIL)
        first = timed(lambda: self.read(tokens))
        tail = self.tokens(TAIL)

        def work():
            self.lib.llama_memory_seq_rm(self.lib.llama_get_memory(self.context), 0, count, -1)
            self.read(tail, start=count)

        return first, timed(work)


def worker(a):
    """One pass of one contender, as JSON."""
    begun = clock()
    contender = {"loop": Loop, "genai": Genai, "llama.cpp": Llama}[a.worker](a)
    loaded = clock() - begun
    contender.first_token(8)
    result = {"load_seconds": loaded, "load_and_first_token_seconds": clock() - begun}
    contender.write(0, 4)
    for count in a.prompts:
        result[f"read {count}"] = count / contender.first_token(count)
    for depth in a.depths:
        result[f"write at {depth}"] = 1 / contender.write(depth, a.tokens)
    for streams in a.streams:
        result[f"{streams} streams"] = contender.together(streams, a.tokens)
    if a.shared:
        first, second = contender.shared(a.shared)
        result["shared first_seconds"], result["shared second_seconds"] = first, second
    result["memory"] = memory()
    print(json.dumps(result), flush=True)


def promptd(a):
    """One pass of promptd, in the same words."""
    listed = lambda numbers: ",".join(map(str, numbers)) or "0"
    command = [a.promptd, "bench", a.onnx, "--json", "--rounds", "1", "--threads", a.threads, "--tokens", a.tokens,
               "--prompts", listed(a.prompts), "--depths", listed(a.depths), "--streams", listed(a.streams),
               "--shared", a.shared, "--keys", a.keys, "--provider", "cpu"]
    command += ["--library", a.library] if a.library else []
    command += ["--store", a.store] if a.store else []
    command += ["--spinning"] if a.spinning else []
    command += ["--processor-time"] if a.processor_time else []
    out = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    r = json.loads(out.stdout)["results"]
    result = {key: r[key] for key in ("load_seconds", "load_and_first_token_seconds", "memory")}
    for entry in r["prefill"]:
        result[f"read {entry['tokens']}"] = entry["tokens_per_second"]["median"]
    for entry in r["decode"]:
        result[f"write at {entry['depth']}"] = entry["tokens_per_second"]["median"]
    for entry in r["streams"]:
        result[f"{entry['streams']} streams"] = entry["tokens_per_second"]["median"]
    if r["shared"]:
        result["shared first_seconds"] = r["shared"]["first_seconds"]["median"]
        result["shared second_seconds"] = r["shared"]["second_seconds"]["median"]
    if r["held"]:
        result["held to a schema"] = r["held"]["tokens_per_second"]["median"]
        result["as many, free"] = r["held"]["free_tokens_per_second"]["median"]
        result["mask_seconds"] = r["held"]["mask_seconds"]["median"]
    return result


def one_pass(a, name):
    if name == "promptd":
        return promptd(a)
    out = subprocess.run([sys.executable, *sys.argv, "--worker", name], stdout=subprocess.PIPE, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def versions():
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("onnxruntime", "onnxruntime-genai", "llama-cpp-python"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def processor():
    for line in open("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def summed_up(passes, names):
    """Medians of each contender, and of promptd's ratio to each in passes that were neighbours."""
    medians, ratios = {}, {}
    for name in names:
        keys = [key for key in passes[name][0] if key != "memory"]
        medians[name] = {key: statistics.median(run[key] for run in passes[name]) for key in keys}
        medians[name]["memory"] = passes[name][-1]["memory"]
    for other in names:
        if other == "promptd" or "promptd" not in names:
            continue
        ratios[other] = {}
        for key in medians[other]:
            if key in ("memory",) or key not in medians["promptd"]:
                continue
            pairs = [(mine[key], its[key]) for mine, its in zip(passes["promptd"], passes[other])]
            # Seconds are better the fewer they are.
            each = sorted(its / mine if key.endswith("seconds") else mine / its for mine, its in pairs)
            ratios[other][key] = {"median": statistics.median(each), "min": each[0], "max": each[-1]}
    return medians, ratios


def main():
    a = arguments()
    if a.worker:
        return worker(a)
    names = [name for name in a.only.split(",") if name != "llama.cpp" or a.gguf]
    passes, loads = {name: [] for name in names}, []
    for number in range(a.passes):
        for name in names:
            loads.append(os.getloadavg()[0])
            passes[name].append(one_pass(a, name))
            print(f"pass {number + 1} of {a.passes}, {name} (load {loads[-1]:.1f}): "
                  f"{json.dumps({k: round(v, 3) for k, v in passes[name][-1].items() if k != 'memory'})}",
                  file=sys.stderr, flush=True)
        medians, ratios = summed_up(passes, names)
        report = {
            "machine": {"processor": processor(), "processors": os.cpu_count(), "load_average": loads},
            "versions": versions(), "model": a.onnx.name, "threads": a.threads, "spinning": a.spinning,
            "clock": "processor time" if a.processor_time else "wall",
            "tokens": a.tokens, "medians": medians, "ratios": ratios, "passes": passes,
        }
        if a.json:
            a.json.write_text(json.dumps(report, indent=1) + "\n")
    for other, found in ratios.items():
        print(f"promptd over {other}")
        for key, ratio in found.items():
            mine, its = medians["promptd"][key], medians[other][key]
            print(f"  {key:32} {mine:9.2f} {its:9.2f}   {ratio['median']:5.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})")


if __name__ == "__main__":
    main()
