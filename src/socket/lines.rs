//! The line socket: one request a line, plain text or JSON, and one answer a line, for shells and C without HTTP.
//!
//! Several requests of one connection run at once; their answers come as they are ready and carry the asker's `id`. With
//! `"stream":true` the pieces come before the answer. A client that closes its writing end (`echo … | socat`) still
//! gets its answers; one that is gone cancels its prompts.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader, Interest};
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::App;
use super::accept::{self, Activity, Most, Peer, Stopping, stopped};
use super::bind::Bound;
use super::collect::lost;
use super::connection::{Arrival, Stream};
use crate::request::{Code, Door, Event, Origin, Refusal};
use crate::scheduler::Name;
use crate::wire::{
    Answer, AnswerFormat, AskError, Asked, Context, error_object, parse_ask, stream_piece,
};

/// Requests of one connection at once. The next line is read when one of them has ended, so that a script that writes
/// thousands of lines waits instead of filling the queue against everybody else.
const AT_ONCE: usize = 8;

/// Lines that wait to be written; when they are full, the answers wait.
const UNWRITTEN: usize = 64;

/// How often a connection whose client has closed its writing end is asked whether the client is still there.
const LOOK: Duration = Duration::from_millis(500);

/// What a client reads that comes while there are too many.
const FULL: &[u8] = b"{\"v\":1,\"status\":\"error\",\"code\":\"busy\",\"message\":\"too many connections; try again soon\",\"retry_after_ms\":1000}\n";

/// Answers lines on a socket until `shutdown` ends. Answers that run then are finished first; dropping the future ends
/// them.
pub async fn serve(bound: Bound, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let most =
        Most { all: app.patience.connections, each: app.patience.connections_of_one, full: FULL };
    accept::run(bound, most, shutdown, move |arrival, peer, stopping, activity| {
        connection(arrival, peer, stopping, activity, Arc::clone(&app))
    })
    .await;
}

async fn connection(
    arrival: Arrival,
    peer: Peer,
    mut stopping: Stopping,
    activity: Activity,
    app: Arc<App>,
) {
    // Lines have no place for a key, so they are spoken on a Unix socket only.
    let Stream::Unix(stream) = arrival.stream else { return };
    let (read, write) = stream.into_split();
    let mut lines = Lines { reader: BufReader::new(read), line: Vec::new(), limit: 0 };
    let (out, unwritten) = mpsc::channel(UNWRITTEN);
    let writer = write_all(write, unwritten, app.patience.unread);
    let reader = async {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                () = stopped(&mut stopping) => break,
                Some(_) = running.join_next(), if !running.is_empty() => {}
                line = lines.next(|| app.limits().payload_bytes), if running.len() < AT_ONCE => match line {
                    Line::End => break,
                    Line::TooLong => {
                        let refusal = too_long(app.limits().payload_bytes);
                        app.scheduler.traffic().turned_away(&Origin::new(Door::Lines), None, &refusal);
                        let _ = out.send(error_object(None, &refusal)).await;
                    }
                    Line::Whole(line) if line.trim_ascii().is_empty() => {}
                    Line::Whole(line) => {
                        let (app, peer, out, work) =
                            (Arc::clone(&app), peer.clone(), out.clone(), activity.begin());
                        running.spawn(async move {
                            answer(app, peer, line, out).await;
                            drop(work);
                        });
                     }
                },
            }
        }
        drop(out);
        while running.join_next().await.is_some() {}
    };
    let mut reader = std::pin::pin!(reader);
    let mut writer = std::pin::pin!(writer);
    let mut reading = true;
    // The writer ends when every sender is gone and every line is written, or when the client is gone: then the reader is
    // dropped, and with it the prompts.
    loop {
        tokio::select! {
            () = &mut reader, if reading => reading = false,
            () = &mut writer => return,
        }
    }
}

/// One line of the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Whole(Vec<u8>),
    TooLong,
    End,
}

/// Reads lines up to a length. Nothing is lost when the future is dropped in between.
pub(super) struct Lines<R> {
    pub(super) reader: BufReader<R>,
    pub(super) line: Vec<u8>,
    /// The most bytes of the line that is being read.
    pub(super) limit: usize,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// The next line, no longer than the limit is when it begins.
    pub(super) async fn next(&mut self, limit: impl Fn() -> usize) -> Line {
        // What a line is longer than the limit is thrown away as it comes; one byte more tells that it is.
        loop {
            let Ok(bytes) = self.reader.fill_buf().await else { return Line::End };
            if self.line.is_empty() {
                self.limit = limit();
            }
            let most = self.limit.saturating_add(1);
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let (part, used) = end.map_or((bytes, bytes.len()), |end| {
                (bytes.get(..end).unwrap_or_default(), end + 1)
            });
            let room = most.saturating_sub(self.line.len());
            self.line.extend_from_slice(part.get(..room).unwrap_or(part));
            let closed = used == 0;
            self.reader.consume(used);
            if end.is_some() || (closed && !self.line.is_empty()) {
                let line = std::mem::take(&mut self.line);
                return if line.len() > self.limit { Line::TooLong } else { Line::Whole(line) };
            } else if closed {
                return Line::End;
            }
        }
    }
}

