//! What the settings mean to the rooms: what the engine loads, how the queue is bounded, who may what.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::DaemonError;
use crate::engine::frames::{Execution, LoadRequest, Provider, VERSION};
use crate::identity::Access;
use crate::scheduler::{self, PinnedProfile};
use crate::session;
use crate::settings::{self, Settings};
use crate::store::Store;
use crate::wire;

/// The models that the board keeps.
fn store(settings: &Settings) -> Option<Store> {
    let store = settings.state.models_dir().map(Store::at)?;
    Some(store.with_default(settings.model.default.clone()))
}

/// The folder that `model.path` means at present: the name of a kept model, and `current` above all, is looked up.
pub(super) fn model_folder(settings: &Settings) -> PathBuf {
    let path = &settings.model.path;
    store(settings).map_or_else(|| path.clone(), |store| store.resolve(path))
}

/// The models among which `current` is, where `model.path` follows it.
pub(super) fn followed(settings: &Settings) -> Option<Store> {
    store(settings).filter(|store| store.follows_current(&settings.model.path))
}

/// What is loaded where the current model does not come up: the one before, or the one that is there while none was chosen.
pub(super) fn fallback(settings: &Settings, load: &LoadRequest) -> Option<Box<LoadRequest>> {
    let store = followed(settings)?;
    let previous = store.previous().map(|name| store.folder(&name));
    let model = previous.or_else(|| store.default_folder().map(Path::to_owned))?;
    (model != load.model && model.is_dir()).then(|| Box::new(LoadRequest { model, ..load.clone() }))
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
        beside: None,
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

pub(super) fn memory_limits(board: &settings::Board) -> scheduler::MemoryLimits {
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
