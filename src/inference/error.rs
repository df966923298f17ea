//! Why a model cannot be loaded or run, in words that name the file, what is there and what was expected.

use std::path::PathBuf;

use crate::request::{Code, Refusal};

/// Why loading failed. Trying again helps only after someone changed the library or the model folder.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// libonnxruntime is not there, is damaged, or was built for another machine.
    #[error(
        "cannot use ONNX Runtime at {}: {reason}; `make build` fetches a fitting libonnxruntime (it is in PyPI's `onnxruntime` wheel), or set runtime.library",
        path.display()
    )]
    Library {
        /// The library that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// libonnxruntime could not be opened by the system's loader.
    #[error("cannot open ONNX Runtime at {}", path.display())]
    Open {
        /// The library that was named.
        path: PathBuf,
        /// What the loader said.
        #[source]
        source: ort::LoadDynamicError,
    },
    /// A second library was named after one was opened: a process holds one ONNX Runtime for its life.
    #[error("ONNX Runtime was already opened from {}; this process cannot open {} as well", opened.display(), wanted.display())]
    OtherLibrary {
        /// The library in use.
        opened: PathBuf,
        /// The library that was asked for.
        wanted: PathBuf,
    },
    /// The model folder itself is not there.
    #[error("the model folder {} {reason}", path.display())]
    Folder {
        /// The folder that was named.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the model folder is missing, damaged or does not fit the others.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of the model folder could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// ONNX Runtime refused the graph, or the graph failed in its first step.
    #[error("{}: ONNX Runtime {doing}", path.display())]
    Runtime {
        /// The file of the graph.
        path: PathBuf,
        /// What was being done, in words that follow the runtime's name.
        doing: &'static str,
        /// What the runtime said.
        #[source]
        source: ort::Error,
    },
    /// The execution provider that was asked for cannot be had.
    #[error(
        "`runtime.provider` is \"cuda\", and with {} that cannot be had: {reason}; set `runtime.library` to a libonnxruntime built with CUDA for this board's driver, with libonnxruntime_providers_cuda.so beside it, or `runtime.provider` to \"auto\" or \"cpu\"",
        library.display()
    )]
    Provider {
        /// The library that was asked.
        library: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Keys and values belong into a GPU's memory, and it takes them not.
    #[error(
        "{}: {reason}; take a shorter context (`model.context`) or fewer slots (`model.slots`), or set `runtime.provider` to \"cpu\"",
        path.display()
    )]
    Gpu {
        /// The file of the graph.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The threads of a step cannot be bound to the processors that were named.
    #[error("`runtime.cores` {0}")]
    Cores(String),
    /// The store of checksums and prepared copies cannot be written to.
    #[error("cannot write to {}", path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// There is not enough room for a prepared copy.
    #[error(
        "a prepared copy takes about {need} bytes, {} has {have} left; free some, or name another place (`--store`)",
        path.display()
    )]
    Space {
        /// The store.
        path: PathBuf,
        /// Bytes that it takes.
        need: u64,
        /// Bytes that are left.
        have: u64,
    },
    /// It would take more memory than there is.
    #[error(
        "the model {} takes {need} bytes of memory with {slots} slots of {context} tokens, {have} are available; {advice}",
        path.display()
    )]
    Memory {
        /// The model folder.
        path: PathBuf,
        /// Bytes that it takes and cannot give back.
        need: u64,
        /// Bytes that are available.
        have: u64,
        /// Prompts that were to run at once.
        slots: u16,
        /// Tokens of context of each.
        context: u32,
        /// What would fit.
        advice: String,
    },
    /// It would take more memory than there is beside the model that answers.
    #[error(
        "the model {} takes {} MiB of memory and {} MiB shall stay free; {} MiB are available beside the model that answers",
        path.display(), (need - spare) >> 20, spare >> 20, have >> 20
    )]
    NoRoomBeside {
        /// The model folder.
        path: PathBuf,
        /// Bytes that it takes, and those that have to stay free.
        need: u64,
        /// Bytes that are available.
        have: u64,
        /// Bytes that have to stay free.
        spare: u64,
    },
    /// A thread could not be started.
    #[error("cannot start a thread to compile the chat template")]
    Thread(#[source] std::io::Error),
}

impl LoadError {
    /// A damaged or unfitting file.
    pub(super) fn file(path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        LoadError::File { path: path.into(), reason: reason.into() }
    }
}

impl From<LoadError> for Refusal {
    /// The whole chain of causes in one sentence, for status messages.
    fn from(error: LoadError) -> Self {
        let refusal = Refusal::new(Code::ModelFailed, chain(&error));
        match error {
            LoadError::Memory { need, have, .. } | LoadError::NoRoomBeside { need, have, .. } => {
                refusal.with_limit(have, need)
            }
            _ => refusal,
        }
    }
}

/// What leaves a loaded model unusable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StepError {
    /// A step of the model failed for every prompt that took part in it.
    #[error("ONNX Runtime failed in a decode step")]
    Runtime(#[source] ort::Error),
    /// A file of the model is no longer the one that was loaded.
    #[error("{0}")]
    Changed(String),
}

/// An error and its causes, one after the other. Causes that repeat what was already said are left out.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_tells_the_whole_chain() {
        let source = std::io::Error::other("the disk is on fire");
        let refusal = Refusal::from(LoadError::Read { path: "/m/model.onnx".into(), source });
        assert_eq!(refusal.code, Code::ModelFailed);
        assert_eq!(refusal.message, "cannot read /m/model.onnx: the disk is on fire");
    }
}
