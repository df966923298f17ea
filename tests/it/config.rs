//! `promptd config`, the real program on real files: every mistake with its place, every value with its origin.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::http;
use crate::support::service::{Plan, Service, command, output, signal};
use crate::support::wait_for;

/// A configuration in a folder of its own: name and text of each file.
fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    let main = folder.path().join("promptd.toml");
    (folder, main)
}

fn config(what: &[&str], main: &Path, variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = command(&[&["config"], what].concat());
    output({
        command.arg("--config").arg(main).envs(variables.iter().copied());
        command
    })
}

const SMALL: &str = "[model]\npath = \"/m\"\n[socket]\npath = \"/s\"\n";

#[test]
fn every_mistake_is_told_with_its_place() {
    let (_folder, main) = folder(&[
        (
            "promptd.toml",
            "[model]\nslotz = 2\n[socket]\npath = \"/s\"\n[queue]\nlimit = \"many\"\n",
        ),
        ("conf.d/20-b.toml", "[log]\nformat = \"xml\"\n"),
        ("conf.d/10-a.toml", "[model]\npath = \"/m\"\nslots = 70000\n"),
        ("conf.d/30-c.toml.bak", "nonsense"),
    ]);
    let (status, text, _) = config(&["check"], &main, &[("PROMPTD__QUEUE__LIMITT", "3")]);
    assert_eq!(status, 78, "{text}");
    let directory = main.parent().unwrap().display();
    for line in [
        format!("{directory}/promptd.toml:2:1: unknown key `slotz`; did you mean `slots`?"),
        format!("{directory}/promptd.toml:6:9: invalid type: string \"many\", expected u16"),
        format!(
            "{directory}/conf.d/20-b.toml:2:10: unknown variant `xml`, expected `text` or `json`"
        ),
        format!("{directory}/conf.d/10-a.toml:3:9: invalid value: integer `70000`, expected u16"),
        "PROMPTD__QUEUE__LIMITT: unknown key `limitt`; did you mean `limit`?".to_owned(),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\nis not in\n{text}");
    }
    assert_eq!(text.lines().count(), 5, "{text}");

    // The service refuses the same file in one line.
    let (status, _, errors) = output({
        let mut serve = command(&["serve", "--config"]);
        serve.arg(&main);
        serve
    });
    assert_eq!((status, errors.lines().count()), (78, 1), "{errors}");
    assert!(errors.contains("more: `promptd config check` tells them all"), "{errors}");
}

#[test]
fn mistakes_that_only_a_room_knows_are_told_too() {
    for (more, wanted) in [
        ("[profiles.a]\ntemperature = 9.0\n", "`profiles.a.temperature`"),
        ("[clients.a]\nadmin = true\n", "`clients.a`"),
        ("[mqtt]\nurl = \"http://x\"\n", "`mqtt.url`"),
        ("[log]\nlevel = \"promptd=loud\"\n", "`log.level`"),
        ("[model]\n", "promptd.toml:5:2: "),
    ] {
        let (_folder, main) = folder(&[("promptd.toml", &format!("{SMALL}{more}"))]);
        let (status, text, _) = config(&["check", "--json"], &main, &[]);
        let object: Value = serde_json::from_str(&text).unwrap();
        let mistake = &object["mistakes"][0];
        let told = format!(
            "promptd.toml:{}:{}: {}",
            mistake["line"], mistake["column"], mistake["message"]
        );
        assert!(status == 78 && told.contains(wanted), "{more}: {text}");
    }
    let (_folder, main) = folder(&[("promptd.toml", SMALL)]);
    let (status, text, errors) = config(&["check"], &main, &[]);
    assert_eq!((status, text), (0, format!("{}: right\n", main.display())), "{errors}");
}

#[test]
fn what_holds_is_shown_with_its_origin_and_without_secrets() {
    let (_folder, main) = folder(&[
        ("promptd.toml", &format!("{SMALL}[mqtt]\nurl = \"mqtt://me:hunter2@broker\"\n")),
        ("conf.d/board.toml", "[model]\nslots = 2\n"),
    ]);
    let variables = [("PROMPTD__RUNTIME__THREADS", "3")];
    let (status, text, errors) = config(&["show"], &main, &variables);
    assert_eq!(status, 0, "{errors}");
    let directory = main.parent().unwrap().display();
    for line in [
        format!("path = \"/m\"  # {directory}/promptd.toml:2:1"),
        format!("slots = 2  # {directory}/conf.d/board.toml:2:1"),
        "threads = 3  # PROMPTD__RUNTIME__THREADS".to_owned(),
        "limit = 256  # default".to_owned(),
        format!("url = \"mqtt://me:***@broker\"  # {directory}/promptd.toml:6:1"),
    ] {
        assert!(text.lines().any(|there| there == line), "{line}\nis not in\n{text}");
    }
    let (_, text, _) = config(&["show", "--json"], &main, &variables);
    assert!(!text.contains("hunter2"), "{text}");
    let values: Vec<Value> = serde_json::from_str(&text).unwrap();
    let slots = values.iter().find(|value| value["key"] == "model.slots").unwrap();
    assert_eq!((&slots["value"], &slots["origin"]["line"]), (&json!(2), &json!(2)));
}

#[test]
fn init_gives_a_file_that_is_right_and_replaces_none() {
    let (folder, main) = folder(&[]);
    let written = folder.path().join("promptd.toml");
    let init = || {
        let mut init = command(&["config", "init", "--output"]);
        init.arg(&written);
        output(init)
    };
    assert_eq!(init().0, 0);
    let (status, text, _) = config(&["check"], &main, &[]);
    assert_eq!(status, 0, "{text}");
    let (status, _, errors) = init();
    assert!(status == 1 && errors.contains("never replaces a file"), "{errors}");
    let (_, printed, _) = output(command(&["config", "init"]));
    assert_eq!(printed, std::fs::read_to_string(&written).unwrap());
}

#[test]
fn a_log_level_takes_effect_while_promptd_runs() {
    let service = Service::start(&Plan::demo()).ready();
    let ask = || http::get(&service.socket(), "/health/ready").status;
    let path = service.socket().with_file_name("promptd.toml");
    let old = std::fs::read_to_string(&path).unwrap();
    assert!(!service.log().contains("DEBUG"), "{}", service.log());
    std::fs::write(
        &path,
        format!(
            "{old}[log]\nlevel = \"debug\"\nformat = \"json\"\n[shutdown]\ngrace_seconds = 1\n"
        ),
    )
    .unwrap();
    signal(service.pid(), "HUP");
    wait_for("the new level", || service.log().contains("the log level changed").then_some(()));
    assert!(service.log().contains("log.format"), "what waits is named: {}", service.log());
    // The library that looks for libonnxruntime says where at this level, and only then.
    signal(service.pid(), "HUP");
    wait_for("a line of that level", || service.log().contains("DEBUG").then_some(()));
    assert_eq!(ask(), 200);
    // A level that is none changes nothing.
    std::fs::write(&path, format!("{old}[log]\nlevel = \"promptd=loud\"\n")).unwrap();
    signal(service.pid(), "HUP");
    wait_for("the complaint", || service.health()?.get("configuration_error").map(|_| ()));
    let (_, log) = service.stop();
    assert!(log.contains("grace_seconds=1"), "the grace of the reload holds: {log}");
}
