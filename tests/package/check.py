"""Holds a Debian package against what it promises: check.py DEB…

What is in it and who owns it, its dependencies, what survives a removal, the SBOM against CycloneDX's own schema, and lintian. Needs
lintian and, in this Python, cyclonedx-python-lib[json-validation]; `make test-package` sees to the second.
"""
import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

DOC = "usr/share/doc/promptd"
FILES = [
    "usr/bin/promptd", "usr/share/promptd/models/demo/model.onnx", "usr/share/promptd/models/demo/manifest.toml",
    "usr/lib/systemd/system/promptd.service", "usr/lib/systemd/system/promptd.socket", "usr/lib/systemd/system/promptd-lines.socket",
    "usr/lib/sysusers.d/promptd.conf", "usr/lib/tmpfiles.d/promptd.conf", "etc/promptd/promptd.toml",
    "usr/share/man/man1/promptd.1.gz", "usr/share/man/man1/promptd-doctor.1.gz", "usr/share/man/man5/promptd.toml.5.gz",
    "usr/share/man/man8/promptd.8.gz", "usr/share/bash-completion/completions/promptd", "usr/share/zsh/vendor-completions/_promptd",
    "usr/share/fish/vendor_completions.d/promptd.fish", f"{DOC}/copyright", f"{DOC}/THIRD-PARTY.gz",
    f"{DOC}/onnxruntime-ThirdPartyNotices.txt.gz", f"{DOC}/sbom.cdx.json", f"{DOC}/examples/jetson.conf", f"{DOC}/examples/memory.conf",
]
# What Debian 11, 12 and 13 have: https://packages.debian.org. libstdc++6 is ONNX Runtime's.
OLDEST = {"libc6": "2.31", "libstdc++6": "10.2.1", "libgcc-s1": "10.2.1"}


def expect(what, is_so, detail=""):
    if not is_so:
        sys.exit(f"check.py: {what}: {detail}")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def examine(deb):
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(["dpkg-deb", "-x", deb, tree], check=True)
        missing = [name for name in FILES if not os.path.isfile(os.path.join(tree, name))]
        expect("all is in it", not missing, missing)
        libraries = [name for name in os.listdir(f"{tree}/usr/lib/promptd") if name.startswith("libonnxruntime.so.")]
        expect("libonnxruntime is in it", len(libraries) == 1, libraries)
        owners = {line.split()[1] for line in output("dpkg-deb", "-c", deb).splitlines()}
        expect("everything is root's", owners == {"root/root"}, owners)
        page = gzip.open(f"{tree}/usr/share/man/man5/promptd.toml.5.gz", "rt", encoding="utf-8").read()
        expect("the page of the configuration knows its keys", "keep_loaded_seconds" in page and "hot_celsius" in page)
        sbom = open(f"{tree}/{DOC}/sbom.cdx.json", encoding="utf-8").read()
        wrong = JsonStrictValidator(SchemaVersion.V1_5).validate_str(sbom)
        expect("the SBOM is CycloneDX 1.5", wrong is None, wrong)
        parts = {part["name"] for part in json.loads(sbom)["components"]}
        expect("the SBOM names the library, the model and the crates", {"onnxruntime", "promptd-demo/model.onnx", "tokio"} <= parts)
    with tempfile.TemporaryDirectory() as control:
        subprocess.run(["dpkg-deb", "-e", deb, control], check=True)
        kept = open(f"{control}/conffiles").read().split()
        expect("the configuration is a conffile", kept == ["/etc/promptd/promptd.toml"], kept)
    depends = output("dpkg-deb", "-f", deb, "Depends").strip()
    for part in depends.split(", "):
        name, _, version = part.partition(" ")
        if version:
            wanted = version.strip("(>= )")
            enough = subprocess.run(["dpkg", "--compare-versions", OLDEST[name], "ge", wanted]).returncode == 0
            expect(f"Debian 11 has {part}", enough, OLDEST[name])
    said = subprocess.run(["lintian", "--fail-on", "error", deb], capture_output=True, text=True)
    expect("lintian finds no error", said.returncode == 0, said.stdout + said.stderr)
    print(f"{os.path.basename(deb)}: {len(FILES)} files, {len(parts)} parts in its SBOM, {depends}; lintian: {said.stdout.strip() or 'nothing'}")


def main():
    if shutil.which("lintian") is None:
        sys.exit("check.py: lintian is missing (Debian: apt-get install lintian)")
    expect("a package is named", sys.argv[1:])
    for deb in sys.argv[1:]:
        examine(deb)


main()
