#!/usr/bin/env python3
"""The recipes of docs/recipes.md that need packages from npm and pip, as they stand there, against a mosquitto and a promptd of
their own: paho-mqtt, aiomqtt, MQTT.js, a Node-RED, and the automations in Home Assistant's own core.

Installs what they need into a folder of its own. The shell and the sketch are in tests/it/recipes.rs.
"""
import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import venv

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
import demo  # noqa: E402

PATIENCE = 90
COMMANDS = {"type": "object", "additionalProperties": False, "required": ["device", "action"],
            "properties": {"device": {"type": "string"}, "action": {"enum": ["on", "off"]}}}


class Kitchen(demo.House):
    """The board of the README."""

    def up(self):
        broker, config = os.path.join(self.folder, "mosquitto.conf"), os.path.join(self.folder, "promptd.toml")
        with open(broker, "w", encoding="ascii") as file:
            file.write(f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[model]\npath = {json.dumps(demo.MODEL)}\n[socket]\npath = {json.dumps(self.http)}\n"
                       f"[mqtt]\nurl = \"mqtt://127.0.0.1:{self.port}\"\nnode = \"kitchen\"\n"
                       "[profiles.house]\nsystem = \"greenhouse temperature: 21.5 °C\"\n"
                       f"[profiles.commands]\nschema = '''{json.dumps(COMMANDS)}'''\n")
        self.start("mosquitto", [demo.tool("mosquitto"), "-c", broker])
        self.wait_until_ready(self.start("promptd", [self.promptd, "serve", "--config", config]))
        online = self.listen("promptd/kitchen/availability")
        assert online == "online", online

    def listen(self, topic):
        return demo.run([demo.tool("mosquitto_sub"), "-p", str(self.port), "-C", "1", "-W", str(PATIENCE), "-t", topic]).strip()


def block(heading, language):
    """The program under this heading."""
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)
    return re.search(rf"^```{language}\n(.*?)^```$", section, re.M | re.S).group(1)


def environment(into, packages, python=sys.executable):
    """The Python of an environment with these packages."""
    if not (into / "bin" / "python").exists():
        if python == sys.executable:
            venv.create(into, with_pip=True)
        else:
            subprocess.run([python, "-m", "venv", into], check=True)
    subprocess.run([into / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages], check=True)
    return into / "bin" / "python"


def npm(into, *packages):
    into.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", into, *packages], check=True)


def says(command, *expected):
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    out = done.stdout.strip()
    print(out, flush=True)
    missing = [word for word in expected if word not in out]
    if done.returncode or missing:
        raise demo.Failure(f"status {done.returncode}, {missing} missing: {out}\n{done.stderr}")


def at(text, house):
    """The program with the address of this broker."""
    changed = text.replace("localhost:1883", f"localhost:{house.port}").replace('"localhost", 1883', f'"localhost", {house.port}')
    if changed == text:
        raise demo.Failure("the recipe names no broker")
    return changed


def python(heading, package):
    def play(house, into):
        script = into / "recipe.py"
        into.mkdir(parents=True, exist_ok=True)
        script.write_text(at(block(heading, "python"), house), encoding="utf-8")
        program = environment(into / "venv", [package])
        # Twice: a recipe that works once only is none.
        for _ in range(2):
            says([program, script], "'action': 'off'" if package.startswith("paho") else "\nok: The greenhouse is at 21.5")
    return play


def mqttjs(house, into):
    npm(into, "mqtt@5")
    script = into / "recipe.mjs"
    script.write_text(at(block("Node: MQTT.js", "js"), house), encoding="utf-8")
    says(["node", script], "1 ok", "action: 'on'")


def node_red(house, into):
    npm(into, "node-red@4")
    flow = json.loads((ROOT / "examples/node-red/flow.json").read_text(encoding="utf-8"))
    for node in flow:
        if node["type"] == "mqtt-broker":
            assert (node["broker"], node["port"]) == ("localhost", "1883"), node
            node["port"] = str(house.port)
    user = pathlib.Path(tempfile.mkdtemp(prefix="user-", dir=into))
    (user / "flow.json").write_text(json.dumps(flow), encoding="utf-8")
    # No editor: the flow alone.
    (user / "settings.js").write_text("module.exports = { httpAdminRoot: false, httpNodeRoot: false, flowFile: 'flow.json' };\n", encoding="utf-8")
    port = str(demo.free_port())
    house.start("node-red", ["node", into / "node_modules/node-red/red.js", "--userDir", user, "--settings", user / "settings.js", "--port", port])
    sub = [demo.tool("mosquitto_sub"), "-p", str(house.port), "-W", str(PATIENCE), "-v", "-C", "1", "-t", "home/+/set"]
    listening = subprocess.Popen(sub, stdout=subprocess.PIPE, text=True)
    deadline = demo.time.monotonic() + PATIENCE
    # The wish again until it is heard: Node-RED tells nobody when its flow listens.
    while listening.poll() is None and demo.time.monotonic() < deadline:
        demo.run([demo.tool("mosquitto_pub"), "-p", str(house.port), "-t", "home/wish", "-m", "Turn on the kitchen light."])
        try:
            listening.wait(1)
        except subprocess.TimeoutExpired:
            pass
    out = listening.communicate()[0].strip()
    print(out, flush=True)
    if out != "home/kitchen_light/set on":
        raise demo.Failure(f"Node-RED did {out!r}")


def home_assistant(house, into):
    into.mkdir(parents=True, exist_ok=True)
    # `python3.13` or whatever Home Assistant's release of the day needs.
    program = environment(into / "venv", ["homeassistant", "paho-mqtt"], os.environ.get("HA_PYTHON", "python3.13"))
    (into / "automations.yaml").write_text(block("Home Assistant", "yaml"), encoding="utf-8")
    says([program, HERE / "home_assistant.py", into / "automations.yaml", str(house.port)], "light.turn_on light.kitchen_light")


RECIPES = {
    "paho-mqtt": (python("Python: paho-mqtt", "paho-mqtt"), None),
    "aiomqtt": (python("Python: aiomqtt", "aiomqtt"), None),
    "mqttjs": (mqttjs, "npm"),
    "node-red": (node_red, "npm"),
    "home-assistant": (home_assistant, os.environ.get("HA_PYTHON", "python3.13")),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", required=True)
    parser.add_argument("--into", required=True, type=pathlib.Path)
    parser.add_argument("--only", choices=RECIPES, action="append")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="promptd-", dir="/tmp")
    house, failed = Kitchen(os.path.abspath(args.promptd), folder), []
    try:
        house.up()
        for name in args.only or RECIPES:
            play, needs = RECIPES[name]
            print(f"== {name}", flush=True)
            # A name that is there and does not run (a shim without its version) is not there.
            if needs and (not shutil.which(needs) or subprocess.run([needs, "--version"], capture_output=True).returncode):
                print(f"there is no {needs}: not run")
                continue
            try:
                play(house, args.into.resolve() / name)
            except (demo.Failure, subprocess.SubprocessError, AssertionError) as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed.append(name)
    finally:
        if failed:
            house.show_logs()
        house.down()
        shutil.rmtree(folder, ignore_errors=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
    print("Every recipe works.")


main()
