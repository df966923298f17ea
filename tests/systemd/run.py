#!/usr/bin/env python3
"""promptd in a real systemd: installs the package into a Debian container and does what happens to a service in its life.

    run.py --deb FILE --newer FILE --work DIR [--suite NAME] [--only NAME,…]

As root on Linux with systemd-container and debootstrap (`make test-systemd` installs them). The Debian tree is made once in DIR/base-SUITE; each
run boots it with its changes in memory. Every step prints what it saw; the first that fails ends the run with the journal.

Ubuntu too (focal, jammy, noble): that takes the keys of package ubuntu-keyring, and UBUNTU_MIRROR where another than archive.ubuntu.com is wanted.
"""
import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = "systemd,systemd-sysv,dbus,mosquitto,mosquitto-clients,curl,python3-minimal,ca-certificates"
UBUNTU = ("focal", "jammy", "noble")
UBUNTU_KEYS = "/usr/share/keyrings/ubuntu-archive-keyring.gpg"
# How long any wait may take on a busy machine.
PATIENCE = 90


def mirror(suite):
    if suite in UBUNTU:
        return os.environ.get("UBUNTU_MIRROR", "http://archive.ubuntu.com/ubuntu")
    if os.environ.get("DEBIAN_MIRROR"):
        return os.environ["DEBIAN_MIRROR"]
    told = subprocess.run(["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"], capture_output=True, text=True)
    if not told.stdout.split():
        sys.exit("run.py: this machine's apt names no Debian mirror; set DEBIAN_MIRROR to one")
    return told.stdout.split()[0]


def make_base(folder, suite):
    done = os.path.join(folder, "usr/sbin/mosquitto")
    if os.path.exists(done):
        return
    print(f"making a Debian tree of {suite} (some minutes, once) …", flush=True)
    # Beside its place and moved, so that an interrupted run leaves no half of one.
    subprocess.run(["rm", "-rf", f"{folder}.new"], check=True)
    # Ubuntu has the broker in universe.
    ubuntu = ["--components=main,universe", f"--keyring={UBUNTU_KEYS}"] if suite in UBUNTU else []
    subprocess.run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", *ubuntu, suite, f"{folder}.new", mirror(suite)],
                   check=True, stdout=subprocess.DEVNULL)
    os.rename(f"{folder}.new", folder)


class Failed(Exception):
    pass


