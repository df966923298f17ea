"""Packs the corpus into rows of tokens: segments, the places that count in the loss, and where the guided heads should look."""
import random
import re

import numpy as np
from tokenizers import Tokenizer

import words
from corpus import QUANTITIES, STATES, Grammar
from tokenizer import ASSISTANT, BOS, END, SYSTEM, USER

ROLE = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
# Weights in the loss: first token of an answer, of a denial, of a value (where the line is chosen), the rest of an answer. All else is text
# that nobody can guess, names and values above all, and hardly counts.
FIRST, DENY, VALUE, ANSWER, OTHER = 1.5, 2.0, 2.0, 1.0, 0.01
STAGES = (  # what the text is like, from easy to hard: settings of the grammar
    dict(near=0.4, missing=0.24, read=0.6),  # many look-ups in few contexts
    dict(near=0.5, missing=0.24, read=0.4, double=0.4, zh=0.45),  # more wishes, near doubles
    dict(near=0.55, missing=0.24, read=0.4, double=0.6, zh=0.45),  # mostly single questions, as most who use it ask
)
SINGLE = (0.0, 0.3, 0.55)  # share of chats with one question
# What says the quantity where its own word is not there, in questions and in the answer about a temperature.
HINT = re.compile("warm|cold|hot|humid|bright|full|battery|power|loud|度|热|冷|潮湿|亮|电|吵| at ")


