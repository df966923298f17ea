//! Reads the configuration again: everything is read and checked first, then changed together. A file that is wrong
//! changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::broker;
use super::change::{Change, Failure};
use super::heat::Heat;
use super::translate::{
    self, fallback, followed, limits, load_request, memory_limits, scheduler_config,
};
use super::versions::Versions;
use super::{Reread, Surroundings};
use crate::board::Board;
use crate::engine::client::SpawnConfig;
use crate::engine::frames::LoadRequest;
use crate::mqtt;
use crate::request::Refusal;
use crate::scheduler::{Scheduler, State, Successor};
use crate::settings::Settings;
use crate::socket::Tls;
use crate::store::ModelName;
use crate::{telemetry, wire};

/// What holds now, and where to read it again.
pub(super) struct Reload {
    settings: Settings,
    surroundings: Surroundings,
    /// How engines are started; as little of it changes without a restart as of the service's own process.
    engine: SpawnConfig,
    /// What is loaded, or will be when the change is through.
    load: LoadRequest,
    /// What answered before it, until it answers.
    before: Option<LoadRequest>,
    /// Another model is being loaded beside the one that answers.
    change: Option<Change>,
    reread: Box<Reread>,
    level: telemetry::Level,
    /// Whose certificate may have been renewed.
    tls: Option<Tls>,
    /// Who is told who promptd is to its brokers.
    credentials: Option<watch::Sender<mqtt::Credentials>>,
    heat: Heat,
    versions: Versions,
    /// The board has become hot or cool, and the model was not told yet.
    heat_changed: bool,
    /// Why the scheduler has gone back, as far as that was seen to.
    gone_back: Option<String>,
}

impl Reload {
    pub(super) fn new(
        settings: Settings,
        surroundings: Surroundings,
        reread: Box<Reread>,
        level: telemetry::Level,
    ) -> Self {
        let engine = super::engine(&settings, surroundings.clone());
        let load = engine.load.clone();
        Reload {
            settings,
            surroundings,
            engine,
            load,
            before: None,
            change: None,
            reread,
            level,
            tls: None,
            credentials: None,
            heat: Heat::default(),
            heat_changed: false,
            gone_back: None,
            versions: Versions::new(),
        }
    }

    /// Has this certificate read again too.
    pub(super) fn renews(&mut self, tls: Option<Tls>) {
        self.tls = tls;
    }