/// Writes lines until there are no more senders, or until the client is gone.
async fn write_all(
    mut write: OwnedWriteHalf,
    mut unwritten: mpsc::Receiver<Value>,
    unread: Duration,
) {
    loop {
        let line = tokio::select! {
            line = unwritten.recv() => line,
            // A closed writing end and a client that is gone look the same to a reader; here they do not.
            () = tokio::time::sleep(LOOK) => match write.ready(Interest::WRITABLE).await {
                Ok(ready) if !ready.is_write_closed() => continue,
                _ => return,
            },
        };
        let Some(line) = line else { return };
        let mut bytes = line.to_string().into_bytes();
        bytes.push(b'\n');
        match tokio::time::timeout(unread, write.write_all(&bytes)).await {
            Ok(Ok(())) => {}
            _ => return,
        }
    }
}

/// Answers one line. A closed `out` means that the client is gone; returning drops the ticket.
async fn answer(app: Arc<App>, peer: Peer, line: Vec<u8>, out: mpsc::Sender<Value>) {
    let (policy, limits) = (app.policies.current(), app.limits());
    let context = Context {
        profiles: &policy.profiles,
        readings: app.policies.readings(),
        limits: &limits,
        grant: policy.access.grant(peer.who(None)),
        now: std::time::Instant::now(),
        door: Door::Lines,
    };
    // Terminals and Windows end lines with both.
    let (asked, name) = {
        let line = line.strip_suffix(b"\r").unwrap_or(&line);
        let asked = parse_ask(line, None, &context);
        // As over MQTT the line is part of the name: small devices use one id for all their prompts.
        let id = asked.as_ref().ok().and_then(|asked| asked.id.as_deref());
        let name = id.map(|id| Name::shared(id, &[line]));
        (asked, name)
    };
    let served = app.model();
    let fits = |asked| fits_a_line(asked, served.as_deref());
    let asked = asked.and_then(fits).inspect_err(|error| {
        let origin = Origin { id: error.id.clone(), ..Origin::new(Door::Lines) };
        let client = Some(&context.grant.identity);
        app.scheduler.traffic().turned_away(&origin, client, &error.refusal);
    });
    drop((line, policy));
    let answer = match asked {
        Err(error) => error_object(error.id.as_deref(), &error.refusal),
        Ok(asked) => {
            let id = asked.id.clone();
            match Box::pin(run(&app, asked, name, &out)).await {
                Ok(answer) => answer,
                Err(refusal) => error_object(id.as_deref(), &refusal),
            }
        }
    };
    let _ = out.send(answer).await;
}

/// Refuses what only MQTT can do, and another model than the one that is served.
fn fits_a_line(asked: Asked, served: Option<&str>) -> Result<Asked, AskError> {
    let param = if asked.format == AnswerFormat::Text {
        "format"
    } else if asked.max_bytes.is_some() {
        "max_bytes"
    } else if asked.reply_to.is_some() {
        "reply_to"
    } else {
        return match asked.check_model(served) {
            Ok(()) => Ok(asked),
            Err(refusal) => Err(AskError { id: asked.id, ..AskError::from(refusal) }),
        };
    };
    let message = format!(
        "`{param}` has a meaning over MQTT only; an answer here is one JSON object on one line"
    );
    let refusal = Refusal::new(Code::Unsupported, message).with_param(param);
    Err(AskError { id: asked.id, ..AskError::from(refusal) })
}

async fn run(
    app: &App,
    asked: Asked,
    name: Option<Name>,
    out: &mpsc::Sender<Value>,
) -> Result<Value, Refusal> {
    let (id, is_json) = (asked.id.as_deref(), asked.is_json());
    let wants = asked.submission.request.logprobs.is_some();
    let mut ticket = match name {
        Some(name) => app.scheduler.submit_named(asked.submission, &name).await?,
        None => app.scheduler.submit(asked.submission).await?,
    };
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut seq = 0_u64;
    loop {
        match ticket.next().await {
            Some(
                Event::Queued { .. }
                | Event::Started { .. }
                | Event::Prefill { .. }
                | Event::Vector { .. },
            ) => {}
            Some(Event::Delta { text: piece, logprobs, .. }) => {
                text.push_str(&piece);
                if asked.stream && !(piece.is_empty() && logprobs.is_empty()) {
                    let piece = stream_piece(id, seq, &piece, &logprobs);
                    out.send(piece).await.map_err(|_| lost())?;
                    seq += 1;
                }
                tokens.extend(logprobs);
            }
            Some(Event::Finished(finish)) => {
                let model = app.model().unwrap_or_else(|| "promptd".to_owned());
                let node = app.node.as_deref();
                return Ok(Answer {
                    id,
                    text: &text,
                    is_json,
                    logprobs: wants.then_some(&tokens),
                    finish: &finish,
                    model: &model,
                    node,
                    session: ticket.session(),
                    attempt: ticket.attempt(),
                }
                .to_object());
            }
            Some(Event::Failed(refusal)) => return Err(refusal),
            None => return Err(lost()),
        }
    }
}

fn too_long(limit: usize) -> Refusal {
    let mut refusal =
        Refusal::new(Code::PayloadTooLarge, format!("the line has more than {limit} bytes"));
    refusal.limit = u64::try_from(limit).ok();
    refusal
}
