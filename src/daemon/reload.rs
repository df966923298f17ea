//! Reads the configuration again: everything is read and checked first, then changed together. A file that is wrong
//! changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::heat::Heat;
use super::versions::Versions;
use super::{DaemonError, Reread, Surroundings};
use crate::board::Board;
use crate::engine::frames::{Execution, LoadRequest, Provider, VERSION};
use crate::identity::Access;
use crate::request::Refusal;
use crate::scheduler::{self, PinnedProfile, Scheduler};
use crate::session;
use crate::settings::{self, Settings};
use crate::socket::Tls;
use crate::store::{ModelName, Store};
use crate::{telemetry, wire};

/// What holds now, and where to read it again.
pub(super) struct Reload {
    settings: Settings,
    surroundings: Surroundings,
    load: LoadRequest,
    reread: Box<Reread>,
    level: telemetry::Level,
    /// Whose certificate may have been renewed.
    tls: Option<Tls>,
    heat: Heat,
    versions: Versions,
}

impl Reload {
    pub(super) fn new(
        settings: Settings,
        surroundings: Surroundings,
        reread: Box<Reread>,
        level: telemetry::Level,
    ) -> Self {
        let load = load_request(&settings, &surroundings.program, &surroundings.environment);
        let (heat, versions) = (Heat::default(), Versions::new());
        Reload { settings, surroundings, load, reread, level, tls: None, heat, versions }
    }

    /// Has this certificate read again too.
    pub(super) fn renews(&mut self, tls: Option<Tls>) {
        self.tls = tls;
    }

    /// Who shows which of the kept models is in use and which came last.
    pub(super) fn versions(&self) -> watch::Receiver<Option<wire::ModelVersions>> {
        self.versions.subscribe()
    }

    /// Looks at the board: the scheduler is told what it says, and where it is too hot the model gets fewer threads. Looks at the
    /// kept models too.
    pub(super) async fn look(&mut self, scheduler: &Scheduler) {
        self.versions.look(followed(&self.settings), Instant::now());
        let board = &self.settings.board;
        let reading = Board::at(&board.root).read();
        let limit = board.hot_celsius.map(f64::from);
        let changed = self.heat.judge(limit, reading.temperature, Instant::now());
        scheduler.sense(reading).await;
        if !changed {
            return;
        }
        if self.heat.is_hot() {
            tracing::warn!(
                threads = board.hot_threads,
                "the board is hot: the model runs with fewer threads"
            );
        } else {
            tracing::info!("the board is cool again: the model runs with all its threads");
        }
        let load = self.load(&self.settings);
        if load != self.load {
            self.load = load.clone();
            let config = scheduler_config(&self.settings, &load);
            scheduler.configure(config, Some(load), false).await;
        }
    }

    /// What the engine is to load, as hot as the board is.
    fn load(&self, settings: &Settings) -> LoadRequest {
        let Surroundings { program, environment } = &self.surroundings;
        let mut load = load_request(settings, program, environment);
        if self.heat.is_hot() {
            let hot = settings.board.hot_threads;
            let threads = load.execution.threads;
            load.execution.threads = if threads == 0 { hot } else { threads.min(hot) };
            // As many processors as threads, where they are named.
            load.execution.cores.truncate(usize::from(load.execution.threads));
        }
        load
    }

    /// What is logged, for whoever may change it.
    pub(super) fn level(&self) -> telemetry::Level {
        self.level.clone()
    }

    /// The scheduler has gone back to the model before: so does `current`, that the next start begins with what works.
    pub(super) fn went_back(&mut self) {
        let Some(store) = followed(&self.settings) else { return };
        let failed = self.load.model.file_name().and_then(|name| name.to_str());
        let Some(failed) = failed.and_then(|name| name.parse::<ModelName>().ok()) else { return };
        if let Some(back) = fallback(&self.settings, &self.load) {
            self.load = *back;
        }
        match store.give_up(&failed) {
            Ok(()) => {
                self.versions.stale();
                tracing::warn!(%failed, "`current` is the model before again");
            }
            Err(error) => {
                tracing::error!(%failed, %error, "`current` could not be put back: the next start tries this model again");
            }
        }
    }

    /// How long accepted prompts have to end when promptd stops.
    pub(super) fn grace(&self) -> Duration {
        Duration::from_secs(self.settings.shutdown.grace_seconds.into())
    }

