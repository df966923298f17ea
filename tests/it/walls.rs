//! The house rules that a compiler does not know: which room may know which, who owns which library, how a file begins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The rooms, each with those it may name, itself left out. docs/architecture.md draws the same picture.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("request", &[]),
    ("inference", &["request"]),
    ("engine", &["request", "inference"]),
    ("store", &["inference"]),
    ("hub", &["inference", "store"]),
    ("session", &["request"]),
    ("record", &["request", "session"]),
    ("board", &[]),
    ("traffic", &["request"]),
    ("scheduler", &["request", "session", "board", "record", "engine", "traffic"]),
    ("identity", &["request"]),
    ("control", &["request", "scheduler"]),
    ("wire", &["request", "identity", "record", "scheduler"]),
    ("mqtt", &["request", "identity", "board", "record", "scheduler", "control", "wire"]),
    (
        "socket",
        &["request", "identity", "board", "record", "traffic", "scheduler", "control", "wire"],
    ),
    ("settings", &["identity", "session", "wire"]),
    ("telemetry", &["settings"]),
    ("systemd", &[]),
    (
        "daemon",
        &[
            "request",
            "identity",
            "board",
            "session",
            "record",
            "control",
            "engine",
            "inference",
            "store",
            "scheduler",
            "wire",
            "mqtt",
            "socket",
            "settings",
            "telemetry",
            "systemd",
        ],
    ),
    ("cli", &["daemon", "settings", "engine", "inference", "store", "hub", "wire", "telemetry"]),
];

/// Rooms that everybody may know: deliberate faults stand wherever a fault can be.
const KNOWN_TO_ALL: &[&str] = &["defect"];

/// Libraries that only these places may name: what is replaced one day is replaced there.
const OWNED: &[(&str, &[&str])] = &[
    ("ort", &["src/inference/"]),
    ("tokenizers", &["src/inference/"]),
    ("minijinja", &["src/inference/"]),
    ("llguidance", &["src/inference/"]),
    ("memmap2", &["src/inference/"]),
    ("libloading", &["src/inference/cuda.rs"]),
    ("ciborium", &["src/wire/cbor.rs"]),
    ("rumqttc_v5", &["src/mqtt/packet/"]),
    ("rumqttc_v4", &["src/mqtt/packet/"]),
    ("tokio_rustls", &["src/mqtt/", "src/socket/", "src/hub/"]),
    ("rustls_native_certs", &["src/mqtt/tls.rs", "src/hub/tls.rs"]),
    ("hyper", &["src/socket/", "src/cli/", "src/hub/"]),
    ("config", &["src/settings/"]),
    ("clap", &["src/cli/"]),
    ("rustyline", &["src/cli/"]),
    ("listenfd", &["src/socket/"]),
    ("sd_notify", &["src/systemd.rs"]),
    ("postcard", &["src/engine/frames.rs"]),
    ("rusqlite", &["src/record/sqlite/"]),
    ("tar", &["src/store/archive.rs", "src/store/tests.rs"]),
    ("minisign_verify", &["src/inference/signature.rs"]),
    ("landlock", &["src/engine/sandbox.rs"]),
    ("seccompiler", &["src/engine/sandbox.rs"]),
    ("libc", &["src/engine/sandbox.rs", "src/inference/mapped.rs", "src/socket/groups.rs"]),
];

/// Libraries that exactly this many files may name.
const OWNED_BY_ONE_FILE: &[&str] = &["memmap2", "config", "postcard", "sd_notify"];

/// Rooms that must stay free of these, whoever else uses them.
const FORBIDDEN: &[(&str, &[&str])] = &[
    ("request", &["tokio", "serde_json", "std::time::Instant", "std::net", "std::fs"]),
    ("inference", &["tokio", "std::net", "std::os::unix::net"]),
];

/// A file longer than this is no longer read in one sitting.
const MAX_LINES: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(String, String)> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut files = Vec::new();
    walk(&root().join("src"), &mut files);
    walk(&root().join("tests"), &mut files);
    files.sort();
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
    files.iter().map(|path| (name(path), std::fs::read_to_string(path).unwrap())).collect()
}