    /// What this door knows of promptd, and learns when it is read again.
    pub(super) fn credentials(
        &mut self,
        door: &mqtt::Config,
    ) -> watch::Receiver<mqtt::Credentials> {
        let (tell, told) = watch::channel(door.credentials());
        self.credentials = Some(tell);
        told
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
        self.heat_changed |= self.heat.judge(limit, reading.temperature, Instant::now());
        scheduler.sense(reading).await;
        // One change at a time.
        if self.change.is_some() || !std::mem::take(&mut self.heat_changed) {
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
        let mut load = self.load(&self.settings);
        // Heat is no reason for another model.
        load.model.clone_from(&self.load.model);
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

    /// Where the scheduler has gone back to the model before, `current` does too, that the next start begins with what works.
    pub(super) fn see_to(&mut self, went_back: Option<&String>) {
        if self.gone_back.as_ref() == went_back {
            return;
        }
        self.gone_back = went_back.cloned();
        if went_back.is_some() {
            self.go_back();
        }
    }

    fn go_back(&mut self) {
        let failed = self.load.model.file_name().and_then(|name| name.to_str());
        let failed = failed.and_then(|name| name.parse::<ModelName>().ok());
        let before = self.before.take();
        if let Some(back) =
            before.or_else(|| fallback(&self.settings, &self.load).map(|load| *load))
        {
            self.load = back;
        }
        let (Some(store), Some(failed)) = (followed(&self.settings), failed) else { return };
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

    /// Has another model loaded, beside the one that answers where one does.
    async fn change_to(&mut self, load: LoadRequest, scheduler: &Scheduler) {
        let answers = scheduler.status().borrow().state == State::Ready;
        let before = self.change.take().map(|change| change.before.clone());
        let before = before.unwrap_or_else(|| self.load.clone());
        self.load = load.clone();
        self.before = None;
        if load == before {
            // What was begun is taken back.
            scheduler.loads_beside(None, None).await;
            let config = scheduler_config(&self.settings, &load);
            scheduler.configure(config, None, true).await;
        } else if answers {
            let name = load.model.file_name().unwrap_or(load.model.as_os_str());
            let name = name.to_string_lossy().into_owned();
            tracing::info!(model = name, "another model is loaded beside the one that answers");
            scheduler.loads_beside(Some(name), None).await;
            self.gone_back = None;
            let engine = SpawnConfig { load, ..self.engine.clone() };
            let spare = memory_limits(&self.settings.board).floor;
            self.change = Some(Change::begin(engine, before, spare));
        } else {
            self.make_room(load, before, scheduler).await;
        }
    }

    /// Has a model loaded as soon as the one before is gone.
    async fn make_room(&mut self, load: LoadRequest, before: LoadRequest, scheduler: &Scheduler) {
        let mut config = scheduler_config(&self.settings, &load);
        if scheduler.status().borrow().state == State::Ready {
            config.fallback = Some(Box::new(before.clone()));
            self.before = Some(before);
        }
        scheduler.configure(config, Some(load), true).await;
    }

    /// promptd stops: no other model is wanted any more.
    pub(super) fn stop(&mut self) {
        self.change = None;
    }

    /// Waits for the model that is being loaded beside the other. Without one, for ever.
    pub(super) async fn changed(&mut self) -> Result<Successor, Failure> {
        match &mut self.change {
            Some(change) => change.outcome().await,
            None => std::future::pending().await,
        }
    }

    /// Does what is to be done with it.
    pub(super) async fn conclude(
        &mut self,
        outcome: Result<Successor, Failure>,
        scheduler: &Scheduler,
    ) {
        let Some(change) = self.change.take() else { return };
        let before = change.before.clone();
        match outcome {
            Ok(successor) => {
                let config = scheduler_config(&self.settings, &self.load);
                scheduler.take_over(config, successor).await;
            }
            Err(Failure::Room(why)) => {
                tracing::warn!("the model before makes room first, and prompts wait: {why}");
                self.make_room(self.load.clone(), before, scheduler).await;
            }
            Err(Failure::Model(why)) => {
                tracing::error!(goes_on = %before.model.display(), "the model did not come up and the one before goes on: {why}");
                self.before = Some(before);
                self.see_to(Some(&why));
                scheduler.loads_beside(None, Some(why)).await;
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
            let policy = translate::policy(&settings, &limits(&settings))
                .map_err(|error| error.to_string())?;
            let door = broker::config(&settings, &self.surroundings.environment)
                .map_err(|error| error.to_string())?;
            // The files' names wait for a restart, what is in them does not.
            self.tls.as_ref().map_or(Ok(()), Tls::renew)?;
            Ok((settings, policy, door))
        });
        let (settings, new, door) = match read {
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
        let changed = load != self.load;
        tracing::info!(
            profiles = new.profiles.names().count(),
            another_model = changed,
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
        if let (Some(tell), Some(door)) = (&self.credentials, door) {
            // Also where nothing changed: files may hold something else, and a broker that refused promptd is asked again at once.
            tell.send_replace(door.credentials());
        }
        let mut config = scheduler_config(&settings, &load);
        if changed || self.change.is_some() {
            // It is for the model that comes, not for the one that is there.
            config.fallback = None;
        }
        policy.send_replace(Arc::new(new));
        scheduler.configure(config, None, !changed).await;
        self.settings = settings;
        self.versions.stale();
        if changed {
            self.change_to(load, scheduler).await;
        }
        Ok(())
    }
}

/// The sections that are read once, and that are not what they were.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let differ = |old: &dyn std::fmt::Debug, new: &dyn std::fmt::Debug| {
        format!("{old:?}") != format!("{new:?}")
    };
    let of_mqtt = |settings: &Settings| settings.mqtt.as_ref().map(broker::without_credentials);
    [
        ("mqtt", differ(&of_mqtt(old), &of_mqtt(new))),
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
