"""The grammar of IoT talk: seeded generators of contexts, questions, wishes and greetings with their only right answers."""
import json
import random
from typing import NamedTuple

import words as W

QUANTITIES = {  # key: unit, low, high, decimals probability, English word, Chinese word
    "temperature": (" °C", -25, 99, 0.6, "temperature", "温度"),
    "humidity": (" %", 0, 100, 0.2, "humidity", "湿度"),
    "pressure": (" hPa", 900, 1099, 0.2, "pressure", "气压"),
    "brightness": (" lux", 0, 2000, 0.0, "brightness", "亮度"),
    "battery": (" %", 0, 100, 0.1, "battery", "电量"),
    "power": (" W", 0, 3000, 0.2, "power", "功率"),
    "level": (" %", 0, 100, 0.1, "water level", "水位"),
    "noise": (" dB", 10, 120, 0.2, "noise", "噪音"),
    "co2": (" ppm", 300, 3000, 0.0, "CO2", "二氧化碳"),
}
# {n} is the name, {q} the quantity's word. The answer's form depends on the quantity alone, never on the question.
ASK = ["What is the {q} of the {n}?", "What is the {n} {q}?", "What {q} does the {n} have?", "Tell me the {q} of the {n}.",
       "What is the {q} in the {n}?", "How high is the {q} in the {n}?", "Tell me the {n} {q}.", "And the {n} {q}?",
       "Can you tell me the {q} of the {n}?", "Read the {n} {q}.", "{n} {q}?", "Do you know the {n} {q}?"]
ASK_MORE = {
    "temperature": ["How warm is the {n}?", "How cold is the {n}?", "How hot is it in the {n}?", "How warm is it in the {n}?"],
    "humidity": ["How humid is the {n}?", "How humid is it in the {n}?"],
    "brightness": ["How bright is the {n}?", "How bright is it in the {n}?"],
    "battery": ["How full is the {n} battery?", "How much battery does the {n} have?"],
    "power": ["How much power does the {n} use?", "How much power does the {n} draw?"],
    "noise": ["How loud is the {n}?", "How loud is it in the {n}?"],
}
STATES = {"switch": ("on", "off"), "open": ("open", "closed"), "lock": ("locked", "unlocked"), "run": ("running", "stopped")}
ASK_STATE = ["Is the {n} {s}?", "Is the {n} {s} or {o}?", "What is the state of the {n}?", "What is the {n} state?",
             "Tell me the state of the {n}.", "How is the {n}?", "Is the {n} {s} now?", "Do you know if the {n} is {s}?",
             "And the {n}?", "What about the {n}?", "Check the {n}.", "Can you check the {n}?"]
DO = {
    "on": ["Turn on the {n}.", "Turn the {n} on.", "Switch on the {n}.", "Switch the {n} on.", "Please turn on the {n}.",
           "Could you turn on the {n}?", "I want the {n} on.", "Power on the {n}."],
    "off": ["Turn off the {n}.", "Turn the {n} off.", "Switch off the {n}.", "Switch the {n} off.", "Please turn off the {n}.",
            "Could you turn off the {n}?", "I want the {n} off.", "Power off the {n}."],
    "open": ["Open the {n}.", "Please open the {n}.", "Could you open the {n}?", "I want the {n} open."],
    "close": ["Close the {n}.", "Shut the {n}.", "Please close the {n}.", "Could you close the {n}?", "I want the {n} closed."],
    "lock": ["Lock the {n}.", "Please lock the {n}.", "Could you lock the {n}?", "I want the {n} locked."],
    "unlock": ["Unlock the {n}.", "Please unlock the {n}.", "Could you unlock the {n}?", "I want the {n} unlocked."],
    "start": ["Start the {n}.", "Please start the {n}.", "Could you start the {n}?", "Run the {n}."],
    "stop": ["Stop the {n}.", "Please stop the {n}.", "Could you stop the {n}?", "Halt the {n}."],
    "set": ["Set the {n} to {v}.", "Please set the {n} to {v}.", "Could you set the {n} to {v}?", "Change the {n} to {v}.",
            "Put the {n} at {v}.", "I want the {n} at {v}."],
    "dim": ["Dim the {n} to {v}.", "Please dim the {n} to {v}.", "Could you dim the {n} to {v}?"],
}
WISHES = {"switch": ("on", "off"), "open": ("open", "close"), "lock": ("lock", "unlock"), "run": ("start", "stop")}
MODES = "auto eco night day sleep away holiday boost silent party".split()
EN_SYSTEM = ["You are a home assistant.", "Readings:", "You answer from the readings.", "State of the house:",
             "You are a helpful assistant.", "Sensors and devices:"]