def find(offsets, start, end):
    """Tokens [first, behind the last) that touch the characters from start to end."""
    inside = [i for i, (a, b) in enumerate(offsets) if a < end and b > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


class Guide:
    """Where the guided heads of a text should look, a list for each purpose with one entry a token.

    `group` numbers the tokens that name a thing (a line's name and quantity, the same in a question and in an answer), 0 for all others.
    `gather` is the group over which a token should spread its attention evenly. `look`, `know` and `copy` are positions: the token of the
    right line that comes next, the right line's colon (the text's first token if there is none), and the token of the question that comes next.
    """
    NAMES = ("group", "gather", "look", "know", "copy")

    def __init__(self, space):
        self.space, self.groups = space, 0
        for name in self.NAMES:
            setattr(self, name, [])

    def grow(self, count):
        for name in self.NAMES:
            getattr(self, name).extend([0 if name in ("group", "gather") else -1] * count)

    def new_group(self, ids, *spans):
        """Spaces say nothing about which thing is meant and stay out."""
        self.groups += 1
        for start, end in spans:
            self.group[start:end] = [0 if i == self.space else self.groups for i in ids[start:end]]
        return self.groups

    @staticmethod
    def follow(pointers, ids, source, target):
        """The token before each of the target span points to its source; the last one to what stands behind the source."""
        if ids[slice(*source)] == ids[slice(*target)] and target[1] > target[0]:
            for i in range(target[1] - target[0] + 1):
                pointers[target[0] - 1 + i] = source[0] + i


class Packer:
    def __init__(self, tokenizer_file):
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.space = self.tokenizer.token_to_id(" ")
        # Names are also put together from these, so that every piece an unknown name falls into has been copied often.
        self.pieces = sorted(t for t in self.tokenizer.get_vocab() if t.isascii() and t.isalpha() and t.islower() and len(t) < 6)

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def chat(self, document):
        """-> ids, weights (0 for what is read only), [(start, end, kind)] of the answers, guide"""
        ids, weights, spans, guide, lines, asked = [BOS], [0], [], Guide(self.space), {}, None
        guide.grow(1)
        for turn, (role, text, kind, about) in enumerate(document):
            encoded = self.tokenizer.encode(text, add_special_tokens=False)
            body, base = encoded.ids + [END], len(ids) + 1

            def at(start, end, offsets=encoded.offsets, base=base):
                first, last = find(offsets, start, end)
                return base + first, base + last

            ids += [ROLE[role]] + body
            guide.grow(1 + len(body))
            if role != "assistant":
                weights += [0] * (len(body) + 1)
                lines |= self.read_lines(text, about, ids, at, guide)
                if role == "user" and document[turn + 1][3]:
                    asked = self.read_question(text, document[turn + 1][3], ids, at, guide)
                continue
            mine = [DENY if kind == "unknown" else FIRST] + [ANSWER] * (len(body) - 1)
            spans.append((base, len(ids), kind))
            if about:
                name, value, group = asked
                guide.gather[base - 1] = group
                if kind == "unknown":
                    guide.know[base - 1] = 0
                else:
                    start = text.index(about.name, 4 if text.startswith("The ") else 0)
                    mine_name = at(start, start + len(about.name))
                    guide.follow(guide.copy, ids, name, mine_name)
                if kind == "command" and about.value:
                    start = text.index(about.value, text.index('"value":') + 8)
                    guide.follow(guide.copy, ids, value, at(start, start + len(about.value)))
                if kind == "reading":
                    start = len(text) - 1 - len(about.value)
                    colon, source = lines[Grammar.key(about)]
                    target = at(start, start + len(about.value))
                    guide.know[base - 1] = colon
                    guide.follow(guide.look, ids, source, target)
                    group = guide.new_group(ids, mine_name, self.quantity(text, about, text.index(about.name) + len(about.name), at))
                    guide.gather[target[0] - 1:target[1]] = [group] * (target[1] - target[0] + 1)
                    mine[target[0] - base] = VALUE
            weights += [0] + mine
        return ids, weights, spans, guide

    @staticmethod
    def read_lines(text, facts, ids, at, guide):
        """Guides the lines of a message -> {key of the fact: (position of the colon, span of the value)}"""
        found, start, left = {}, 0, list(facts)
        for line in text.split("\n"):
            if left and line.startswith(left[0][0]) and line.endswith(left[0][2]):
                fact = left.pop(0)
                value = start + len(line) - len(fact[2])
                mark = line.rindex("：" if "：" in line else ": ") + start
                group = guide.new_group(ids, at(start, mark))
                colon, span = at(mark, value)[0], at(value, value + len(fact[2]))
                guide.gather[colon:span[1] + 1] = [group] * (span[1] + 1 - colon)
                found[Grammar.key(fact)] = colon, span
            start += len(line) + 1
        return found

    @staticmethod
    def quantity(text, about, behind, at):
        """The span that says the quantity, looked for behind the name first; empty for states."""
        if about.what not in QUANTITIES:
            return 0, 0
        own = re.compile("|".join(QUANTITIES[about.what][4:]))
        for pattern in (own, HINT):
            m = pattern.search(text, behind) or pattern.search(text, text.rfind("\n") + 1, max(0, behind - len(about.name)))
            if m:
                return at(*m.span())
        return 0, 0

    def read_question(self, text, about, ids, at, guide):
        """Guides a question -> spans of the name and of a wish's value, group of both name and quantity"""
        behind = about.at + len(about.name)
        name = at(about.at, behind)
        return name, at(about.said, about.said + len(about.value)), guide.new_group(ids, name, self.quantity(text, about, behind, at))

    def rows(self, seed, count, length, places, stage):
        """`count` rows: tokens [count, length], segments, for `places` positions each index, target and weight, and the guide's five lists.

        Position i is asked for token i + 1. Answers come first, the rest of the places go to random other tokens.
        """
        g, r = Grammar(seed, pieces=self.pieces, **STAGES[stage]), random.Random(seed)
        tokens = np.zeros((count, length), np.int16)
        segments = np.full((count, length), -1, np.int16)
        index = np.zeros((count, places), np.int16)
        target = np.zeros((count, places), np.int16)
        weight = np.zeros((count, places), np.float32)
        guides = {name: np.zeros((count, length), np.int16) for name in Guide.NAMES}
        for row in range(count):
            ids, weights, segment, n, guide, groups = [], [], [], 0, {name: [] for name in Guide.NAMES}, 0
            while len(ids) < length + 1:
                if stage and r.random() < 0.01:
                    new = [BOS] + self.encode(g.plain()) + [END]
                    w, hints = [0] + [0.3] * (len(new) - 1), Guide(self.space)
                    hints.grow(len(new))
                else:
                    turns = 1 if r.random() < SINGLE[stage] else r.randint(2, 4) if length < 200 else r.randint(3, 10) if length < 500 else r.randint(8, 30)
                    document = g.document(max_lines=r.choice((2, 4, 6, 8, 8)) if length < 500 else 14, turns=turns)
                    if any(name in m[1] for m in document for name in words.ZH_PLACES_HELD):
                        continue  # characters drawn one by one can form a name that is held back
                    new, w, _, hints = self.chat(document)
                for name in guide:
                    shift = groups if name in ("group", "gather") else len(ids)
                    guide[name] += [x + shift if x > 0 or x == 0 and name == "know" else x for x in getattr(hints, name)]
                groups += hints.groups
                ids, weights, segment, n = ids + new, weights + w, segment + [n] * len(new), n + 1
            tokens[row], segments[row] = ids[:length], segment[:length]
            for name in guide:
                guides[name][row] = guide[name][:length]
            same = [i for i in range(length) if segment[i] == segment[i + 1]]
            asked = [i for i in same if weights[i + 1]]
            others = [i for i in same if not weights[i + 1]]
            at = (asked + r.sample(others, min(len(others), max(0, places - len(asked)))))[:places]
            index[row, :len(at)] = at
            target[row, :len(at)] = [ids[i + 1] for i in at]
            weight[row, :len(at)] = [weights[i + 1] or OTHER for i in at]
        return tokens, segments, index, target, weight, *guides.values()

    def check_set(self, seed, count, length, held):
        """Single questions, one a row, for watching the training: tokens, segments, look, [(row, start, end, labels)]."""
        g = Grammar(seed, held)
        tokens, segments, spans = np.zeros((count, length), np.int16), np.full((count, length), -1, np.int16), []
        look = np.full((count, length), -1, np.int16)
        row = 0
        while row < count:
            document = g.document(turns=1)
            ids, _, answers, guide = self.chat(document)
            if len(ids) > length:
                continue
            tokens[row, :len(ids)], segments[row, :len(ids)], look[row, :len(ids)] = ids, 0, guide.look
            start, end, kind = answers[0]
            language = "zh" if any("\u4e00" <= c <= "\u9fff" for c in document[-2][1]) else "en"
            labels, about = [f"{kind}/{language}"], document[-1][3]
            if kind == "reading":
                facts = next(m[3] for m in document if m[0] != "assistant" and m[3])
                same = [f for f in facts if (f[1] == about.what or f[1] in STATES and about.what in STATES) and f[0] != about.name]
                if any(f[0] in about.name or about.name in f[0] for f in same):
                    labels.append("double")
                labels.append("1-2 lines" if len(facts) < 3 else "3-5 lines" if len(facts) < 6 else "6-8 lines")
            spans.append((row, start, end, labels))
            row += 1
        return tokens, segments, look, spans
