#!/usr/bin/env python3
"""Makes the Debian package and the tarball of a built promptd.

    package.py --arch amd64|arm64 --program FILE --library DIR --docs DIR --out DIR [--version V] [--glibc V]

`--docs` holds man pages and completions (`cargo run --example docs`), the SBOM and the notices (`parts.py`). No tool but
dpkg-deb is needed, and no root. The same inputs give the same bytes: every time is SOURCE_DATE_EPOCH (the last commit's if unset).
"""
import argparse
import email.utils
import glob
import gzip
import hashlib
import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNITS = ("promptd.service", "promptd.socket", "promptd-lines.socket")


def epoch():
    if os.environ.get("SOURCE_DATE_EPOCH"):
        return int(os.environ["SOURCE_DATE_EPOCH"])
    told = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=TOP, capture_output=True, text=True)
    return int(told.stdout or 0)


def read(*path):
    with open(os.path.join(TOP, *path), encoding="utf-8") as file:
        return file.read()


class Stage:
    """The tree that is installed."""

    def __init__(self, root):
        self.root = root

    def put(self, place, data, mode=0o644):
        path = os.path.join(self.root, place)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        if isinstance(data, str):
            data = data.encode()
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, mode)

    def put_gz(self, place, data):
        if isinstance(data, str):
            data = data.encode()
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
            file.write(data)
        self.put(f"{place}.gz", packed.getvalue())

    def copy(self, place, source, mode=0o644):
        with open(source, "rb") as file:
            self.put(place, file.read(), mode)

    def settle(self, when):
        """Modes and times that depend on nothing but the contents."""
        for folder, _, files in os.walk(self.root):
            os.chmod(folder, 0o755)
            for name in files + ["."]:
                os.utime(os.path.join(folder, name), (when, when))


def stage_all(stage, args):
    stage.copy("usr/bin/promptd", args.program, 0o755)
    for library in sorted(glob.glob(os.path.join(args.library, "libonnxruntime.so.*"))):
        stage.copy(f"usr/lib/promptd/{os.path.basename(library)}", library)
    for file in sorted(glob.glob(os.path.join(TOP, "models/demo/*"))):
        if os.path.isfile(file):
            stage.copy(f"usr/share/promptd/models/demo/{os.path.basename(file)}", file)
    for unit in UNITS:
        stage.copy(f"usr/lib/systemd/system/{unit}", os.path.join(TOP, "systemd", unit))
    for kind in ("sysusers", "tmpfiles"):
        stage.copy(f"usr/lib/{kind}.d/promptd.conf", os.path.join(TOP, "systemd", f"promptd.{kind}"))
    stage.copy("etc/promptd/promptd.toml", os.path.join(TOP, "systemd/promptd.toml"))
    os.makedirs(os.path.join(stage.root, "etc/promptd/conf.d"))
    for page in sorted(glob.glob(os.path.join(args.docs, "*.[158]"))):
        with open(page, "rb") as file:
            stage.put_gz(f"usr/share/man/man{page[-1]}/{os.path.basename(page)}", file.read())
    for name, place in (("promptd.bash", "bash-completion/completions/promptd"), ("_promptd", "zsh/vendor-completions/_promptd"),
                        ("promptd.fish", "fish/vendor_completions.d/promptd.fish")):
        stage.copy(f"usr/share/{place}", os.path.join(args.docs, name))
    doc = "usr/share/doc/promptd"
    mit = open(os.path.join(args.library, "LICENSE"), encoding="utf-8").read().strip()
    mit = "\n".join(f" {line.strip() or '.'}" for line in mit.splitlines()[2:])
    stage.put(f"{doc}/copyright", read("packaging/debian/copyright.in").replace("@MIT@", mit.lstrip("\n .")))
    with open(os.path.join(args.library, "ThirdPartyNotices.txt"), "rb") as file:
        stage.put_gz(f"{doc}/onnxruntime-ThirdPartyNotices.txt", file.read())
    with open(os.path.join(args.docs, "THIRD-PARTY"), "rb") as file:
        stage.put_gz(f"{doc}/THIRD-PARTY", file.read())
    stage.copy(f"{doc}/sbom.cdx.json", os.path.join(args.docs, "sbom.cdx.json"))
    stage.put_gz(f"{doc}/CHANGELOG.md", read("CHANGELOG.md"))
    for page in ["README.md"] + sorted(glob.glob(os.path.join(TOP, "docs/*.md")) + glob.glob(os.path.join(TOP, "docs/*.svg"))):
        stage.copy(f"{doc}/{os.path.basename(page)}", os.path.join(TOP, page))
    for example in sorted(glob.glob(os.path.join(TOP, "systemd/drop-ins/*.conf"))):
        stage.copy(f"{doc}/examples/{os.path.basename(example)}", example)


