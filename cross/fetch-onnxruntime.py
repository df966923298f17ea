#!/usr/bin/env python3
"""Fetches the pinned libonnxruntime for one architecture out of PyPI's onnxruntime wheel and checks its sha256.

    fetch-onnxruntime.py DIR [--arch x86_64|aarch64]

The wheel is a zip file and nothing of Python is needed at run time: only libonnxruntime.so and its licences are kept.
It leaves DIR/libonnxruntime.so.VERSION, and does nothing where that file is already there and right.
"""
import argparse
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
import zipfile

VERSION = "1.32.0"
# One line per architecture: the library's own sha256, and that of the wheel that carries it (cp311, manylinux_2_28:
# glibc 2.28 or newer, that is Debian 10, Ubuntu 20.04, JetPack 5 and everything since).
PINNED = {
    "x86_64": (
        "6c1585d1bbf45b0712ea4a21b705c5fcb4ba04ff2e30f1fbf81a49faf658638f",
        "5a34fc4dfeb5a7b4a74c95dcba1e773d722abda720b474edf1b0c419dc6d163d",
    ),
    "aarch64": (
        "49852228a93995158b2a813d4df487d47a1b76b0eaa894507ef49e91b6d7954a",
        "2303372a85299b6757b0e11e1cbf13e410ddf7e10c37f4b37e99d1c90e7daf7c",
    ),
}
KEPT = {"onnxruntime/LICENSE": "LICENSE", "onnxruntime/ThirdPartyNotices.txt": "ThirdPartyNotices.txt"}


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def download(folder, arch):
    """Asks pip, so that an index or a proxy which the machine is set up for is used."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
               "--disable-pip-version-check", "--implementation", "cp", "--python-version", "3.11",
               "--platform", f"manylinux_2_28_{arch}", "--platform", f"manylinux_2_27_{arch}",
               "-d", folder, f"onnxruntime=={VERSION}"]
    if not sys.stdout.isatty():
        command.append("--progress-bar=off")
    if subprocess.run(command).returncode != 0:
        sys.exit(f"fetch-onnxruntime: pip could not download onnxruntime {VERSION}; is the network up, and is pip "
                 "installed (Debian: apt install python3-pip)?")
    return next(os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".whl"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir")
    parser.add_argument("--arch", default=platform.machine(), choices=sorted(PINNED))
    args = parser.parse_args()
    library_sha, wheel_sha = PINNED[args.arch]
    target = os.path.join(args.dir, f"libonnxruntime.so.{VERSION}")
    if os.path.isfile(target) and sha256(target) == library_sha:
        return
    os.makedirs(args.dir, exist_ok=True)
    print(f"fetching libonnxruntime {VERSION} for {args.arch} (about 28 MB) …", flush=True)
    # Unpacked beside its place and renamed, so that an interrupted run never leaves half a library to be loaded.
    with tempfile.TemporaryDirectory(dir=args.dir) as work:
        wheel = download(work, args.arch)
        if sha256(wheel) != wheel_sha:
            sys.exit(f"fetch-onnxruntime: {os.path.basename(wheel)} has the sha256 {sha256(wheel)}, not {wheel_sha}: "
                     "not used. A proxy or mirror may have changed it; try another network.")
        with zipfile.ZipFile(wheel) as archive:
            for member, name in {f"onnxruntime/capi/libonnxruntime.so.{VERSION}": os.path.basename(target), **KEPT}.items():
                unpacked = archive.extract(member, work)
                if name == os.path.basename(target) and sha256(unpacked) != library_sha:
                    sys.exit(f"fetch-onnxruntime: {member} has an unexpected sha256; not used")
                os.replace(unpacked, os.path.join(args.dir, name))
    print(f"{target}: sha256 as pinned", flush=True)


main()
