//! The engine of these tests: the real loop (`engine::process`) around a model whose answers are known beforehand and that
//! dies when its prompt says so. `promptd serve` starts it because it starts its own program file, which is this one.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use promptd::engine::frames::{CheckedPrompt, LoadRequest, LoadStage, ModelInfo};
use promptd::engine::process::{self, Checker, Interrupter, Loaded, Model, Start};
use promptd::request::{
    CacheKey, Code, Event, Finish, FinishReason, Input, Pinned, PromptId, Refusal, Request,
    Timings, Usage,
};
use rustix::process::{Signal, getpid, kill_process};

use crate::words::{Death, Task, token, word};

/// The file in the model folder that says how loading goes: words of `load_ms=50`, `refuse`, `die=segv`.
pub(crate) const MANNER: &str = "manner";
/// The file in the model folder that tells what the engines did, a line each.
pub(crate) const DEEDS: &str = "deeds";
/// Tokens of context.
const CONTEXT: u32 = 100_000;

pub(crate) fn run() -> ExitCode {
    // The same as the shipped engine: the kernel shall take it before the service.
    let _ = std::fs::write("/proc/self/oom_score_adj", "800");
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let farewell = process::run(&socket, |_| {}, load, Instant::now).unwrap();
    if farewell.busy {
        let _ = kill_process(getpid(), Signal::KILL);
    }
    ExitCode::from(&farewell.ended)
}

fn load(
    request: &LoadRequest,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded<Known>, Refusal> {
    let begun = Instant::now();
    let folder = request.model.clone();
    progress(LoadStage::Folder);
    let manner = std::fs::read_to_string(folder.join(MANNER)).unwrap_or_default();
    progress(LoadStage::Weights);
    let mut ballast = Vec::new();
    for word in manner.split_whitespace() {
        match word.split_once('=').unwrap_or((word, "")) {
            ("load_ms", ms) => std::thread::sleep(Duration::from_millis(ms.parse().unwrap_or(0))),
            ("mib", mib) => ballast = vec![1; mib.parse::<usize>().unwrap_or(0) << 20],
            ("refuse", _) => return Err(Refusal::new(Code::ModelFailed, "the manner says so")),
            ("die", how) => perish(how),
            _ => {}
        }
    }
    let info = ModelInfo {
        name: "known".to_owned(),
        architecture: "none".to_owned(),
        context: CONTEXT,
        slots: request.slots,
        vocab_size: 900,
        chat: true,
        text: true,
        embedding: None,
        threads: 1,
        runtime_version: "0".to_owned(),
        placement: Box::default(),
        load_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    note(&folder, "loaded -");
    Ok(Loaded { info, checker: Reader, model: Known { folder, running: Vec::new(), ballast } })
}

/// Appends a line to the deeds; one write, so that lines of two engines never mix.
fn note(folder: &Path, line: &str) {
    let file = OpenOptions::new().append(true).create(true).open(folder.join(DEEDS));
    let _ = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
}

/// Dies in this way.
fn perish(how: &str) -> ! {
    let signal = match how {
        "panic" => panic!("the prompt says so"),
        "segv" => Signal::SEGV,
        "bus" => Signal::BUS,
        "abort" => Signal::ABORT,
        #[expect(
            clippy::exit,
            clippy::disallowed_methods,
            reason = "an end like this is what is asked for"
        )]
        "exit" => std::process::exit(3),
        "hang" => loop {
            std::thread::sleep(Duration::from_secs(3600));
        },
        "oom" => {
            // Until the kernel says no. Each page is written, so that it is really there.
            let mut all: Vec<Vec<u8>> = Vec::new();
            loop {
                all.push(vec![1; 8 << 20]);
            }
        }
        _ => Signal::KILL,
    };
    // The first one is caught: Rust looks whether it was a stack overflow, and lets the next one kill.
    loop {
        let _ = kill_process(getpid(), signal);
        std::thread::sleep(Duration::from_millis(1));
    }
}

struct Reader;

impl Checker for Reader {
    type Prepared = (Task, u32);

