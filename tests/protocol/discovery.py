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

    # A check that cannot fail says nothing.
    broken = {**message, "components": {"x": {"platform": "sensor", "state_topic": "#/x"}}}
    try:
        DEVICE_DISCOVERY_SCHEMA(broken)
    except voluptuous.Invalid:
        print(f"Home Assistant {__version__}: a device with {len(message['components'])} entities, all valid")
    else:
        sys.exit("Home Assistant's schema lets an entity without an id pass")


asyncio.run(main())
