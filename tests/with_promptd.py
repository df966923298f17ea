#!/usr/bin/env python3
"""Runs a command beside a promptd that serves one model, and ends with the command's status.

    with_promptd.py --promptd PROGRAM [--model DIR] -- COMMAND… {socket} …

`{socket}` in the command becomes the path of promptd's HTTP socket, `{lines}` that of its line socket, `{tcp}` the address of its TCP
listener and `{key}` the key for that. promptd runs in a folder of its own and is stopped at the end.
"""
import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile

import demo


class Alone(demo.House):
    """promptd without a broker."""

    def up(self):
        config, key = os.path.join(self.folder, "promptd.toml"), os.path.join(self.folder, "key")
        with open(key, "w", encoding="utf-8") as file:
            file.write(self.key + "\n")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[model]\npath = {json.dumps(self.model)}\ncontext = {self.context}\n[socket]\npath = {json.dumps(self.http)}\n")
            file.write(f"lines_path = {json.dumps(self.lines)}\ntcp = {json.dumps(self.tcp)}\n{self.more}")
            file.write(f"[clients.tester]\napi_key_file = {json.dumps(key)}\n")
        self.wait_until_ready(self.start("promptd", [self.promptd, "serve", "--config", config]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", required=True)
    parser.add_argument("--model", default=demo.MODEL)
    parser.add_argument("--socket-line", action="append", default=[], help="one more line for [socket]")
    parser.add_argument("--context", type=int, default=0, help="tokens of context of a slot, so that answers end soon")
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="promptd-", dir="/tmp")
    house, status = Alone(os.path.abspath(args.promptd), folder), 1
    house.model = os.path.abspath(args.model)
    house.lines, house.tcp, house.key = os.path.join(folder, "lines.sock"), f"127.0.0.1:{demo.free_port()}", secrets.token_hex(16)
    house.context = args.context
    house.more = "".join(line + "\n" for line in args.socket_line)
    places = {"{socket}": house.http, "{lines}": house.lines, "{tcp}": house.tcp, "{key}": house.key}
    # Whoever ends this ends promptd with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        house.up()
        command = args.command
        for name, value in places.items():
            command = [word.replace(name, value) for word in command]
        status = subprocess.run(command).returncode
    except demo.Failure as error:
        print(f"with_promptd: {error}", file=sys.stderr)
        house.show_logs()
    finally:
        house.down()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
