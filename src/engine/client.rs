//! The parent's half of the seam: starts the engine, moves frames, tells of deaths, starts the next one, ends it where no
//! model is wanted, and ends the last when nobody listens any more. Knows prompts only by their numbers.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::frames::{FromEngine, LoadRequest, ToEngine};
use super::life::{End, Life, Wires};
use super::{Death, DeathReport, FOR_ONNXRUNTIME};

/// An engine with prompts or checks to do that sends nothing for this long is wedged, until enough of its steps are
/// measured for a limit of its own (`pace.rs`). The slowest step is one chunk of prefill; a 7B model on the slowest board
/// we know takes a few seconds for it.
pub const DEFAULT_WEDGE_TIMEOUT: Duration = Duration::from_secs(60);

/// One stage of loading may take this long. Reading 4 GB from an SD card at 40 MB/s takes 100 s; this is nine times that.
pub const DEFAULT_LOAD_TIMEOUT: Duration = Duration::from_secs(900);

/// Messages between the tasks, each way. A few keep both busy; what the reader of events does not take stays in the
/// engine, which merges it.
pub(super) const CHANNEL: usize = 16;

/// How long an engine that is no longer needed may take to end by itself: one step of the model and its farewell.
const GRACE: Duration = Duration::from_secs(2);

/// How long an engine may take to be dead after its socket closed: the kernel may be writing a core file of gigabytes.
const LAST_BREATH: Duration = Duration::from_secs(30);

/// A supervisor that is later than this is stuck: its own timers are late by milliseconds, and on a board that swaps by seconds.
const SLACK: Duration = Duration::from_secs(5);

/// What to start.
#[derive(Clone, Debug)]
pub struct SpawnConfig {
    /// The program that is the engine: promptd's own file (`std::env::current_exe`).
    pub program: PathBuf,
    /// Its arguments: the command that calls [`super::process::run`].
    pub arguments: Vec<OsString>,
    /// The environment the service was started with. What belongs to the service alone is left out: settings, which may name secrets, and what systemd told the service alone.
    pub environment: Vec<(OsString, OsString)>,
    /// What it loads.
    pub load: LoadRequest,
    /// See [`DEFAULT_WEDGE_TIMEOUT`].
    pub wedge_timeout: Duration,
    /// See [`DEFAULT_LOAD_TIMEOUT`].
    pub load_timeout: Duration,
}

impl SpawnConfig {
    /// `program engine`, with the usual limits.
    pub fn new(
        program: PathBuf,
        environment: Vec<(OsString, OsString)>,
        load: LoadRequest,
    ) -> Self {
        let arguments = vec![OsString::from("engine")];
        let (wedge_timeout, load_timeout) = (DEFAULT_WEDGE_TIMEOUT, DEFAULT_LOAD_TIMEOUT);
        SpawnConfig { program, arguments, environment, load, wedge_timeout, load_timeout }
    }
}

/// The way to the supervisor. Dropping the port ends the engine and then the supervisor; [`EnginePort::end`] waits for it.
#[derive(Debug)]
pub struct EnginePort {
    /// What happens to engines, in order.
    pub events: mpsc::Receiver<EngineEvent>,
    wanted: watch::Sender<Wanted>,
    due: Due,
    supervisor: Option<JoinHandle<()>>,
}

/// By when the supervisor does its next thing at the latest (an engine's silence ends, a killed one is dead, a pause is over).
/// `None`: it waits for somebody.
pub(super) type Due = watch::Receiver<Option<Instant>>;

/// What the supervisor works towards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether there shall be an engine with a model.
    pub loaded: bool,
    /// What it loads.
    pub load: LoadRequest,
    /// Which attempt this is; another number ends the engine that is there, and the pause after those that died.
    pub attempt: u64,
}

impl EnginePort {
    /// A port whose events come from somebody else, in tests, who can see what is wanted of the supervisor.
    pub fn new(
        events: mpsc::Receiver<EngineEvent>,
        load: LoadRequest,
    ) -> (Self, watch::Receiver<Wanted>) {
        let (wanted, seen) = watch::channel(Wanted { loaded: true, load, attempt: 0 });
        let (_, due) = watch::channel(None);
        (EnginePort { events, wanted, due, supervisor: None }, seen)
    }

