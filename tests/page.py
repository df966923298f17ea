#!/usr/bin/env python3
"""The built-in page in a headless Chromium, driven over its own pipe: a wrong key, the right one, the status, an answer that comes
piece by piece, one that is stopped, markup that stays text. Nothing is loaded from anywhere else, and nothing is complained about.

Standard library only; Chromium is Debian's (apt-get install chromium)."""
import argparse
import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 60


class Browser:
    """A Chromium that speaks its DevTools protocol on two pipes."""

    def __init__(self, program, folder):
        reading, self.writing = os.pipe()
        self.reading, writing = os.pipe()

        def pipes():
            # It reads from descriptor 3 and writes to 4; neither of ours may be one of these before it is copied.
            high = [os.dup2(reading, 60), os.dup2(writing, 61)]
            os.dup2(high[0], 3)
            os.dup2(high[1], 4)

        command = [program, "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}", "--no-first-run",
                   "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--window-size=1100,720"]
        if os.geteuid() == 0:
            # Its sandbox is not for root; the page is our own.
            command.append("--no-sandbox")
        self.process = subprocess.Popen(command, close_fds=False, preexec_fn=pipes, stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.close(reading)
        os.close(writing)
        self.rest, self.number, self.session, self.events = b"", 0, None, []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise SystemExit(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def read(self):
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            if not select.select([self.reading], [], [], max(0, end - time.monotonic()))[0]:
                raise SystemExit("the browser says nothing")
            piece = os.read(self.reading, 1 << 16)
            if not piece:
                raise SystemExit("the browser has ended")
            self.rest += piece
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def value(self, expression):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise SystemExit(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def until(self, what, expression):
        end = time.monotonic() + PATIENCE
        while not self.value(expression):
            if time.monotonic() > end:
                shown = self.value("document.body.innerText")
                raise SystemExit(f"waited for {what}; the page says:\n{shown}")
            time.sleep(0.05)
        print("  " + what)

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def field(name, value):
    return f"""(() => {{ const f = document.getElementById({json.dumps(name)}); f.value = {json.dumps(value)};
        f.dispatchEvent(new Event("change")); }})()"""


def ask(browser, question):
    browser.value(field("question", question))
    browser.value("document.getElementById('ask').requestSubmit()")


def play(browser, url, key, picture):
    browser.call("Page.navigate", url=url)
    browser.until("without a key it asks for one", "document.getElementById('state')?.textContent === 'enter an API key'")
    browser.value(field("key", "not-a-key-of-anybody"))
    browser.until("a wrong key is told", "document.getElementById('state').textContent === 'this key is not known'")
    # Up to here 401 is what is meant to come; from here on nothing may be complained about.
    browser.value(field("key", key))
    browser.until("with the right one it shows the status", "document.getElementById('state').className === 'ready'")
    browser.events.clear()
    browser.value(field("system", "greenhouse temperature: 21.5 °C\ngarage door: open"))
    turns = "[...document.querySelectorAll('.turn')]"
    for question, answer in [("How warm is it in the greenhouse?", "21.5"), ("Turn on the kitchen light.", "kitchen light")]:
        before = browser.value(f"{turns}.length")
        ask(browser, question)
        browser.until(f"{question} is answered", f"{turns}.length === {before + 2} && {turns}.at(-1).querySelector('small') !== null")
        text = browser.value(f"{turns}.at(-1).firstChild.data")
        if answer not in text:
            raise SystemExit(f"{question!r} was answered with {text!r}")
    if picture:
        browser.until("the counters moved", "document.getElementById('facts').innerText.includes('answered')")
        browser.value("new Promise((done) => look().then(done))")
        shot = browser.call("Page.captureScreenshot", format="png")["data"]
        with open(picture, "wb") as file:
            file.write(base64.b64decode(shot))
    ask(browser, "<img src=x onerror=document.title='broken'> <b>Who</b> are you?")
    browser.until("markup stays text", "document.getElementById('stop').disabled && document.querySelector('#talk img, #talk b') === null")
    # Pressed before the first piece can have come.
    browser.value(field("question", "Who are you?"))
    browser.value("document.getElementById('ask').requestSubmit(); document.getElementById('stop').click()")
    browser.until("an answer is stopped", f"{turns}.at(-1).innerText.trim() === 'stopped' && document.getElementById('stop').disabled")
    if browser.value("document.title") != "promptd":
        raise SystemExit("markup was run")
    for event in browser.events:
        params = event.get("params", {})
        if event["method"] == "Network.requestWillBeSent" and not params["request"]["url"].startswith(url):
            raise SystemExit(f"something else was asked for: {params['request']['url']}")
        if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
            raise SystemExit(f"the browser complains: {params}")
    print("  no request to anybody else, no complaint")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tcp", required=True)
    parser.add_argument("--key", required=True)
    parser.add_argument("--picture", help="where to put a picture of the page")
    args = parser.parse_args()
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("there is no Chromium (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="promptd-page-", ignore_cleanup_errors=True) as folder:
        browser = Browser(program, folder)
        try:
            play(browser, f"http://{args.tcp}/", args.key, args.picture)
        finally:
            browser.close()
    print("The page is right.")


main()
