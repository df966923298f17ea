//! Compiles forms in a process of their own first. A compilation cannot be stopped and its memory not be taken back; those of
//! a process can. What compiles there within its limits compiles here as well, so the engine's own threads are not held up.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, setrlimit};

use super::grammar::{self, Demand};
use crate::request::{Code, Refusal};

/// What the program is called with. Its standard input is the form as JSON, its standard output the refusal, if there is
/// one.
pub const ARGUMENT: &str = "form";

/// Processor time of one trial in seconds: honest schemas take milliseconds. It ends a trial whose engine is gone, too.
const PROCESSOR_SECONDS: u64 = 5;
/// Address space of one trial: program, stack and heap. Of the largest forms that the other limits let through, none took
/// more than 25 MB of memory.
const MEMORY_BYTES: u64 = 512 << 20;
/// Forms that are known to compile: those of profiles come again and again, and a prompt's form is checked before it waits
/// and compiled when it starts.
const REMEMBERED: usize = 32;
/// How often it is looked whether a trial is over, at first and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));

/// Tries forms.
#[derive(Debug)]
pub(super) struct Trials {
    program: PathBuf,
    passed: Mutex<VecDeque<Demand>>,
}

impl Trials {
    /// Trials by this program, which gives its standard streams to [`run`].
    pub(super) fn new(program: PathBuf) -> Self {
        Trials { program, passed: Mutex::default() }
    }

    /// Whether a form compiles within the limits and the time.
    pub(super) fn pass(&self, demand: &Demand, time: Duration) -> Result<(), Refusal> {
        if self.lock().contains(demand) {
            return Ok(());
        }
        let failed = |error: std::io::Error| {
            let message =
                format!("cannot start a process to compile the form of the answer: {error}");
            Refusal::new(Code::Internal, message)
        };
        let (mut child, mut said) = self.start(demand).map_err(failed)?;
        let Some(status) = wait(&mut child, time).map_err(failed)? else {
            let seconds = time.as_secs_f32();
            return Err(grammar::unusable(format!(
                "it took more than {seconds} s to compile; make it simpler"
            )));
        };
        if status.success() {
            let mut passed = self.lock();
            passed.truncate(REMEMBERED - 1);
            passed.push_front(demand.clone());
            return Ok(());
        }
        said.rewind().map_err(failed)?;
        // Without a word it ended at one of its limits.
        Err(serde_json::from_reader(said).unwrap_or_else(|_| {
            grammar::unusable("it takes too much time or memory to compile; make it simpler")
        }))
    }

    fn start(&self, demand: &Demand) -> std::io::Result<(Child, File)> {
        // Files and not pipes: nobody has to write or read while the other does.
        let file =
            |name| rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).map(File::from);
        let (mut input, output) = (file("form")?, file("refusal")?);
        input.write_all(&serde_json::to_vec(demand)?)?;
        input.rewind()?;
        let mut command = Command::new(&self.program);
        command.arg(ARGUMENT).env_clear().stderr(Stdio::null());
        let child = command.stdin(input).stdout(output.try_clone()?).spawn()?;
        Ok((child, output))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Demand>> {
        self.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for the end, or makes it when the time is over.
fn wait(child: &mut Child, time: Duration) -> std::io::Result<Option<ExitStatus>> {
    let (end, mut pause) = (Instant::now() + time, LOOK.0);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(LOOK.1);
    }
}

/// The other side: reads a form, compiles it within the limits of this process, and writes the refusal, if there is one.
/// Whether the form compiles.
pub fn run(mut input: impl Read, mut output: impl std::io::Write) -> bool {
    // Where a filter of system calls forbids these, the engine's clock ends the trial all the same. A crash at a limit is
    // an answer, nothing to be looked into.
    for (resource, most) in
        [(Resource::Cpu, PROCESSOR_SECONDS), (Resource::As, MEMORY_BYTES), (Resource::Core, 0)]
    {
        if let Err(error) = setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
        {
            tracing::debug!(%error, ?resource, "this limit cannot be set");
        }
    }
    let mut form = Vec::new();
    if input.read_to_end(&mut form).is_err() {
        return false;
    }
    let Ok(demand) = serde_json::from_slice::<Demand>(&form) else { return false };
    let Err(refusal) = grammar::try_alone(demand) else { return true };
    let written = serde_json::to_vec(&refusal).is_ok_and(|bytes| output.write_all(&bytes).is_ok());
    tracing::debug!(written, "{refusal}");
    false
}
