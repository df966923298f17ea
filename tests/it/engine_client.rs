//! The supervisor with real child processes: how deaths are told, restarts, silence, garbage, and the end.
//! Some children are shells; the others are this test program itself, told by a variable to be an engine.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use promptd::engine::client::{EngineEvent, EnginePort, SpawnConfig, supervise};
use promptd::engine::frames::{CheckedPrompt, FromEngine, LoadRequest, LoadStage, ToEngine};
use promptd::engine::process::{self, Checker, Interrupter, Loaded, Model, Start};
use promptd::engine::{Death, DeathReport, Phase};
use promptd::request::{CacheKey, Event, Pinned, PromptId, Refusal, Request, Reuse};
use promptd::scheduler::{Config, Scheduler, State};
use tokio::sync::mpsc;

use crate::support::PATIENCE;
use crate::support::words::{delta, finished, load, model, request, submission, words};

/// Says that this process is an engine, and which kind.
const ROLE: &str = "TEST_ENGINE_ROLE";

fn shell(script: &str) -> SpawnConfig {
    let mut config = SpawnConfig::new("/bin/sh".into(), Vec::new(), load());
    config.arguments = vec!["-c".into(), script.into()];
    config
}

fn engine(role: &str) -> SpawnConfig {
    let environment =
        std::env::vars_os().chain([(OsString::from(ROLE), OsString::from(role))]).collect();
    let mut config = SpawnConfig::new(std::env::current_exe().unwrap(), environment, load());
    config.arguments = ["--exact", "engine_client::this_program_as_an_engine", "--nocapture"]
        .map(OsString::from)
        .to_vec();
    config
}

async fn next(port: &mut EnginePort) -> EngineEvent {
    tokio::time::timeout(PATIENCE, port.events.recv())
        .await
        .expect("something happens")
        .expect("the supervisor is there")
}

async fn started(port: &mut EnginePort) -> (u32, mpsc::Sender<ToEngine>) {
    match next(port).await {
        EngineEvent::Started { pid, to } => (pid, to),
        other => panic!("not started: {other:?}"),
    }
}

async fn frame(port: &mut EnginePort) -> FromEngine {
    match next(port).await {
        EngineEvent::Frame(frame) => frame,
        other => panic!("no frame: {other:?}"),
    }
}

async fn died(port: &mut EnginePort) -> (DeathReport, Duration) {
    match next(port).await {
        EngineEvent::Died { report, restart_in } => {
            (report, restart_in.expect("it is started again"))
        }
        other => panic!("not dead: {other:?}"),
    }
}

/// Until the model is ready; returns the way to the engine.
async fn ready(port: &mut EnginePort) -> (u32, mpsc::Sender<ToEngine>) {
    let engine = started(port).await;
    assert_eq!(frame(port).await, FromEngine::Loading(LoadStage::Runtime));
    assert_eq!(frame(port).await, FromEngine::Ready(model(2)));
    engine
}