class Container:
    """A booted Debian."""

    def __init__(self, base, debs):
        self.log = open(os.path.join(os.path.dirname(base), "console.log"), "wb")
        command = [os.path.join(HERE, "boot.sh"), base, f"--bind-ro={debs}:/debs", "--hostname=board"]
        self.nspawn = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        self.leader = self.wait("the container's systemd", self.find_leader)
        self.write("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n")
        self.wait("the end of its start", lambda: self.sh("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded"))

    def find_leader(self):
        if self.nspawn.poll() is not None:
            raise Failed(f"the container did not start: {open(self.log.name, errors='replace').read()}")
        for task in os.listdir(f"/proc/{self.nspawn.pid}/task"):
            with open(f"/proc/{self.nspawn.pid}/task/{task}/children") as file:
                for child in file.read().split():
                    with open(f"/proc/{child}/cmdline", "rb") as line:
                        if line.read().split(b"\0")[0].endswith(b"systemd"):
                            return child
        return None

    def command(self, script):
        return ["nsenter", "-t", self.leader, "-m", "-u", "-i", "-n", "-p", "-C", "--", "env", "-i",
                "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "sh", "-c", script]

    def sh(self, script, check=True, timeout=PATIENCE):
        done = subprocess.run(self.command(script), capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        if check and done.returncode != 0:
            raise Failed(f"`{script}` ended with {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def start(self, script):
        return subprocess.Popen(self.command(script), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)

    def wait(self, what, condition, patience=PATIENCE):
        end = time.monotonic() + patience
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.1)
        raise Failed(f"waited {patience} s for {what}")

    def systemd(self):
        """Its version."""
        return int(self.sh("systemctl --version").stdout.split()[1])

    def show(self, key, unit="promptd.service"):
        # `-P` is `--property= --value` from systemd 246 on.
        return self.sh(f"systemctl show --property={key} --value {unit}").stdout.strip()

    def ask(self, prompt, check=True, more=""):
        """By the socket, again while the model loads."""
        script = f"promptd ask {more} {shlex.quote(prompt)}"

        def once():
            done = self.sh(script, check=False)
            return done if done.returncode != 75 else None
        done = self.wait(f"an answer to {prompt!r}", once)
        if check and done.returncode != 0:
            raise Failed(f"`{script}` ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def engine(self):
        """The engine's process id as the container sees it."""
        main = self.show("MainPID")
        children = self.sh(f"cat /proc/{main}/task/{main}/children", check=False).stdout.split()
        return children[0] if children else None

    def write(self, path, text, mode="644"):
        done = subprocess.run(self.command(f"install -D -m {mode} /dev/stdin {path}"), input=text, text=True, capture_output=True)
        if done.returncode != 0:
            raise Failed(done.stderr)

    def stop(self):
        if self.nspawn.poll() is None:
            # systemd's orderly power-off; then the end of what is left, by its id.
            self.sh("systemctl poweroff", check=False)
            try:
                self.nspawn.wait(30)
            except subprocess.TimeoutExpired:
                os.kill(int(self.leader), signal.SIGKILL)
                self.nspawn.wait(30)


def expect(what, is_so, detail=""):
    if not is_so:
        raise Failed(f"{what}: {detail}")


MQTT = """[mqtt]
url = "mqtt://localhost:1883"
username = "promptd"
node = "board"
"""


def install(box, args):
    """`apt install ./promptd.deb` on a fresh Debian, and the first prompt."""
    begun = time.monotonic()
    # As people do it; without a network, so that what it depends on has to be there.
    done = box.sh(f"DEBIAN_FRONTEND=noninteractive apt-get install -y -q /debs/{os.path.basename(args.deb)}", timeout=300)
    installed = time.monotonic()
    answer = box.ask("Who are you?")
    first = time.monotonic() - installed
    expect("the demo model says who it is", "promptd demo model" in answer, answer)
    expect("the first prompt is answered within 5 s of installation", first < 5 or os.environ.get("CI"), f"{first:.1f} s")
    expect("it is started at boot", box.sh("systemctl is-enabled promptd.service promptd.socket promptd-lines.socket").returncode == 0)
    expect("nothing was started twice", box.show("NRestarts") == "0")
    # apt's word that it did not fetch a file that was there already is no fault.
    said = "; ".join(line for line in done.stderr.splitlines() if line.strip() and "unsandboxed" not in line)
    return f"apt took {installed - begun:.1f} s, the first answer {first:.1f} s more: {answer!r} {said}".rstrip()


def readiness(box, args):
    expect("active", box.show("ActiveState") == "active")
    status = box.wait("the model in the status", lambda: (text := box.show("StatusText")).startswith("answering with") and text)
    names = box.show("TriggeredBy").split()
    expect("both sockets are systemd's", {"promptd.socket", "promptd-lines.socket"} <= set(names), names)
    line = box.sh("""python3 -c '
import socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/promptd/promptd-lines.sock")
s.sendall(b"{\\"prompt\\":\\"Who are you?\\"}\\n"); s.shutdown(1)
print(s.makefile().read())'""").stdout
    answers = [json.loads(text) for text in line.splitlines() if text.strip()]
    expect("the line socket answers", answers and answers[-1].get("status") == "ok", line)
    who = box.sh("stat -c '%U %G %a' /run/promptd/promptd.sock").stdout.strip()
    expect("the socket is the group's", who == "promptd promptd 660", who)
    return f"STATUS: {status!r}"


# systemd knows LoadCredential= from this version on, and this very one knows it only of a unit without ExecStartPre=.
CREDENTIALS = 247


def use_credentials(box):
    """The drop-in as its comment says it."""
    box.sh("install -D -m 644 -t /etc/systemd/system/promptd.service.d /usr/share/doc/promptd/examples/credentials.conf")


def mqtt(box, args):
    """A broker that wants a password, which promptd gets as a credential, or from a file where systemd is too old for that."""
    box.sh("touch /etc/mosquitto/passwords && mosquitto_passwd -b /etc/mosquitto/passwords promptd geheim-4711 "
           "&& mosquitto_passwd -b /etc/mosquitto/passwords me mine && chown mosquitto /etc/mosquitto/passwords && chmod 600 /etc/mosquitto/passwords")
    box.write("/etc/mosquitto/conf.d/test.conf", "listener 1883 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/passwords\n")
    box.sh("systemctl restart mosquitto")
    if box.systemd() < CREDENTIALS:
        global MQTT
        MQTT += 'password_file = "/etc/promptd/mqtt-password"\n'
        box.write("/etc/promptd/mqtt-password", "geheim-4711\n", "640")
        box.sh("chgrp promptd /etc/promptd/mqtt-password")
    else:
        box.write("/etc/promptd/credentials/mqtt-password", "geheim-4711\n", "600")
        use_credentials(box)
    box.write("/etc/promptd/conf.d/10-mqtt.toml", MQTT)
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    answer = over_mqtt(box, "Who are you?")
    expect("an answer over MQTT", "promptd demo model" in answer, answer)
    # The pattern does not match itself, which stands on a command line too.
    where = box.sh("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep 'geheim-471[1]'", check=False).stdout
    expect("the password is in no environment and on no command line", not where, where)
    journal = box.sh("journalctl -u promptd --no-pager").stdout
    expect("the password is not in the journal", "geheim-4711" not in journal)
    engine = box.wait("the engine", box.engine)
    environment = box.sh(f"tr '\\0' '\\n' < /proc/{engine}/environ").stdout
    expect("the engine knows of no credentials", "CREDENTIALS" not in environment, environment)
    over_mqtt(box, '{"id": "lamp-7", "prompt": "Who are you?"}')
    entries = [json.loads(line) for line in box.sh("journalctl -u promptd PROMPTD_DOOR=mqtt -o json --no-pager").stdout.splitlines()]
    wanted = {"PROMPTD_REQUEST", "PROMPTD_CLIENT", "PROMPTD_TOPIC", "PROMPTD_PROMPT_TOKENS", "PROMPTD_COMPLETION_TOKENS",
              "PROMPTD_QUEUE_MS", "PROMPTD_PREFILL_MS", "PROMPTD_DECODE_MS", "PROMPTD_FINISH"}
    lacking = wanted - set(entries[-1]) if entries else wanted
    expect("the journal has the answer's fields", not lacking, f"{lacking} of {entries[-1:]}")
    way = "from a file" if box.systemd() < CREDENTIALS else "as a credential"
    return f"by the password that came {way}: {answer!r}; in the journal: topic {entries[-1]['PROMPTD_TOPIC']}, client {entries[-1]['PROMPTD_CLIENT']}"


CERTIFICATES = r"""set -e; mkdir -p /root/ca && cd /root/ca
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=house -days 2 -keyout ca.key -out ca.pem
for name in localhost promptd; do
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
    printf 'subjectAltName=DNS:%s\nbasicConstraints=CA:FALSE' $name > $name.ext
    openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
done
install -m 640 -g mosquitto -t /etc/mosquitto ca.pem localhost.pem localhost.key
install -m 600 ca.pem /etc/promptd/credentials/mqtt-ca
install -m 600 promptd.pem /etc/promptd/credentials/mqtt-certificate
install -m 600 promptd.key /etc/promptd/credentials/mqtt-key"""


def mqtt_tls(box, args):
    """A broker that shows a certificate of its own authority and wants one: all three files are credentials, where systemd hands any out."""
    box.sh(f"mkdir -p -m 700 /etc/promptd/credentials && {CERTIFICATES}")
    box.write("/etc/mosquitto/conf.d/tls.conf", "listener 8883 127.0.0.1\ncafile /etc/mosquitto/ca.pem\ncertfile /etc/mosquitto/localhost.pem\n"
              "keyfile /etc/mosquitto/localhost.key\nrequire_certificate true\n")
    box.sh("systemctl restart mosquitto")
    here = "/etc/systemd/system/promptd.service.d/credentials.conf"
    config = MQTT.replace("mqtt://localhost:1883", "mqtts://localhost:8883")
    if box.systemd() < CREDENTIALS:
        config += "[mqtt.tls]\n"
        for key, name in (("ca_file", "mqtt-ca"), ("certificate_file", "mqtt-certificate"), ("key_file", "mqtt-key")):
            box.sh(f"install -m 640 -g promptd /etc/promptd/credentials/{name} /etc/promptd/{name}")
            config += f'{key} = "/etc/promptd/{name}"\n'
    else:
        box.sh(f"sed -i 's/^#LoadCredential=/LoadCredential=/' {here}")
    box.write("/etc/promptd/conf.d/10-mqtt.toml", config)
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    answer = over_mqtt(box, "Who are you?")
    expect("an answer through TLS", "promptd demo model" in answer, answer)
    seen = json.loads(box.sh("promptd status --json").stdout)["broker"]
    expect("it came that way", seen["connected"] and seen["url"].startswith("mqtts://"), seen)
    handed = box.sh("ls /run/credentials/promptd.service", check=False).stdout.split() or ["files that promptd reads"]
    # The other steps go on without TLS.
    box.write("/etc/promptd/conf.d/10-mqtt.toml", MQTT)
    if box.systemd() >= CREDENTIALS:
        box.sh(f"sed -i 's/^LoadCredential=mqtt-c/#&/; s/^LoadCredential=mqtt-k/#&/' {here}")
    box.sh("rm /etc/mosquitto/conf.d/tls.conf && systemctl restart mosquitto")
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    over_mqtt(box, "Who are you?")
    return f"an answer through {seen['url']} by {', '.join(handed)}"


def over_mqtt(box, prompt, wait=PATIENCE):
    def once():
        done = box.sh(f"mosquitto_rr -V 5 -u me -P mine -q 1 -t promptd/board/ask -e me/reply -m {shlex.quote(prompt)} -W 20", check=False)
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            return None
        return answer if answer["status"] == "ok" else None
    return box.wait("an answer over MQTT", once, wait)["text"]


NOT_WITHOUT_LANDLOCK = ("running /bin/true", "running /bin/sh", "a new file in /tmp", "a new file in /var/tmp", "a new file in /dev/shm", "a new file in /run/promptd",
                        "reading /etc/passwd", "reading /etc/promptd/promptd.toml", "listing /", "listing /etc", "listing /home", "listing /var/lib/promptd",
                        "signalling the process that started it")


def sandbox(box, args):
    told = box.sh("systemd-analyze security --no-pager promptd.service").stdout
    score = float(told.split("Overall exposure level for promptd.service:")[1].split()[0])
    weak = [line for line in told.splitlines() if line.startswith("✗")]
    # systemd 245 weighs otherwise, and takes the unit's ProtectClock= for missing.
    most = 1.3 if box.systemd() < CREDENTIALS else 1.1
    expect(f"systemd-analyze security says at most {most}", score <= most, f"{score}\n" + "\n".join(weak))
    # Inside the unit's own walls, what the engine cannot do: by a step before the service starts.
    secrets = "/etc/promptd/credentials/mqtt-password /run/credentials/promptd.service/mqtt-password /etc/mosquitto/passwords"
    library = box.sh("ls /usr/lib/promptd/libonnxruntime.so.*").stdout.strip()
    model = "/usr/share/promptd/models/demo"
    here = "/etc/systemd/system/promptd.service.d"
    if box.systemd() == CREDENTIALS:
        # Credentials or a step before the start, not both.
        box.sh(f"mv {here}/credentials.conf {here}/credentials.off")
    box.write(f"{here}/try.conf",
              f"[Service]\nExecStartPre=-/usr/bin/promptd try-sandbox --model {model} --library {library} {secrets}\n")
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    lines = box.sh("journalctl -u promptd -o cat --no-pager").stdout.splitlines()
    tried = [json.loads(line) for line in lines if line.startswith('{"what"')]
    possible = [attempt["what"] for attempt in tried if attempt["outcome"] == "possible"]
    expect("everything was tried", len(tried) >= 20, lines[-20:])
    if box.systemd() < CREDENTIALS and any("no Landlock" in line for line in lines):
        # Its filter of system calls does not know Landlock's and keeps them away: what promptd's user may with files stays possible.
        expect("the rest is refused", all(what in NOT_WITHOUT_LANDLOCK for what in possible), possible)
    else:
        expect("nothing was possible", not possible, possible)
    box.sh(f"rm {here}/try.conf && test ! -e {here}/credentials.off || mv {here}/credentials.off {here}/credentials.conf")
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    # The service itself, in its mount namespace: nothing to write but its own.
    box.ask("Who are you?")
    main = box.show("MainPID")
    user = box.sh(f"ps -o user= -p {main} 2>/dev/null || stat -c %U /proc/{main}").stdout.strip()
    refused = box.sh(f"nsenter -t {main} -m -- sh -c 'touch /usr/x /etc/x /srv/x /home/x 2>&1'", check=False).stdout
    expect("the service's file system is read-only", refused.count("Read-only") >= 2, refused)
    status = box.sh(f"cat /proc/{main}/status").stdout
    expect("no capabilities", "CapEff:\t0000000000000000" in status, status)
    return f"exposure {score}, {len(tried) - len(possible)} of {len(tried)} attempts refused{f' ({possible} possible without Landlock)' if possible else ''}, runs as {user}"


def doctor(box, args):
    """As root beside the installed service: all is well but for what a container lacks, and a broker that is gone is a problem."""
    well = box.sh("promptd doctor", check=False)
    expect("no problem", well.returncode == 0 and "PROBLEM" not in well.stdout, well.stdout + well.stderr)
    box.sh("systemctl stop mosquitto")
    ill = box.sh("promptd doctor", check=False)
    box.sh("systemctl start mosquitto")
    expect("a broker that is gone is a problem", ill.returncode == 1 and "PROBLEM  broker" in ill.stdout, ill.stdout)
    report = os.path.join(args.work, "doctor.txt")
    with open(report, "w") as file:
        file.write(f"{well.stdout}\n{ill.stdout}")
    return f"{well.stdout.splitlines()[-1]}; without its broker: {ill.stdout.splitlines()[-1]} ({report})"


def drop_ins(box, args):
    """Each example as an operator installs it: systemd understands every line, and promptd answers under it."""
    here, seen = "/etc/systemd/system/promptd.service.d", []
    # Another step's is put back at the end.
    box.sh(f"mkdir -p {here} && cp -a {here} /tmp/before")
    box.sh("test -e /etc/promptd/credentials/mqtt-password || install -D -m 600 /dev/stdin /etc/promptd/credentials/mqtt-password < /dev/null")
    # udev's package makes this group; a container has no udev.
    box.sh("getent group render || groupadd --system render")
    version = box.systemd()
    for name in box.sh("ls /usr/share/doc/promptd/examples").stdout.split():
        if name == "credentials.conf" and version < CREDENTIALS:
            continue
        box.sh(f"rm -f {here}/* && install -D -m 644 -t {here} /usr/share/doc/promptd/examples/{name}")
        told = box.sh("systemctl daemon-reload && systemd-analyze verify --man=no promptd.service 2>&1", check=False).stdout
        # systemd before 248 passes over keys that the unit has; the examples have none of them but credentials.conf.
        passed_over = lambda line: version < 248 and "/promptd.service:" in line and "ignoring" in line
        about = [line for line in told.splitlines() if "promptd" in line and not passed_over(line)]
        expect(f"systemd-analyze verify has nothing to say of {name}", not about, about)
        box.sh("systemctl restart promptd.service")
        answer = box.ask("Who are you?")
        expect(f"an answer under {name}", "promptd demo model" in answer, answer)
        told = box.sh("systemd-analyze security --no-pager promptd.service").stdout
        score = told.split("Overall exposure level for promptd.service:")[1].split()[0]
        seen.append(f"{name} {score}")
        if name == "memory.conf":
            limits = box.sh("systemctl show -p MemoryHigh,MemoryMax,MemorySwapMax promptd.service").stdout.split()
            expect("systemd has the limits", sorted(limits) == ["MemoryHigh=3221225472", "MemoryMax=3670016000", "MemorySwapMax=0"], limits)
        if name == "jetson.conf":
            groups = box.sh(f"grep ^Groups: /proc/{box.show('MainPID')}/status").stdout.split()[1:]
            wanted = box.sh("getent group video render").stdout.splitlines()
            expect("it is in the groups of the devices", {line.split(":")[2] for line in wanted} <= set(groups) and len(wanted) == 2, groups)
    box.sh(f"rm -rf {here} && mv /tmp/before {here} && systemctl daemon-reload && systemctl restart promptd.service")
    box.ask("Who are you?")
    return f"an answer under each, exposure with it: {', '.join(seen)}"


LONG = '''python3 -c '
import socket
s = socket.socket(socket.AF_UNIX); s.connect("/run/promptd/promptd-lines.sock")
s.sendall(b"{\\"prompt\\":\\"Letters\\",\\"regex\\":\\"[a-z]{300}\\",\\"max_tokens\\":400}\\n"); s.shutdown(1)
print(s.makefile().read())' '''


def wedged_engine(box, args):
    before = box.wait("the engine", box.engine)
    restarts = box.show("NRestarts")
    # An answer of many steps, and the signal in the middle of it.
    waiting = box.start(LONG)
    box.sh(f"for n in $(seq 500); do case $(promptd status --json) in *'\"running\":1'*) kill -STOP {before}; exit 0;; esac; done; exit 1")
    begun = time.monotonic()
    box.wait("another engine", lambda: (now := box.engine()) and now != before, 120)
    took = time.monotonic() - begun
    answer, error = waiting.communicate(timeout=PATIENCE)
    text = json.loads(answer.strip().splitlines()[-1]).get("text", "") if answer.strip() else ""
    expect("the prompt that met the wedged engine is answered", len(text) == 300, answer + error)
    expect("the service lived on", box.show("NRestarts") == restarts)
    return f"replaced after {took:.0f} s, its prompt answered whole"


def wedged_service(box, args):
    box.write("/etc/systemd/system/promptd.service.d/quick.conf", "[Service]\nWatchdogSec=4\n")
    box.sh("systemctl daemon-reload && systemctl restart promptd")
    box.ask("Who are you?")
    # It is fed while nothing happens: three times the limit.
    time.sleep(12)
    main, restarts = box.show("MainPID"), box.show("NRestarts")
    expect("an idle service is fed", restarts == "0", restarts)
    box.sh(f"kill -STOP {main}")
    begun = time.monotonic()
    box.wait("the next service", lambda: box.show("MainPID") not in (main, "0") and box.show("ActiveState") == "active")
    took = time.monotonic() - begun
    journal = box.sh("journalctl -u promptd -o cat --no-pager").stdout
    expect("it was the watchdog", "Watchdog timeout" in journal or "watchdog" in journal, journal[-2000:])
    box.ask("Who are you?")
    box.sh("rm /etc/systemd/system/promptd.service.d/quick.conf && systemctl daemon-reload && systemctl restart promptd")
    return f"started again by the watchdog after {took:.0f} s (WatchdogSec=4)"


CLIENT = r"""
import socket, sys, time
# Asks one prompt after the other; a connection that is refused, or cut before its answer, is a lost request.
lost, answered, later, end = [], 0, 0, time.time() + float(sys.argv[1])
while time.time() < end:
    try:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(60)
        s.connect("/run/promptd/promptd-lines.sock")
        s.sendall(b'{"prompt":"Who are you?","max_tokens":24}\n')
        s.shutdown(1)
        answer = s.makefile().read()
        if '"status":"ok"' in answer:
            answered += 1
        elif '"model_loading"' in answer or '"busy"' in answer:
            # Told to come back, which is an answer: it comes back.
            later += 1
            time.sleep(0.05)
        else:
            lost.append(repr(answer))
    except OSError as error:
        lost.append(str(error))
print(answered, later, len(lost), *lost[:5])
"""


def clients(told):
    answered, later, lost = told.split()[:3]
    return int(answered), int(later), int(lost)


def activation(box, args):
    box.write("/tmp/client.py", CLIENT)
    client = box.start("python3 /tmp/client.py 20")
    for _ in range(4):
        time.sleep(3)
        box.sh("systemctl restart promptd")
    told, error = client.communicate(timeout=PATIENCE)
    expect("the client ended", client.returncode == 0, error)
    answered, later, lost = clients(told)
    expect("no request was lost over four restarts", lost == 0 and answered > 4, told)
    # A stopped service is started by whoever asks.
    box.sh("systemctl stop promptd.service")
    expect("it is stopped", box.show("ActiveState") == "inactive")
    answer = box.ask("Who are you?")
    expect("the socket started it", box.show("ActiveState") == "active" and answer)
    return f"four restarts: {answered} answered, {later} asked to come back, none lost; a stopped service is started by a request"


def reload(box, args):
    main = box.show("MainPID")
    box.write("/etc/promptd/conf.d/20-profile.toml", '[profiles.yes]\nchoices = ["yes"]\n')
    box.sh("systemctl reload promptd")
    answer = box.wait("the new profile", lambda: box.sh("promptd ask -p yes 'Is it?'", check=False).stdout.strip() == "yes")
    box.write("/etc/promptd/conf.d/30-wrong.toml", "[queue]\nlimitt = 3\n")
    told = box.sh("systemctl reload promptd", check=False)
    expect("a wrong file makes the reload fail", told.returncode != 0, told.stdout)
    journal = box.sh("journalctl -u promptd -o cat --no-pager -n 20").stdout
    expect("the journal names the key", "limitt" in journal and "30-wrong.toml" in journal, journal)
    # Also where somebody sends the signal without asking first.
    box.sh(f"kill -HUP {main}")
    box.wait("the mistake in the status", lambda: "limitt" in box.sh("promptd status --json", check=False).stdout)
    expect("what held still holds", box.sh("promptd ask -p yes 'Is it?'").stdout.strip() == "yes")
    box.sh("rm /etc/promptd/conf.d/30-wrong.toml && systemctl reload promptd")
    box.wait("the mended configuration", lambda: "limitt" not in box.sh("promptd status --json", check=False).stdout)
    expect("the same process all along", box.show("MainPID") == main and box.show("ActiveState") == "active")
    return f"a good one holds ({answer}), a wrong one is refused by name and changes nothing, one process all along"


def change_model(box, args):
    """Without an editor, while clients ask: nobody is sent away, and the way back leads to the package's model."""
    name = lambda: json.loads(box.sh("promptd status --json").stdout)["model"]["name"]
    expect("the package's model answers until another is chosen", name() == "demo", name())
    box.sh("promptd model import /usr/share/promptd/models/demo --revision other")
    main = box.show("MainPID")
    box.write("/tmp/client.py", CLIENT)
    client = box.start("python3 /tmp/client.py 12")
    time.sleep(1)
    used = box.sh("promptd model use demo")
    expect("the service answers with it", "the service answers with it" in used.stdout and name() == "demo@other", used.stdout + used.stderr)
    told, error = client.communicate(timeout=PATIENCE)
    expect("the client ended", client.returncode == 0, error)
    answered, later, lost = clients(told)
    expect("nobody was sent away", lost == 0 and later == 0 and answered > 4, told)
    back = box.sh("promptd model rollback")
    expect("the way back", name() == "demo", back.stdout + back.stderr)
    expect("the same process all along", box.show("MainPID") == main)
    journal = box.sh("journalctl -u promptd -o cat --no-pager").stdout
    expect("it was loaded beside the other", "is loaded beside the one that answers" in journal, journal[-2000:])
    return f"{answered} answered meanwhile, none asked to come back, none lost; {used.stdout.splitlines()[0]!r}; back to the package's model"


def stop_under_load(box, args):
    # As long as six long answers take on the busiest machine.
    box.write("/etc/promptd/conf.d/40-grace.toml", "[shutdown]\ngrace_seconds = 80\n")
    box.sh("systemctl reload promptd")
    box.ask("Who are you?")
    asked = [box.start(LONG) for _ in range(6)]
    # Four run at once, so two of them wait; the first has not ended.
    box.sh("for n in $(seq 500); do case $(promptd status --json) in *'\"running\":4'*) exit 0;; esac; done; exit 1")
    begun = time.monotonic()
    box.sh("systemctl stop promptd.socket promptd-lines.socket promptd.service")
    took = time.monotonic() - begun
    for process in asked:
        text, error = process.communicate(timeout=PATIENCE)
        answer = json.loads(text.strip().splitlines()[-1])
        expect("a prompt that was accepted is answered whole", len(answer.get("text", "")) == 300, text + error)
    expect("it ended well", box.show("Result") == "success" and box.show("ExecMainStatus") == "0", box.show("Result"))
    box.sh("systemctl start promptd.socket promptd-lines.socket promptd.service")
    return f"stopped in {took:.1f} s, all {len(asked)} answers that ran or waited ended whole first"


def crash(box, args):
    box.ask("Who are you?")
    main, engine, restarts = box.show("MainPID"), box.engine(), int(box.show("NRestarts"))
    box.sh(f"kill -KILL {main}")
    begun = time.monotonic()
    box.wait("the next service", lambda: int(box.show("NRestarts")) == restarts + 1 and box.show("ActiveState") == "active")
    box.ask("Who are you?")
    took = time.monotonic() - begun
    box.wait("the end of the old engine", lambda: box.sh(f"test -d /proc/{engine}", check=False).returncode != 0)
    over_mqtt(box, "Who are you?")
    return f"kill -9: answers again after {took:.1f} s (RestartSec=2), the old engine is gone"


def upgrade(box, args):
    box.sh("sed -i 's/^#level = .*/level = \"info\"/' /etc/promptd/promptd.toml && echo '# mine' >> /etc/promptd/promptd.toml")
    box.write("/tmp/client.py", CLIENT)
    client = box.start("python3 /tmp/client.py 25")
    time.sleep(2)
    main = box.show("MainPID")
    box.sh(f"dpkg -i /debs/{os.path.basename(args.newer)}", timeout=300)
    box.wait("the new program", lambda: box.show("MainPID") not in (main, "0"))
    told, error = client.communicate(timeout=PATIENCE)
    expect("the client ended", client.returncode == 0, error)
    answered, later, lost = clients(told)
    expect("no request was lost over the upgrade", lost == 0 and answered > 2, told)
    version = box.sh("dpkg-query -W -f '${Version}' promptd").stdout
    expect("the operator's file stayed", box.sh("tail -1 /etc/promptd/promptd.toml").stdout.strip() == "# mine")
    return f"to {version}: {answered} answered meanwhile, {later} asked to come back, none lost; the changed promptd.toml stayed"


def remove(box, args):
    box.sh("dpkg -r promptd", timeout=300)
    expect("nothing runs", not box.sh("pgrep -x promptd || true").stdout.strip() if box.sh("command -v pgrep", check=False).returncode == 0 else True)
    expect("the program is gone", box.sh("test ! -e /usr/bin/promptd && test ! -S /run/promptd/promptd.sock", check=False).returncode == 0)
    kept = box.sh("ls /etc/promptd /etc/promptd/conf.d").stdout
    expect("the configuration is kept", "promptd.toml" in kept and "10-mqtt.toml" in kept, kept)
    expect("the state is kept", box.sh("test -d /var/lib/promptd", check=False).returncode == 0)
    box.sh(f"dpkg -i /debs/{os.path.basename(args.newer)}", timeout=300)
    box.ask("Who are you?")
    expect("the kept configuration holds", box.sh("promptd ask -p yes 'Is it?'").stdout.strip() == "yes")
    box.sh("dpkg -P promptd", timeout=300)
    left = box.sh("ls -d /etc/promptd /var/lib/promptd /run/promptd /etc/systemd/system/*/promptd* 2>/dev/null || true").stdout
    expect("a purge leaves nothing", not left.strip(), left)
    return "removed with its configuration kept, installed again with it, purged without a trace"


STEPS = [install, readiness, mqtt, mqtt_tls, doctor, sandbox, drop_ins, wedged_engine, wedged_service, activation, reload, change_model, stop_under_load, crash, upgrade, remove]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deb", required=True)
    parser.add_argument("--newer", required=True, help="the same package with a higher version")
    parser.add_argument("--work", required=True)
    parser.add_argument("--suite", default="bookworm", help="which Debian: bullseye (11), bookworm (12), trixie (13)")
    parser.add_argument("--only", help="these steps after `install`")
    args = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("run.py: a container with a systemd of its own needs root")
    debs = os.path.dirname(os.path.abspath(args.deb))
    work = os.path.abspath(args.work)
    os.makedirs(work, exist_ok=True)
    base = os.path.join(work, f"base-{args.suite}")
    make_base(base, args.suite)
    wanted = [step for step in STEPS if not args.only or step is install or step.__name__ in args.only.split(",")]
    box = Container(base, debs)
    passed, failed = 0, 0
    try:
        for step in wanted:
            begun = time.monotonic()
            try:
                print(f"{step.__name__:16} {step(box, args)} ({time.monotonic() - begun:.0f} s)", flush=True)
                passed += 1
            except (Failed, subprocess.TimeoutExpired, ValueError) as error:
                failed += 1
                print(f"{step.__name__:16} FAILED: {error}", flush=True)
                print(box.sh("journalctl -u promptd --no-pager -n 60", check=False).stdout)
                break
    finally:
        box.stop()
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed else 0)


main()
