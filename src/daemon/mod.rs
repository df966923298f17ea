//! The wiring of `promptd serve`: the order in which the rooms are born, how they are told to end, and what is left when they have.

mod reload;

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::reload::{Reload, first_line};
use crate::control::{Control, ReloadRequest};
use crate::engine::client::{self, SpawnConfig};
use crate::mqtt;
use crate::record::{self, DiskError, Keeper, Record};
use crate::scheduler::{self, Scheduler, State, Status};
use crate::settings::{self, LogFormat, Settings};
use crate::socket::{self, App};
use crate::systemd::ServiceManager;
use crate::{telemetry, wire};

/// After the last answer is known, the doors get this long to hand it over before they are closed on it.
const FAREWELL: Duration = Duration::from_secs(5);

/// Requests to read the configuration again that wait for the one that is being done.
const RELOADS: usize = 4;

/// Why `promptd serve` could not begin.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory cannot be used.
    #[error("cannot use the state directory `{}` (`state.dir`)", path.display())]
    StateDir {
        /// Which directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else uses the state directory.
    #[error("the state directory `{}` is used by another promptd; give each its own `state.dir`", .0.display())]
    StateTaken(PathBuf),
    /// What an earlier promptd has left in the state directory cannot be used.
    #[error(transparent)]
    Record(#[from] DiskError),
    /// A socket cannot be had.
    #[error(transparent)]
    Socket(#[from] socket::BindError),
    /// A value of the configuration is wrong in a way that only its room knows.
    #[error("configuration: {0}")]
    Settings(String),
    /// The system does not give what every process gets.
    #[error("cannot set up the service")]
    System(#[source] std::io::Error),
}

impl DaemonError {
    /// Whether the configuration has to be mended before another start makes sense.
    pub fn is_configuration(&self) -> bool {
        matches!(self, DaemonError::Settings(_))
    }
}

/// Runs the service until SIGTERM or Ctrl-C.
///
/// # Errors
/// [`DaemonError`]: what has to be there before the doors can open is not. Whatever happens later (an engine that dies, a
/// broker that is gone, a model that cannot be loaded) is reported by the open doors instead.
pub fn run(
    settings: &Settings,
    surroundings: Surroundings,
    reread: Box<Reread>,
    level: telemetry::Level,
) -> Result<(), DaemonError> {
    let plan = Plan::new(settings, surroundings.clone())?;
    let reload = Reload::new(settings.clone(), surroundings, plan.limits.clone(), reread, level);
    let _state = settings.state.dir.as_deref().map(lock_state).transpose()?.flatten();
    let record = settings.state.record_dir();
    let record = record.map(|dir| Record::open(dir, record::Pace::default())).transpose()?;
    // One thread: the service moves bytes, and the board's cores belong to the model.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(DaemonError::System)?;
    let served = runtime.block_on(serve(plan, reload, record));
    // A blocking call that hangs (a name look-up) must not keep the process alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

/// Finds out what [`run`] would say of these settings, as far as that can be said without starting anything.
///
/// # Errors
/// [`DaemonError::Settings`] with the key.
pub fn check(settings: &Settings, surroundings: Surroundings) -> Result<(), DaemonError> {
    Plan::new(settings, surroundings).map(|_| ())
}

/// Reads the settings again from where they came from; an error is one line.
pub type Reread = dyn Fn() -> Result<Settings, String>;

/// What the process was started with.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// promptd's own file, which is its engine too.
    pub program: PathBuf,
    /// The environment; the engine gets the part of it that is not the service's alone.
    pub environment: Vec<(OsString, OsString)>,
}

/// The rooms' own configurations, made from the settings before anything is started.
struct Plan {
    engine: SpawnConfig,
    scheduler: scheduler::Config,
    sockets: socket::Config,
    mqtt: Option<mqtt::Config>,
    policy: wire::Policy,
    mqtt_admin: bool,
    limits: wire::Limits,
    node: String,
}

impl Plan {
    fn new(settings: &Settings, surroundings: Surroundings) -> Result<Plan, DaemonError> {
        let Surroundings { program, environment } = surroundings;
        let limits = wire::Limits {
            payload_bytes: usize::try_from(settings.limits.payload_bytes).unwrap_or(usize::MAX),
            ..wire::Limits::default()
        };
        let policy = reload::policy(settings, &limits)?;
        let load = reload::load_request(settings, &program, &environment);
        let sockets = settings.socket.clone().unwrap_or_default();
        let node =
            settings.mqtt.as_ref().and_then(|mqtt| mqtt.node.clone()).unwrap_or_else(host_name);
        let mut engine = SpawnConfig::new(program, environment, load);
        engine.arguments.extend(["--log-level".into(), settings.log.level.clone().into()]);
        if settings.log.format == LogFormat::Json {
            engine.arguments.push("--log-json".into());
        }
        Ok(Plan {
            engine,
            scheduler: reload::scheduler_config(settings),
            sockets: socket::Config {
                path: sockets.path,
                lines_path: sockets.lines_path,
                ..Default::default()
            },
            mqtt: settings.mqtt.as_ref().map(|mqtt| mqtt_config(mqtt, &node)).transpose()?,
            policy,
            mqtt_admin: settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.admin),
            limits,
            node,
        })
    }
}

async fn serve(
    plan: Plan,
    mut reload: Reload,
    record: Option<(Record, Keeper)>,
) -> Result<(), DaemonError> {
    let (record, keeper) = record.unzip();
    let manager = ServiceManager::from_environment();
    let mut signals = Signals::new().map_err(DaemonError::System)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::System)?;
    let bind = |path: &Option<PathBuf>| {
        path.as_deref().map(|path| socket::bind(path, plan.sockets.mode)).transpose()
    };
    let (http, lines) = (bind(&plan.sockets.path)?, bind(&plan.sockets.lines_path)?);

    let port = client::supervise(plan.engine);
    let (scheduler, actor) = Scheduler::with_record(plan.scheduler, port, record.as_ref());
    let (stop, stopping) = watch::channel(false);
    let (leave, leaving) = watch::channel(false);
    let (policy, policies) = wire::Policies::new(plan.policy);
    let (ask_reload, mut reloads) = mpsc::channel(RELOADS);
    let control = Control::new(scheduler.clone(), ask_reload);
    let app =
        App::new(scheduler.clone(), policies.clone(), plan.limits.clone(), Some(plan.node.clone()));
    let app = Arc::new(app.with_control(control.clone()));
    let (mut sockets, mut broker) = (JoinSet::new(), JoinSet::new());
    if let Some(bound) = http {
        sockets.spawn(socket::serve(bound, Arc::clone(&app), told(stopping.clone())));
    }
    if let Some(bound) = lines {
        sockets.spawn(socket::serve_lines(bound, Arc::clone(&app), told(stopping)));
    }
    // Only the doors keep handles on the scheduler, so that it ends with them.
    drop(app);
    if let Some(config) = plan.mqtt {
        let facts = mqtt::Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policies,
            control: plan.mqtt_admin.then_some(control),
            limits: plan.limits,
            record,
        };
        let door = mqtt::serve(config, scheduler.clone(), facts, leaving);
        broker.spawn(async move {
            if let Err(error) = door.await {
                tracing::error!(%error, "the MQTT door stays closed");
            }
        });
    }
    manager.ready(&sentence(&scheduler.status().borrow()));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = plan.node, "the doors are open");

    let operator = Operator {
        hangup: &mut hangup,
        reload: &mut reload,
        reloads: &mut reloads,
        policy: &policy,
    };
    watch_over(manager, &scheduler, &mut signals, operator).await;
    // Who asks for it from now on is told that promptd stops.
    drop(reloads);
    let grace = reload.grace();
    manager.stopping(grace + 3 * FAREWELL);
    tracing::info!(grace_seconds = grace.as_secs(), "stopping: accepted prompts may end");
    scheduler.drain().await;
    // The receivers live in the doors; a door that has ended already does not mind.
    let _ = stop.send(true);
    finish(&scheduler, &mut sockets, grace, &mut signals).await;
    let _ = leave.send(true);
    if tokio::time::timeout(FAREWELL, all_closed(&mut broker)).await.is_err() {
        tracing::warn!("the broker did not take the goodbye in time");
    }
    // The scheduler ends when the last handle is gone, and takes the engine with it.
    sockets.shutdown().await;
    broker.shutdown().await;
    drop(scheduler);
    if tokio::time::timeout(FAREWELL, actor).await.is_err() {
        tracing::warn!("the engine did not end in time");
    }
    if let Some(keeper) = keeper
        && !keeper.close(FAREWELL).await
    {
        tracing::warn!("the record could not be written to its end");
    }
    tracing::info!("stopped");
    Ok(())
}

