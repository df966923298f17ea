//! The engine of these tests: the real loop (`engine::process`) around a model that writes a token every so often, whatever
//! the machine does besides, and whose text follows from the seed.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use promptd::engine::frames::{CheckedPrompt, LoadRequest, LoadStage, ModelInfo};
use promptd::engine::process::{self, Checker, Interrupter, Loaded, Model, Start};
use promptd::request::{
    CacheKey, Event, Finish, FinishReason, Input, Pinned, PromptId, Refusal, Request, Timings,
    Usage,
};

/// Time between two tokens of an answer, unless the model's folder says another.
pub(crate) const STEP: Duration = Duration::from_millis(10);
/// Tokens of an answer that does not say how many.
pub(crate) const TOKENS: u32 = 20;
/// The longest that it does not look for orders.
const MOMENT: Duration = Duration::from_millis(2);
const CONTEXT: u32 = 4096;

/// The name of a model folder with this time between two tokens.
pub(crate) fn folder(step: Duration) -> String {
    format!("every-{}-ms", step.as_millis())
}

fn step_of(folder: &Path) -> Option<Duration> {
    let name = folder.file_name()?.to_str()?;
    let ms = name.strip_prefix("every-")?.strip_suffix("-ms")?;
    ms.parse().ok().map(Duration::from_millis)
}

pub(crate) fn run() -> ExitCode {
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let farewell = process::run(&socket, |_| {}, load, Instant::now).unwrap();
    ExitCode::from(&farewell.ended)
}

#[expect(clippy::unnecessary_wraps, reason = "a model may fail to load; this one does not")]
fn load(
    request: &LoadRequest,
    progress: &mut dyn FnMut(LoadStage),
) -> Result<Loaded<Paced>, Refusal> {
    progress(LoadStage::Weights);
    Ok(Loaded {
        info: info(request),
        checker: Reader,
        model: Paced { running: Vec::new(), step: step_of(&request.model).unwrap_or(STEP) },
    })
}

/// What is said of a model that is none.
pub(crate) fn info(request: &LoadRequest) -> ModelInfo {
    ModelInfo {
        name: "paced".to_owned(),
        architecture: "none".to_owned(),
        context: CONTEXT,
        slots: request.slots,
        vocab_size: 1000,
        chat: true,
        text: true,
        embedding: None,
        threads: 1,
        runtime_version: "0".to_owned(),
        placement: Box::default(),
        load_ms: 1,
    }
}

struct Reader;

impl Checker for Reader {
    type Prepared = u32;

    fn prepare(&self, request: &Request) -> Result<(u32, CheckedPrompt), Refusal> {
        let bytes = match &request.input {
            Input::Completion(text) | Input::Ask { text, .. } => text.len(),
            Input::Chat(messages) => messages.iter().map(|message| message.content.len()).sum(),
            Input::Embed(embed) => embed.bytes(),
        };
        let prompt_tokens = u32::try_from(bytes / 4 + 1).unwrap_or(u32::MAX);
        let max_tokens = request.max_tokens.unwrap_or(TOKENS);
        Ok((max_tokens, CheckedPrompt { prompt_tokens, max_tokens, calls: None }))
    }

    fn beginning(&self, _: &Pinned) -> Vec<u32> {
        Vec::new()
    }
}

struct Running {
    id: PromptId,
    seed: u64,
    tokens: u32,
    place: u32,
    begun: Instant,
    /// When its next token is due.
    due: Instant,
}

struct Paced {
    running: Vec<Running>,
    /// Time between two tokens of an answer.
    step: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("never")]
struct Never;

impl Model for Paced {
    type Checker = Reader;
    type Error = Never;

    fn start(&mut self, start: Start<'_, u32>) -> Result<(), Refusal> {
        let Start { id, prepared: tokens, seed, resume, .. } = start;
        let (place, begun) = (u32::try_from(resume.len()).unwrap_or(0), Instant::now());
        self.running.push(Running { id, seed, tokens, place, begun, due: begun + self.step });
        Ok(())
    }

    fn pin(&mut self, _: Vec<(CacheKey, Vec<u32>)>) {}

    fn interrupter(&self) -> Interrupter {
        Box::new(|_| {})
    }

    fn cancel(&mut self, id: PromptId) {
        self.running.retain(|running| running.id != id);
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty()
    }

    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), Never> {
        // A moment only: orders come between two of them, and a prompt that waited for another's token would make the
        // engine's capacity smaller than its number.
        if let Some(due) = self.running.iter().map(|running| running.due).min() {
            std::thread::sleep(due.saturating_duration_since(Instant::now()).min(MOMENT));
        }
        let now = Instant::now();
        for running in self.running.iter_mut().filter(|running| running.due <= now) {
            if running.place < running.tokens {
                let token = (running.seed.wrapping_add(u64::from(running.place) * 7919)) % 1000;
                let tokens = vec![u32::try_from(token).unwrap_or(0)];
                let text = format!(" {token}");
                emit(running.id, Event::Delta { text, tokens, logprobs: Vec::new() });
                running.place += 1;
                // By the clock and not by the sleep: a busy machine makes it late, not slow.
                running.due += self.step;
            }
            if running.place >= running.tokens {
                let decode = self.step * running.tokens.saturating_sub(1);
                let spent = running.begun.elapsed();
                let timings = Timings {
                    queue: Duration::ZERO,
                    prefill: spent.saturating_sub(decode),
                    decode: decode.min(spent),
                };
                let usage =
                    Usage { prompt: 1, cached: 0, completion: running.tokens, forgotten: 0 };
                let (reason, seed) = (FinishReason::Stop, running.seed);
                emit(running.id, Event::Finished(Finish { reason, usage, timings, seed }));
            }
        }
        self.running.retain(|running| running.place < running.tokens);
        Ok(())
    }
}
