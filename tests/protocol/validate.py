"""Holds docs/asyncapi.json and docs/payloads.schema.json to the meta-schemas of their standards.

usage: validate.py SPECS   (SPECS: the unpacked npm package @asyncapi/specs)
"""
import copy
import json
import pathlib
import sys

import jsonschema

docs = pathlib.Path(__file__).parents[2] / "docs"
meta = json.loads((pathlib.Path(sys.argv[1]) / "schemas" / "3.0.0.json").read_text())
document = json.loads((docs / "asyncapi.json").read_text())
validator = jsonschema.Draft7Validator(meta)
for error in validator.iter_errors(document):
    sys.exit(f"docs/asyncapi.json: {'/'.join(map(str, error.path))}: {error.message}")

# A check that cannot fail says nothing.
broken = copy.deepcopy(document)
broken["operations"]["ask"]["action"] = "publish"
if validator.is_valid(broken):
    sys.exit("the meta-schema lets a wrong document pass")

schemas = json.loads((docs / "payloads.schema.json").read_text())
jsonschema.Draft202012Validator.check_schema(schemas)
answer = {"$ref": "#/$defs/Answer", "$defs": schemas["$defs"]}
if jsonschema.Draft202012Validator(answer).is_valid({"v": 2}):
    sys.exit("docs/payloads.schema.json lets a wrong answer pass")
print(f"AsyncAPI 3.0.0: {len(document['channels'])} channels, {len(schemas['$defs'])} schemas, all valid")
