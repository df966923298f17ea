//! `promptd model use` and `rollback`: a model is tried, becomes the current one at once, and goes again where the service
//! does not come up with it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::args::{Place, Rollback, Served, Use};
use super::store_of;
use crate::cli::http::{Client, Trouble};
use crate::cli::model::Done;
use crate::cli::{World, environment, exit, with_causes};
use crate::daemon::{self, Surroundings};
use crate::engine::client::DEFAULT_LOAD_TIMEOUT;
use crate::engine::trial::{self, Report};
use crate::settings::{self, Settings};
use crate::store::{Lock, ModelName, Store};

/// Between two looks at a service that loads.
const LOOK: Duration = Duration::from_millis(200);

/// What became of a running service.
enum Service {
    /// It answers with the model.
    Answers,
    /// There is none at this socket, or no socket: it takes the model when it starts.
    Absent,
    /// Its configuration names another model.
    Elsewhere(PathBuf),
    /// The model did not come up.
    Failed(String),
}

pub(in crate::cli) async fn use_model(args: &Use, world: &mut World<'_>) -> Done {
    let Ground { store, lock, settings, socket } = Ground::of(&args.served)?;
    let name = store.find(&args.model)?;
    say(world, &format!("{name}: holding its files against its manifest"));
    let manifest = store.verify(&name, &settings.model.trusted_keys)?;
    let report = if args.no_trial {
        None
    } else {
        if args.unload {
            order(socket.as_deref(), "unload").await?;
        }
        let tried = attempt(&store, &name, &manifest, &settings, world).await;
        if args.unload && tried.is_err() {
            // The service's own model comes back, whatever became of the other one.
            order(socket.as_deref(), "load").await?;
        }
        Some(tried?)
    };
    store.switch(&name, &lock)?;
    // From here on others may work with the models; the service may even go back by itself.
    drop(lock);
    let title = name.to_string();
    let service = tell(&store, &title, socket.as_deref(), &settings, world).await?;
    if args.unload && matches!(service, Service::Elsewhere(_)) {
        order(socket.as_deref(), "load").await?;
    }
    if let Service::Failed(why) = &service {
        put_back(&store, &name, socket.as_deref(), why).await?;
    }
    told(&store, &title, (report.as_ref(), &service), args.served.place.json, world)
}

pub(in crate::cli) async fn rollback(args: &Rollback, world: &mut World<'_>) -> Done {
    let Ground { store, lock, settings, socket } = Ground::of(&args.served)?;
    let folder = store.go_back(&lock)?;
    let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
    drop(lock);
    let service = tell(&store, &name, socket.as_deref(), &settings, world).await?;
    if let Service::Failed(why) = &service {
        return Err(format!("{name} does not come up either: {why}").into());
    }
    told(&store, &name, (None, &service), args.served.place.json, world)
}

/// What both stand on: the models, the right to change them, and the service.
struct Ground {
    store: Store,
    lock: Lock,
    settings: Settings,
    socket: Option<PathBuf>,
}

impl Ground {
    fn of(served: &Served) -> Result<Self, Box<dyn Error>> {
        let store = store_of(&served.place)?;
        let lock = store.lock()?;
        let settings = settings_of(&served.place)?;
        let configured = settings.socket.as_ref().and_then(|socket| socket.path.clone());
        let socket = served.socket.clone().or(configured);
        Ok(Ground { store, lock, settings, socket })
    }
}

/// The configuration, which says how a model is loaded and where the service listens.
fn settings_of(place: &Place) -> Result<Settings, Box<dyn Error>> {
    let settings = settings::load(&place.config, &environment());
    settings.map_err(|error| {
        let error = with_causes(&error);
        format!("how the service loads models is not known, name its configuration with --config: {error}").into()
    })
}

/// Loads the model as the service would, in an engine of its own, and asks it.
async fn attempt(
    store: &Store,
    name: &ModelName,
    manifest: &crate::inference::manifest::Manifest,
    settings: &Settings,
    world: &mut World<'_>,
) -> Result<Report, Box<dyn Error>> {
    let program = std::env::current_exe()?;
    let surroundings = Surroundings { program, environment: std::env::vars_os().collect() };
    let mut engine = daemon::engine(settings, surroundings);
    engine.load.model = store.folder(name);
    let mut doing = Vec::new();
    let (golden, least) = (&manifest.golden, manifest.min_tokens_per_second);
    say(world, &format!("{name}: on trial in an engine of its own"));
    let tried = trial::run(engine, golden, least, &mut |what| doing.push(what.to_owned())).await;
    tried.map_err(|error| {
        let stage = doing.last().map(|stage| format!(" ({stage})")).unwrap_or_default();
        let now = store.current().map_or_else(
            || "nothing has changed".to_owned(),
            |current| format!("{current} stays the current one"),
        );
        format!("{name} failed its trial{stage}: {error}; {now}").into()
    })
}

