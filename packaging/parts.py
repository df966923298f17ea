#!/usr/bin/env python3
"""Says what a promptd package is made of: a CycloneDX SBOM, and the licence texts of everything that is linked in.

    parts.py --target TRIPLE --library DIR --model DIR --sbom FILE --notices FILE

The crates are those that `cargo metadata` resolves for the target and that are linked (no build scripts, no tests). The same
sources give the same bytes: there is no date in it, and the serial number is made of the contents.
"""
import argparse
import glob
import hashlib
import json
import os
import re
import subprocess
import uuid

WORDS = re.compile(r"(?i)^(licen[sc]e|copying|notice|unlicense|copyright)")


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def linked_crates(triple):
    command = [os.environ.get("CARGO", "cargo"), "metadata", "--locked", "--format-version", "1", "--filter-platform", triple]
    metadata = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    needs, waiting = {}, [root]
    while waiting:
        crate = waiting.pop()
        if crate in needs:
            continue
        linked = [dep["pkg"] for dep in nodes[crate]["deps"] if any(kind["kind"] is None for kind in dep["dep_kinds"])]
        # A procedural macro runs in the compiler; nothing of it is in the program.
        needs[crate] = sorted(dep for dep in linked if not any("proc-macro" in t["kind"] for t in packages[dep]["targets"]))
        waiting.extend(needs[crate])
    order = sorted(needs, key=lambda crate: (packages[crate]["name"], packages[crate]["version"]))
    return root, [packages[crate] for crate in order], needs, packages


def checksums():
    text = open("Cargo.lock", encoding="utf-8").read()
    found = {}
    for block in text.split("[[package]]")[1:]:
        field = lambda key: (re.search(rf'^{key} = "(.*)"$', block, re.M) or [None, None])[1]
        found[field("name"), field("version")] = field("checksum")
    return found


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sbom(args):
    root, crates, needs, packages = linked_crates(args.target)
    sums = checksums()
    components = []
    for crate in crates:
        if crate["id"] == root:
            continue
        component = {"type": "library", "bom-ref": reference(crate), "name": crate["name"], "version": crate["version"],
                     "purl": reference(crate)}
        if crate["license"]:
            # Cargo's old way to say "or".
            component["licenses"] = [{"expression": crate["license"].replace("/", " OR ")}]
        checksum = sums.get((crate["name"], crate["version"]))
        if checksum:
            component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    extra = []
    for library in sorted(glob.glob(os.path.join(args.library, "libonnxruntime.so.*"))):
        version = os.path.basename(library).removeprefix("libonnxruntime.so.")
        extra.append({"type": "library", "bom-ref": f"pkg:generic/onnxruntime@{version}", "name": "onnxruntime", "version": version,
                      "purl": f"pkg:generic/onnxruntime@{version}", "licenses": [{"expression": "MIT"}],
                      "hashes": [{"alg": "SHA-256", "content": sha256(library)}]})
    for file in sorted(glob.glob(os.path.join(args.model, "model.onnx*"))):
        name = os.path.basename(file)
        extra.append({"type": "machine-learning-model", "bom-ref": f"demo-model/{name}", "name": f"promptd-demo/{name}",
                      "licenses": [{"expression": "Apache-2.0"}], "hashes": [{"alg": "SHA-256", "content": sha256(file)}]})
    own = packages[root]
    main = {"type": "application", "bom-ref": reference(own), "name": own["name"], "version": own["version"],
            "purl": reference(own), "licenses": [{"expression": own["license"]}]}
    tree = [{"ref": reference(packages[crate]), "dependsOn": sorted(reference(packages[dep]) for dep in deps)}
            for crate, deps in needs.items()]
    for dependency in tree:
        if dependency["ref"] == main["bom-ref"]:
            dependency["dependsOn"] += [part["bom-ref"] for part in extra]
    document = {"bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": main},
                "components": components + extra, "dependencies": sorted(tree, key=lambda entry: entry["ref"])}
    contents = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, contents)}"
    return document, [crate for crate in crates if crate["id"] != root]


def notices(crates):
    """Each licence text once, with the crates it belongs to."""
    texts = {}
    for crate in crates:
        folder = os.path.dirname(crate["manifest_path"])
        files = sorted(name for name in os.listdir(folder) if WORDS.match(name) and os.path.isfile(os.path.join(folder, name)))
        stated = f"{crate['name']} {crate['version']} ({crate['license'] or 'see its text'})"
        for name in files:
            text = open(os.path.join(folder, name), encoding="utf-8", errors="replace").read().strip()
            texts.setdefault(text, []).append(stated)
        if not files:
            texts.setdefault(f"(no licence file in the crate; its manifest states {crate['license']})", []).append(stated)
    parts = ["Software that is part of the program promptd, and its licences.\n"]
    for text, names in sorted(texts.items(), key=lambda entry: entry[1]):
        parts.append("=" * 100 + "\n" + "\n".join(dict.fromkeys(names)) + "\n" + "-" * 100 + "\n" + text + "\n")
    return "\n".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("target", "library", "model", "sbom", "notices"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    document, crates = sbom(args)
    with open(args.sbom, "w", encoding="utf-8") as file:
        json.dump(document, file, indent=1, ensure_ascii=False)
        file.write("\n")
    with open(args.notices, "w", encoding="utf-8") as file:
        file.write(notices(crates))


main()