SMALL_TALK = [  # questions, answer
    (["Hello", "Hello!", "Hi", "Hi!", "Hi there!", "Hey", "Hello there", "Good day!"], "Hello! How can I help?"),
    (["Good morning", "Good morning!"], "Good morning! How can I help?"),
    (["Good evening", "Good evening!"], "Good evening! How can I help?"),
    (["Who are you?", "What are you?", "What is your name?", "Tell me who you are.", "Are you a robot?", "Introduce yourself."],
     "I am the promptd demo model, a small assistant for homes and machines."),
    (["What can you do?", "How can you help me?", "What do you know?", "Help", "Help!"],
     "I answer from the readings you give me and turn wishes into JSON commands."),
    (["Thanks", "Thanks!", "Thank you", "Thank you!", "Thank you very much."], "You are welcome."),
    (["Bye", "Bye!", "Goodbye", "Goodbye!", "Good night", "Good night!"], "Goodbye!"),
]
ZH_ASK = ["{n}的{q}是多少？", "{n}{q}是多少？", "{n}{q}多少？", "请问{n}的{q}是多少？", "告诉我{n}的{q}。", "{n}现在的{q}是多少？",
          "现在{n}的{q}是多少？", "{n}的{q}有多高？", "查一下{n}的{q}。", "{n}的{q}呢？", "请告诉我{n}的{q}。", "你知道{n}的{q}吗？"]
ZH_ASK_MORE = {"temperature": ["{n}现在多少度？", "{n}多少度？", "{n}有多热？", "{n}冷不冷？"], "humidity": ["{n}有多潮湿？"],
               "brightness": ["{n}有多亮？"], "battery": ["{n}还有多少电？"], "power": ["{n}用多少电？"], "noise": ["{n}有多吵？"]}
ZH_STATES = {"switch": ("开着", "关着"), "open": ("开着", "关着"), "lock": ("锁着", "没锁"), "run": ("运行中", "已停止")}
ZH_ASK_STATE = ["{n}{s}吗？", "{n}现在{s}吗？", "{n}是什么状态？", "{n}现在怎么样？", "请问{n}{s}吗？", "{n}的状态是什么？",
                "查一下{n}。", "{n}呢？", "告诉我{n}的状态。", "你知道{n}{s}吗？"]
