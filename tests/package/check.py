"""Holds a Debian package against what it promises: check.py DEB…

What is in it and who owns it, its dependencies, what survives a removal, the SBOM against CycloneDX's own schema, manual pages that groff
takes, completions that complete, and lintian. Where the tarball of the same version lies beside it, that it has the same files, and that
promptd answers out of it where it is unpacked, on a machine of its architecture. Needs lintian and, in this Python,
cyclonedx-python-lib[json-validation]; `make test-package` sees to the second.
"""
import gzip
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
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


def manual_pages(tree):
    """How many there are, each of which groff formats without a word of warning."""
    pages = sorted(os.path.join(folder, name) for folder, _, names in os.walk(f"{tree}/usr/share/man") for name in names)
    for page in pages:
        said = subprocess.run(["man", "--warnings", "--encoding=UTF-8", "--local-file", "-Tutf8", "-Z", page], capture_output=True, text=True,
                              env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"})
        expect(f"groff takes {os.path.basename(page)}", said.returncode == 0 and not said.stderr, said.stderr)
    return len(pages)


# What a shell offers behind these words.
COMPLETED = [("promptd mod", "model"), ("promptd model ro", "rollback"), ("promptd config sch", "schema")]


def completions(tree):
    """Which shells complete by the package's files; those that are not installed are not asked."""
    bash = f"{tree}/usr/share/bash-completion/completions/promptd"
    script = 'source "$0"; COMP_WORDS=($1); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _promptd promptd "${COMP_WORDS[COMP_CWORD]}"; echo "${COMPREPLY[@]}"'
    fish = f"{tree}/usr/share/fish/vendor_completions.d/promptd.fish"
    for typed, offered in COMPLETED:
        told = output("bash", "-c", script, bash, typed)
        expect(f"bash completes {typed!r}", told.split() == [offered], told)
        if shutil.which("fish"):
            told = output("fish", "--no-config", "-c", f"source {fish}; complete -C '{typed}'")
            expect(f"fish completes {typed!r}", [line.split()[0] for line in told.splitlines()] == [offered], told)
    asked = ["bash"] + [shell for shell in ("zsh", "fish") if shutil.which(shell)]
    if "zsh" in asked:
        # A completion of zsh works inside its line editor only: here that it can be read.
        subprocess.run(["zsh", "-n", f"{tree}/usr/share/zsh/vendor-completions/_promptd"], check=True)
    return asked


# Beside what is the package manager's own.
OF_DEBIAN = {f"{DOC}/changelog.gz", "usr/share/lintian/overrides/promptd"}


def tarball(deb, tree):
    """What there is to say of the tarball that belongs to this package."""
    name, version, arch = os.path.basename(deb).removesuffix(".deb").split("_")
    file = os.path.join(os.path.dirname(deb), f"{name}-{version}-{arch}.tar.xz")
    if not os.path.exists(file):
        return "no tarball beside it"
    with tempfile.TemporaryDirectory() as work, tarfile.open(file) as archive:
        members = archive.getmembers()
        expect("the tarball is root's", {(member.uid, member.gid) for member in members} == {(0, 0)})
        top = f"{name}-{version}-{arch}"
        there = {os.path.relpath(member.name, top): member for member in members if member.isfile()}
        packaged = {os.path.relpath(os.path.join(folder, one), tree) for folder, _, names in os.walk(tree) for one in names}
        expect("the tarball has the package's files", set(there) == packaged - OF_DEBIAN, set(there) ^ (packaged - OF_DEBIAN))
        archive.extractall(work, filter="data") if hasattr(tarfile, "data_filter") else archive.extractall(work)
        for one in there:
            same = open(os.path.join(work, top, one), "rb").read() == open(os.path.join(tree, one), "rb").read()
            expect(f"{one} is the package's", same)
        if {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine()) != arch:
            return f"a tarball of {len(there)} files, of another machine"
        loaded = subprocess.run([f"{work}/{top}/usr/bin/promptd", "model", "check", f"{work}/{top}/usr/share/promptd/models/demo", "--load"],
                                capture_output=True, text=True, env={"PATH": os.environ["PATH"], "HOME": work})
        expect("promptd loads the model out of its tarball, by the library beside it", loaded.returncode == 0, loaded.stdout + loaded.stderr)
        return f"a tarball of {len(there)} files, and out of it: {loaded.stdout.splitlines()[-1]}"


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
        shells, pages, beside = completions(tree), manual_pages(tree), tarball(deb, tree)
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
    print(f"{os.path.basename(deb)}: {len(parts)} parts in its SBOM, {pages} manual pages, completions for {', '.join(shells)}, {depends}; {beside}; "
          f"lintian: {said.stdout.strip() or 'nothing'}")


def main():
    if shutil.which("lintian") is None:
        sys.exit("check.py: lintian is missing (Debian: apt-get install lintian)")
    expect("a package is named", sys.argv[1:])
    for deb in sys.argv[1:]:
        examine(deb)


main()
