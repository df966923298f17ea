//! Reads the configuration again: everything is read and checked first, then changed together. A file that is wrong
//! changes nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::{DaemonError, Reread, Surroundings};
use crate::engine::frames::{LoadRequest, VERSION};
use crate::identity::Access;
use crate::request::Refusal;
use crate::scheduler::{self, Scheduler};
use crate::session;
use crate::settings::{self, Settings};
use crate::{telemetry, wire};

/// What holds now, and where to read it again.
pub(super) struct Reload {
    settings: Settings,
    surroundings: Surroundings,
    limits: wire::Limits,
    load: LoadRequest,
    reread: Box<Reread>,
    level: telemetry::Level,
}

impl Reload {
    pub(super) fn new(
        settings: Settings,
        surroundings: Surroundings,
        limits: wire::Limits,
        reread: Box<Reread>,
        level: telemetry::Level,
    ) -> Self {
        let load = load_request(&settings, &surroundings.program, &surroundings.environment);
        Reload { settings, surroundings, limits, load, reread, level }
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
            let policy = self::policy(&settings, &self.limits);
            policy.map(|policy| (settings, policy)).map_err(|error| error.to_string())
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
        let Surroundings { program, environment } = &self.surroundings;
        let load = load_request(&settings, program, environment);
        let changed = (load != self.load).then(|| load.clone());
        tracing::info!(
            profiles = new.profiles.names().count(),
            another_model = changed.is_some(),
            "the configuration was read again"
        );
        if settings.log.level != self.settings.log.level && self.level.set(&settings.log).is_ok() {
            tracing::info!(
                level = settings.log.level,
                "the log level changed; the engine keeps its own until promptd restarts"
            );
        }
        self.load = load;
        policy.send_replace(Arc::new(new));
        scheduler.configure(scheduler_config(&settings), changed, true).await;
        self.settings = settings;
        Ok(())
    }
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
        ("limits", differ(&old.limits, &new.limits)),
        ("log.format", differ(&old.log.format, &new.log.format)),
    ]
    .into_iter()
    .filter_map(|(section, differs)| differs.then_some(section))
    .collect()
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
    Ok(wire::Policy { profiles, access })
}

/// What the engine is to load.
pub(super) fn load_request(
    settings: &Settings,
    program: &Path,
    environment: &[(OsString, OsString)],
) -> LoadRequest {
    LoadRequest {
        version: VERSION,
        model: settings.model.path.clone(),
        library: library(settings, program, environment),
        threads: settings.runtime.threads,
        slots: settings.model.slots,
        context: settings.model.context,
    }
}

/// What the operator decides about the queue.
pub(super) fn scheduler_config(settings: &Settings) -> scheduler::Config {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    scheduler::Config {
        queue_limit: settings.queue.limit.into(),
        max_wait: seconds(settings.queue.max_wait_seconds),
        keep_loaded: settings.model.keep_loaded_seconds.map(seconds),
        sessions: session::Limits {
            count: settings.sessions.count.into(),
            per_client: settings.sessions.per_client.into(),
            turns: settings.sessions.turns.into(),
            tokens: settings.sessions.tokens,
            expires: seconds(settings.sessions.expire_seconds),
            overflow: settings.sessions.overflow,
        },
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
