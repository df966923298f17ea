//! The child: reads orders from a socket, prepares and runs prompts, writes what happens. Plain threads, no tokio, and no
//! word about ONNX Runtime: the model is given to it ([`Model`]), so that the whole loop is tested without one.
//!
//! | thread | does | waits for |
//! |---|---|---|
//! | `engine-reader` | frames in; checks what is checked sooner than another thread wakes up | the service |
//! | `engine-checker` | prepares all other prompts, for checks and for starts | jobs |
//! | `engine-model` | loads, then computes step by step | orders, if nothing runs |
//! | `engine-writer` | frames out that the socket did not take at once from the thread that had them | the service |
//!
//! Preparing has a thread of its own so that a new prompt is accepted or refused while others are being answered.

use std::any::Any;
use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

pub use super::desk::Interrupter;
use super::desk::{Desk, Job, Order};
use super::frames::{
    self, CheckedPrompt, FrameError, FromEngine, LoadRequest, LoadStage, ModelInfo, ToEngine,
};
use super::outbox::{Next, Outbox};
use crate::request::{
    CacheKey, Code, Constraint, Event, Pinned, PromptId, Refusal, Request, Reuse,
};

/// Time between two heartbeats at least: often enough for a watchdog of seconds, seldom enough to cost nothing.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// How long the threads may take to end together: a step of the model, and the last frames. A service that stops waits
/// twice this long before it kills.
const PARTING: Duration = Duration::from_secs(1);

/// Stack of the threads that parse templates, schemas and regular expressions. Their parsers recurse over what clients
/// and model folders hold; an overflow would end the process. Only touched pages cost memory.
const DEEP_STACK: usize = 64 << 20;

/// Threads of [`run`].
const THREADS: usize = 4;

/// Bytes of a request that is checked by the thread that reads it: some hundred tokens, a fraction of a millisecond, in which
/// no cancel is read.
const QUICK_BYTES: usize = 2048;

/// A model that is loaded, as far as the loop needs it.
pub trait Model {
    /// Prepares prompts beside the running model.
    type Checker: Checker;
    /// Why a step failed.
    type Error: std::error::Error;

    /// Takes a prompt into a free slot.
    ///
    /// # Errors
    /// Why it cannot be run; the prompt ends with it.
    fn start(&mut self, start: Start<'_, Prepared<Self>>) -> Result<(), Refusal>;

    /// Keeps the beginnings of these prompts from now on, and no others.
    fn pin(&mut self, beginnings: Vec<(CacheKey, Vec<u32>)>);

    /// What ends a step that works for one prompt alone, from another thread; that prompt's cancel follows.
    fn interrupter(&self) -> Interrupter;

    /// Ends a prompt without a further event. Unknown numbers are ignored.
    fn cancel(&mut self, id: PromptId);

    /// Whether no prompt runs.
    fn is_idle(&self) -> bool;

    /// One step of everything that runs: a chunk of a prompt, or the next token of the answers.
    ///
    /// # Errors
    /// What leaves the model unusable: the process ends with it.
    fn step(&mut self, emit: &mut dyn FnMut(PromptId, Event)) -> Result<(), Self::Error>;
}

/// A prompt that a model takes into a free slot. `P` is what preparing a prompt makes.
#[derive(Debug)]
pub struct Start<'a, P> {
    /// Its number.
    pub id: PromptId,
    /// What was prepared.
    pub prepared: P,
    /// The seed of its choices.
    pub seed: u64,
    /// Tokens of its answer that are taken as chosen.
    pub resume: &'a [u32],
    /// Which rows of the KV cache it may start behind.
    pub reuse: Reuse,
}

/// What a model's checker makes of a request.
pub type Prepared<M> = <<M as Model>::Checker as Checker>::Prepared;

/// Prepares prompts: template, tokens, grammar. Works beside the model, on other threads.
pub trait Checker: Send + Sync + 'static {
    /// A prompt that is ready to run.
    type Prepared: Send + 'static;

    /// Checks a request completely.
    ///
    /// # Errors
    /// Why it cannot be answered.
    fn prepare(&self, request: &Request) -> Result<(Self::Prepared, CheckedPrompt), Refusal>;

    /// The tokens that all prompts with this system message begin with.
    fn beginning(&self, pinned: &Pinned) -> Vec<u32>;
}

/// A loaded model and what the service is told of it.
#[derive(Debug)]
pub struct Loaded<M: Model> {
    /// What the service is told.
    pub info: ModelInfo,
    /// Prepares prompts.
    pub checker: M::Checker,
    /// Runs them.
    pub model: M,
}

