//! `promptd model prepare`: makes the copy of a model that belongs to this machine, where the service finds it.

use std::path::PathBuf;

use serde_json::json;

use super::args::Prepare;
use super::model::{Done, bytes, library};
use super::{World, exit};
use crate::inference::prepare;
use crate::settings;

pub(super) fn prepare(args: &Prepare, world: &mut World<'_>) -> Done {
    let configured = settings::load(&args.config, &super::environment());
    let store = match (&args.store, &configured) {
        (Some(store), _) => store.clone(),
        (None, Ok(settings)) => settings.state.models_dir().ok_or_else(|| {
            let file = args.config.display();
            format!("{file} has no `state.dir`, so the service looks for no copies; name a place with --store")
        })?,
        (None, Err(error)) => {
            let error = super::with_causes(error);
            return Err(format!("the place of copies is not known, name it with --store: {error}").into());
        }
    };
    let named: Option<PathBuf> = args
        .library
        .clone()
        .or_else(|| configured.ok().and_then(|settings| settings.runtime.library));
    let library = library(named.as_deref(), world)?;
    let copy = prepare::prepare(&args.folder, &library, &store, &mut |doing| {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(world.errors, "promptd: {doing}");
    })?;
    let text = if args.json {
        let object = json!({
            "path": copy.path, "bytes": copy.bytes, "made": copy.made,
            "peak_bytes": copy.peak, "peak_bytes_without": copy.peak_without,
        });
        format!("{object}\n")
    } else {
        let (path, size) = (copy.path.display(), bytes(copy.bytes));
        let what = if copy.made { "made" } else { "was there" };
        format!(
            "{path}: {what}, {size}\nmemory that cannot be given back, one slot of a full context: {} instead of {}\n",
            bytes(copy.peak),
            bytes(copy.peak_without)
        )
    };
    world.print(&text)?;
    Ok(exit::OK)
}