    /// Reads it again.
    ///
    /// # Errors
    /// `bad_request` with what is wrong; nothing has changed then.
    pub(super) async fn now(
        &mut self,
        scheduler: &Scheduler,
        policy: &watch::Sender<Arc<wire::Policy>>,
    ) -> Result<(), Refusal> {
        let read = (self.reread)().and_then(|settings| {
            telemetry::check(&settings.log)?;
            let policy =
                self::policy(&settings, &limits(&settings)).map_err(|error| error.to_string())?;
            // The files' names wait for a restart, what is in them does not.
            self.tls.as_ref().map_or(Ok(()), Tls::renew)?;
            Ok((settings, policy))
        });
        let (settings, new) = match read {
            Ok(read) => read,
            Err(message) => {
                tracing::error!("the configuration is wrong and stays as it was: {message}");
                scheduler.configuration_is_wrong(message.clone()).await;
                return Err(Refusal::bad_request(message));
            }
        };
        let waits = needs_restart(&self.settings, &settings);
        if !waits.is_empty() {
            tracing::warn!(
                sections = waits.join(", "),
                "changes in these sections wait for a restart"
            );
        }
        let load = self.load(&settings);
        let changed = (load != self.load).then(|| load.clone());
        tracing::info!(
            profiles = new.profiles.names().count(),
            another_model = changed.is_some(),
            "the configuration was read again"
        );
        // What an operator has set since is over with it: the file holds.
        if self.level.set(&settings.log).is_ok() && settings.log.level != self.settings.log.level {
            tracing::info!(
                level = settings.log.level,
                "the log level changed; the engine keeps its own until promptd restarts"
            );
        }
        scheduler.traffic().log_content(settings.log.content);
        let config = scheduler_config(&settings, &load);
        self.load = load;
        policy.send_replace(Arc::new(new));
        scheduler.configure(config, changed, true).await;
        self.settings = settings;
        self.versions.stale();
        Ok(())
    }
}

/// The folder that `model.path` means at present: the name of a kept model, and `current` above all, is looked up.
pub(super) fn model_folder(settings: &Settings) -> PathBuf {
    let store = settings.state.models_dir().map(Store::at);
    let path = &settings.model.path;
    store.map_or_else(|| path.clone(), |store| store.resolve(path))
}

/// The models among which `current` is, where `model.path` follows it.
fn followed(settings: &Settings) -> Option<Store> {
    let store = settings.state.models_dir().map(Store::at)?;
    store.follows_current(&settings.model.path).then_some(store)
}

/// What is loaded where the current model does not come up: the one before.
fn fallback(settings: &Settings, load: &LoadRequest) -> Option<Box<LoadRequest>> {
    let store = followed(settings)?;
    let model = store.folder(&store.previous()?);
    (model != load.model && model.is_dir()).then(|| Box::new(LoadRequest { model, ..load.clone() }))
}

/// The sections that are read once, and that are not what they were.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differ = |old: &dyn std::fmt::Debug, new: &dyn std::fmt::Debug| {
        format!("{old:?}") != format!("{new:?}")
    };
    [
        ("mqtt", differ(&old.mqtt, &new.mqtt)),
        ("socket", differ(&old.socket, &new.socket)),
        ("state", differ(&old.state, &new.state)),
        ("metrics", differ(&old.metrics, &new.metrics)),
        (
            "limits.payload_bytes over MQTT",
            // What is smaller than the connection allows is refused by promptd; what is larger the broker keeps back.
            new.mqtt.is_some() && new.limits.payload_bytes > old.limits.payload_bytes,
        ),
        ("board.root", old.board.root != new.board.root),
        ("log.journal", old.log.journal != new.log.journal),
        ("runtime.sandbox", old.runtime.sandbox != new.runtime.sandbox),
        ("log.format", differ(&old.log.format, &new.log.format)),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect()
}

/// How large requests may be.
pub(super) fn limits(settings: &Settings) -> wire::Limits {
    wire::Limits {
        payload_bytes: usize::try_from(settings.limits.payload_bytes).unwrap_or(usize::MAX),
        ..wire::Limits::default()
    }
}