/// Tells the service manager how things are until somebody wants the service to end.
async fn watch_over(
    manager: ServiceManager,
    scheduler: &Scheduler,
    signals: &mut Signals,
    operator: Operator<'_>,
) {
    let Operator { hangup, reload, reloads, policy } = operator;
    let mut status = scheduler.status();
    // Without a watchdog nobody listens: any long time will do.
    let beat = manager.watchdog_interval().unwrap_or(Duration::from_secs(3600));
    let mut beats = tokio::time::interval(beat);
    let mut said = State::default();
    loop {
        tokio::select! {
            () = signals.next() => return,
            _ = hangup.recv() => {
                manager.reloading();
                // What is wrong is in the log and in the status.
                let _ = reload.now(scheduler, policy).await;
                manager.ready(&sentence(&status.borrow()));
            }
            Some(answer) = reloads.recv() => {
                let _ = answer.send(reload.now(scheduler, policy).await);
            }
            _ = beats.tick() => manager.alive(),
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
                let status = status.borrow_and_update().clone();
                if status.state != said {
                    said = status.state.clone();
                    announce(&status);
                    manager.status(&sentence(&status));
                }
            }
        }
    }
}

/// Waits until accepted prompts have ended and the sockets have handed their answers over: first as long as they may
/// take, then a moment to say that the rest was cancelled.
async fn finish(
    scheduler: &Scheduler,
    sockets: &mut JoinSet<()>,
    grace: Duration,
    signals: &mut Signals,
) {
    let mut status = scheduler.status();
    let mut ended = async |sockets: &mut JoinSet<()>| {
        let _ = status.wait_for(Status::is_idle).await;
        all_closed(sockets).await;
    };
    tokio::select! {
        () = ended(sockets) => return,
        () = tokio::time::sleep(grace) => tracing::warn!("the grace time is over: the rest is cancelled"),
        () = signals.next() => tracing::warn!("told to stop again: the rest is cancelled"),
    }
    scheduler.cancel_all().await;
    if tokio::time::timeout(FAREWELL, ended(sockets)).await.is_err() {
        tracing::warn!("not every client could be told");
    }
}

