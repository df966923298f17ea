//! One engine's life as its parent sees it: frames both ways, and the moment when silence means that it is wedged.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::backoff::Outcome;
use super::client::{CHANNEL, EngineEvent, SpawnConfig, Wanted};
use super::frames::{self, FrameError, FromEngine, ToEngine};
use super::pace::Pace;
use super::{Death, Phase};
use crate::request::{Code, Event, PromptId, Refusal};

/// Orders that come together are written together, until they have so many bytes: a check and the start behind it are read at one
/// go then, and a large one is not held back for the next.
const TOGETHER: usize = 16 << 10;

/// Why the frames stopped.
#[derive(Debug)]
pub(super) enum End {
    /// The socket is closed at the other end: the engine is dead or dying.
    Closed,
    /// It must be killed.
    Kill(Death),
    /// Nobody listens any more, or another engine or none is wanted. Dropping this half of the socket tells the engine.
    Unwanted(OwnedWriteHalf),
}

/// What is known of the engine that runs.
#[derive(Debug)]
pub(super) struct Life {
    phase: Phase,
    refused: bool,
    ready_at: Option<Instant>,
    work: Work,
    /// When it last said something.
    heard: Instant,
    /// When its model last told of a step, or was given a prompt after it had none.
    stepped: Instant,
    /// When its checker last answered, or was given a check after it had none. It is a thread of its own: either can be
    /// wedged while the other works.
    checked: Instant,
    /// How fast it works.
    pace: Pace,
    /// Where it is told by when something happens at the latest.
    due: watch::Sender<Option<Instant>>,
}

/// The ways to and from the engine that runs.
#[derive(Debug)]
pub(super) struct Wires {
    orders: mpsc::Receiver<ToEngine>,
    write: OwnedWriteHalf,
    /// The frame that is being written, and how much of it is.
    writing: Option<(Vec<u8>, usize)>,
    frames: mpsc::Receiver<Result<FromEngine, FrameError>>,
}

impl Wires {
    /// Frames are read by a task of their own, so that a half-read one is never lost.
    pub(super) fn new(socket: UnixStream, orders: mpsc::Receiver<ToEngine>) -> Self {
        let (read, write) = socket.into_split();
        let (found, frames) = mpsc::channel(CHANNEL);
        tokio::spawn(read_frames(read, found));
        Wires { orders, write, writing: None, frames }
    }
}

