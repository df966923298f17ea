//! ONNX Runtime as a library: opens it once, by its explicit path, after looking at the file. Loads no model.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;

use super::elf;
use super::error::LoadError;

/// The opened runtime. ONNX Runtime allows one environment in the life of a process.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    pub(super) environment: Environment,
    /// The version the library states of itself.
    pub(super) version: String,
    path: PathBuf,
}

/// The one environment. A mutex and not a `OnceLock`, because a failed attempt may be repeated with another path.
static OPENED: Mutex<Option<Runtime>> = Mutex::new(None);

/// Opens the library at `path`, or returns the one that was opened before from the same path.
///
/// A library whose headers are whole but whose contents are damaged can still kill the process here; that is for the
/// process that started this one to report.
pub(super) fn open(path: &Path) -> Result<Runtime, LoadError> {
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    // A relative path would be looked for beside the executable first, which is not what whoever wrote it meant.
    let wanted = std::path::absolute(path)
        .map_err(|source| LoadError::Read { path: path.into(), source })?;
    if path.as_os_str().is_empty() {
        return Err(LoadError::Library { path: path.into(), reason: "no path was given".into() });
    }
    if let Some(reason) = elf::fault(&wanted) {
        return Err(LoadError::Library { path: wanted, reason });
    }
    if let Some(runtime) = opened.as_ref() {
        let same = runtime.path == wanted;
        let other =
            || LoadError::OtherLibrary { opened: runtime.path.clone(), wanted: wanted.clone() };
        return if same { Ok(runtime.clone()) } else { Err(other()) };
    }
    let builder = ort::init_from(&wanted).map_err(|source| match source {
        ort::LoadDynamicError::MissingApi { .. } => LoadError::Library {
            path: wanted.clone(),
            reason: "it is a shared library, but not ONNX Runtime (it has no `OrtGetApiBase`)"
                .into(),
        },
        ort::LoadDynamicError::BadVersion { version_str, .. } => LoadError::Library {
            path: wanted.clone(),
            reason: format!(
                "it is version {version_str}, promptd needs 1.{}.0 or later",
                ort::MINOR_VERSION
            ),
        },
        source => LoadError::Open { path: wanted.clone(), source },
    })?;
    let fail = |source| LoadError::Runtime {
        path: wanted.clone(),
        doing: "could not be initialised",
        source,
    };
    let environment = builder.with_name("promptd").with_telemetry(false).build().map_err(fail)?;
    let runtime = Runtime { environment, version: version_of(&wanted), path: wanted };
    *opened = Some(runtime.clone());
    Ok(runtime)
}

/// The version in the file's name (`libonnxruntime.so.1.32.0`), which is where every distribution puts it, or else
/// the build string the library carries.
fn version_of(path: &Path) -> String {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.into());
    let name =
        target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    match name.split_once(".so.") {
        Some((_, version)) if !version.is_empty() => version.to_owned(),
        _ => ort::info().trim_start_matches("ORT Build Info: ").to_owned(),
    }
}
