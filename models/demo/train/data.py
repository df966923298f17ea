"""Packs the corpus into rows of tokens with segments, the places that count in the loss, and spans for checking."""
import random

import numpy as np
from tokenizers import Tokenizer

import words
from corpus import Grammar
from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER

ROLE = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
FIRST, DENY, ANSWER, OTHER = 1.5, 3.0, 1.0, 0.05  # weights in the loss: first token of an answer, of a denial (late), the rest, all else
LAST_OTHER = 0.004  # at last names and values in the context, which nobody can guess, are only noise


class Packer:
    def __init__(self, tokenizer_file):
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        # Names are also put together from these, so that every piece an unknown name falls into has been copied often.
        self.pieces = sorted(t for t in self.tokenizer.get_vocab() if t.isascii() and t.isalpha() and t.islower() and len(t) < 6)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat(self, document, stage=0):
        """-> ids, weights (0 for what is read only), [(start, end, kind)] of the answers"""
        ids, weights, spans = [BOS], [0], []
        for role, text, kind in document:
            body = self.encode(text) + [END]
            ids += [ROLE[role]] + body
            if role == "assistant":
                spans.append((len(ids) - len(body), len(ids), kind))
                weights += [0, DENY if stage >= 2 and kind == "unknown" else FIRST] + [ANSWER] * (len(body) - 1)
            else:
                weights += [0] * (len(body) + 1)
        return ids, weights, spans

    def rows(self, seed, count, length, places, stage):
        """`count` rows: tokens [count, length], segments, and for `places` positions each index, target and weight.

        Position i is asked for token i + 1. Answers come first, the rest of the places go to random other tokens.
        Stage 0 lets copying begin, 1 makes names various, 2 turns to what is told apart last: near misses and denials, 3 to telling near doubles apart,
        4 to wishes as well.
        """
        late = {"near": 0.55, "missing": 0.26} if stage >= 2 else {}
        if stage >= 3:
            late |= {"double": 0.6, "zh": 0.56} if stage == 3 else {"double": 0.6, "read": 0.37}
        other = LAST_OTHER if stage >= 3 else OTHER
        g, r = Grammar(seed, pieces=self.pieces if stage else None, **late), random.Random(seed)
        long = length > 200
        tokens = np.zeros((count, length), np.int16)
        segments = np.full((count, length), -1, np.int16)
        index = np.zeros((count, places), np.int16)
        target = np.zeros((count, places), np.int16)
        weight = np.zeros((count, places), np.float32)
        for row in range(count):
            ids, weights, segment, n = [], [], [], 0
            while len(ids) < length + 1:
                if r.random() < 0.02:
                    new = [BOS] + self.encode(g.plain()) + [END]
                    w = [0] + [0.3] * (len(new) - 1)
                else:
                    document = g.document(max_lines=r.choice((2, 4, 6, 8, 8)) if length < 500 else 14,
                                          turns=None if length < 500 or r.random() < 0.3 else r.randint(8, 30))
                    if stage and any(name in text for _, text, _ in document for name in words.ZH_PLACES_HELD):
                        continue  # characters drawn one by one can form a name that is held back
                    new, w, _ = self.chat(document, stage)
                if not long and not ids and len(new) < 40 and r.random() < 0.3:
                    continue
                ids, weights, segment, n = ids + new, weights + w, segment + [n] * len(new), n + 1
            tokens[row], segments[row] = ids[:length], segment[:length]
            same = [i for i in range(length) if segment[i] == segment[i + 1]]
            asked = [i for i in same if weights[i + 1]]
            if len(asked) > places:
                asked = asked[:places]
            others = [i for i in same if not weights[i + 1]]
            more = r.sample(others, min(len(others), places - len(asked)))
            at = asked + more
            index[row, :len(at)] = at
            target[row, :len(at)] = [ids[i + 1] for i in at]
            weight[row, :len(at)] = [weights[i + 1] or other for i in at]
        return tokens, segments, index, target, weight

    def check_set(self, seed, count, length, held):
        """Single questions, one a row, for watching the training: tokens, segments, [(row, start, end, kind, language)]."""
        g = Grammar(seed, held)
        tokens, segments, spans = np.zeros((count, length), np.int16), np.full((count, length), -1, np.int16), []
        row = 0
        while row < count:
            doc = g.document(turns=1)
            ids, _, answers = self.chat(doc)
            if len(ids) > length:
                continue
            tokens[row, :len(ids)], segments[row, :len(ids)] = ids, 0
            start, end, kind = answers[0]
            zh = any("\u4e00" <= c <= "\u9fff" for c in doc[-2][1])
            spans.append((row, start, end, kind, "zh" if zh else "en"))
            row += 1
        return tokens, segments, spans
