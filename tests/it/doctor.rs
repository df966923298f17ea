//! `promptd doctor` on boards that the test writes, on broken installations, and beside a running service.

use std::path::Path;

use serde_json::Value;

use crate::support::service::{Plan, Service, command, output};
use crate::support::{broker::Broker, demo_model, library};

/// A board's files, by their absolute names.
fn board(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = root.path().join(name.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    root
}

/// A configuration in a folder of its own.
fn configuration(more: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = format!(
        "[socket]\npath = {:?}\n[model]\npath = {:?}\n[runtime]\nlibrary = {:?}\n{more}",
        folder.path().join("unused.sock"),
        demo_model(),
        library()
    );
    std::fs::write(folder.path().join("promptd.toml"), text).unwrap();
    folder
}

/// The exit code and the findings.
fn examine(config: &Path, root: &Path, socket: &Path) -> (i32, Vec<Value>) {
    let mut doctor = command(&["doctor", "--json", "--config"]);
    doctor.arg(config).arg("--root").arg(root).arg("--socket").arg(socket);
    let (status, text, errors) = output(doctor);
    let report: Value =
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}{errors}"));
    assert_eq!(report["ok"], status == 0, "{text}");
    (status, report["findings"].as_array().unwrap().clone())
}

fn find<'a>(findings: &'a [Value], about: &str, words: &str) -> &'a Value {
    let found = findings.iter().find(|finding| {
        finding["about"] == about && finding["says"].as_str().unwrap().contains(words)
    });
    found.unwrap_or_else(|| panic!("{about}: {words} is not among {findings:#?}"))
}