/// How the engine ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Ended {
    /// The service closed the socket.
    Unwanted,
    /// The model cannot be loaded, and the service was told why.
    LoadFailed,
    /// Something that should not happen, in words.
    Broken(String),
}

/// How [`run`] ended.
#[derive(Debug)]
pub struct Farewell {
    /// Why.
    pub ended: Ended,
    /// Threads are still busy (a step of the model that takes long, or its loading). Ending the process in the usual way
    /// would destroy under their hands what they use.
    pub busy: bool,
}

impl From<&Ended> for ExitCode {
    /// 0, 78 (`EX_CONFIG`) and 70 (`EX_SOFTWARE`) of sysexits.h.
    fn from(ended: &Ended) -> Self {
        match ended {
            Ended::Unwanted => ExitCode::SUCCESS,
            Ended::LoadFailed => ExitCode::from(78),
            Ended::Broken(_) => ExitCode::from(70),
        }
    }
}

/// Serves one service over one socket until either ends. `prepare` is called with what the service asks for before there is
/// any other thread: what it takes from this one, none of the others gets. `load` is called on the model's thread with the
/// same and a function that tells the service of each stage before it begins.
///
/// # Errors
/// The system gives no thread or no second handle on the socket.
pub fn run<M, L>(
    mut socket: &UnixStream,
    prepare: impl FnOnce(&LoadRequest),
    load: L,
    now: fn() -> Instant,
) -> io::Result<Farewell>
where
    M: Model + 'static,
    L: FnOnce(&LoadRequest, &mut dyn FnMut(LoadStage)) -> Result<Loaded<M>, Refusal>
        + Send
        + 'static,
{
    let desk = Arc::new(Desk::default());
    let outbox = Arc::new(Outbox::to(socket.try_clone()?));
    let checker = Arc::new(OnceLock::new());
    let (ends, ends_of_threads) = sync_channel(THREADS);
    let request = match first_order(&mut socket) {
        Ok(request) => request,
        Err(ended) => return Ok(Farewell { ended, busy: false }),
    };
    prepare(&request);
    {
        let (socket, outbox) = (socket.try_clone()?, Arc::clone(&outbox));
        spawn("engine-writer", &ends, move || write_all(socket, &outbox))?;
    }
    {
        let (desk, outbox, checker) =
            (Arc::clone(&desk), Arc::clone(&outbox), Arc::clone(&checker));
        let reader = Reader { desk, outbox, checker };
        let socket = socket.try_clone()?;
        spawn("engine-reader", &ends, move || Some(reader.read_all(socket)))?;
    }
    {
        let (desk, outbox, ends) = (Arc::clone(&desk), Arc::clone(&outbox), ends.clone());
        let shop = Shop { desk, outbox, checker, now };
        spawn("engine-model", &ends.clone(), move || shop.open(&request, load, &ends))?;
    }
    drop(ends);
    let first = std::iter::from_fn(|| ends_of_threads.recv().ok()).flatten().next();
    // No more work; but what was said is still written, a refusal to load above all.
    desk.close();
    outbox.close();
    outbox.wait_written(PARTING);
    // Nobody writes any more, and this ends the reader. An error means that the socket is closed already.
    let _ = socket.shutdown(Shutdown::Both);
    let ended =
        first.unwrap_or_else(|| Ended::Broken("no thread of the engine is left".to_owned()));
    Ok(Farewell { ended, busy: !all_end(&ends_of_threads) })
}

/// Waits for the threads, but not long. Each has one end of the channel.
fn all_end(ends: &Receiver<Option<Ended>>) -> bool {
    let deadline = Instant::now() + PARTING;
    loop {
        match ends.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(_) => {}
            Err(RecvTimeoutError::Disconnected) => return true,
            Err(RecvTimeoutError::Timeout) => return false,
        }
    }
}

/// Starts a thread that tells how it ended, a panic included. There is room for one word of each, so none waits.
fn spawn(
    name: &'static str,
    ends: &SyncSender<Option<Ended>>,
    body: impl FnOnce() -> Option<Ended> + Send + 'static,
) -> io::Result<()> {
    let ends = ends.clone();
    let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(DEEP_STACK);
    // The handle is let go: the channel tells of the end, and a thread that hangs must not be waited for.
    thread.spawn(move || {
        let ended = catch_unwind(AssertUnwindSafe(body));
        let ended = ended.unwrap_or_else(|panic| {
            Some(Ended::Broken(format!("{name} panicked: {}", words(&*panic))))
        });
        let _ = ends.send(ended);
    })?;
    Ok(())
}

/// What a panic said.
fn words(panic: &(dyn Any + Send)) -> &str {
    let literal = panic.downcast_ref::<&str>().copied();
    literal.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words")
}

