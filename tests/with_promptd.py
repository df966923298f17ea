#!/usr/bin/env python3
"""Runs a command beside a promptd that serves one model, and ends with the command's status.

    with_promptd.py --promptd PROGRAM [--model DIR] -- COMMAND… {socket} …

`{socket}` in the command becomes the path of promptd's HTTP socket. promptd runs in a folder of its own and is stopped at the end.
"""
import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile

import demo


class Alone(demo.House):
    """promptd without a broker."""

    def up(self):
        config = os.path.join(self.folder, "promptd.toml")
        with open(config, "w", encoding="utf-8") as file:
            file.write(f"[model]\npath = {json.dumps(self.model)}\n[socket]\npath = {json.dumps(self.http)}\n")
        self.wait_until_ready(self.start("promptd", [self.promptd, "serve", "--config", config]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--promptd", required=True)
    parser.add_argument("--model", default=demo.MODEL)
    parser.add_argument("command", nargs="+")
    args = parser.parse_args()
    folder = tempfile.mkdtemp(prefix="promptd-", dir="/tmp")
    house, status = Alone(os.path.abspath(args.promptd), folder), 1
    house.model = os.path.abspath(args.model)
    try:
        house.up()
        status = subprocess.run([word.replace("{socket}", house.http) for word in args.command]).returncode
    except demo.Failure as error:
        print(f"with_promptd: {error}", file=sys.stderr)
        house.show_logs()
    finally:
        house.down()
        shutil.rmtree(folder, ignore_errors=True)
    sys.exit(status)


if __name__ == "__main__":
    main()