const PI_4: &[(&str, &str)] = &[
    (
        "/proc/cpuinfo",
        "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32 cpuid\nprocessor\t: 1\nFeatures\t: fp asimd evtstrm crc32 cpuid\n",
    ),
    ("/proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
    ("/proc/meminfo", "MemTotal:  3884292 kB\nMemAvailable: 102400 kB\nSwapTotal: 0 kB\n"),
    (
        "/proc/pressure/memory",
        "some avg10=9.00 avg60=8.00 avg300=1.00 total=1\nfull avg10=7.00 avg60=6.50 avg300=1.00 total=1\n",
    ),
    ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io pids"),
    ("/sys/class/thermal/thermal_zone0/temp", "82300\n"),
    ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
    ("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n"),
    ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
    (
        "/lib/aarch64-linux-gnu/libc.so.6",
        "\u{1}GNU C Library (Debian GLIBC 2.24-11) stable release version 2.24, by\u{1}",
    ),
];

const NEW_BOARD: &[(&str, &str)] = &[
    ("/proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm sve bf16\n"),
    ("/proc/meminfo", "MemTotal:  8000000 kB\nMemAvailable: 6000000 kB\nSwapTotal: 0 kB\n"),
    ("/sys/class/thermal/thermal_zone0/temp", "41000\n"),
    ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
    ("/dev/nvmap", ""),
    ("/lib/aarch64-linux-gnu/libc.so.6", "stable release version 2.41.\u{1}"),
];

#[test]
fn a_board_in_trouble() {
    let (root, config) = (board(PI_4), configuration(""));
    let nobody = config.path().join("nobody.sock");
    let (status, findings) = examine(&config.path().join("promptd.toml"), root.path(), &nobody);
    assert_eq!(status, 1, "an old C library is a problem");
    for (about, words, grade) in [
        ("processor", "Raspberry Pi 4 Model B Rev 1.4, 2 processors", "note"),
        ("frequency", "powersave", "warning"),
        ("memory", "100 of 3793 MiB", "warning"),
        ("memory", "6.5 %", "warning"),
        ("memory", "limits no service", "note"),
        ("temperature", "82.3 °C (cpu-thermal)", "warning"),
        ("power", "is too low now", "warning"),
        ("C library", "glibc 2.24", "problem"),
        ("configuration", "is right", "ok"),
        ("library", "ONNX Runtime 1.", "ok"),
        ("library", "providers: CPU", "ok"),
        ("model", "demo", "ok"),
        ("service", "cannot reach", "warning"),
    ] {
        assert_eq!(find(&findings, about, words)["grade"], grade, "{about} {words}");
    }
    for finding in &findings {
        let has_fix = finding["fix"].as_str().is_some_and(|fix| !fix.is_empty());
        let needs_fix = ["warning", "problem"].contains(&finding["grade"].as_str().unwrap());
        assert!(has_fix || !needs_fix, "no way out: {finding}");
    }
    // The same for people.
    let mut doctor = command(&["doctor", "--config"]);
    doctor.arg(config.path().join("promptd.toml")).arg("--root").arg(root.path());
    doctor.args(["--socket", "/nowhere"]);
    let (status, text, _) = output(doctor);
    assert_eq!(status, 1);
    assert!(
        text.contains("PROBLEM  C library") && text.contains("→ take a newer system"),
        "{text}"
    );
    assert!(text.contains("\n1 problem, "), "{text}");
}

#[test]
fn a_board_that_is_well_and_a_service_that_answers() {
    let Some(broker) = Broker::start("") else { return };
    let port = broker.port;
    let mqtt = format!("[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = \"doctor\"\n");
    let service = Service::start(&Plan::demo().with(&mqtt)).ready();
    let (root, config) = (board(NEW_BOARD), configuration(&mqtt));
    let file = config.path().join("promptd.toml");
    crate::support::wait_for("the connection to the broker", || {
        let health = service.health()?;
        (health["broker"]["connected"] == true).then_some(())
    });
    let (status, findings) = examine(&file, root.path(), &service.socket());
    assert_eq!(status, 0, "{findings:#?}");
    for (about, words) in [
        ("processor", "dot product, i8mm, SVE, bf16"),
        ("temperature", "41.0 °C"),
        ("accelerator", "/dev/nvmap"),
        ("C library", "glibc 2.41"),
        ("service", "it answers with demo on CPU"),
        ("service", "connected to mqtt://127.0.0.1"),
        ("broker", "takes connections"),
    ] {
        assert_eq!(find(&findings, about, words)["grade"], "ok", "{about} {words}");
    }
    drop(broker);
    let (status, findings) = examine(&file, root.path(), &service.socket());
    assert_eq!(status, 1);
    assert_eq!(find(&findings, "broker", &port.to_string())["grade"], "problem");
}

#[test]
fn what_is_installed_wrongly_is_named_with_a_way_out() {
    let root = board(NEW_BOARD);
    let nobody = Path::new("/nowhere.sock");
    let wrong = configuration("threadz = 3\n");
    let (status, findings) = examine(&wrong.path().join("promptd.toml"), root.path(), nobody);
    assert_eq!(
        (status, &find(&findings, "configuration", "threadz")["grade"]),
        (1, &"problem".into())
    );

    let open = configuration(
        "[mqtt]\nurl = \"mqtt://me:secret@127.0.0.1:1\"\n[state]\ndir = \"STATE\"\n[clients.a]\napi_key_file = \"KEY\"\n",
    );
    let (file, key, state) =
        (open.path().join("promptd.toml"), open.path().join("key"), open.path().join("state"));
    let text = std::fs::read_to_string(&file).unwrap();
    let text = text.replace("STATE", state.to_str().unwrap()).replace("KEY", key.to_str().unwrap());
    std::fs::write(&file, text).unwrap();
    std::fs::write(&key, "0123456789abcdef0123456789abcdef\n").unwrap();
    std::fs::create_dir(&state).unwrap();
    for (path, mode) in [(&file, 0o644), (&key, 0o644), (&state, 0o755)] {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    }
    let (status, findings) = examine(&file, root.path(), nobody);
    assert_eq!(status, 1, "nobody listens on port 1");
    assert_eq!(find(&findings, "secrets", "holds the broker's password")["grade"], "warning");
    assert_eq!(find(&findings, "secrets", "everybody may read")["grade"], "warning");
    assert_eq!(find(&findings, "state", "others may look into")["grade"], "warning");
    assert_eq!(find(&findings, "broker", "127.0.0.1:1")["grade"], "problem");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("promptd.toml");
    std::fs::write(folder.path().join("libonnxruntime.so"), "no library").unwrap();
    let text = format!(
        "[socket]\npath = \"/nowhere.sock\"\n[model]\npath = {:?}\n[runtime]\nlibrary = {:?}\n",
        folder.path().join("no-model"),
        folder.path().join("libonnxruntime.so")
    );
    std::fs::write(&file, text).unwrap();
    let (status, findings) = examine(&file, root.path(), nobody);
    assert_eq!(status, 1);
    assert_eq!(find(&findings, "library", "libonnxruntime.so")["grade"], "problem");
    assert_eq!(find(&findings, "model", "no-model")["grade"], "problem");
}