/// The first order, which must say what to load.
fn first_order(socket: &mut impl Read) -> Result<LoadRequest, Ended> {
    match next_order(socket)? {
        ToEngine::Load(load) => Ok(load),
        _ => Err(Ended::Broken("the service gave an order before it said what to load".to_owned())),
    }
}

/// What the reader's thread works with.
struct Reader<C: Checker> {
    desk: Arc<Desk<C::Prepared>>,
    outbox: Arc<Outbox>,
    /// There as soon as the model is, before which nothing is to be checked.
    checker: Arc<OnceLock<C>>,
}

impl<C: Checker> Reader<C> {
    /// Reads orders until there are no more.
    fn read_all(&self, socket: UnixStream) -> Ended {
        let mut socket = BufReader::new(socket);
        loop {
            let order = match next_order(&mut socket) {
                Ok(order) => order,
                Err(ended) => return ended,
            };
            match order {
                ToEngine::Load(_) => {
                    return Ended::Broken("the service asked for a second model".to_owned());
                }
                ToEngine::Check { check, request } => self.check(check, request),
                ToEngine::Start { id, check, request, seed, resume, reuse } => {
                    self.desk.put(Job::Start { id, check, request, seed, resume, reuse });
                }
                ToEngine::Pin(pinned) => self.desk.put(Job::Pin(pinned)),
                ToEngine::Cancel { id } => self.desk.cancel(id),
            }
        }
    }

    /// Checks at once what takes no time, if nobody else waits for that, and leaves the rest to the checker.
    fn check(&self, check: u64, request: Request) {
        match self.checker.get() {
            Some(checker) if is_quick(&request) && self.desk.takes_check(check) => {
                check_one(checker, check, &request, &self.desk, &self.outbox);
            }
            _ => self.desk.put(Job::Check { check, request }),
        }
    }
}

/// Whether checking takes less time than waking the thread that does it otherwise: little text, and no form to compile.
fn is_quick(request: &Request) -> bool {
    let has_form = request.constraint != Constraint::None || request.tools.is_some();
    request.bytes() <= QUICK_BYTES && !has_form
}

fn next_order(socket: &mut impl Read) -> Result<ToEngine, Ended> {
    match read_frame(socket) {
        Ok(Some(order)) => Ok(order),
        Ok(None) => Err(Ended::Unwanted),
        Err(error) => Err(Ended::Broken(format!("the service sent what is no order: {error}"))),
    }
}

/// The next order; `None` when the service is gone, be it in the middle of a frame.
fn read_frame(socket: &mut impl Read) -> Result<Option<ToEngine>, FrameError> {
    let mut prefix = [0; 4];
    if socket.read_exact(&mut prefix).is_err() {
        return Ok(None);
    }
    let mut body = vec![0; frames::body_length(prefix)?];
    if socket.read_exact(&mut body).is_err() {
        return Ok(None);
    }
    frames::decode(&body).map(Some)
}

/// Writes what the socket does not take at once, until there is no more. That the service is gone is the reader's to tell.
fn write_all(mut socket: UnixStream, outbox: &Outbox) -> Option<Ended> {
    while let Some(next) = outbox.next() {
        let bytes = match next {
            Next::Rest(bytes) => Ok(bytes),
            Next::Frame(frame) => frames::encode(&frame),
        };
        let written = match bytes {
            Ok(bytes) => socket.write_all(&bytes),
            Err(error) => {
                outbox.abandon();
                return Some(Ended::Broken(format!(
                    "a message to the service cannot be written: {error}"
                )));
            }
        };
        if let Err(error) = written {
            tracing::debug!(%error, "the service reads no more");
            outbox.abandon();
            return None;
        }
    }
    None
}

/// What the model's and the checker's threads work with.
struct Shop<C: Checker> {
    desk: Arc<Desk<C::Prepared>>,
    outbox: Arc<Outbox>,
    checker: Arc<OnceLock<C>>,
    now: fn() -> Instant,
}

