//! docs/recipes.md: what needs mosquitto's clients and a C++ compiler only. `make test-recipes` runs the others.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::broker::{Broker, program};
use crate::support::document;
use crate::support::service::{Plan, Service, output};

fn of_the_repository(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The board `kitchen` of the README.
fn kitchen(broker: &Broker) -> Service {
    let plan = Plan::demo().with(&format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"kitchen\"\n\
         [profiles.house]\nsystem = \"greenhouse temperature: 21.5 °C\\ngarage door: open\"\n\
         [profiles.commands]\nschema = '''\n{}\n'''\n",
        broker.port,
        r#"{"type": "object", "additionalProperties": false, "required": ["device", "action"],
            "properties": {"device": {"type": "string"}, "action": {"enum": ["on", "off"]}}}"#
    ));
    let service = Service::start(&plan).ready();
    let home = document::home(broker);
    let online = "mosquitto_sub -t promptd/kitchen/availability -C 1 -W 60";
    assert_eq!(output(document::shell(online, home.path(), &service)).1, "online\n");
    service
}

#[test]
fn every_line_for_the_shell_works() {
    if !document::has_tools() {
        return;
    }
    let Some(broker) = Broker::start("") else { return };
    let home = document::home(&broker);
    let service = kitchen(&broker);
    let text = std::fs::read_to_string(of_the_repository("docs/recipes.md")).unwrap();
    let count = document::run_lines(&text, home.path(), &service);
    assert!(count >= 8, "the document has {count} lines to copy");
}

#[test]
fn the_sketch_for_an_esp32_asks_and_switches_its_light() {
    let Some(compiler) = program("g++").or_else(|| program("clang++")) else {
        return println!("SKIPPED: there is no C++ compiler");
    };
    let Some(broker) = Broker::start("") else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let stand_ins = of_the_repository("tests/recipes/esp32");
    let sketch = std::fs::read_to_string(of_the_repository("examples/esp32/ask.ino")).unwrap();
    let here = format!(
        "#define WIFI_NAME \"\"\n#define WIFI_PASSWORD \"\"\n#define BROKER \"127.0.0.1\"\n#define BROKER_PORT {}\n",
        broker.port
    );
    std::fs::write(at("sketch.h"), here + &sketch).unwrap();
    let mut compile = Command::new(compiler);
    compile.args(["-std=c++17", "-Wall", "-pthread", "-o"]).arg(at("sketch"));
    compile.arg(stand_ins.join("main.cpp")).arg("-I").arg(&stand_ins).arg("-I").arg(folder.path());
    let (status, out, errors) = output(compile);
    assert_eq!((status, errors.as_str()), (0, ""), "{out}");
    let service = kitchen(&broker);
    let (status, out, errors) = output(Command::new(at("sketch")));
    assert_eq!(status, 0, "{out}{errors}{}", service.log());
    assert_eq!(out, "on\nlight on\n");
}
