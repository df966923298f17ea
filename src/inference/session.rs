//! The session: the graph in ONNX Runtime, with the threads, the cores and the execution provider that it is to run with.

use std::path::Path;

use ort::ep::{ArenaExtendStrategy, ExecutionProvider as _};
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use serde::{Deserialize, Serialize};

use super::provider::{self, Device, Nodes, Placement, Provider, Refused};
use super::runtime::Runtime;
use super::{cores, placement};

/// How the steps of a model are executed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Execution {
    /// Where the graph runs.
    pub provider: Provider,
    /// Threads of one step; 0 takes as many as `cores` names, else one for each physical core.
    pub threads: u16,
    /// Processors, as the kernel counts them from 0, that the threads of a step keep to. Empty: where the kernel puts them.
    pub cores: Vec<u16>,
    /// Whether threads wait for each other without sleeping while a step runs. They never do between steps.
    pub spinning: bool,
}

impl Execution {
    /// Threads of one step.
    pub(super) fn threads(&self) -> u16 {
        match (self.threads, u16::try_from(self.cores.len())) {
            (0, Ok(0) | Err(_)) => u16::try_from(cores::physical()).unwrap_or(u16::MAX),
            (0, Ok(cores)) => cores,
            (threads, _) => threads,
        }
    }
}

/// A graph that was loaded.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) session: Session,
    pub(super) placement: Placement,
    /// Why the prepared copy was not taken, where there is one.
    pub(super) fault: Option<String>,
}

/// Loads a graph, from its prepared copy where there is one and it runs on the CPU, and tells where it runs. The thread that
/// calls this is to run the steps: the cores are its own, too.
pub(super) fn open(
    runtime: &Runtime,
    file: &Path,
    copy: Option<&Path>,
    execution: &Execution,
) -> Result<Opened, Refused<ort::Error>> {
    let has_cuda = ort::ep::CUDA::is_available().map_err(Refused::Graph)?;
    let mut fault = None;
    let (session, placement) = provider::choose(execution.provider, has_cuda, |device| {
        let on_cpu = copy.filter(|_| device == Device::Cpu);
        if let Some(copy) = on_cpu {
            match commit(runtime, copy, device, execution) {
                Ok((session, nodes)) => return Ok(((session, true), nodes)),
                Err(error) => fault = Some(error.to_string()),
            }
        }
        let (session, nodes) = commit(runtime, file, device, execution)?;
        Ok::<_, ort::Error>(((session, false), nodes))
    })?;
    let (session, prepared) = session;
    Ok(Opened { session, placement: Placement { prepared, ..placement }, fault })
}

fn commit(
    runtime: &Runtime,
    file: &Path,
    device: Device,
    execution: &Execution,
) -> ort::Result<(Session, Nodes)> {
    let mut builder = builder(runtime, execution)?;
    if device == Device::Cuda {
        // Without this a provider that cannot be had is left out without a word.
        let cuda = ort::ep::CUDA::default()
            // Else memory is taken by powers of two, and a board whose GPU shares its memory has up to half of it too little.
            .with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested)
            .build()
            .error_on_failure();
        builder = builder.with_execution_providers([cuda])?;
    }
    let session = builder.commit_from_file(file)?;
    let nodes = placement::count(&session)?;
    Ok((session, nodes))
}

/// Writes a graph as it is optimised for this processor, with its weights in the order that kernels want beside the original
/// ones, into two new files.
pub(super) fn save(
    runtime: &Runtime,
    source: &Path,
    (graph, weights): (&Path, &str),
) -> ort::Result<()> {
    // From this size on a tensor goes into the file of weights: smaller ones are not worth a page.
    const LEAST_BYTES: &str = "1024";
    builder(runtime, &Execution::default())?
        // The highest level knows kernels that depend on the machine's caches; it is applied when the copy is loaded.
        .with_optimization_level(GraphOptimizationLevel::Level2)?
        .with_optimized_model_path(graph)?
        .with_config_entry("session.optimized_model_external_initializers_file_name", weights)?
        .with_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes",
            LEAST_BYTES,
        )?
        .with_config_entry("session.save_external_prepacked_constant_initializers", "1")?
        .commit_from_file(source)
        .map(drop)
}

/// All that does not depend on the device.
fn builder(runtime: &Runtime, execution: &Execution) -> ort::Result<SessionBuilder> {
    let threads = execution.threads();
    let builder = Session::builder(&runtime.environment)?
        .with_log_level(ort::logging::LogLevel::Error)?
        .with_intra_threads(threads.into())?
        .with_inter_threads(1)?
        // Threads that spin take a core from everybody else on the device, and are slower when anything else runs.
        .with_intra_op_spinning(execution.spinning)?
        .with_config_entry("session.force_spinning_stop", "1")?
        .with_config_entry(placement::RECORD, "1")?
        // Every step has another shape; a memory pattern for each of them would only be kept, never used.
        .with_memory_pattern(false)?;
    match cores::affinities(&execution.cores, threads) {
        None => Ok(builder),
        Some(each) => Ok(builder.with_config_entry("session.intra_op_thread_affinities", each)?),
    }
}
