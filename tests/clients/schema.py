#!/usr/bin/env python3
"""schemathesis over promptd's HTTP API: by promptd's own /openapi.json, and by OpenAI's description where that is there.

Nothing may be answered with a 500, with a status or a body that the description does not know, or take promptd down. What
changes the service (/admin) is left out."""
import argparse
import json
import os
import pathlib
import subprocess
import sys
import urllib.request
import venv

# 501, 503 and 504 are promptd's words for what it does not do, for a full queue and for a deadline.
CONFIG = """
[checks]
positive_data_acceptance.enabled = false
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 501, 503, 504]
negative_data_rejection.expected-statuses = ["4xx", 501, 503, 504]
ignored_auth.enabled = true
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tcp", required=True, help="address and port of promptd's TCP listener")
    parser.add_argument("--key", required=True)
    parser.add_argument("--into", required=True, type=pathlib.Path)
    parser.add_argument("--openai", type=pathlib.Path, help="OpenAI's description, cut to what promptd has of it")
    parser.add_argument("--examples", type=int, default=100, help="requests for each operation")
    args = parser.parse_args()
    args.into = args.into.resolve()
    place = args.into / "schemathesis"
    if not (place / "bin" / "python").exists():
        venv.create(place, with_pip=True)
    subprocess.run([place / "bin" / "python", "-m", "pip", "install", "--quiet", "schemathesis>=4,<5"], check=True)
    config = args.into / "schemathesis.toml"
    config.write_text(CONFIG)
    bearer = f"Bearer {args.key}"
    url = f"http://{args.tcp}"
    request = urllib.request.Request(f"{url}/openapi.json", headers={"Authorization": bearer})
    own = args.into / "openapi.json"
    own.write_bytes(urllib.request.urlopen(request).read())
    books = [("promptd's own description", own, url, [])]
    if args.openai and args.openai.exists():
        # promptd's errors stand in its own description: OpenAI's names only the status 200.
        more = ["--exclude-checks", "status_code_conformance,unsupported_method,ignored_auth,negative_data_rejection"]
        # Stored completions are not promptd's; the rest of the file is.
        book = json.loads(args.openai.read_text())
        book["paths"]["/chat/completions"].pop("get", None)
        cut = args.into / "openai.json"
        cut.write_text(json.dumps(book))
        books.append(("OpenAI's description", cut, f"{url}/v1", more))
    else:
        print("== OpenAI's description is not there: not run")
    failed = []
    for name, book, base, more in books:
        print(f"== {name}", flush=True)
        command = [place / "bin" / "schemathesis", "--config-file", config, "run", book, "--url", base,
                   "--header", f"Authorization: {bearer}", "--exclude-path-regex", "^/admin/",
                   "--max-examples", str(args.examples), "--phases", "examples,coverage,fuzzing",
                   "--request-timeout", "60", "--continue-on-failure", *more]
        if subprocess.run(command, cwd=args.into, env={**os.environ, "NO_COLOR": "1"}).returncode:
            failed.append(name)
    if failed:
        sys.exit(f"not as described: {', '.join(failed)}")


main()
