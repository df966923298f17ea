"""Runs automations in Home Assistant's own core, with its MQTT integration at a real broker: says a wish, and waits for the light.

usage: home_assistant.py AUTOMATIONS.yaml PORT
"""
import asyncio
import os
import sys
import tempfile
from types import MappingProxyType

import yaml
from homeassistant import auth, bootstrap, config_entries, loader
from homeassistant.const import __version__
from homeassistant.core import CoreState, HomeAssistant
from homeassistant.setup import async_setup_component


async def core(folder):
    """The core without a web interface: what the automations need."""
    hass = HomeAssistant(folder)
    hass.config.skip_pip = True
    loader.async_setup(hass)
    hass.config_entries = config_entries.ConfigEntries(hass, {})
    await bootstrap.async_load_base_functionality(hass)
    hass.auth = await auth.auth_manager_from_config(hass, [], [])
    await hass.config_entries.async_initialize()
    hass.set_state(CoreState.running)
    return hass


async def main(folder):
    automations, port = yaml.safe_load(open(sys.argv[1], encoding="utf-8")), int(sys.argv[2])
    # Its MQTT integration reads the file again.
    open(os.path.join(folder, "configuration.yaml"), "w", encoding="utf-8").close()
    hass = await core(folder)
    entry = config_entries.ConfigEntry(
        domain="mqtt", data={"broker": "127.0.0.1", "port": port}, options={}, title="broker", source="user", version=1, minor_version=2,
        unique_id=None, discovery_keys=MappingProxyType({}), subentries_data=None)
    await hass.config_entries.async_add(entry)
    await hass.async_block_till_done()
    assert entry.state is config_entries.ConfigEntryState.LOADED, (entry.state, entry.reason)
    done = asyncio.get_running_loop().create_future()
    for action in ("turn_on", "turn_off"):
        def switched(call):
            if not done.done():
                done.set_result((call.service, call.data))
        hass.services.async_register("light", action, switched)
    assert await async_setup_component(hass, "input_text", {"input_text": {"wish": {"max": 255}}})
    assert await async_setup_component(hass, "automation", {"automation": automations})
    await hass.async_block_till_done()
    states = [state for state in hass.states.async_all("automation")]
    assert len(states) == len(automations) and all(state.state == "on" for state in states), states
    # Subscriptions are on their way; the broker confirms them in order, so what comes after this one finds them.
    await asyncio.sleep(2)
    await hass.services.async_call("input_text", "set_value", {"entity_id": "input_text.wish", "value": "Turn on the kitchen light."})
    service, data = await asyncio.wait_for(done, 30)
    print(f"Home Assistant {__version__}: light.{service} {', '.join(data['entity_id'])}")
    await hass.async_stop(force=True)


with tempfile.TemporaryDirectory() as place:
    asyncio.run(main(place))