    /// How long ago the supervisor should have done something about its engine. `None`: all goes its way. It is overdue where
    /// even a killed process does not die, because the kernel itself is stuck with it.
    pub fn overdue(&self, now: Instant) -> Option<Duration> {
        let due = (*self.due.borrow())?;
        now.checked_duration_since(due + SLACK)
    }

    /// Starts an engine, at once where one is being waited for. Does nothing while one runs.
    pub fn load(&self) {
        self.wanted.send_modify(|wanted| {
            wanted.loaded = true;
            wanted.attempt += 1;
        });
    }

    /// Ends the engine, with all its memory, and starts none until [`EnginePort::load`].
    pub fn unload(&self) {
        self.wanted.send_modify(|wanted| wanted.loaded = false);
    }

    /// Ends the engine and starts another; with another model where one is given.
    pub fn replace(&self, load: Option<LoadRequest>) {
        self.wanted.send_modify(|wanted| {
            wanted.loaded = true;
            wanted.attempt += 1;
            wanted.load = load.unwrap_or_else(|| wanted.load.clone());
        });
    }

    /// What the next engine loads, should the one that is there die. That one goes on.
    pub fn load_next(&self, load: LoadRequest) {
        self.wanted.send_if_modified(|wanted| {
            wanted.load = load;
            // Nobody is to be woken: a change ends the engine.
            false
        });
    }

    /// Ends the engine, by force after two seconds, and returns when it is gone.
    pub async fn end(self) {
        drop(self.events);
        if let Some(supervisor) = self.supervisor {
            // It can only fail by a panic of its own, which the runtime has reported; its child is killed then.
            let _ = supervisor.await;
        }
    }
}

/// What happens to engines.
#[derive(Debug)]
pub enum EngineEvent {
    /// An engine runs and begins to load. `to` reaches this engine and no later one: what is sent to a dead engine goes
    /// nowhere.
    Started {
        /// Its process id.
        pid: u32,
        /// The way to it.
        to: mpsc::Sender<ToEngine>,
    },
    /// It said something.
    Frame(FromEngine),
    /// It was ended because another or none was wanted, and is gone with all its memory.
    Ended,
    /// It is dead.
    Died {
        /// How and where.
        report: DeathReport,
        /// When the next one is started. `None`: never.
        restart_in: Option<Duration>,
    },
}

/// Starts the supervisor's task on the current runtime; the engine lives as long as the port.
pub fn supervise(config: SpawnConfig) -> EnginePort {
    let (events, received) = mpsc::channel(CHANNEL);
    let goal = Wanted { loaded: true, load: config.load.clone(), attempt: 0 };
    let (wanted, watched) = watch::channel(goal);
    let (tell_due, due) = watch::channel(None);
    let supervisor = tokio::spawn(work(config, events, watched, tell_due));
    EnginePort { events: received, wanted, due, supervisor: Some(supervisor) }
}

/// Runs engines until nobody listens any more.
async fn work(
    mut config: SpawnConfig,
    events: mpsc::Sender<EngineEvent>,
    mut wanted: watch::Receiver<Wanted>,
    due: watch::Sender<Option<Instant>>,
) {
    let mut backoff = Backoff::default();
    loop {
        let goal = wanted.borrow_and_update().clone();
        let pause = if goal.loaded {
            config.load.clone_from(&goal.load);
            match one_life(&config, &events, &mut backoff, &mut wanted, &due).await {
                After::Nothing => return,
                After::Pause(pause) => Some(pause),
                After::Change => None,
            }
        } else {
            // Until a model is wanted.
            due.send_replace(None);
            tokio::select! {
                _ = wanted.changed() => {}
                () = events.closed() => return,
            }
            None
        };
        let Some(pause) = pause else {
            backoff = Backoff::default();
            continue;
        };
        due.send_replace(Some(Instant::now() + pause));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = events.closed() => return,
            // Somebody mended something, or wants no model any more.
            _ = wanted.changed() => backoff = Backoff::default(),
        }
    }
}

