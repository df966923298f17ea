//! The files that ship beside the program: the example configurations, the unit, the model's manifest.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use promptd::settings;

use crate::support::demo_model;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_example_configuration_is_right_as_it_is() {
    let settings = settings::load(&root().join("systemd/promptd.toml"), &HashMap::new()).unwrap();
    assert!(settings.socket.is_some() && settings.mqtt.is_none());
}

#[test]
fn every_line_of_the_example_that_is_commented_out_is_right_too() {
    let text = std::fs::read_to_string(root().join("systemd/promptd.toml")).unwrap();
    // A key that is commented out has no space behind its `#`; prose has one.
    let whole: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &whole).unwrap();
    let settings = settings::load(file.path(), &HashMap::new())
        .unwrap_or_else(|error| panic!("{error}\n{whole}"));
    assert!(settings.mqtt.is_some() && settings.profiles.contains_key("lights"));
    assert_eq!(
        settings.queue.limit,
        settings::Queue::default().limit,
        "the example shows another default"
    );
    assert_eq!(settings.limits.payload_bytes, settings::Limits::default().payload_bytes);
    assert_eq!(settings.shutdown.grace_seconds, settings::Shutdown::default().grace_seconds);
}

#[test]
fn the_example_names_every_key_there_is() {
    let text = std::fs::read_to_string(root().join("systemd/promptd.toml")).unwrap();
    let schema = settings::schema();
    let fields = |part: &serde_json::Value| -> Vec<String> {
        let properties = part["properties"].as_object();
        properties.map(|all| all.keys().cloned().collect()).unwrap_or_default()
    };
    let definition = |part: &serde_json::Value| {
        let mut parts = vec![part.clone()];
        for key in ["anyOf", "allOf"] {
            parts.extend(part[key].as_array().cloned().unwrap_or_default());
        }
        parts.push(part["additionalProperties"].clone());
        let reference = parts.iter().find_map(|part| part["$ref"].as_str()).unwrap();
        schema["$defs"][reference.rsplit('/').next().unwrap()].clone()
    };
    let mut missing = Vec::new();
    for section in fields(&schema) {
        let of_section = definition(&schema["properties"][&section]);
        assert!(!fields(&of_section).is_empty(), "{section}: {of_section}");
        let mut keys = fields(&of_section);
        // A table of its own inside the section: its header stands for it, and its keys are keys.
        if section == "mqtt" {
            for table in ["tls", "fleet"] {
                assert!(text.contains(&format!("[mqtt.{table}]")));
                keys.retain(|key| key != table);
                keys.extend(fields(&definition(&of_section["properties"][table])));
            }
        }
        for key in keys {
            let written = |line: &str| {
                line.trim_start_matches('#')
                    .strip_prefix(&key)
                    .is_some_and(|rest| rest.starts_with(" = "))
            };
            // Not every key of a profile needs an example of its own; docs/protocol.md has them.
            if !text.lines().any(written) && section != "profiles" {
                missing.push(format!("{section}.{key}"));
            }
        }
    }
    assert!(missing.is_empty(), "systemd/promptd.toml does not show {missing:?}");
}

#[test]
fn the_configuration_in_the_readme_is_right() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, rest) = readme.split_once("```toml\n").unwrap();
    let (toml, _) = rest.split_once("```").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), toml).unwrap();
    let settings = settings::load(file.path(), &HashMap::new()).unwrap();
    // The recipes below it ask these.
    assert_eq!(settings.mqtt.unwrap().node.as_deref(), Some("kitchen"));
    assert!(settings.profiles["house"].system.is_some());
    let schema = settings.profiles["commands"].schema.as_deref().unwrap();
    serde_json::from_str::<serde_json::Value>(schema).unwrap();
}

#[test]
fn the_unit_is_one_that_systemd_accepts() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        println!("skipped: systemd-analyze is not installed");
        return;
    };
    assert!(version.status.success());
    // The program need not be installed where the tests run: a copy of the unit names the one that was built.
    let unit = std::fs::read_to_string(root().join("systemd/promptd.service")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("promptd.service");
    std::fs::write(&copy, unit.replace("/usr/bin/promptd", env!("CARGO_BIN_EXE_promptd"))).unwrap();
    let verified =
        Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&copy).output().unwrap();
    let said = String::from_utf8_lossy(&verified.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("promptd.service")).collect();
    assert!(ours.is_empty(), "{said}");
}

#[test]
fn the_manifest_of_the_demo_model_names_what_is_there() {
    let text = std::fs::read_to_string(demo_model().join("manifest.toml")).unwrap();
    let manifest: toml::Table = toml::from_str(&text).unwrap();
    let files = manifest["file"].as_array().unwrap();
    let mut total = 0;
    for file in files {
        let name = file["name"].as_str().unwrap();
        let length = std::fs::metadata(demo_model().join(name)).unwrap().len();
        assert_eq!(i64::try_from(length).unwrap(), file["bytes"].as_integer().unwrap(), "{name}");
        total += length;
    }
    for name in [
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ] {
        assert!(
            files.iter().any(|file| file["name"].as_str() == Some(name)),
            "{name} is not in the manifest"
        );
    }
    assert!(total <= 10_000_000, "the demo model has {total} bytes; 10 MB may be committed");
}
