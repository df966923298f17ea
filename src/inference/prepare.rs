//! Makes the prepared copy of a model (`prepared.rs`): checks the folder, lets ONNX Runtime write, and loads what was written
//! once, so that a copy that cannot be used is never left behind.

use std::path::{Path, PathBuf};

use super::error::LoadError;
use super::hashes::Hashes;
use super::session::Execution;
use super::{Provider, folder, hashes, inspect, memory, prepared, provider, runtime, session};

/// A copy that is there now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Its folder.
    pub path: PathBuf,
    /// Bytes of its files.
    pub bytes: u64,
    /// Whether it was made now; else it was there.
    pub made: bool,
    /// Memory that cannot be given back when it is used, with one slot of a full context, in bytes.
    pub peak: u64,
    /// The same without it.
    pub peak_without: u64,
}

/// Makes the copy of a model in a store. `say` is told what is being done.
///
/// # Errors
/// As for loading a model, and where the store cannot be written to or has no room.
pub fn prepare(
    model: &Path,
    library: &Path,
    store: &Path,
    say: &mut dyn FnMut(&str),
) -> Result<Copy, LoadError> {
    let runtime = runtime::open(library)?;
    std::fs::create_dir_all(store)
        .map_err(|source| LoadError::Write { path: store.into(), source })?;
    let mut hashes = Hashes::open(hashes::memory(store));
    say("checking the model folder");
    let folder = folder::open(model, &mut hashes)?;
    let key = prepared::Key::of(&folder, &runtime.version, &mut hashes)?;
    hashes.save();
    let before = inspect::plan_of(&folder, 1, 0, false);
    let failed = |doing, source| LoadError::Runtime { path: folder.graph.clone(), doing, source };
    let made = prepared::make(store, &folder, &key, &mut hashes, |into| {
        check_room(store, &before)?;
        say("writing the copy");
        let graph = into.join(prepared::GRAPH);
        session::save(&runtime, &folder.graph, (&graph, prepared::WEIGHTS))
            .map_err(|source| failed("cannot write the prepared copy", source))?;
        say("loading it once");
        let execution = Execution { provider: Provider::Cpu, ..Execution::default() };
        match session::open(&runtime, &graph, None, &execution) {
            Ok(_) => Ok(()),
            Err(provider::Refused::Graph(source)) => {
                Err(failed("cannot load the prepared copy", source))
            }
            Err(provider::Refused::Provider(reason)) => Err(LoadError::file(graph, reason)),
        }
    });
    hashes.save();
    let (copy, made) = made?;
    Ok(Copy {
        path: copy.graph.parent().unwrap_or(store).to_owned(),
        bytes: copy.files.iter().map(|(_, bytes)| bytes).sum(),
        made,
        peak: inspect::plan_of(&folder, 1, 0, true).peak,
        peak_without: before.peak,
    })
}

/// Whether the disk has room for the weights as they are, those in another order, and a little more.
fn check_room(store: &Path, plan: &memory::Plan) -> Result<(), LoadError> {
    let need = plan.weights.saturating_add(plan.packed).saturating_add(16 << 20);
    let Ok(disk) = rustix::fs::statvfs(store) else { return Ok(()) };
    let have = disk.f_bavail.saturating_mul(disk.f_frsize);
    if have >= need { Ok(()) } else { Err(LoadError::Space { path: store.into(), need, have }) }
}
