//! What a service costs that is asked nothing: context switches and processor time of both its processes, with the demo model
//! loaded and after it has answered once.

use std::io::{BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::overhead::demo;
use crate::service::{Service, ticks};

/// The limits, each second: context switches of both processes together, and hundredths of a second of processor time.
const SWITCHES: f64 = 1.0;
const TICKS: f64 = 0.05;

/// What ends by itself after an answer (spinning threads, a tick of half a second) has ended then.
const SETTLE: Duration = Duration::from_secs(3);

/// Looks for so many seconds, with the limits; without a number for a moment, in which one look at the board is much already: what it
/// finds then is a service that spins.
pub(crate) fn play(seconds: Option<u64>) -> ExitCode {
    let service = Service::start(&demo());
    let mut stream = BufReader::new(UnixStream::connect(service.socket()).unwrap());
    let body = r#"{"messages":[{"role":"user","content":"Who are you?"}]}"#;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: l\r\nConnection: close\r\n";
    let request = format!("{head}Content-Length: {}\r\n\r\n{body}", body.len());
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let engine = service.health().unwrap()["engine_pid"].as_u64();
    let engine = u32::try_from(engine.expect("the engine's process")).unwrap();
    std::thread::sleep(SETTLE);
    let look = |pid| (switches(pid), ticks(pid));
    let (begun, before) = (Instant::now(), [look(service.pid()), look(engine)]);
    std::thread::sleep(Duration::from_secs(seconds.unwrap_or(5)));
    let (lasted, after) = (begun.elapsed(), [look(service.pid()), look(engine)]);
    let mut misses = Vec::new();
    let mut all = 0.0;
    for (name, before, after) in
        [("the service", before[0], after[0]), ("the engine", before[1], after[1])]
    {
        let a_second = |count: u32| f64::from(count) / lasted.as_secs_f64();
        let (switches, ticks) = (a_second(after.0 - before.0), a_second(after.1 - before.1));
        println!("{name}: {switches:.2} context switches a second, {ticks:.2} % of a core");
        all += switches;
        misses.extend(
            (ticks > TICKS && seconds.is_some())
                .then(|| format!("{name} takes {ticks:.2} % of a core")),
        );
    }
    let most = if seconds.is_some() { SWITCHES } else { 10.0 * SWITCHES };
    misses.extend((all > most).then(|| format!("{all:.2} context switches a second")));
    for miss in &misses {
        println!("MISSED: {miss}");
    }
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Context switches of all threads of a process so far (`proc_pid_status(5)`).
fn switches(pid: u32) -> u32 {
    let tasks = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("task")).unwrap();
    let of = |status: String| -> u32 {
        let lines = status.lines().filter(|line| line.contains("voluntary_ctxt_switches"));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok()).sum()
    };
    tasks
        .map(|task| of(std::fs::read_to_string(task.unwrap().path().join("status")).unwrap()))
        .sum()
}