/// Has a running service take the model over, and waits for what becomes of it.
async fn tell(
    store: &Store,
    name: &str,
    socket: Option<&Path>,
    settings: &Settings,
    world: &mut World<'_>,
) -> Result<Service, Box<dyn Error>> {
    if !store.follows_current(&settings.model.path) {
        return Ok(Service::Elsewhere(settings.model.path.clone()));
    }
    let Some(client) = socket.map(|socket| Client { socket }) else { return Ok(Service::Absent) };
    match client.json("/admin/reload", Some(&json!({}))).await {
        Err(Trouble::Unreachable { .. }) => return Ok(Service::Absent),
        Err(trouble) => return Err(trouble.into()),
        Ok((200, _)) => {}
        Ok((_, answer)) => return Ok(Service::Failed(refusal(&answer))),
    }
    say(world, &format!("{name}: the service takes it over"));
    // What runs is answered by the old model first; then come the stages of a load, each with its own limit.
    let deadline = Instant::now() + 2 * DEFAULT_LOAD_TIMEOUT;
    while Instant::now() < deadline {
        let (_, status) = client.json("/health/ready", None).await?;
        let at = |pointer: &str| status.pointer(pointer).and_then(Value::as_str);
        if let Some(why) = at("/went_back") {
            return Ok(Service::Failed(why.to_owned()));
        }
        match at("/state") {
            Some("ready" | "degraded") if at("/model/name") == Some(name) => {
                return Ok(Service::Answers);
            }
            Some("model_failed") => {
                return Ok(Service::Failed(at("/message").unwrap_or("").into()));
            }
            Some("draining") => return Ok(Service::Absent),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    Ok(Service::Failed("the service did not come up with it in time".to_owned()))
}

/// After a failure: sees to it that the model before is the current one, and the service's.
async fn put_back(
    store: &Store,
    name: &ModelName,
    socket: Option<&Path>,
    why: &str,
) -> Result<(), Box<dyn Error>> {
    let back = store.previous().is_some() || store.default_folder().is_some();
    if store.current().as_ref() == Some(name) && back {
        store.give_up(name)?;
        order(socket, "reload").await?;
    }
    let now = match (store.current(), store.default_folder()) {
        (Some(current), _) if current != *name => format!("{current} is the current one again"),
        (None, Some(default)) => format!("it is {} again", default.display()),
        _ => "there is no model to go back to".to_owned(),
    };
    Err(format!("the service did not come up with {name}: {why}; {now}").into())
}

/// Asks the service for something, where there is one.
async fn order(socket: Option<&Path>, what: &str) -> Result<(), Box<dyn Error>> {
    let Some(client) = socket.map(|socket| Client { socket }) else { return Ok(()) };
    match client.json(&format!("/admin/{what}"), Some(&json!({}))).await {
        Ok((200, _)) | Err(Trouble::Unreachable { .. }) => Ok(()),
        Ok((_, answer)) => Err(refusal(&answer).into()),
        Err(trouble) => Err(trouble.into()),
    }
}

fn refusal(answer: &Value) -> String {
    let message = answer.pointer("/error/message").and_then(Value::as_str);
    message.unwrap_or("the service refused without a word").to_owned()
}

/// What is being done, for whoever waits.
pub(super) fn say(world: &mut World<'_>, text: &str) {
    // Whoever closed standard error does not want to know.
    let _ = writeln!(world.errors, "promptd: {text}");
}

/// Says what came of it.
fn told(
    store: &Store,
    name: &str,
    (report, service): (Option<&Report>, &Service),
    as_json: bool,
    world: &mut World<'_>,
) -> Done {
    let previous = store.previous().map(|name| name.to_string());
    if as_json {
        let object = json!({
            "model": name, "previous": previous,
            "service": match service {
                Service::Answers => "answers",
                Service::Absent => "absent",
                Service::Elsewhere(_) => "elsewhere",
                Service::Failed(_) => "failed",
            },
            "tokens_per_second": report.map(|report| report.tokens_per_second),
            "golden": report.map(|report| report.answers.len()),
        });
        world.print(&format!("{object}\n"))?;
        return Ok(exit::OK);
    }
    let tried = report.map(|report| {
        let (asked, speed) = (report.answers.len(), report.tokens_per_second);
        format!("; {asked} golden prompts answered, {speed:.2} tokens/s")
    });
    let tried = tried.unwrap_or_default();
    let service = match service {
        Service::Answers => "the service answers with it\n".to_owned(),
        Service::Absent => "no service runs here; it takes this model when it starts\n".to_owned(),
        Service::Elsewhere(path) => format!(
            "but the service is configured to take {}: set `model.path = \"current\"` in its configuration\n",
            path.display()
        ),
        Service::Failed(_) => String::new(),
    };
    world.print(&format!("{name} is the current model{tried}\n{service}"))?;
    Ok(exit::OK)
}