/// What comes after an engine.
enum After {
    /// Nothing: nobody listens.
    Nothing,
    /// The next one, after this long.
    Pause(Duration),
    /// What is wanted now.
    Change,
}

/// Whether a variable of the service's environment is none of the engine's business: settings (which may name
/// secrets), and what systemd told the service alone.
fn is_private(name: &str) -> bool {
    const OF_SYSTEMD: [&str; 6] = [
        "NOTIFY_SOCKET",
        "CREDENTIALS_DIRECTORY",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "LISTEN_FDS",
        "LISTEN_PID",
    ];
    name.starts_with("PROMPTD__") || OF_SYSTEMD.contains(&name)
}

/// Runs one engine from its start to its death.
async fn one_life(
    config: &SpawnConfig,
    events: &mpsc::Sender<EngineEvent>,
    backoff: &mut Backoff,
    wanted: &mut watch::Receiver<Wanted>,
    due: &watch::Sender<Option<Instant>>,
) -> After {
    let mut life = Life::new(Instant::now(), due.clone());
    let how = match spawn(config) {
        Err(error) => Death::NotStarted(error.to_string()),
        Ok((mut child, socket)) => {
            let (to, orders) = mpsc::channel(CHANNEL);
            let pid = child.id().unwrap_or_default();
            tracing::debug!(pid, "the engine is started");
            if events.send(EngineEvent::Started { pid, to }).await.is_err() {
                return After::Nothing;
            }
            let end = life.serve(config, events, Wires::new(socket, orders), wanted).await;
            due.send_replace(Some(Instant::now() + LAST_BREATH));
            match bury(&mut child, end).await {
                Some(death) => death,
                None if events.send(EngineEvent::Ended).await.is_ok() => return After::Change,
                None => return After::Nothing,
            }
        }
    };
    let wait = backoff.after(life.outcome(Instant::now()));
    let report = DeathReport::new(how, life.phase(), &config.load);
    if events.send(EngineEvent::Died { report, restart_in: Some(wait) }).await.is_err() {
        return After::Nothing;
    }
    After::Pause(wait)
}

fn spawn(config: &SpawnConfig) -> io::Result<(Child, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let ours = UnixStream::from_std(ours)?;
    let public =
        config.environment.iter().filter(|(name, _)| !name.to_str().is_some_and(is_private));
    let child = Command::new(&config.program)
        .args(&config.arguments)
        .env_clear()
        .envs(public.map(|(name, value)| (name, value)))
        .envs(FOR_ONNXRUNTIME)
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        // What a library prints belongs into the log, not between the service's own output.
        .stdout(Stdio::from(io::stderr()))
        .stderr(Stdio::inherit())
        // A terminal's Ctrl-C goes to the whole process group; the engine must outlive it to finish the answers.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    Ok((child, ours))
}

/// Sees the engine out. Returns how it died, or `None` where that was wanted.
async fn bury(child: &mut Child, end: End) -> Option<Death> {
    match end {
        End::Closed => match tokio::time::timeout(LAST_BREATH, child.wait()).await {
            Ok(status) => Some(death(status)),
            Err(_) => Some(kill(child).await),
        },
        End::Kill(why) => {
            kill(child).await;
            Some(why)
        }
        End::Unwanted(socket) => {
            // The engine sees the end of its orders and ends itself.
            drop(socket);
            if tokio::time::timeout(GRACE, child.wait()).await.is_err() {
                tracing::warn!("the engine did not end within {} s and is killed", GRACE.as_secs());
                kill(child).await;
            }
            None
        }
    }
}

async fn kill(child: &mut Child) -> Death {
    if let Err(error) = child.start_kill() {
        tracing::debug!(%error, "the engine could not be killed; it is probably dead");
    }
    death(child.wait().await)
}

fn death(status: io::Result<ExitStatus>) -> Death {
    match status {
        Err(error) => Death::NotStarted(error.to_string()),
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => Death::Exited(code),
            (None, signal) => Death::Killed(signal.unwrap_or_default()),
        },
    }
}