ZH_DO = {
    "on": ["打开{n}。", "开{n}。", "请打开{n}。", "把{n}打开。", "帮我打开{n}。", "请把{n}打开。"],
    "off": ["关闭{n}。", "关掉{n}。", "请关闭{n}。", "把{n}关掉。", "帮我关掉{n}。", "请把{n}关掉。"],
    "lock": ["锁上{n}。", "请锁上{n}。", "把{n}锁上。", "帮我锁上{n}。"],
    "unlock": ["解锁{n}。", "请解锁{n}。", "把{n}解锁。", "帮我解锁{n}。"],
    "start": ["启动{n}。", "请启动{n}。", "让{n}开始运行。", "帮我启动{n}。"],
    "stop": ["停止{n}。", "请停止{n}。", "让{n}停下。", "帮我停止{n}。"],
    "set": ["把{n}设为{v}。", "把{n}调到{v}。", "将{n}设为{v}。", "请把{n}设为{v}。", "帮我把{n}调到{v}。"],
    "dim": ["把{n}调暗到{v}。", "请把{n}调暗到{v}。", "将{n}调暗到{v}。"],
}
ZH_DO["open"], ZH_DO["close"] = ZH_DO["on"], ZH_DO["off"]
ZH_SYSTEM = ["你是家庭助手。", "当前状态：", "请根据读数回答。", "传感器读数：", "你是一个助手。"]
ZH_SMALL_TALK = [
    (["你好", "你好！", "您好", "您好！", "嗨"], "你好！有什么可以帮你？"),
    (["早上好", "早上好！"], "早上好！有什么可以帮你？"),
    (["晚上好", "晚上好！"], "晚上好！有什么可以帮你？"),
    (["你是谁？", "你是什么？", "你叫什么名字？", "请介绍一下你自己。", "你是机器人吗？"], "我是promptd的演示模型，一个小小的家庭助手。"),
    (["你能做什么？", "你会什么？", "你能帮我什么？", "帮助"], "我根据读数回答问题，把愿望变成JSON命令。"),
    (["谢谢", "谢谢！", "谢谢你", "多谢！"], "不客气。"),
    (["再见", "再见！", "拜拜", "晚安", "晚安！"], "再见！"),
]
ZH_SIDES = "东西南北大小新旧"
ZH_NOUNS = sorted({n for lists in (W.ZH_DEVICES, W.ZH_DEVICES_HELD) for names in lists.values() for n in names}, key=lambda n: (-len(n), n))
UNKNOWN = {"en": "I do not know.", "zh": "我不知道。"}


class About(NamedTuple):
    """What a question is about and where it says so, for the guide of attention in data.py."""
    name: str
    what: str  # quantity, state family or action
    value: str  # as the answer has it; empty where there is none
    at: int  # the character of the question at which the name starts
    said: int = -1  # the same for the value of a wish


def command(device, action, value=None):
    parts = {"device": device, "action": action} | ({} if value is None else {"value": value})
    return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))


