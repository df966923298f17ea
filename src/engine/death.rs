//! What is known of an engine's death, and how to say it to somebody who can mend the cause.

use std::path::PathBuf;
use std::time::Duration;

use super::frames::{LoadRequest, LoadStage};

/// An engine that ended while it was still needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeathReport {
    /// How it ended.
    pub how: Death,
    /// How far it had come.
    pub phase: Phase,
    /// The libonnxruntime it was told to open.
    pub library: PathBuf,
    /// The model folder it was told to load.
    pub model: PathBuf,
}

/// How an engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Death {
    /// It never ran: the system could not start it, for this reason.
    NotStarted(String),
    /// It ended by itself, with this exit code.
    Exited(i32),
    /// This signal ended it.
    Killed(i32),
    /// It was silent for this long with work to do, and was killed for it.
    Silent(Duration),
    /// It sent bytes that are no message, and was killed for it.
    Garbled(String),
}

/// How far an engine has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has said nothing yet.
    Starting,
    /// It is, or was last, in this stage of loading.
    Loading(LoadStage),
    /// It answers prompts.
    Ready,
}

/// The exit code (`EX_IOERR`) of an engine whose handler of SIGBUS ended it: a file under its memory map was cut short, or
/// its storage failed. The handler does nothing else, so no core file of the model's size is written.
pub(super) const FILE_LOST: i32 = 74;

// Signal numbers of Linux, the same on aarch64 and x86-64.
const SIGABRT: i32 = 6;
const SIGBUS: i32 = 7;
const SIGKILL: i32 = 9;
const SIGSEGV: i32 = 11;

impl DeathReport {
    /// A report on an engine that was given this to load.
    pub fn new(how: Death, phase: Phase, load: &LoadRequest) -> Self {
        // By its own hand or the kernel's: what it died of is the same.
        let how = if how == Death::Exited(FILE_LOST) { Death::Killed(SIGBUS) } else { how };
        DeathReport { how, phase, library: load.library.clone(), model: load.model.clone() }
    }

    /// What the operator can do about it, where the signs say something.
    fn advice(&self) -> Option<&'static str> {
        match (&self.how, self.phase) {
            (Death::Killed(SIGKILL), _) => Some(
                "probably the kernel's out-of-memory killer (`journalctl -k` tells): use a smaller model, a shorter \
                 context or fewer slots",
            ),
            (
                Death::Killed(SIGBUS),
                Phase::Loading(LoadStage::Folder | LoadStage::Weights | LoadStage::Warmup),
            ) => Some(
                "a file of the model is truncated or its storage fails; install the model again",
            ),
            (Death::Killed(SIGBUS), Phase::Ready) => Some(
                "a file of the model changed or its storage failed; files of a model in use must not be written to",
            ),
            (
                Death::Killed(SIGSEGV | SIGABRT),
                Phase::Loading(LoadStage::Weights | LoadStage::Warmup),
            ) => Some(
                "ONNX Runtime could not stand the model's graph or weights; verify the model folder",
            ),
            (Death::NotStarted(_), _) => Some(
                "promptd starts its own program file once more as the engine; it must stay executable",
            ),
            (Death::Garbled(_), _) => {
                Some("the program file was probably replaced by another version; restart promptd")
            }
            _ => None,
        }
    }
}

impl std::fmt::Display for DeathReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A damaged library is the one fault that no check beforehand finds: opening it is what kills.
        if let (
            Death::Killed(signal @ (SIGBUS | SIGSEGV | SIGABRT)),
            Phase::Loading(LoadStage::Runtime),
        ) = (&self.how, self.phase)
        {
            let library = self.library.display();
            let name = signal_name(*signal);
            return write!(
                f,
                "libonnxruntime `{library}` killed the process that opened it ({name}): the file is truncated or \
                 damaged; fetch it again with `make build`"
            );
        }
        write!(f, "the engine {} while {}", self.how, self.phase)?;
        match self.phase {
            Phase::Loading(LoadStage::Runtime) => write!(f, " `{}`", self.library.display())?,
            Phase::Loading(LoadStage::Folder) => write!(f, " `{}`", self.model.display())?,
            Phase::Loading(_) => write!(f, " of `{}`", self.model.display())?,
            Phase::Starting | Phase::Ready => {}
        }
        self.advice().map_or(Ok(()), |advice| write!(f, ": {advice}"))
    }
}

impl std::fmt::Display for Death {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Death::NotStarted(why) => write!(f, "could not be started ({why})"),
            Death::Exited(code) => write!(f, "ended with exit code {code}"),
            Death::Killed(signal) => write!(f, "was killed by {}", signal_name(*signal)),
            Death::Silent(time) => write!(f, "was silent for {} s and was killed", time.as_secs()),
            Death::Garbled(why) => {
                write!(f, "sent what is no message of this version ({why}) and was killed")
            }
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Phase::Starting => write!(f, "starting"),
            Phase::Loading(stage) => f.write_str(stage.as_str()),
            Phase::Ready => write!(f, "serving"),
        }
    }
}

/// A signal by the name people search for.
fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        SIGABRT => "SIGABRT",
        SIGBUS => "SIGBUS",
        8 => "SIGFPE",
        SIGKILL => "SIGKILL",
        SIGSEGV => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        31 => "SIGSYS",
        _ => return format!("signal {signal}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(how: Death, phase: Phase) -> String {
        let (library, model) = (PathBuf::from("/lib/ort.so"), PathBuf::from("/models/m"));
        DeathReport { how, phase, library, model }.to_string()
    }

    #[test]
    fn a_death_is_told_by_its_signal_and_where_it_happened() {
        let runtime = Phase::Loading(LoadStage::Runtime);
        let weights = Phase::Loading(LoadStage::Weights);
        let table = [
            (
                Death::Killed(SIGBUS),
                runtime,
                "libonnxruntime `/lib/ort.so` killed the process that opened it (SIGBUS): the file is truncated or \
                 damaged; fetch it again with `make build`",
            ),
            (
                Death::Killed(SIGKILL),
                weights,
                "the engine was killed by SIGKILL while loading the weights of `/models/m`: probably the kernel's \
                 out-of-memory killer (`journalctl -k` tells): use a smaller model, a shorter context or fewer slots",
            ),
            (
                Death::Killed(SIGBUS),
                weights,
                "the engine was killed by SIGBUS while loading the weights of `/models/m`: a file of the model is \
                 truncated or its storage fails; install the model again",
            ),
            (
                Death::Exited(70),
                runtime,
                "the engine ended with exit code 70 while opening libonnxruntime `/lib/ort.so`",
            ),
            (Death::Exited(70), Phase::Ready, "the engine ended with exit code 70 while serving"),
            (
                Death::Killed(42),
                Phase::Starting,
                "the engine was killed by signal 42 while starting",
            ),
            (
                Death::Silent(Duration::from_secs(60)),
                Phase::Ready,
                "the engine was silent for 60 s and was killed while serving",
            ),
        ];
        for (how, phase, expected) in table {
            assert_eq!(say(how, phase), expected);
        }
    }
}
