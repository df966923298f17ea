//! `promptd model import`, `export`, `list`, `verify` and `rm`: the models that a board keeps.

pub mod args;
mod pull;
mod switch;

use std::error::Error;
use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;

use serde_json::{Value, json};

use self::args::{Export, Import, List, Place, Remove, Verify};
use super::model::{Done, bytes};
use super::{World, exit, with_causes};

pub(super) use self::pull::pull;
pub(super) use self::switch::{rollback, use_model};
use crate::settings;
use crate::store::{self, Description, Kept, ModelName, Store, StoreError};

/// The models that are kept where the command line or the configuration says.
pub(super) fn store_of(place: &Place) -> Result<Store, Box<dyn Error>> {
    let settings = settings::load(&place.config, &super::environment());
    let default = settings.as_ref().ok().and_then(|settings| settings.model.default.clone());
    let root = match (&place.models, settings) {
        (Some(models), _) => models.clone(),
        (None, Ok(settings)) => settings.state.models_dir().ok_or_else(|| {
            let file = place.config.display();
            format!(
                "{file} has no `state.dir`, so the service keeps no models; name a place with --models"
            )
        })?,
        (None, Err(error)) => {
            let error = with_causes(&error);
            let message =
                format!("the place of models is not known, name it with --models: {error}");
            return Err(message.into());
        }
    };
    // Absolute, because links and the service's configuration are held against it.
    Ok(Store::at(std::path::absolute(root)?).with_default(default))
}

/// Whose signatures the configuration asks for. One that cannot be read asks for nothing; the service does not start with it.
pub(super) fn trusted_keys(place: &Place) -> Vec<String> {
    let settings = settings::load(&place.config, &super::environment());
    settings.map(|settings| settings.model.trusted_keys).unwrap_or_default()
}

/// The exit code for an error.
pub(super) fn exit_code(error: &(dyn Error + 'static)) -> u8 {
    match error.downcast_ref::<StoreError>() {
        Some(StoreError::Busy(_)) => exit::LATER,
        _ => exit::FAILURE,
    }
}

pub(super) fn import(args: &Import, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let lock = store.lock()?;
    let source = (args.from != Path::new("-")).then(|| args.from.display().to_string());
    let stem = args.from.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let about = Description {
        name: args.called.name.clone(),
        revision: args.revision.clone(),
        around: stem.filter(|_| source.is_some()),
        trusted: trusted_keys(&args.place),
        source,
    };
    let kept = if args.from == Path::new("-") {
        store::import_tar(&store, &lock, &mut *world.input, &about)?
    } else if args.from.is_dir() {
        store::import_folder(&store, &lock, &args.from, &about)?
    } else {
        let file = File::open(&args.from)
            .map_err(|error| format!("cannot read {}: {error}", args.from.display()))?;
        store::import_tar(&store, &lock, file, &about)?
    };
    told(&store, &kept, &args.place, world)
}

/// Says which model is kept now.
pub(super) fn told(store: &Store, kept: &Kept, place: &Place, world: &mut World<'_>) -> Done {
    if place.json {
        world.print(&format!("{}\n", as_json(store, kept)))?;
    } else {
        let folder = store.folder(&kept.name);
        world.print(&format!(
            "{} is kept in {}, {}\n`promptd model use {}` makes it the service's model\n",
            kept.name,
            folder.display(),
            bytes(kept.bytes),
            kept.name
        ))?;
    }
    Ok(exit::OK)
}

pub(super) fn as_json(store: &Store, kept: &Kept) -> Value {
    json!({
        "model": kept.name.to_string(), "name": kept.name.name(), "revision": kept.name.revision(),
        "path": store.folder(&kept.name), "bytes": kept.bytes, "current": kept.current,
        "previous": kept.previous,
    })
}

pub(super) fn export(args: &Export, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let _lock = store.lock()?;
    let name = store.find(&args.model)?;
    let output = args.output.clone().unwrap_or_else(|| format!("{name}.tar").into());
    if output == Path::new("-") {
        store::export(&store, &name, &mut *world.output)?;
        return Ok(exit::OK);
    }
    let shown = output.display();
    let file =
        File::create_new(&output).map_err(|error| format!("cannot make {shown}: {error}"))?;
    let written = store::export(&store, &name, &file).map_err(Box::<dyn Error>::from);
    let written = written.and_then(|()| file.sync_all().map_err(Box::from));
    if let Err(error) = written {
        // Half an archive is none.
        let _ = std::fs::remove_file(&output);
        return Err(error);
    }
    let size = file.metadata()?.len();
    if args.place.json {
        let object = json!({"model": name.to_string(), "path": output, "bytes": size});
        world.print(&format!("{object}\n"))?;
    } else {
        world.print(&format!("{name} is in {shown}, {}\n", bytes(size)))?;
    }
    Ok(exit::OK)
}

pub(super) fn list(args: &List, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let models = store.list()?;
    if args.place.json {
        let all: Vec<Value> = models.iter().map(|kept| as_json(&store, kept)).collect();
        world.print(&format!("{}\n", json!(all)))?;
        return Ok(exit::OK);
    }
    if models.is_empty() {
        let place = store.root().display();
        let text = format!("promptd: no models in {place}; `promptd model import` brings one in");
        // Whoever closed standard error does not want to know.
        let _ = writeln!(world.errors, "{text}");
        return Ok(exit::OK);
    }
    let width = models.iter().map(|kept| kept.name.to_string().len()).max().unwrap_or(0);
    let mut text = String::new();
    for kept in &models {
        let state = if kept.current {
            "  current"
        } else if kept.previous {
            "  previous"
        } else {
            ""
        };
        let (name, size) = (kept.name.to_string(), bytes(kept.bytes));
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{name:width$}  {size:>9}{state}");
    }
    world.print(&text)?;
    Ok(exit::OK)
}

pub(super) fn verify(args: &Verify, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let names: Vec<ModelName> = if args.which.is_empty() {
        store.list()?.into_iter().map(|kept| kept.name).collect()
    } else {
        args.which.iter().map(|typed| store.find(typed)).collect::<Result<_, _>>()?
    };
    let trusted = trusted_keys(&args.place);
    let (mut code, mut all) = (exit::OK, Vec::new());
    for name in names {
        let error = store.verify(&name, &trusted).err().map(|error| with_causes(&error));
        if error.is_some() {
            code = exit::FAILURE;
        }
        if args.place.json {
            all.push(json!({"model": name.to_string(), "ok": error.is_none(), "error": error}));
        } else {
            // One after the other: each may take minutes.
            let text = error.unwrap_or_else(|| "all files are as its manifest says".to_owned());
            world.print(&format!("{name}: {text}\n"))?;
        }
    }
    if args.place.json {
        world.print(&format!("{}\n", json!(all)))?;
    }
    Ok(code)
}

pub(super) fn remove(args: &Remove, world: &mut World<'_>) -> Done {
    let store = store_of(&args.place)?;
    let lock = store.lock()?;
    let name = store.find(&args.model)?;
    store.remove(&name, &lock)?;
    if args.place.json {
        world.print(&format!("{}\n", json!({"model": name.to_string(), "removed": true})))?;
    } else {
        world.print(&format!("{name} is removed\n"))?;
    }
    Ok(exit::OK)
}
