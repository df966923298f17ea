"""Holds promptd's discovery message to the schemas in Home Assistant's own source: the device's, then each entity's.

usage: discovery.py discovery.json
"""
import asyncio
import importlib
import json
import sys
import tempfile

import voluptuous
from homeassistant.components.mqtt.schemas import DEVICE_DISCOVERY_SCHEMA
from homeassistant.const import __version__
from homeassistant.core import HomeAssistant
from homeassistant.helpers import frame



async def main():
    # Templates in the schemas look for the running instance.
    frame.async_setup(HomeAssistant(tempfile.mkdtemp()))
    message = json.load(open(sys.argv[1]))
    DEVICE_DISCOVERY_SCHEMA(message)
    shared = {key: message[key] for key in ("availability_topic",)}
    for name, component in message["components"].items():
        platform = importlib.import_module(f"homeassistant.components.mqtt.{component['platform']}")
        entity = {key: value for key, value in component.items() if key != "platform"}
        checked = platform.DISCOVERY_SCHEMA({**shared, **entity, "device": message["device"], "origin": message["origin"]})
        # The schemas drop what they do not know; that would be a misspelt field.
        unknown = set(entity) - set(checked)
        if unknown:
            sys.exit(f"{name}: Home Assistant does not know {unknown}")

    # What the update entity reads: its template makes of `info` what Home Assistant's own schema takes, and two versions that differ
    # are an update, whatever their revisions look like.
    update = importlib.import_module("homeassistant.components.mqtt.update")
    entity = message["components"]["model_update"]
    assert entity["value_template"] == "{{ value_json.model_update | to_json }}", entity
    state = json.load(open(sys.argv[1].replace(".json", ".info.json")))["model_update"]
    versions = update.MQTT_JSON_UPDATE_SCHEMA(state)
    shown = update.UpdateEntity()
    for latest in (versions["latest_version"], versions["installed_version"], "m@0", "m@abcdef"):
        shown._attr_installed_version, shown._attr_latest_version = versions["installed_version"], latest
        expected = "off" if latest == versions["installed_version"] else "on"
        assert shown.state == expected, (latest, shown.state)

    # A check that cannot fail says nothing.
    broken = {**message, "components": {"x": {"platform": "sensor", "state_topic": "#/x"}}}
    try:
        DEVICE_DISCOVERY_SCHEMA(broken)
    except voluptuous.Invalid:
        print(f"Home Assistant {__version__}: a device with {len(message['components'])} entities, all valid")
    else:
        sys.exit("Home Assistant's schema lets an entity without an id pass")


asyncio.run(main())