def deb(stage, args, when):
    log = (f"promptd ({args.version}) unstable; urgency=medium\n\n  * What changed: CHANGELOG.md.gz beside this file.\n\n"
           f" -- {maintainer()}  {email.utils.formatdate(when)}\n")
    stage.put_gz("usr/share/doc/promptd/changelog", log)
    stage.copy("usr/share/lintian/overrides/promptd", os.path.join(TOP, "packaging/debian/lintian-overrides"))
    sums, size = [], 0
    for folder, folders, files in os.walk(stage.root):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            size += -(-os.path.getsize(path) // 1024)
            if not path.startswith(os.path.join(stage.root, "etc/")):
                digest = hashlib.md5(open(path, "rb").read()).hexdigest()
                sums.append(f"{digest}  {os.path.relpath(path, stage.root)}\n")
    control = read("packaging/debian/control.in")
    for key, value in (("VERSION", args.version), ("ARCH", args.arch), ("SIZE", size), ("GLIBC", args.glibc)):
        control = control.replace(f"@{key}@", str(value))
    stage.put("DEBIAN/control", control)
    stage.put("DEBIAN/md5sums", "".join(sums))
    stage.put("DEBIAN/conffiles", "/etc/promptd/promptd.toml\n")
    for script in ("postinst", "prerm", "postrm"):
        stage.copy(f"DEBIAN/{script}", os.path.join(TOP, "packaging/debian", script), 0o755)
    stage.settle(when)
    out = os.path.join(args.out, f"promptd_{args.version}_{args.arch}.deb")
    # xz, because the dpkg of Debian 11 reads no zstd; one thread, because the number of threads shows in the bytes.
    command = ["dpkg-deb", "--root-owner-group", *compression(), "--threads-max=1", "--build", stage.root, out]
    if b"--threads-max" not in subprocess.run(["dpkg-deb", "--help"], capture_output=True).stdout:
        command.remove("--threads-max=1")
    subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": str(when)}, stdout=subprocess.DEVNULL)
    return out


def tarball(stage, args, when):
    name = f"promptd-{args.version}-{args.arch}"
    stage.settle(when)
    out = os.path.join(args.out, f"{name}.tar.xz")

    def plain(info):
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = when
        return info

    with tarfile.open(out, "w:xz", format=tarfile.GNU_FORMAT, preset=6) as archive:
        for folder, folders, files in os.walk(stage.root):
            folders.sort()
            place = os.path.normpath(os.path.join(name, os.path.relpath(folder, stage.root)))
            archive.add(folder, place, recursive=False, filter=plain)
            for file in sorted(files):
                archive.add(os.path.join(folder, file), f"{place}/{file}", filter=plain)
    return out


def compression():
    # Quick and large, for tests of the package itself.
    return ["-Zgzip", "-z1"] if os.environ.get("PROMPTD_PACKAGE_QUICKLY") else ["-Zxz"]


def maintainer():
    return re.search(r"^Maintainer: (.*)$", read("packaging/debian/control.in"), re.M)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", required=True, choices=("amd64", "arm64"))
    for name in ("program", "library", "docs", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--version", default=re.search(r'^version = "(.*)"$', read("Cargo.toml"), re.M)[1])
    parser.add_argument("--glibc", default="2.31", help="the oldest C library that the program runs with")
    parser.add_argument("--no-tarball", action="store_true")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    os.umask(0o022)
    when = epoch()
    with tempfile.TemporaryDirectory() as work:
        first = os.path.join(work, "deb")
        stage = Stage(first)
        stage_all(stage, args)
        if not args.no_tarball:
            second = os.path.join(work, "tar")
            shutil.copytree(first, second)
            print(tarball(Stage(second), args, when))
        print(deb(stage, args, when))


main()
