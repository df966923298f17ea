//! The engine's sandbox: what it refuses, by trying; and that the engine that answers is really in it, with every thread.

use std::collections::BTreeMap;
use std::path::Path;

use promptd::engine::escape::{self, Outcome};
use promptd::engine::sandbox::{self, Files, Needs};
use serde_json::{Value, json};

use crate::support::service::{Plan, Service, command, output};
use crate::support::{demo_model, http, library};

/// A model folder to break out of, and a file of somebody else.
fn place() -> (tempfile::TempDir, tempfile::TempDir) {
    let (model, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(model.path().join("model.onnx"), "weights").unwrap();
    std::fs::write(other.path().join("password"), "secret").unwrap();
    (model, other)
}

#[test]
fn whoever_is_not_confined_can_do_what_is_tried() {
    let (model, other) = place();
    let secret = other.path().join("password");
    let possible: Vec<String> = escape::attempts(model.path(), std::slice::from_ref(&secret))
        .into_iter()
        .filter(|attempt| attempt.outcome == Outcome::Possible)
        .map(|attempt| attempt.what)
        .collect();
    for what in
        ["a TCP socket", "a Unix socket", "running /bin/sh", "reading /etc/passwd", "listing /"]
    {
        assert!(possible.iter().any(|done| done == what), "{what} is not among {possible:?}");
    }
    for begin in ["a new file in /tmp", "writing to "] {
        assert!(possible.iter().any(|done| done.starts_with(begin)), "{begin}: {possible:?}");
    }
    assert!(possible.contains(&format!("reading {}", secret.display())), "{possible:?}");
    assert_eq!(std::fs::read_dir(model.path()).unwrap().count(), 1, "attempts leave nothing");
}

#[test]
fn a_confined_engine_is_refused_all_of_it() {
    let (model, other) = place();
    let mut tried = command(&["try-sandbox"]);
    tried.arg("--model").arg(model.path()).arg("--library").arg(library());
    tried.arg(other.path().join("password"));
    let (status, text, log) = output(tried);
    let has_landlock = !log.contains("no Landlock");
    let attempts: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(attempts.len() >= 20, "{text}{log}");
    let calls = [
        "a TCP socket",
        "a UDP socket",
        "a Unix socket",
        "changing the root directory",
        "setting the host name",
    ];
    for attempt in &attempts {
        let what = attempt["what"].as_str().unwrap();
        let must_fail = has_landlock || calls.contains(&what);
        assert!(!must_fail || attempt["outcome"] != "possible", "{what}\n{text}{log}");
    }
    if !has_landlock {
        println!("skipped in part: this kernel has no Landlock, so files stay open");
        return;
    }
    assert_eq!(status, 0, "{text}{log}");
    let password = format!("reading {}", other.path().join("password").display());
    for what in ["reading /etc/passwd", "running /bin/sh", &password] {
        let attempt = attempts.iter().find(|attempt| attempt["what"] == what);
        assert_eq!(attempt.unwrap()["outcome"], "refused", "{what}\n{text}");
    }
}

/// The sandbox of one thread, which takes it along to its end.
fn confined<T: Send + 'static>(needs: Needs, body: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().spawn(move || {
        let confined = sandbox::confine(&needs);
        confined.calls.as_ref().unwrap();
        body()
    });
    thread.unwrap().join().unwrap()
}

#[test]
fn written_memory_never_becomes_code_unless_an_accelerator_needs_it() {
    let turn_into_code = || {
        let memory = memmap2::MmapMut::map_anon(4096).unwrap();
        memory.make_exec().map(drop).map_err(|error| error.kind())
    };
    assert_eq!(turn_into_code(), Ok(()), "without a sandbox");
    let needs = Needs::default();
    let refused = confined(needs.clone(), turn_into_code);
    assert_eq!(refused, Err(std::io::ErrorKind::PermissionDenied));
    assert_eq!(confined(Needs { accelerator: true, ..needs }, turn_into_code), Ok(()));
}

/// As NVIDIA's driver does it when it starts.
#[test]
fn threads_are_named_through_their_files_only_where_an_accelerator_needs_it() {
    let name = || {
        let mut file = std::fs::File::options();
        let file = file.write(true).create(true).truncate(true).open("/proc/thread-self/comm");
        let done = file.and_then(|mut file| std::io::Write::write_all(&mut file, b"named"));
        let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
        (done.map_err(|error| error.kind()), name.trim().to_owned())
    };
    let files = confined(Needs::default(), || sandbox::confine(&Needs::default()).files.unwrap());
    if files == Files::None {
        println!("skipped: this kernel has no Landlock");
        return;
    }
    let (refused, _) = confined(Needs::default(), name);
    assert_eq!(refused, Err(std::io::ErrorKind::PermissionDenied));
    let needs = Needs { accelerator: true, ..Needs::default() };
    assert_eq!(confined(needs, name), (Ok(()), "named".to_owned()));
}

/// NVIDIA's driver waits at such a socket, and does not start where it cannot.
#[test]
fn of_sockets_an_accelerator_gets_one_kind_that_reaches_nobody() {
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, connect, listen, socket};
    let attempts = || {
        let packets = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None);
        let waits = packets.as_ref().map_err(|error| *error).and_then(|packets| {
            let name = format!("promptd-test-{}", std::process::id());
            bind(packets, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
            listen(packets, 1)?;
            connect(packets, &SocketAddrUnix::new("/nowhere")?)
        });
        let others = [
            (AddressFamily::UNIX, SocketType::STREAM),
            (AddressFamily::UNIX, SocketType::DGRAM),
            (AddressFamily::INET, SocketType::STREAM),
            (AddressFamily::INET, SocketType::SEQPACKET),
            (AddressFamily::INET6, SocketType::DGRAM),
        ];
        let others = others.map(|(family, kind)| socket(family, kind, None).map(drop));
        (packets.map(drop), waits, others)
    };
    let refused = Err(Errno::PERM);
    let (packets, _, others) = confined(Needs::default(), attempts);
    assert_eq!((packets, others), (refused, [refused; 5]));
    let needs = Needs { accelerator: true, ..Needs::default() };
    assert_eq!(confined(needs, attempts), (Ok(()), refused, [refused; 5]));
}