async fn all_closed(doors: &mut JoinSet<()>) {
    while let Some(ended) = doors.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "a door fell; please report this");
        }
    }
}

/// Ends when the service is told to stop.
async fn told(mut stopping: watch::Receiver<bool>) {
    // An error means that the sender is gone, and then it is over as well.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// The state in a log line, once for each change.
fn announce(status: &Status) {
    match &status.state {
        State::Ready => {
            if let Some(model) = &status.model {
                tracing::info!(
                    model = model.name,
                    context = model.context,
                    slots = model.slots,
                    threads = model.threads,
                    onnxruntime = model.runtime_version,
                    provider = model.provider,
                    load_ms = model.load_ms,
                    "the model answers"
                );
            }
        }
        State::ModelFailed(refusal) => tracing::error!("{}", refusal.message),
        State::Loading(stage) => tracing::debug!(stage = stage.as_str(), "loading"),
        State::Unloaded | State::Draining => {}
    }
}

/// The state for `systemctl status`.
fn sentence(status: &Status) -> String {
    match &status.state {
        State::Loading(stage) => format!("loading: {}", stage.as_str()),
        State::Ready => {
            let name = status.model.as_ref().map_or("", |model| model.name.as_str());
            format!("answering with {name}")
        }
        State::Unloaded => "no model is loaded; the next prompt loads it".to_owned(),
        State::ModelFailed(refusal) => format!("no model: {}", refusal.message),
        State::Draining => "stopping".to_owned(),
    }
}

/// What an operator may want while the service runs.
struct Operator<'a> {
    hangup: &'a mut Signal,
    reload: &'a mut Reload,
    reloads: &'a mut mpsc::Receiver<ReloadRequest>,
    policy: &'a watch::Sender<Arc<wire::Policy>>,
}

/// SIGTERM and Ctrl-C.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Makes the state directory promptd's own: only its user may look inside, and one promptd at a time may use it.
fn lock_state(path: &Path) -> Result<Option<File>, DaemonError> {
    let failed = |source| DaemonError::StateDir { path: path.to_owned(), source };
    let mut builder = std::fs::DirBuilder::new();
    std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700);
    builder.create(path).map_err(failed)?;
    let file = path.join("lock");
    // A disk that is full or cannot be written has this file from better days; to read it is enough to lock it.
    let lock = match File::create(&file) {
        Err(error) if is_passing(&error) => {
            let Ok(lock) = File::open(&file) else {
                tracing::warn!(%error, "the state directory cannot be locked: see that no other promptd uses it");
                return Ok(None);
            };
            lock
        }
        created => created.map_err(failed)?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(lock)),
        Err(Errno::WOULDBLOCK) => Err(DaemonError::StateTaken(path.to_owned())),
        Err(error) => Err(failed(error.into())),
    }
}

/// Whether a disk may do tomorrow what it does not today.
fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(error.kind(), ReadOnlyFilesystem | StorageFull | QuotaExceeded)
}

/// The MQTT door's configuration: address, names and password.
fn mqtt_config(mqtt: &settings::Mqtt, node: &str) -> Result<mqtt::Config, DaemonError> {
    let wrong = |key: &str, error: &dyn std::fmt::Display| {
        DaemonError::Settings(format!("`mqtt.{key}`: {error}"))
    };
    let broker = mqtt::BrokerUrl::parse(&mqtt.url).map_err(|error| wrong("url", &error))?;
    let password = mqtt.password_file.as_deref().map(first_line).transpose();
    let config = mqtt::Config {
        username: mqtt.username.clone(),
        password: password.map_err(|error| wrong("password_file", &error))?,
        base_topic: mqtt.base_topic.clone(),
        client_id: mqtt.client_id.clone(),
        keep_alive: Duration::from_secs(mqtt.keep_alive_seconds.into()),
        reply_prefixes: mqtt.reply_prefixes.clone(),
        restrict_response_topics: mqtt.restrict_response_topics,
        ..mqtt::Config::new(broker, node)
    };
    config.check().map_err(|error| DaemonError::Settings(format!("`mqtt`: {error}")))?;
    Ok(config)
}

/// The board's name for topics: the host name's first label, in lower case, with what no topic level may have left out.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let first = name.split('.').next().unwrap_or_default();
    let slug: String =
        first.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_')).collect();
    if slug.is_empty() { "board".to_owned() } else { slug }
}