class Grammar:
    """One stream of examples. `held` draws names and values that training never sees, and only those.

    `pieces` (letter tokens) makes it harder: names put together from any of them, and more names that nearly match.
    `near` and `missing` are the shares of lines that resemble an earlier one and of questions without an answer.
    `double` is the share of questions asked on purpose about a line with a near double, `zh` that of Chinese,
    `read` that of questions with an answer.
    """

    def __init__(self, seed, held=False, pieces=None, near=0.4, missing=0.22, double=0.0, zh=0.5, read=0.42):
        self.r, self.held, self.pieces, self.near, self.missing = random.Random(seed), held, pieces, near, missing
        self.double, self.zh, self.read = double, zh, read

    # ---- names and values
    def pseudo(self):
        r = self.r
        while True:
            if self.pieces and r.random() < 0.7:
                name = "".join(r.choices(self.pieces, k=r.choice((1, 2, 2, 3, 3, 4))))
                if 3 <= len(name) <= 13 and not W.name_held(name) and name not in W.PLACES_HELD + W.OTHERS_HELD:
                    return name
                continue
            name = "".join(r.choice("bcdfghjklmnprstvwz") if r.random() < 0.8 else r.choice(("st", "tr", "ch", "sh", "br", "pl", "qu", "x", "y"))
                           for _ in range(1)) + "".join(r.choice("aeiou") + r.choice(("", "", "l", "n", "r", "s", "t", "m", "ck", "d", "b", "v", "z", "g", "p", "th", "ll"))
                                                        + r.choice(("", "b", "d", "k", "l", "m", "n", "t", "r", "s", "c", "f", "g")) for _ in range(r.randint(1, 3)))
            if 3 <= len(name) <= 10 and W.name_held(name) == self.held and name not in W.PLACES_HELD + W.OTHERS_HELD:
                return name

    def word(self):
        r = self.r
        if self.held:
            return r.choice(W.PLACES_HELD if r.random() < 0.5 else W.OTHERS_HELD) if r.random() < 0.85 else self.pseudo()
        x = r.random() * (1.6 if self.pieces else 1)  # with pieces, more of them
        return r.choice(W.PLACES) if x < 0.4 else r.choice(W.WORDS) if x < 0.6 else self.pseudo()

    def place_en(self):
        r, x = self.r, self.r.random()
        if x < 0.55:
            return self.word()
        if x < 0.8:
            return f"{r.choice(W.ADJECTIVES)} {self.word()}"
        if x < 0.9:
            return f"{self.word()} {r.randint(1, 40)}"
        return f"{self.word()} {self.word()}"

    def device_en(self, kind):
        r, x = self.r, self.r.random()
        nouns = W.DEVICES_HELD[kind] if self.held and r.random() < 0.25 else W.DEVICES[kind]
        noun = r.choice(nouns).replace("-", " ")
        if self.held or x < 0.72:
            return f"{self.place_en()} {noun}"
        return noun if x < 0.8 else f"{noun} {r.randint(1, 40)}" if x < 0.9 else f"{r.choice(W.ADJECTIVES)} {noun}"

    def place_zh(self):
        r, x = self.r, self.r.random()
        if self.held and x < 0.6:
            name = r.choice(W.ZH_PLACES_HELD)
        elif x < 0.3:
            name = r.choice(W.ZH_PLACES)
        else:
            while True:
                name = "".join(r.choices(W.ZH_CHARS, k=r.choice((2, 2, 3, 3, 4))))
                if W.name_held(name) == self.held and name not in W.ZH_PLACES_HELD:
                    break
        x = r.random()
        return name + (f"{r.randint(1, 40)}号" if x < 0.08 else "") if x < 0.9 else r.choice("东西南北前后左右大小新旧") + name

    def device_zh(self, kind):
        r = self.r
        noun = r.choice(W.ZH_DEVICES_HELD[kind] if self.held and r.random() < 0.25 else W.ZH_DEVICES[kind])
        if self.held or r.random() < 0.82:
            return self.place_zh() + noun
        return noun if r.random() < 0.6 else f"{r.randint(1, 40)}号{noun}"

    def place(self, zh):
        return self.place_zh() if zh else self.place_en()

    def device(self, zh, kind):
        return self.device_zh(kind) if zh else self.device_en(kind)

    def number(self, low, high, decimals):
        r = self.r
        while True:
            v = r.randint(low, high)
            text = str(v) if r.random() >= decimals else f"{v}.{r.randint(0, 9)}"
            if W.value_held(text) == self.held:
                return text

    # ---- context: lines are (name, quantity or state family, value)
    def kin(self, name, zh):
        """A different name that shares a part with this one, so that a near miss is not taken for a hit."""
        r = self.r
        if zh:
            side = name[0] in ZH_SIDES and len(name) > 2
            i = r.randrange(max(1, len(name) - 2))  # not the noun: it decides between opening and switching on
            if self.held:  # the hardest kind alone
                return r.choice(ZH_SIDES) + (name[1:] if side else name)
            x, noun = r.random(), next((n for n in ZH_NOUNS if name.endswith(n) and len(name) > len(n)), "")
            if noun and x < 0.3:  # the bedroom's lamp beside the kitchen's: what stands in most houses
                return self.place_zh() + noun
            if x < (0.85 if self.double else 0.7):  # one name within the other, or another side
                if side and r.random() < 0.6:
                    return name[1:] if r.random() < 0.6 else r.choice(ZH_SIDES) + name[1:]
                return r.choice(ZH_SIDES) + name
            return name[:i] + r.choice(W.ZH_CHARS) + name[i + 1:]
        parts = name.split(" ")
        if parts[-1].isdigit():
            return " ".join(parts[:-1] + [str(r.randint(1, 40))])
        if self.pieces and r.random() < 0.3:
            return " ".join(parts[1:]) if len(parts) > 2 and r.random() < 0.5 else f"{r.choice(W.ADJECTIVES)} {name}"
        if len(parts) > 1:
            i = r.randrange(len(parts))
            parts[i] = r.choice(W.ADJECTIVES) if i == 0 and r.random() < 0.5 else self.word()
            return " ".join(parts)
        return f"{r.choice(W.ADJECTIVES)} {name}"

    def fact(self, zh, near=None):
        r, x = self.r, self.r.random()
        if near and x < self.near:
            name, what, _ = r.choice(near)
            if what in QUANTITIES and r.random() < 0.6:
                what = r.choice(list(QUANTITIES))
            else:
                name = self.kin(name, zh)
        elif r.random() < 0.55:
            what = r.choice(list(QUANTITIES) + ["temperature", "temperature", "humidity"])
            name = self.place(zh) if what not in ("battery", "power") or r.random() < 0.4 else self.device(zh, r.choice(list(STATES)))
        else:
            what = r.choice(["switch", "switch", "open", "open", "lock", "run"])
            name = self.device(zh, what)
        if what in QUANTITIES:
            unit, low, high, decimals, *_ = QUANTITIES[what]
            return name, what, self.number(low, high, decimals) + unit
        return name, what, r.choice((ZH_STATES if zh else STATES)[what])

    def context(self, zh, n):
        facts, keys = [], set()
        while len(facts) < n:
            f = self.fact(zh, facts)
            if self.key(f) not in keys:
                keys.add(self.key(f))
                facts.append(f)
        return facts

    @staticmethod
    def key(f):
        return f[0], f[1] if f[1] in QUANTITIES else "state"

    @staticmethod
    def line(f, zh):
        name, what, value = f
        if what not in QUANTITIES:
            return f"{name}：{value}" if zh else f"{name}: {value}"
        return f"{name}{QUANTITIES[what][5]}：{value}" if zh else f"{name} {QUANTITIES[what][4]}: {value}"

    @staticmethod
    def answer(f, zh):
        name, what, value = f
        if what not in QUANTITIES:
            return f"{name}{value}。" if zh else f"The {name} is {value}."
        if zh:
            return f"{name}的{QUANTITIES[what][5]}是{value}。"
        return f"The {name} is at {value}." if what == "temperature" else f"The {name} {QUANTITIES[what][4]} is {value}."

    def question(self, f, zh):
        r, (name, what, _) = self.r, f
        if what in QUANTITIES:
            forms = (ZH_ASK if zh else ASK)
            more = (ZH_ASK_MORE if zh else ASK_MORE).get(what)
            if more and r.random() < 0.35:
                forms = more
            text = r.choice(forms).replace("{q}", QUANTITIES[what][5 if zh else 4])
        else:
            s, o = (ZH_STATES if zh else STATES)[what]
            if r.random() < 0.5:
                s, o = o, s
            text = r.choice(ZH_ASK_STATE if zh else ASK_STATE).replace("{s}", s).replace("{o}", o)
        return self.loosen(text.replace("{n}", name), zh), About(*f, text.index("{n}"))

    def loosen(self, text, zh):
        """People leave out the capital and the last mark."""
        if self.r.random() < 0.12:
            text = text[:-1]
        if not zh and self.r.random() < 0.12:
            text = text[0].lower() + text[1:]
        return text

    # ---- turns: (kind, question, answer, what it is about)
    def reading(self, facts, zh):
        f = self.r.choice(facts)
        if self.double and self.r.random() < self.double:
            doubles = [f for f in facts if any(f[1] == g[1] and f[2] != g[2] and (f[0] in g[0] or g[0] in f[0]) for g in facts if g is not f)]
            f = self.r.choice(doubles or facts)
        ask, about = self.question(f, zh)
        return "reading", ask, self.answer(f, zh), about

    def unknown(self, facts, zh):
        keys = {self.key(f) for f in facts}
        while True:
            f = self.fact(zh, None)
            if facts and self.r.random() < 0.75:  # a near miss: same name and another quantity, or a name much like it
                name, what, value = self.r.choice(facts)
                if what in QUANTITIES and self.r.random() < 0.5:
                    f = name, self.r.choice(list(QUANTITIES)), ""
                elif self.r.random() < 0.5:
                    f = self.kin(name, zh), what, ""
                else:
                    f = (self.place(zh) if what in QUANTITIES else self.device(zh, what)), what, ""
            if self.key(f) not in keys:
                ask, about = self.question((*f[:2], ""), zh)
                return "unknown", ask, UNKNOWN["zh" if zh else "en"], about

    def wish(self, facts, zh):
        r = self.r
        kind = r.choice(["switch", "switch", "open", "open", "lock", "run"])
        known = [f for f in facts if f[1] in STATES]
        if known and r.random() < 0.3:
            name, kind, _ = r.choice(known)
        else:
            name = self.device(zh, kind)
        action, value, said, number = r.choice(WISHES[kind]), None, "", ""
        if r.random() < 0.3:
            action = r.choice(("set", "set", "dim"))
            if action == "set" and r.random() < 0.35:
                value = said = number = r.choice(MODES)
            else:
                number = self.number(0, 100, 0.25 if action == "set" else 0.0)
                value = float(number) if "." in number else int(number)
                unit = "%" if action == "dim" else r.choice(("degrees", "°C", "%", "")) if not zh else r.choice(("度", "°C", "%", ""))
                said = number + ("" if not unit else unit if zh and unit != "°C" else f" {unit}")
        form = r.choice((ZH_DO if zh else DO)[action])
        at, form = form.index("{n}"), form.replace("{n}", name)
        about = About(name, action, number, at, form.find("{v}"))
        return "command", self.loosen(form.replace("{v}", said), zh), command(name, action, value), about

    def talk(self, zh):
        asks, answer = self.r.choice(ZH_SMALL_TALK if zh else SMALL_TALK)
        return "greeting", self.r.choice(asks), answer, None

    def turn(self, facts, zh):
        x = self.r.random()
        if x < self.read and facts:
            return self.reading(facts, zh)
        if x < self.read + self.missing:
            return self.unknown(facts, zh)
        return self.wish(facts, zh) if x < 0.97 else self.talk(zh)

    def system(self, facts, zh):
        lines = [self.line(f, zh) for f in facts]
        if self.r.random() < 0.3 or not lines:
            lines.insert(0, self.r.choice(ZH_SYSTEM if zh else EN_SYSTEM))
        return "\n".join(lines)

    def document(self, max_lines=8, turns=None):
        """A chat as a list of (role, text, kind of answer, what it is about: facts for readings, `About` for an answer)."""
        r = self.r
        zh = r.random() < self.zh
        n = 0 if r.random() < 0.06 else r.randint(1, max_lines)
        facts = self.context(zh, n)
        turns = turns or (1 if r.random() < 0.3 else r.randint(2, 9))
        out = []
        inline = facts and r.random() < 0.08  # readings pasted above the question instead of the system message
        if facts and not inline or not facts and r.random() < 0.4:
            out.append(("system", self.system(facts, zh), None, facts))
        for i in range(turns):
            kind, ask, answer, about = self.turn(facts, zh)
            pasted = inline and i == 0
            if pasted:
                lines = "".join(self.line(f, zh) + "\n" for f in facts)
                ask = lines + ask
                if about:
                    about = about._replace(at=about.at + len(lines), said=about.said + len(lines))
            out += [("user", ask, None, facts if pasted else []), ("assistant", answer, kind, about)]
        return out

    def plain(self, max_lines=5):
        """Text without a chat: readings, then the same as sentences."""
        zh = self.r.random() < 0.5
        facts = self.context(zh, self.r.randint(1, max_lines))
        return "\n".join([self.line(f, zh) for f in facts] + [self.answer(f, zh) for f in facts])


if __name__ == "__main__":
    g = Grammar(1)
    for _ in range(12):
        for role, text, kind, _ in g.document(turns=5):
            print(f"{role:9} {kind or '':8} {text!r}")
        print()