/// Profiles and clients, checked.
pub(super) fn policy(
    settings: &Settings,
    limits: &wire::Limits,
) -> Result<wire::Policy, DaemonError> {
    let profiles = wire::Profiles(settings.profiles.clone());
    profiles.check(limits).map_err(|(name, refusal)| {
        let key = refusal.param.as_deref().unwrap_or_default();
        DaemonError::Settings(format!("`profiles.{name}.{key}`: {}", refusal.message))
    })?;
    if settings.mqtt.is_none()
        && let Some(topic) = profiles.context_topics().first()
    {
        let message =
            format!("a profile has the context topic `{topic}`, but there is no `[mqtt]`");
        return Err(DaemonError::Settings(message));
    }
    let clients: BTreeMap<_, _> = settings.clients.clone();
    let access = Access::new(clients, first_line).map_err(|(key, what)| {
        DaemonError::Settings(format!("`{}`: {what}", key.trim_end_matches('.')))
    })?;
    Ok(wire::Policy { profiles, access, payload_bytes: Some(limits.payload_bytes) })
}

/// What the engine is to load.
pub(super) fn load_request(
    settings: &Settings,
    program: &Path,
    environment: &[(OsString, OsString)],
) -> LoadRequest {
    LoadRequest {
        version: VERSION,
        model: model_folder(settings),
        library: library(settings, program, environment),
        execution: Execution {
            provider: match settings.runtime.provider {
                settings::Provider::Auto => Provider::Auto,
                settings::Provider::Cpu => Provider::Cpu,
                settings::Provider::Cuda => Provider::Cuda,
            },
            threads: settings.runtime.threads,
            cores: settings.runtime.cores.clone(),
            spinning: settings.runtime.spinning,
        },
        trusted: settings.model.trusted_keys.clone(),
        store: settings.state.models_dir(),
        slots: settings.model.slots,
        context: settings.model.context,
    }
}

/// What the operator decides about the queue.
pub(super) fn scheduler_config(settings: &Settings, load: &LoadRequest) -> scheduler::Config {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    scheduler::Config {
        queue_limit: settings.queue.limit.into(),
        max_wait: seconds(settings.queue.max_wait_seconds),
        keep_loaded: settings.model.keep_loaded_seconds.map(seconds),
        memory: memory_limits(&settings.board),
        sessions: session::Limits {
            count: settings.sessions.count.into(),
            per_client: settings.sessions.per_client.into(),
            turns: settings.sessions.turns.into(),
            tokens: settings.sessions.tokens,
            expires: seconds(settings.sessions.expire_seconds),
            overflow: settings.sessions.overflow,
        },
        pinned: pinned(settings),
        fallback: fallback(settings, load),
    }
}

/// The system messages that stay in the model's cache: those of all profiles.
fn pinned(settings: &Settings) -> Vec<PinnedProfile> {
    let profiles = settings.profiles.iter().filter_map(|(name, profile)| {
        let goes_on = !profile.context_topics.is_empty();
        Some(PinnedProfile { profile: name.clone(), system: profile.system.clone()?, goes_on })
    });
    profiles.collect()
}

fn memory_limits(board: &settings::Board) -> scheduler::MemoryLimits {
    let percent = board.memory_pressure_percent;
    scheduler::MemoryLimits {
        pressure_percent: (percent > 0).then_some(percent),
        floor: u64::from(board.memory_floor_mib) << 20,
    }
}

/// The library as the settings, the environment or the search path name it. Where none is found the engine is given the
/// place that `make build` or a package puts it, so that it is taken as soon as it is there.
fn library(settings: &Settings, program: &Path, environment: &[(OsString, OsString)]) -> PathBuf {
    let variable =
        environment.iter().find(|(name, _)| name == "ORT_DYLIB_PATH").map(|(_, value)| value);
    let configured = settings.runtime.library.as_deref();
    let located =
        settings::find_library(configured, variable.and_then(|value| value.to_str()), program);
    match located {
        Ok(located) => {
            tracing::debug!(library = %located.path.display(), chosen_by = located.chosen_by, "libonnxruntime");
            located.path
        }
        Err(message) => {
            tracing::warn!("{message}");
            settings::expected_library(program)
        }
    }
}

/// The first line of a file, as editors leave a line end behind a password.
pub(super) fn first_line(path: &Path) -> Result<String, String> {
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("`{}`: {error}", path.display()))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