#[test]
#[expect(unsafe_code, reason = "system calls that only a break-in makes have no safe wrapper")]
fn calls_of_a_debugger_and_an_administrator_are_refused() {
    let refused = confined(Needs::default(), || {
        let mut refused = BTreeMap::new();
        let mut attempt = |what: &'static str, number: libc::c_long, first: libc::c_long| {
            // SAFETY: none of these calls takes a pointer in its first two arguments, and the others are null.
            let result = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
            let error = std::io::Error::last_os_error().raw_os_error();
            refused.insert(what, error.filter(|_| result == -1));
        };
        attempt("ptrace(PTRACE_TRACEME)", libc::SYS_ptrace, 0);
        attempt("unshare(CLONE_NEWUSER)", libc::SYS_unshare, libc::CLONE_NEWUSER.into());
        attempt("bpf", libc::SYS_bpf, 0);
        attempt("io_uring_setup", libc::SYS_io_uring_setup, 1);
        attempt("clone3", libc::SYS_clone3, 0);
        attempt("clone(CLONE_NEWUSER)", libc::SYS_clone, libc::CLONE_NEWUSER.into());
        refused
    });
    assert_eq!(refused.get("clone3"), Some(&Some(libc::ENOSYS)), "the C library takes clone then");
    for (call, error) in refused.into_iter().filter(|(call, _)| *call != "clone3") {
        assert_eq!(error, Some(libc::EPERM), "{call}");
    }
}

#[test]
fn a_model_is_read_whichever_way_it_is_named() {
    let (model, other) = place();
    let folder = model.path().to_owned();
    std::fs::create_dir(folder.join("onnx")).unwrap();
    std::fs::write(folder.join("onnx/model_q4.onnx"), "weights").unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let link = other.path().join("current");
    std::os::unix::fs::symlink(&folder, &link).unwrap();
    for named in [folder.clone(), folder.join("onnx/model_q4.onnx"), link] {
        let needs = Needs::of(&named, &library(), None);
        assert!(!needs.accelerator);
        let (folder, secret) = (folder.clone(), other.path().join("password"));
        let (read, closed) = confined(needs, move || {
            let read = ["config.json", "onnx/model_q4.onnx"]
                .map(|file| std::fs::read(folder.join(file)).is_ok());
            (read, std::fs::read(secret).is_err())
        });
        assert_eq!(read, [true, true], "{}", named.display());
        let has_landlock = matches!(
            confined(Needs::default(), || sandbox::confine(&Needs::default()).files),
            Ok(Files::All | Files::Some)
        );
        assert!(closed || !has_landlock, "{}", named.display());
    }
    let gpu = tempfile::tempdir().unwrap();
    for name in ["libonnxruntime.so.1.32.0", "libonnxruntime_providers_cuda.so", "secret"] {
        std::fs::write(gpu.path().join(name), "").unwrap();
    }
    let needs = Needs::of(Path::new("/m"), &gpu.path().join("libonnxruntime.so.1.32.0"), None);
    assert!(needs.accelerator);
    assert!(!needs.read.contains(&gpu.path().join("secret")), "{needs:?}");
}

#[test]
fn the_engine_that_answers_is_confined_with_every_thread() {
    let service = Service::start(&Plan::of_model(&demo_model())).ready();
    // A form is tried in a process of its own, which the sandbox lets the engine start.
    let request = json!({"model": "default", "messages": [{"role": "user", "content": "Turn on the lamp."}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"enum": ["on", "off"]}}}});
    let answer = http::post(&service.socket(), "/v1/chat/completions", &request);
    assert_eq!(answer.status, 200, "{}\n{}", answer.body, service.log());
    let engine = service.engine_pid().unwrap();
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{engine}/task")).unwrap().flatten() {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
            assert!(status.lines().any(|has| has == line), "{line} is not in\n{status}");
        }
        threads += 1;
    }
    assert!(threads >= 4, "{threads}");
}

/// The official builds of ONNX Runtime do, from 1.29 on, and begin with a number for this machine in the user's folder.
#[test]
fn onnxruntime_reports_nothing_to_anybody() {
    let home = tempfile::tempdir().unwrap();
    let mut load = command(&["model", "check", "--load", "--library"]);
    load.arg(library()).arg(demo_model()).env("HOME", home.path());
    // It says nothing in such surroundings either, which is not what is to be seen here.
    for name in ["CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "XDG_CACHE_HOME"] {
        load.env_remove(name);
    }
    let (status, text, log) = output(load);
    assert_eq!(status, 0, "{text}{log}");
    let left: Vec<_> = std::fs::read_dir(home.path()).unwrap().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
    // An engine gets no folder to write to anyway, nor a socket; it does not even try.
    let service = Service::start(&Plan::demo()).ready();
    let engine = service.engine_pid().expect("an engine");
    let environment = std::fs::read(format!("/proc/{engine}/environ")).unwrap();
    let mut variables = environment.split(|byte| *byte == 0);
    assert!(variables.any(|variable| variable == b"ORT_DISABLE_TELEMETRY=1"));
}