impl Life {
    pub(super) fn new(now: Instant, due: watch::Sender<Option<Instant>>) -> Self {
        Life {
            phase: Phase::Starting,
            refused: false,
            ready_at: None,
            work: Work::default(),
            heard: now,
            stepped: now,
            checked: now,
            pace: Pace::default(),
            due,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// How it went, at its end.
    pub(super) fn outcome(&self, now: Instant) -> Outcome {
        match self.ready_at {
            _ if self.refused => Outcome::Refused,
            Some(ready) => Outcome::Ready(now.saturating_duration_since(ready)),
            None => Outcome::NeverReady,
        }
    }

    /// Moves frames until the engine ends, must end, or is no longer wanted.
    pub(super) async fn serve(
        &mut self,
        config: &SpawnConfig,
        events: &mpsc::Sender<EngineEvent>,
        mut wires: Wires,
        wanted: &mut watch::Receiver<Wanted>,
    ) -> End {
        match frames::encode(&ToEngine::Load(config.load.clone())) {
            Ok(bytes) => wires.writing = Some((bytes, 0)),
            Err(error) => return End::Kill(Death::NotStarted(error.to_string())),
        }
        loop {
            let (deadline, patience) = self.patience(config).unzip();
            self.due.send_replace(deadline);
            let deadline = deadline.unwrap_or(self.heard);
            let idle = wires.writing.is_none();
            tokio::select! {
                () = events.closed() => return End::Unwanted(wires.write),
                // An error means that the port is gone, and nobody listens either.
                _ = wanted.changed() => return End::Unwanted(wires.write),
                frame = wires.frames.recv() => match frame {
                    None => return End::Closed,
                    Some(Err(error)) => return End::Kill(Death::Garbled(error.to_string())),
                    Some(Ok(frame)) => self.hear(frame, events).await,
                },
                Some(order) = wires.orders.recv(), if idle => {
                    let mut bytes = self.order(order, events).await;
                    while bytes.len() < TOGETHER && let Ok(order) = wires.orders.try_recv() {
                        bytes.extend(self.order(order, events).await);
                    }
                    wires.writing = Some((bytes, 0)).filter(|(bytes, _)| !bytes.is_empty());
                }
                written = write_more(&mut wires.write, &mut wires.writing), if !idle => if let Err(error) = written {
                    // Its death is told by the reading side, after the last frames it sent.
                    tracing::debug!(%error, "the engine takes no more orders");
                    wires.orders.close();
                    while wires.orders.try_recv().is_ok() {}
                },
                () = tokio::time::sleep_until(deadline), if patience.is_some() => {
                    return End::Kill(Death::Silent(patience.unwrap_or_default()));
                }
            }
        }
    }

    /// Until when the engine may be silent, and how long that is. `None`: as long as it likes, for it has nothing to do.
    fn patience(&self, config: &SpawnConfig) -> Option<(Instant, Duration)> {
        if self.phase != Phase::Ready {
            return Some((self.heard + config.load_timeout, config.load_timeout));
        }
        // A prompt that has not begun waits for the checker, whose time is not measured; one that has tells of every step.
        let model = (!self.work.prompts.is_empty()).then(|| {
            let measured = self.work.is_computing();
            let patience = if measured {
                self.pace.patience(config.wedge_timeout)
            } else {
                config.wedge_timeout
            };
            (self.stepped + patience, patience)
        });
        let checker = (!self.work.checks.is_empty())
            .then(|| (self.checked + config.wedge_timeout, config.wedge_timeout));
        [model, checker].into_iter().flatten().min()
    }

    async fn hear(&mut self, frame: FromEngine, events: &mpsc::Sender<EngineEvent>) {
        let is_step = matches!(frame, FromEngine::Event { .. } | FromEngine::Heartbeat);
        let is_check = matches!(frame, FromEngine::Checked { .. });
        if is_step && self.work.is_computing() {
            self.pace.step(self.stepped.elapsed());
        }
        match &frame {
            FromEngine::Loading(stage) => self.phase = Phase::Loading(*stage),
            FromEngine::Ready(_) => {
                self.phase = Phase::Ready;
                self.ready_at = Some(Instant::now());
            }
            FromEngine::LoadFailed(_) => self.refused = true,
            FromEngine::Checked { check, .. } => {
                self.work.checks.remove(check);
            }
            FromEngine::Event { id, event } if event.is_final() => {
                self.work.prompts.remove(id);
            }
            FromEngine::Event { id, .. } => {
                self.work.prompts.entry(*id).and_modify(|begun| *begun = true);
            }
            FromEngine::Heartbeat => {}
        }
        tell(events, Some(frame).filter(|frame| *frame != FromEngine::Heartbeat)).await;
        // After the telling: the wait for a busy listener is not the engine's silence.
        self.heard = Instant::now();
        if is_step {
            self.stepped = self.heard;
        }
        if is_check {
            self.checked = self.heard;
        }
    }

    /// The bytes of an order; none of one that the engine cannot be given, which is answered in its place.
    async fn order(&mut self, order: ToEngine, events: &mpsc::Sender<EngineEvent>) -> Vec<u8> {
        match self.encode(&order) {
            Ok(bytes) => bytes,
            Err(answer) => {
                tell(events, answer).await;
                Vec::new()
            }
        }
    }

    /// Takes note of an order and puts it into bytes; or gives the engine's answer to one that it cannot be given.
    fn encode(&mut self, order: &ToEngine) -> Result<Vec<u8>, Option<FromEngine>> {
        let bytes = frames::encode(order).map_err(|error| {
            tracing::error!(%error, "an order is not given to the engine");
            let refusal = Refusal::new(
                Code::PayloadTooLarge,
                format!("the prompt does not fit into one message to the engine: {error}"),
            );
            match order {
                ToEngine::Check { check, .. } => {
                    Some(FromEngine::Checked { check: *check, result: Err(refusal) })
                }
                ToEngine::Start { id, .. } => {
                    Some(FromEngine::Event { id: *id, event: Event::Failed(refusal) })
                }
                ToEngine::Load(_) | ToEngine::Cancel { .. } | ToEngine::Pin(_) => None,
            }
        })?;
        if self.work.prompts.is_empty() {
            self.stepped = Instant::now();
        }
        if self.work.checks.is_empty() {
            self.checked = Instant::now();
        }
        self.work.take(order);
        Ok(bytes)
    }
}

/// What the engine has to do. As small as the scheduler's own books, which it follows.
#[derive(Debug, Default)]
struct Work {
    /// Prompts, and whether the model has told of each.
    prompts: HashMap<PromptId, bool>,
    checks: HashSet<u64>,
}

impl Work {
    /// Whether the model computes, and therefore tells of every step.
    fn is_computing(&self) -> bool {
        self.prompts.values().any(|begun| *begun)
    }

    fn take(&mut self, order: &ToEngine) {
        match order {
            // What is pinned is read beside the work, and nobody waits for it.
            ToEngine::Load(_) | ToEngine::Pin(_) => {}
            ToEngine::Check { check, .. } => {
                self.checks.insert(*check);
            }
            ToEngine::Start { id, .. } => {
                self.prompts.insert(*id, false);
            }
            ToEngine::Cancel { id } => {
                self.prompts.remove(id);
            }
        }
    }
}

/// Passes a frame on. A listener that has gone is noticed by [`Life::serve`] itself.
async fn tell(events: &mpsc::Sender<EngineEvent>, frame: Option<FromEngine>) {
    if let Some(frame) = frame {
        let _ = events.send(EngineEvent::Frame(frame)).await;
    }
}

/// Writes more of the frame that is being written. Writing never keeps anybody from reading: an engine whose own
/// writing is blocked would not read either, and both would wait for ever.
async fn write_more(
    socket: &mut OwnedWriteHalf,
    writing: &mut Option<(Vec<u8>, usize)>,
) -> io::Result<()> {
    let Some((bytes, written)) = writing else { return Ok(()) };
    match socket.write(bytes.get(*written..).unwrap_or_default()).await {
        Ok(more) => *written += more,
        Err(error) => {
            *writing = None;
            return Err(error);
        }
    }
    if *written >= bytes.len() {
        *writing = None;
    }
    Ok(())
}

async fn read_frames(socket: OwnedReadHalf, found: mpsc::Sender<Result<FromEngine, FrameError>>) {
    let mut socket = BufReader::new(socket);
    loop {
        let mut prefix = [0; 4];
        if socket.read_exact(&mut prefix).await.is_err() {
            return;
        }
        let length = match frames::body_length(prefix) {
            Ok(length) => length,
            Err(error) => return drop(found.send(Err(error)).await),
        };
        let mut body = vec![0; length];
        if socket.read_exact(&mut body).await.is_err() {
            return;
        }
        let frame = frames::decode(&body);
        let garbled = frame.is_err();
        if found.send(frame).await.is_err() || garbled {
            return;
        }
    }
}
