"""Makes the tokenizer: a small BPE with bytes to fall back on, trained on the corpus and written as tokenizer.json."""
import collections
import json
import random
import re
import sys
from pathlib import Path

import corpus
import words

SPECIAL = ["<unk>", "<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
BOS, END, SYSTEM, USER, ASSISTANT = 1, 2, 3, 4, 5
CHAT_TEMPLATE = ("{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
                 "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")
NAME_MERGES = 330
# Phrases that only stand at a start, so that joining them never changes how a name in the middle is cut.
PHRASES = ['{"device":"', '","action":"', '","value":', '","value":"', '"}', "What is the ", "Tell me the ", "How high is the ",
           "Is the ", "The ", "I do not know.", "Can you tell me the ", "Could you ", "Please ", "Turn on the ", "Turn off the ",
           "Turn the ", "Switch on the ", "Switch off the ", "Switch the ", "Do you know ", "And the ", "I want the ",
           "Set the ", " °C", ": ", "You are ", "我不知道。", "请问", "告诉我", "查一下", "你知道", "温度", "湿度", "气压", "亮度", "电量", "功率",
           "水位", "噪音", "二氧化碳", "是多少？", "帮我"]
CUT = re.compile(r"[A-Za-z]+|.", re.S)


def is_han(c):
    return "\u3400" <= c <= "\u9fff"


def template_texts():
    c = corpus
    lists = [c.ASK, c.ASK_STATE, c.ZH_ASK, c.ZH_ASK_STATE, c.EN_SYSTEM, c.ZH_SYSTEM, c.MODES, list(c.UNKNOWN.values()),
             *c.ASK_MORE.values(), *c.ZH_ASK_MORE.values(), *c.DO.values(), *c.ZH_DO.values(),
             [w for s in (*c.STATES.values(), *c.ZH_STATES.values()) for w in s], [x for q in c.QUANTITIES.values() for x in (q[0], q[4], q[5])],
             [a for _, a in c.SMALL_TALK + c.ZH_SMALL_TALK], [q for qs, _ in c.SMALL_TALK + c.ZH_SMALL_TALK for q in qs],
             list(c.DO), ["device", "action", "value", "degrees"]]
    return [re.sub(r"\{[nqsov]\}", " ", t) for texts in lists for t in texts]


def learn(counts, merges, limit, least):
    """Ordinary BPE merges over {word: count}, most frequent pair first, ties by text."""
    split = {w: list(w) for w in counts}
    rank = {}
    for pair in merges:
        apply(split, pair)
    while len(merges) < limit:
        pairs = collections.Counter()
        for w, parts in split.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += counts[w]
        if not pairs:
            break
        best = max(pairs.items(), key=lambda kv: (kv[1], kv[0]))
        if best[1] < least:
            break
        merges.append(best[0])
        apply(split, best[0])
    return split


def apply(split, pair):
    for w, parts in split.items():
        i = 0
        while i < len(parts) - 1:
            if (parts[i], parts[i + 1]) == pair:
                parts[i:i + 2] = [parts[i] + parts[i + 1]]
            i += 1


def make(seed=7):
    templates = template_texts()
    counts = collections.Counter(w for t in templates for w in CUT.findall(t) if len(w) > 1)
    for d in corpus.STATES:
        counts.update(w for n in words.DEVICES[d] for w in n.split("-"))
    counts = {w: 1 for w in sorted(counts)}
    merges = []
    learn(counts, merges, 10 ** 6, 1)  # until every word of the grammar's own is one token
    own = len(merges)
    g = corpus.Grammar(seed)
    names = collections.Counter(words.WORDS + words.ADJECTIVES)
    names.update(g.pseudo() for _ in range(len(names) // 2))
    learn(dict(sorted(names.items())), merges, own + NAME_MERGES, 2)
    # Two digits are one token. With a token for each digit the model had to keep to the right line through up to six
    # copies, and mixed the digits of two readings ("56" and "14" became "16").
    merges += [(a, b) for a in "0123456789" for b in "0123456789"]
    ranks = {m: i for i, m in enumerate(merges)}

    def pieces(text):
        parts = list(text)
        while True:
            found = [(ranks[p], i) for i, p in enumerate(zip(parts, parts[1:])) if p in ranks]
            if not found:
                return parts
            i = min(found)[1]
            parts[i:i + 2] = [parts[i] + parts[i + 1]]

    for phrase in PHRASES:
        parts = pieces(phrase)
        while len(parts) > 1:
            pair = (parts[0], parts[1]) if not phrase.startswith(" ") else (parts[-2], parts[-1])
            if pair not in ranks:
                ranks[pair] = len(merges)
                merges.append(pair)
            parts = pieces(phrase)
    chars = {chr(c) for c in range(32, 127)} | {"\n"} | set("".join(templates)) | set(words.ZH_CHARS) | set("°，。！？：；、“”（）号") | set("".join(PHRASES))
    vocab = {t: i for i, t in enumerate(SPECIAL)}
    for t in [f"<0x{b:02X}>" for b in range(256)] + sorted(chars) + [a + b for a, b in merges]:
        vocab.setdefault(t, len(vocab))
    while len(vocab) % 32:  # the output matrix has a row for each
        vocab[f"<|spare{len(vocab)}|>"] = len(vocab)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [dict(id=i, content=t, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
                         for t, i in vocab.items() if i < len(SPECIAL) or t.startswith("<|spare")],
        "normalizer": None, "pre_tokenizer": None,
        "post_processor": {"type": "TemplateProcessing",
                           "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                           "pair": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                                    {"Sequence": {"id": "B", "type_id": 1}}],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
                  "fuse_unk": False, "byte_fallback": True, "ignore_merges": False, "vocab": vocab, "merges": [list(m) for m in merges]},
    }


def write(folder):
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(make(), ensure_ascii=False, indent=1)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>",
              "pad_token": "<unk>", "add_bos_token": True, "add_eos_token": False, "clean_up_tokenization_spaces": False,
              "model_max_length": 512, "chat_template": CHAT_TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": "<s>", "eos_token": "<|end|>", "unk_token": "<unk>", "pad_token": "<unk>",
               "additional_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>"]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