impl<C: Checker> Shop<C> {
    /// The model's thread: loads, then serves until the desk closes.
    fn open<M, L>(
        self,
        request: &LoadRequest,
        load: L,
        ends: &SyncSender<Option<Ended>>,
    ) -> Option<Ended>
    where
        M: Model<Checker = C>,
        L: FnOnce(&LoadRequest, &mut dyn FnMut(LoadStage)) -> Result<Loaded<M>, Refusal>,
    {
        let loaded = right_version(request)
            // Each stage is written before it begins, because the process may not survive it.
            .and_then(|()| load(request, &mut |stage| self.outbox.say(FromEngine::Loading(stage))));
        let Loaded { info, checker, mut model } = match loaded {
            Ok(loaded) => loaded,
            Err(refusal) => {
                // The service tells the operator.
                tracing::debug!("{refusal}");
                self.outbox.push(FromEngine::LoadFailed(refusal));
                return Some(Ended::LoadFailed);
            }
        };
        self.desk.interrupt_with(model.interrupter());
        let (desk, outbox) = (Arc::clone(&self.desk), Arc::clone(&self.outbox));
        let cell = Arc::clone(&self.checker);
        let prepare = move || prepare_all(cell.get_or_init(|| checker), &desk, &outbox);
        if let Err(error) = spawn("engine-checker", ends, prepare) {
            return Some(Ended::Broken(format!("the system gives no thread: {error}")));
        }
        self.outbox.push(FromEngine::Ready(info));
        self.serve(&mut model)
    }

    fn serve<M: Model<Checker = C>>(&self, model: &mut M) -> Option<Ended> {
        let mut beat = (self.now)();
        while let Some(orders) = self.desk.orders(model.is_idle()) {
            for order in orders {
                match order {
                    Order::Cancel { id } => model.cancel(id),
                    Order::Pin(beginnings) => model.pin(beginnings),
                    Order::Start { id, prepared, seed, resume, reuse } => {
                        let start = Start { id, prepared, seed, resume: &resume, reuse };
                        if let Err(refusal) = model.start(start) {
                            self.outbox
                                .push(FromEngine::Event { id, event: Event::Failed(refusal) });
                        }
                    }
                }
            }
            if model.is_idle() {
                continue;
            }
            if let Err(error) =
                model.step(&mut |id, event| self.outbox.push(FromEngine::Event { id, event }))
            {
                let error = chain(&error);
                tracing::error!("a step of the model failed: {error}");
                return Some(Ended::Broken(format!("a step of the model failed: {error}")));
            }
            let now = (self.now)();
            if now.saturating_duration_since(beat) >= HEARTBEAT {
                beat = now;
                self.outbox.push(FromEngine::Heartbeat);
            }
        }
        None
    }
}

/// The checker's thread.
fn prepare_all<C: Checker>(
    checker: &C,
    desk: &Desk<C::Prepared>,
    outbox: &Outbox,
) -> Option<Ended> {
    while let Some(job) = desk.job() {
        match job {
            Job::Check { check, request } => check_one(checker, check, &request, desk, outbox),
            Job::Pin(pinned) => {
                let beginning = |pinned: &Pinned| {
                    let tokens = catch_unwind(AssertUnwindSafe(|| checker.beginning(pinned)));
                    (pinned.key, tokens.unwrap_or_default())
                };
                desk.order(Order::Pin(pinned.iter().map(beginning).collect()));
            }
            Job::Start { id, request, seed, resume, reuse, .. } => {
                match prepare(checker, &request) {
                    Ok((prepared, _)) => {
                        desk.prepared(id, Some(Order::Start { id, prepared, seed, resume, reuse }));
                    }
                    Err(refusal) => {
                        if desk.prepared(id, None) {
                            outbox.push(FromEngine::Event { id, event: Event::Failed(refusal) });
                        }
                    }
                }
            }
        }
    }
    None
}

/// Checks one request, tells what was found, and hands on what was prepared.
fn check_one<C: Checker>(
    checker: &C,
    check: u64,
    request: &Request,
    desk: &Desk<C::Prepared>,
    outbox: &Outbox,
) {
    let (prepared, result) = match prepare(checker, request) {
        Ok((prepared, checked)) => (Some(prepared), Ok(checked)),
        Err(refusal) => (None, Err(refusal)),
    };
    outbox.push(FromEngine::Checked { check, result });
    desk.checked(check, prepared);
}

/// A panic over one request is that request's end, and nobody else's: preparing leaves nothing behind that another could meet.
fn prepare<C: Checker>(
    checker: &C,
    request: &Request,
) -> Result<(C::Prepared, CheckedPrompt), Refusal> {
    catch_unwind(AssertUnwindSafe(|| checker.prepare(request))).unwrap_or_else(|panic| {
        let message =
            format!("promptd has a fault that this prompt brings out: {}", words(&*panic));
        Err(Refusal::new(Code::Internal, message))
    })
}

fn right_version(request: &LoadRequest) -> Result<(), Refusal> {
    if request.version == frames::VERSION {
        return Ok(());
    }
    let message = format!(
        "the service speaks version {} to its engine, whose program file has version {}: the file was replaced while the \
         service ran; restart promptd",
        request.version,
        frames::VERSION
    );
    Err(Refusal::new(Code::ModelFailed, message))
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}