    fn prepare(&self, request: &Request) -> Result<((Task, u32), CheckedPrompt), Refusal> {
        let text = match &request.input {
            Input::Completion(text) | Input::Ask { text, .. } => text.as_str(),
            Input::Chat(messages) => {
                messages.last().map(|last| last.content.as_str()).unwrap_or_default()
            }
            Input::Embed(_) => return Err(Refusal::new(Code::Unsupported, "no embeddings")),
        };
        let task = Task::read(text);
        let prompt_tokens = u32::try_from(text.len()).unwrap_or(u32::MAX);
        if prompt_tokens >= CONTEXT {
            return Err(Refusal::new(Code::ContextLengthExceeded, "too long")
                .with_limit(CONTEXT.into(), prompt_tokens.into()));
        }
        let most = request.max_tokens.unwrap_or(CONTEXT - prompt_tokens);
        Ok(((task, most), CheckedPrompt { prompt_tokens, max_tokens: most, calls: None }))
    }

    // Nothing is kept: there is no cache.
    fn beginning(&self, _: &Pinned) -> Vec<u32> {
        Vec::new()
    }
}

struct Running {
    id: PromptId,
    task: Task,
    most: u32,
    seed: u64,
    /// Tokens that were written before this engine began with it, and by now.
    from: u32,
    place: u32,
    read: bool,
    begun: Instant,
    first: Option<Instant>,
}

struct Known {
    folder: PathBuf,
    running: Vec<Running>,
    #[expect(dead_code, reason = "memory that is there and gone with the engine")]
    ballast: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
#[error("never")]
struct Never;

impl Known {
    /// Whether a prompt has killed as many engines as it shall; counts this one otherwise.
    fn is_spent(&self, task: &Task, times: u32) -> bool {
        !(0..times).any(|n| {
            let mark = self.folder.join(format!("killed-{}-{n}", task.id));
            OpenOptions::new().write(true).create_new(true).open(mark).is_ok()
        })
    }
}

impl Model for Known {
    type Checker = Reader;
    type Error = Never;

    fn start(&mut self, start: Start<'_, (Task, u32)>) -> Result<(), Refusal> {
        let Start { id, prepared: (task, most), seed, resume, .. } = start;
        note(&self.folder, &format!("start {} {} {seed}", task.id, resume.len()));
        let place = u32::try_from(resume.len()).unwrap();
        let begun = Instant::now();
        let from = place;
        self.running.push(Running {
            id,
            task,
            most,
            seed,
            from,
            place,
            read: false,
            begun,
            first: None,
        });
        Ok(())
    }

    fn cancel(&mut self, id: PromptId) {
        for running in self.running.iter().filter(|running| running.id == id) {
            note(&self.folder, &format!("cancel {} {}", running.task.id, running.place));
        }
        self.running.retain(|running| running.id != id);
    }

    fn pin(&mut self, _: Vec<(CacheKey, Vec<u32>)>) {}

    // A step waits for nothing that could be ended.
    fn interrupter(&self) -> Interrupter {
        Box::new(|_| {})
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), Never> {
        let slowest = self.running.iter().map(|running| running.task.step).max().unwrap_or(0);
        std::thread::sleep(Duration::from_micros(slowest));
        for at in 0..self.running.len() {
            let running = &self.running[at];
            // A hang is noticed by the measured speed: it comes when each engine has shown its own.
            let place = |death: &Death| match death.how.as_str() {
                "hang" => running.from + death.at,
                _ => death.at,
            };
            if let Some(death) = running.task.die.clone().filter(|d| place(d) == running.place)
                && !self.is_spent(&running.task, death.times)
            {
                note(&self.folder, &format!("die {} {}", running.task.id, death.how));
                perish(&death.how);
            }
            let running = &mut self.running[at];
            let total = u32::try_from(running.task.text().len()).unwrap();
            if !running.read {
                running.read = true;
                emit(running.id, Event::Prefill { done: total, total });
                continue;
            }
            let len = running.task.len.min(running.most);
            if running.place < len {
                running.first.get_or_insert_with(Instant::now);
                let token = token(&running.task.id, running.seed, running.place);
                let text = word(running.place, token);
                emit(running.id, Event::Delta { text, tokens: vec![token], logprobs: vec![] });
                running.place += 1;
                continue;
            }
            note(&self.folder, &format!("done {} {}", running.task.id, running.seed));
            let reason =
                if len < running.task.len { FinishReason::Length } else { FinishReason::Stop };
            let first = running.first.unwrap_or_else(Instant::now);
            let timings = Timings {
                queue: Duration::ZERO,
                prefill: first - running.begun,
                decode: first.elapsed(),
            };
            let usage = Usage { prompt: total, cached: 0, completion: len, forgotten: 0 };
            emit(
                running.id,
                Event::Finished(Finish { reason, usage, timings, seed: running.seed }),
            );
            running.place = u32::MAX;
        }
        self.running.retain(|running| running.place != u32::MAX);
        Ok(())
    }
}