/// `src/mqtt/link.rs` is in `mqtt`, `src/daemon.rs` in `daemon`.
fn room(file: &str) -> Option<&str> {
    let inside = file.strip_prefix("src/")?;
    let first = inside.split('/').next()?;
    Some(first.strip_suffix(".rs").unwrap_or(first))
}

/// Code without comments, so that prose may name what code may not.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().map(|(n, line)| (n + 1, line.split("//").next().unwrap_or("")))
}

/// Whether `word` stands in `line` as a path root: `word::`, not `my_word::` and not `a::word::`.
fn names(line: &str, word: &str) -> bool {
    let pattern = format!("{word}::");
    line.match_indices(&pattern).any(|(at, _)| {
        let before = line.get(..at).unwrap_or_default().chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':')
    }) || line.trim() == format!("use {word};")
}

#[test]
fn a_room_knows_only_the_rooms_below_it() {
    let rules: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let Some(room) = room(&file) else { continue };
        if matches!(room, "lib" | "main") || KNOWN_TO_ALL.contains(&room) {
            continue;
        }
        let Some(allowed) = rules.get(room) else {
            wrong.push(format!("{file}: the room `{room}` has no rule in MAY_KNOW"));
            continue;
        };
        for (number, line) in code_lines(&text) {
            for other in rules.keys().filter(|other| **other != room && !allowed.contains(other)) {
                if line.contains(&format!("crate::{other}")) {
                    wrong.push(format!("{file}:{number}: `{room}` may not know `{other}`"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "walls are broken:\n{}", wrong.join("\n"));
}

#[test]
fn a_library_is_named_only_by_its_owner() {
    let mut wrong = Vec::new();
    let mut owners: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (file, text) in sources().into_iter().filter(|(file, _)| file.starts_with("src/")) {
        for (library, places) in OWNED {
            let named: Vec<usize> = code_lines(&text)
                .filter(|(_, line)| names(line, library))
                .map(|(n, _)| n)
                .collect();
            if named.is_empty() {
                continue;
            }
            owners.entry(library).or_default().push(file.clone());
            if !places.iter().any(|place| file.starts_with(place)) {
                wrong.push(format!(
                    "{file}:{}: only {} may name `{library}`",
                    named[0],
                    places.join(", ")
                ));
            }
        }
        for (room_name, words) in FORBIDDEN {
            for word in words.iter().filter(|_| room(&file) == Some(room_name)) {
                for (number, _) in code_lines(&text)
                    .filter(|(_, line)| names(line, word) || line.contains(&format!("{word}::")))
                {
                    wrong.push(format!("{file}:{number}: `{room_name}` may not know `{word}`"));
                }
            }
        }
    }
    for library in OWNED_BY_ONE_FILE {
        if let Some(files) = owners.get(library).filter(|files| files.len() > 1) {
            wrong.push(format!(
                "`{library}` is named by {} files, one is enough: {}",
                files.len(),
                files.join(", ")
            ));
        }
    }
    assert!(wrong.is_empty(), "libraries are out of their rooms:\n{}", wrong.join("\n"));
}

#[test]
fn a_file_says_what_it_is_and_can_be_read_in_one_sitting() {
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        let first = text.lines().next().unwrap_or("");
        if !(first.starts_with("//! ") && first.len() > 20) {
            wrong.push(format!(
                "{file}: begins with `{first}`, not with a sentence `//! …` that says what it is"
            ));
        }
        let lines = text.lines().count();
        if lines > MAX_LINES {
            wrong.push(format!("{file}: {lines} lines; {MAX_LINES} is the most"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_code_stays_where_it_is_expected() {
    let with_unsafe: Vec<String> = sources()
        .into_iter()
        .filter(|(file, text)| {
            file.starts_with("src/") && code_lines(text).any(|(_, line)| line.contains("unsafe {"))
        })
        .map(|(file, _)| file)
        .collect();
    // The pointers of ONNX Runtime and of a GPU's driver, the map of a file, the one option of a socket that no library wraps, and the
    // variable that has to stand in this process's own environment.
    let expected = |file: &String| {
        file.starts_with("src/inference/")
            || ["src/socket/groups.rs", "src/main.rs"].contains(&file.as_str())
    };
    assert!(with_unsafe.len() <= 6, "unsafe code has spread: {with_unsafe:?}");
    assert!(with_unsafe.iter().all(expected), "{with_unsafe:?}");
}
