//! The wiring of `promptd serve`: the order in which the rooms are born, how they are told to end, and what is left when they have.

mod broker;
mod change;
mod heat;
mod openings;
mod reload;
mod supervision;
mod translate;
mod versions;

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use self::openings::Openings;
use self::reload::Reload;
use self::supervision::Operator;
use crate::board::Board;
use crate::control::Control;
use crate::engine::client::{EnginePort, SpawnConfig};
use crate::mqtt;
use crate::record::{self, DiskError, Keeper, Record};
use crate::scheduler::{self, Scheduler, Status};
use crate::settings::{LogFormat, Settings};
use crate::socket::{self, App, Tls, TlsFiles};
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
    /// A task that has to last as long as the service ended before it.
    #[error("{0} fell; the service ends so that it can be started again. Please report this")]
    Fell(&'static str),
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

/// Who starts engines and moves what is said to them: [`crate::engine::client::supervise`]. Called once, inside the service's runtime.
pub type Supervise = fn(SpawnConfig) -> EnginePort;

/// Runs the service until SIGTERM or Ctrl-C.
///
/// # Errors
/// [`DaemonError`]: what has to be there before the doors can open is not. Whatever happens later (an engine that dies, a
/// broker that is gone, a model that cannot be loaded) is reported by the open doors instead.
pub fn run(
    settings: &Settings,
    surroundings: Surroundings,
    supervise: Supervise,
    reread: Box<Reread>,
    level: telemetry::Level,
) -> Result<(), DaemonError> {
    let plan = Plan::new(settings, surroundings.clone())?;
    let reload = Reload::new(settings.clone(), surroundings, reread, level);
    let _state = settings.state.dir.as_deref().map(lock_state).transpose()?.flatten();
    let record = settings.state.record_dir();
    ServiceManager::from_environment().opening("opening what an earlier promptd left to do");
    let record = record.map(|dir| Record::open(dir, record::Pace::default())).transpose()?;
    // One thread: the service moves bytes, and the board's cores belong to the model.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(DaemonError::System)?;
    let served = runtime.block_on(serve(plan, supervise, reload, record));
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

/// The engine that the service would start with these settings.
pub fn engine(settings: &Settings, surroundings: Surroundings) -> SpawnConfig {
    let Surroundings { program, environment } = surroundings;
    let load = translate::load_request(settings, &program, &environment);
    let mut engine = SpawnConfig::new(program, environment, load);
    engine.arguments.extend(["--log-level".into(), settings.log.level.clone().into()]);
    if settings.log.format == LogFormat::Json {
        engine.arguments.push("--log-json".into());
    }
    if let Some(journal) = &settings.log.journal {
        engine.arguments.extend(["--log-journal".into(), journal.clone().into()]);
    }
    if !settings.runtime.sandbox {
        engine.arguments.push("--no-sandbox".into());
    }
    engine
}

/// The model folder that these settings mean at present.
pub fn model_folder(settings: &Settings) -> PathBuf {
    translate::model_folder(settings)
}

/// The brokers that these settings name: host and port. What is no address is [`check`]'s to tell.
pub fn brokers(settings: &Settings) -> Vec<(String, u16)> {
    let urls = settings.mqtt.iter().flat_map(|mqtt| mqtt.url.iter().chain(&mqtt.urls));
    let parsed = urls.filter_map(|url| mqtt::BrokerUrl::parse(url).ok());
    parsed.map(|broker| (broker.host, broker.port)).collect()
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
    hosts: Vec<String>,
    metrics: Option<SocketAddr>,
    board: Board,
    log_content: bool,
    page: bool,
    mqtt: Option<mqtt::Config>,
    policy: wire::Policy,
    mqtt_admin: bool,
    limits: wire::Limits,
    node: String,
}

impl Plan {
    fn new(settings: &Settings, surroundings: Surroundings) -> Result<Plan, DaemonError> {
        let Surroundings { program, environment } = surroundings;
        let limits = translate::limits(settings);
        let policy = translate::policy(settings, &limits)?;
        check_tcp(settings, &policy)?;
        let sockets = settings.socket.clone().unwrap_or_default();
        let node = broker::node(settings);
        let mqtt = broker::config(settings, &environment)?;
        let engine = self::engine(settings, Surroundings { program, environment });
        let scheduler_config = translate::scheduler_config(settings, &engine.load);
        Ok(Plan {
            engine,
            scheduler: scheduler_config,
            hosts: sockets.tcp_hosts.clone(),
            metrics: settings.metrics.tcp,
            board: Board::at(&settings.board.root),
            log_content: settings.log.content,
            page: sockets.tcp_page,
            sockets: socket::Config {
                path: sockets.path,
                lines_path: sockets.lines_path,
                tcp: sockets.tcp,
                tls: tls_files(settings),
                ..Default::default()
            },
            mqtt,
            policy,
            mqtt_admin: settings.mqtt.as_ref().is_some_and(|mqtt| mqtt.admin),
            limits,
            node,
        })
    }
}

async fn serve(
    plan: Plan,
    supervise: Supervise,
    mut reload: Reload,
    record: Option<(Record, Keeper)>,
) -> Result<(), DaemonError> {
    let (record, keeper) = record.unzip();
    let manager = ServiceManager::from_environment();
    let mut signals = Signals::new().map_err(DaemonError::System)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(DaemonError::System)?;
    let (http, lines) = open_sockets(&plan.sockets)?;
    let tls = plan.sockets.tls.clone().map(Tls::read).transpose().map_err(DaemonError::Settings)?;
    let tcp = plan.sockets.tcp.map(|address| socket::bind_tcp(address, tls.clone())).transpose()?;
    reload.renews(tls);
    let metrics = plan.metrics.map(|address| socket::bind_tcp(address, None)).transpose()?;

    let port = supervise(plan.engine);
    let (scheduler, actor) = Scheduler::with_record(plan.scheduler, port, record.as_ref());
    let (stop, stopping) = watch::channel(false);
    let (leave, leaving) = watch::channel(false);
    let (policy, policies) = wire::Policies::new(plan.policy);
    let (ask_reload, mut reloads) = mpsc::channel(RELOADS);
    let level = reload.level();
    let control = Control::new(scheduler.clone(), ask_reload, move |text| level.name(text));
    let app =
        App::new(scheduler.clone(), policies.clone(), plan.limits.clone(), Some(plan.node.clone()));
    let (broker_state, told_of_broker) = watch::channel(wire::Broker::default());
    let told_of_broker = plan.mqtt.is_some().then_some(told_of_broker);
    let app = app
        .with_control(control.clone())
        .with_hosts(plan.hosts)
        .with_page(plan.page)
        .with_broker(told_of_broker);
    let app = Arc::new(app.with_board(plan.board.clone()));
    scheduler.traffic().log_content(plan.log_content);
    let (mut sockets, mut broker) = (JoinSet::new(), JoinSet::new());
    Openings { http, tcp, lines, metrics }.serve(&mut sockets, &app, &stopping);
    // Only the doors keep handles on the scheduler, so that it ends with them.
    drop(app);
    let control = plan.mqtt_admin.then_some(control);
    if let Some(mut config) = plan.mqtt {
        config.renewals = Some(reload.credentials(&config));
        let facts = mqtt::Facts {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            policies,
            control,
            limits: plan.limits,
            broker: broker_state,
            record,
            board: plan.board,
            versions: reload.versions(),
        };
        broker.spawn(mqtt_door(config, scheduler.clone(), facts, leaving));
    }
    manager.ready(&supervision::sentence(&scheduler.status().borrow(), Duration::ZERO));
    tracing::info!(version = env!("CARGO_PKG_VERSION"), node = plan.node, "the doors are open");

    let operator = Operator {
        hangup: &mut hangup,
        reload: &mut reload,
        reloads: &mut reloads,
        policy: &policy,
    };
    let doors = (&mut sockets, &mut broker);
    let left = supervision::watch_over(manager, &scheduler, &mut signals, operator, doors).await;
    // Who asks for it from now on is told that promptd stops.
    drop(reloads);
    reload.stop();
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
    close(keeper).await;
    tracing::info!("stopped");
    left
}

async fn close(keeper: Option<Keeper>) {
    if let Some(keeper) = keeper
        && !keeper.close(FAREWELL).await
    {
        tracing::warn!("the record could not be written to its end");
    }
}

async fn mqtt_door(
    config: mqtt::Config,
    scheduler: Scheduler,
    facts: mqtt::Facts,
    leaving: watch::Receiver<bool>,
) {
    if let Err(error) = mqtt::serve(config, scheduler, facts, leaving).await {
        tracing::error!(%error, "the MQTT door stays closed");
    }
}

/// TCP wants a key of whoever comes; without one nobody could ask, and nobody shall ask without.
fn check_tcp(settings: &Settings, policy: &wire::Policy) -> Result<(), DaemonError> {
    let Some(address) = settings.socket.as_ref().and_then(|socket| socket.tcp) else {
        return Ok(());
    };
    if !policy.access.has_keys() {
        let message = format!(
            "`socket.tcp` is {address}, but no entry of `[clients]` has an `api_key_file`; over TCP every request needs a key"
        );
        return Err(DaemonError::Settings(message));
    }
    if let Some(files) = tls_files(settings) {
        Tls::read(files).map_err(DaemonError::Settings)?;
    } else if !address.ip().is_loopback() {
        let reason = settings.socket.as_ref().and_then(|socket| socket.tcp_without_tls.as_deref());
        tracing::warn!(%address, reason, "API keys and prompts travel unencrypted to this address");
    }
    Ok(())
}

/// Certificate and key of the TCP listener, where there is one.
fn tls_files(settings: &Settings) -> Option<TlsFiles> {
    let socket = settings.socket.as_ref().filter(|socket| socket.tcp.is_some())?;
    let (certificate, key) = (socket.tcp_certificate_file.clone()?, socket.tcp_key_file.clone()?);
    Some(TlsFiles { certificate, key })
}

/// The HTTP socket and the line socket: the service manager's where it opened them, else our own.
fn open_sockets(
    config: &socket::Config,
) -> Result<(Option<socket::Bound>, Option<socket::Bound>), DaemonError> {
    let names = std::env::var("LISTEN_FDNAMES").ok();
    let mut passed = socket::inherited(names.as_deref()).map_err(DaemonError::System)?;
    let mut open = |name: &str, path: &Option<PathBuf>| {
        let given = passed.iter().position(|(passed, _)| passed == name);
        if let Some(given) = given.map(|at| passed.swap_remove(at).1) {
            tracing::info!(socket = name, "the service manager's own");
            return Ok(Some(given));
        }
        path.as_deref().map(|path| socket::bind(path, config.mode)).transpose()
    };
    let sockets = (open("http", &config.path)?, open("lines", &config.lines_path)?);
    for (name, _) in passed {
        tracing::warn!(socket = name, "nobody knows this socket; `http` and `lines` are the names");
    }
    Ok(sockets)
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