fn is_alive(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[tokio::test]
async fn deaths_are_told_by_code_or_signal() {
    for (script, how) in [
        ("exit 3", Death::Exited(3)),
        ("kill -SEGV $$", Death::Killed(11)),
        ("kill -KILL $$", Death::Killed(9)),
        // No frame, but bytes: 4 GiB of them, it says.
        (
            "printf '\\377\\377\\377\\377' >&0; sleep 60",
            Death::Garbled("a frame of 4294967295 bytes is over the limit of 20971520".to_owned()),
        ),
    ] {
        let mut port = supervise(shell(script));
        let (pid, _) = started(&mut port).await;
        let (report, wait) = died(&mut port).await;
        assert_eq!((&report.how, report.phase), (&how, Phase::Starting), "{script}");
        assert!(wait <= Duration::from_millis(100), "{wait:?}");
        assert!(!is_alive(pid), "{script}");
        // And the next one is started.
        let (second, _) = started(&mut port).await;
        assert_ne!(pid, second);
    }
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_told() {
    let mut port = supervise(SpawnConfig::new("/nonexistent/promptd".into(), Vec::new(), load()));
    let (report, _) = died(&mut port).await;
    assert!(matches!(report.how, Death::NotStarted(_)), "{report:?}");
    assert!(report.to_string().contains("must stay executable"), "{report}");
    // After three in a row it is tried seldom.
    died(&mut port).await;
    let (_, wait) = died(&mut port).await;
    assert!(wait > Duration::from_secs(20), "{wait:?}");
}

#[tokio::test]
async fn the_engine_sees_nothing_of_the_services_secrets() {
    let pairs = [
        ("PROMPTD__MQTT__PASSWORD", "secret"),
        ("CREDENTIALS_DIRECTORY", "/run/x"),
        ("NOTIFY_SOCKET", "/n"),
        ("LANG", "C"),
    ];
    let script = "test -z \"$PROMPTD__MQTT__PASSWORD$CREDENTIALS_DIRECTORY$NOTIFY_SOCKET\" && test \"$LANG\" = C && exit 7";
    let mut config = shell(script);
    config.environment = pairs.map(|(name, value)| (name.into(), value.into())).to_vec();
    let mut port = supervise(config);
    started(&mut port).await;
    assert_eq!(died(&mut port).await.0.how, Death::Exited(7));
}

fn start(resume: Vec<u32>) -> ToEngine {
    let (request, reuse) = (request("x"), Reuse::default());
    ToEngine::Start { id: PromptId(1), check: None, request, seed: 1, resume, reuse }
}

#[tokio::test]
async fn orders_and_frames_pass_and_a_closed_port_ends_the_engine() {
    let mut port = supervise(engine("good"));
    let (pid, to) = ready(&mut port).await;
    to.send(ToEngine::Check { check: 3, request: request("x") }).await.unwrap();
    assert!(matches!(frame(&mut port).await, FromEngine::Checked { check: 3, result: Ok(_) }));
    to.send(start(vec![5])).await.unwrap();
    // The scripted model counts on from what it resumes. Who reads late gets more than one piece in one.
    let event = frame(&mut port).await;
    let FromEngine::Event { id: PromptId(1), event: Event::Delta { text, tokens, .. } } = event
    else {
        panic!("{event:?}");
    };
    assert!(text.starts_with("<1>") && tokens.first() == Some(&1), "{text} {tokens:?}");
    assert!(is_alive(pid));
    let begun = Instant::now();
    tokio::time::timeout(PATIENCE, port.end()).await.expect("the supervisor ends");
    assert!(!is_alive(pid));
    assert!(begun.elapsed() < Duration::from_secs(2), "it ended by itself: {:?}", begun.elapsed());
}

#[tokio::test]
async fn an_engine_that_does_not_end_is_killed() {
    let mut port = supervise(shell("trap '' TERM; while :; do sleep 1; done"));
    let (pid, _) = started(&mut port).await;
    tokio::time::timeout(PATIENCE, port.end()).await.expect("the supervisor ends");
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn an_engine_that_is_silent_with_work_to_do_is_killed() {
    let patience = Duration::from_millis(300);
    let mut port = supervise(SpawnConfig { wedge_timeout: patience, ..engine("wedged") });
    let (pid, to) = ready(&mut port).await;
    // Without work it may be silent.
    assert!(tokio::time::timeout(3 * patience, port.events.recv()).await.is_err());
    to.send(start(Vec::new())).await.unwrap();
    let (report, _) = died(&mut port).await;
    assert_eq!((report.how, report.phase), (Death::Silent(patience), Phase::Ready));
    assert!(!is_alive(pid));
}

#[tokio::test]
async fn an_engine_that_loads_for_ever_is_killed() {
    let patience = Duration::from_millis(300);
    let mut port = supervise(SpawnConfig { load_timeout: patience, ..shell("exec sleep 60") });
    started(&mut port).await;
    assert_eq!(died(&mut port).await.0.how, Death::Silent(patience));
}

#[tokio::test]
async fn a_load_that_fails_is_tried_again_seldom() {
    let mut port = supervise(engine("refusing"));
    started(&mut port).await;
    let FromEngine::LoadFailed(refusal) = frame(&mut port).await else { panic!("not refused") };
    assert_eq!(refusal.message, "no model here");
    let (report, wait) = died(&mut port).await;
    assert_eq!(report.how, Death::Exited(78));
    assert!(wait > Duration::from_secs(20), "{wait:?}");
}

#[tokio::test]
async fn an_engine_is_ended_replaced_and_started_as_wanted() {
    let mut port = supervise(engine("good"));
    let (first, _) = ready(&mut port).await;
    port.unload();
    assert!(matches!(next(&mut port).await, EngineEvent::Ended));
    assert!(!is_alive(first));
    let quiet = tokio::time::timeout(Duration::from_millis(300), port.events.recv()).await;
    assert!(quiet.is_err(), "nothing is started: {quiet:?}");
    port.load();
    let (second, _) = ready(&mut port).await;
    port.replace(None);
    assert!(matches!(next(&mut port).await, EngineEvent::Ended));
    let (third, _) = ready(&mut port).await;
    assert!(!is_alive(second) && is_alive(third));
    // What is changed again before the engine has ended counts as it is then.
    port.unload();
    port.load();
    assert!(matches!(next(&mut port).await, EngineEvent::Ended));
    ready(&mut port).await;
    tokio::time::timeout(PATIENCE, port.end()).await.expect("the supervisor ends");
}

#[tokio::test]
async fn a_load_that_is_asked_for_does_not_wait_for_the_pause() {
    let mut port = supervise(engine("refusing"));
    for _ in 0..2 {
        started(&mut port).await;
        assert!(matches!(frame(&mut port).await, FromEngine::LoadFailed(_)));
        let (_, wait) = died(&mut port).await;
        // The pauses begin anew as well.
        assert!(wait > Duration::from_secs(20) && wait <= Duration::from_secs(30), "{wait:?}");
        port.load();
    }
    started(&mut port).await;
}

#[tokio::test]
async fn what_is_sent_to_a_dead_engine_goes_nowhere() {
    let mut port = supervise(engine("good"));
    let (pid, to) = ready(&mut port).await;
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert_eq!(died(&mut port).await.0.how, Death::Killed(9));
    assert!(to.send(ToEngine::Cancel { id: PromptId(1) }).await.is_err());
    ready(&mut port).await;
}

#[tokio::test]
async fn an_answer_goes_on_after_kill_9() {
    let port = supervise(engine("good"));
    let (scheduler, task) = Scheduler::start(Config::default(), port);
    let mut status = scheduler.status();
    let ready = |status: &promptd::scheduler::Status| status.state == State::Ready;
    tokio::time::timeout(PATIENCE, status.wait_for(ready)).await.unwrap().unwrap();
    let mut ticket = scheduler.submit(submission("a", "x")).await.unwrap();
    let mut tokens = Vec::new();
    let mut killed = 0;
    let text = async {
        let mut text = String::new();
        loop {
            match ticket.next().await.expect("a final event comes") {
                Event::Delta { text: more, tokens: others, .. } => {
                    text.push_str(&more);
                    tokens.extend(others);
                }
                Event::Finished(_) => return text,
                Event::Started { .. } => {}
                other => panic!("{other:?}"),
            }
            if tokens.len() > 5 && killed == 0 {
                killed += 1;
                let pid = status.borrow_and_update().engine_pid.unwrap();
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
            }
        }
    };
    let text = tokio::time::timeout(PATIENCE, text).await.expect("the answer ends");
    assert_eq!(tokens, (0..COUNT).collect::<Vec<_>>());
    assert_eq!(text, words(&tokens));
    assert_eq!(status.borrow_and_update().counters.engine_restarts, 1);
    drop(scheduler);
    tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap();
}

// === the engine ===

/// Tokens of each answer of the scripted engine: 0, 1, 2, …
const COUNT: u32 = 200;

struct Counter {
    running: Vec<(PromptId, u32)>,
    wedged: bool,
}

struct Anything;

#[derive(Debug, thiserror::Error)]
#[error("never")]
struct Never;

impl Checker for Anything {
    type Prepared = ();

    fn prepare(&self, _: &Request) -> Result<((), CheckedPrompt), Refusal> {
        Ok(((), CheckedPrompt { prompt_tokens: 1, max_tokens: COUNT, calls: None }))
    }

    fn beginning(&self, _: &Pinned) -> Vec<u32> {
        Vec::new()
    }
}

impl Model for Counter {
    type Checker = Anything;
    type Error = Never;

    fn start(&mut self, start: Start<'_, ()>) -> Result<(), Refusal> {
        self.running.push((start.id, u32::try_from(start.resume.len()).unwrap()));
        Ok(())
    }

    fn pin(&mut self, _: Vec<(CacheKey, Vec<u32>)>) {}

    fn interrupter(&self) -> Interrupter {
        Box::new(|_| {})
    }

    fn cancel(&mut self, id: PromptId) {
        self.running.retain(|(other, _)| *other != id);
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), Never> {
        // As slow as a model is, so that a kill finds it at work.
        std::thread::sleep(if self.wedged { PATIENCE } else { Duration::from_millis(2) });
        for (id, next) in &mut self.running {
            emit(*id, if *next < COUNT { delta(*next) } else { finished(COUNT) });
            *next += 1;
        }
        self.running.retain(|(_, next)| *next <= COUNT);
        Ok(())
    }
}

/// Not a test of its own: does nothing unless the supervisor under test started this program.
#[test]
fn this_program_as_an_engine() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let load = move |_: &LoadRequest, progress: &mut dyn FnMut(LoadStage)| {
        if role == "refusing" {
            return Err(Refusal::bad_request("no model here"));
        }
        progress(LoadStage::Runtime);
        let counter = Counter { running: Vec::new(), wedged: role == "wedged" };
        Ok(Loaded { info: model(2), checker: Anything, model: counter })
    };
    let farewell = process::run(&socket, |_| {}, load, Instant::now).unwrap();
    #[expect(
        clippy::exit,
        clippy::disallowed_methods,
        reason = "the test harness would print its own end"
    )]
    std::process::exit(if farewell.ended == process::Ended::LoadFailed { 78 } else { 0 });
}
