//! Puts the inference room behind the engine's loop, and is the whole of `promptd engine`. The only file that knows both.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::escape::{self, Attempt};
use super::frames::{CheckedPrompt, LoadRequest, LoadStage, ModelInfo};
use super::process::{self, Checker, Ended, Farewell, Interrupter, Loaded, Model, Start};
use super::sandbox::{self, Needs};
use crate::inference::{self, Prepared, Preparer, Runner, Stage, StepError};
use crate::request::{CacheKey, Event, Pinned, PromptId, Refusal, Request};

/// How much sooner than others the kernel shall kill the engine when memory is short (-1000 to 1000). The engine holds
/// nearly all of it and can be started again without losing a prompt; the service and the board's other programs cannot.
const OOM_SCORE: &str = "800";

/// Tries a form of an answer for an engine that started this process. This is `promptd form`; people do not call it.
pub fn try_form() -> ExitCode {
    let passed = inference::trial::run(std::io::stdin(), std::io::stdout());
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Serves the service at the other end of standard input until it closes. This is `promptd engine`; people do not call it.
/// `sandboxed`: takes from itself what a model does not need ([`sandbox`]).
pub fn run(sandboxed: bool) -> ExitCode {
    // The end of the socket tells too, but not an engine that is stopped or hangs; it would keep its memory for ever.
    let kill = rustix::process::Signal::KILL;
    if let Err(error) = rustix::process::set_parent_process_death_signal(Some(kill)) {
        tracing::debug!(%error, "a hanging engine will outlive a service that is killed");
    }
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        tracing::debug!(%error, "the engine keeps the service's place in the order of out-of-memory kills");
    }
    let always = Arc::new(AtomicBool::new(true));
    if let Err(error) = signal_hook::flag::register_conditional_shutdown(
        signal_hook::consts::SIGBUS,
        super::death::FILE_LOST,
        always,
    ) {
        tracing::debug!(%error, "SIGBUS will end the engine as the kernel ends a process");
    }
    let socket = match std::io::stdin().as_fd().try_clone_to_owned() {
        Ok(socket) => UnixStream::from(socket),
        Err(error) => return unusable(&error),
    };
    // Reading would tell too, but "the service is gone" is not what somebody at a terminal should get for an answer.
    if let Err(error) = socket.peer_addr() {
        return unusable(&error);
    }
    // Opened before the engine may open nothing for writing any more.
    let memory = Arc::new(Mutex::new(None));
    let remembered = Arc::clone(&memory);
    let prepare = move |request: &LoadRequest| {
        let hashes = request.store.as_deref().and_then(inference::remembered_hashes);
        *remembered.lock().unwrap_or_else(PoisonError::into_inner) = hashes;
        if sandboxed {
            let mut needs = needs(&request.model, &request.library);
            needs.read.extend(request.store.clone());
            sandbox::confine(&needs).log();
        } else {
            tracing::warn!("`runtime.sandbox` is false: the engine may do all that promptd may");
        }
    };
    let load = move |request: &LoadRequest, progress: &mut dyn FnMut(LoadStage)| {
        let hashes = memory.lock().unwrap_or_else(PoisonError::into_inner).take();
        load(request, hashes, progress)
    };
    match process::run(&socket, prepare, load, Instant::now) {
        Ok(Farewell { ended, busy }) => leave(&ended, busy),
        Err(error) => unusable(&error),
    }
}

/// Confines this process like an engine for this model and tries to escape. `None`: the kernel has no part of the sandbox.
pub fn try_to_escape(model: &Path, library: &Path, secrets: &[PathBuf]) -> Option<Vec<Attempt>> {
    let confined = sandbox::confine(&needs(model, library));
    confined.log();
    (!confined.is_nothing()).then(|| escape::attempts(model, secrets))
}

fn needs(model: &Path, library: &Path) -> Needs {
    Needs::of(model, library, std::env::var_os("LD_LIBRARY_PATH").as_deref())
}

fn unusable(error: &std::io::Error) -> ExitCode {
    tracing::error!(%error, "standard input is no socket to a service; `promptd serve` starts its engine by itself");
    ExitCode::from(64)
}

fn leave(ended: &Ended, busy: bool) -> ExitCode {
    if let Ended::Broken(why) = ended {
        tracing::error!("the engine ends: {why}");
    }
    if busy {
        // The usual end of a process runs the destructors of libonnxruntime while its threads still compute; that
        // crashes now and then, and a crash looks like a fault. This way there are none.
        let _ =
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    ExitCode::from(ended)
}

fn load(
    request: &LoadRequest,
    hashes: Option<Arc<File>>,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded<Runner>, Refusal> {
    inference::signature::check(&request.model, &request.trusted)?;
    let config = inference::Config {
        model: request.model.clone(),
        library: request.library.clone(),
        execution: request.execution.clone(),
        store: request.store.clone(),
        hashes,
        slots: request.slots,
        context: request.context,
        beside: request.beside,
        prefill_chunk: 0,
    };
    let begun = Instant::now();
    let inference::Loaded { facts, preparer, runner } =
        inference::load(&config, Arc::new(Instant::now), &mut |stage| progress(stage_of(stage)))?;
    // The link leads to this very program also when its file was replaced meanwhile.
    preparer.try_forms_with("/proc/self/exe".into());
    for warning in &facts.warnings {
        tracing::warn!("{warning}");
    }
    let info = ModelInfo {
        name: facts.name,
        architecture: facts.architecture,
        context: facts.context,
        slots: facts.slots,
        vocab_size: facts.vocab_size,
        chat: facts.chat,
        text: facts.text,
        embedding: facts.embedding,
        threads: facts.threads,
        runtime_version: facts.runtime_version,
        placement: Box::new(facts.placement),
        load_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    Ok(Loaded { info, checker: preparer, model: runner })
}

fn stage_of(stage: Stage) -> LoadStage {
    match stage {
        Stage::Runtime => LoadStage::Runtime,
        Stage::Folder => LoadStage::Folder,
        Stage::Weights => LoadStage::Weights,
        Stage::Warmup => LoadStage::Warmup,
    }
}

impl Checker for Preparer {
    type Prepared = Prepared;

    fn prepare(&self, request: &Request) -> Result<(Prepared, CheckedPrompt), Refusal> {
        let prepared = Preparer::prepare(self, request)?;
        let checked = CheckedPrompt {
            prompt_tokens: prepared.prompt_tokens(),
            max_tokens: prepared.max_tokens(),
            calls: prepared.calls(),
        };
        Ok((prepared, checked))
    }

    fn beginning(&self, pinned: &Pinned) -> Vec<u32> {
        Preparer::beginning(self, pinned)
    }
}

impl Model for Runner {
    type Checker = Preparer;
    type Error = StepError;

    fn start(&mut self, start: Start<'_, Prepared>) -> Result<(), Refusal> {
        let Start { id, prepared, seed, resume, reuse } = start;
        Runner::start(self, inference::Start { id, prepared, seed, resume, reuse })
    }

    fn pin(&mut self, beginnings: Vec<(CacheKey, Vec<u32>)>) {
        Runner::pin(self, beginnings);
    }

    fn interrupter(&self) -> Interrupter {
        Box::new(Runner::interrupter(self))
    }

    fn cancel(&mut self, id: PromptId) {
        Runner::cancel(self, id);
    }

    fn is_idle(&self) -> bool {
        Runner::is_idle(self)
    }

    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), StepError> {
        Runner::step(self, emit)
    }
}
