//! A streamed answer: turns a ticket's events into server-sent events as they come. Dropping it cancels the prompt.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, Sleep};

use super::collect::lost;
use super::openai::Head;
use super::reply::error_object;
use super::running::Entry;
use crate::request::{Event, Refusal};
use crate::scheduler::Ticket;

/// A ticket on its way to its next event. It owns the ticket, so that dropping it drops that too.
type Next = Pin<Box<dyn Future<Output = (Ticket, Option<Event>)> + Send>>;

fn next(mut ticket: Ticket) -> Next {
    Box::pin(async move {
        let event = ticket.next().await;
        (ticket, event)
    })
}

/// A streamed answer.
pub(super) struct Stream {
    head: Head,
    include_usage: bool,
    /// Waits for the next event, with the ticket inside; `None` when the final one has come.
    next: Option<Next>,
    /// Keeps the prompt in the register of running ones.
    _entry: Entry,
    /// Bytes to be sent.
    ready: Vec<u8>,
    /// Runs out when the stream was silent for too long.
    silence: Pin<Box<Sleep>>,
    ping: Duration,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("head", &self.head).finish_non_exhaustive()
    }
}

impl Stream {
    /// The stream of an accepted prompt; a chat's begins with the role at once.
    pub(super) fn new(
        head: Head,
        ticket: Ticket,
        entry: Entry,
        include_usage: bool,
        ping: Duration,
    ) -> Self {
        let silence = Box::pin(tokio::time::sleep(ping));
        let ready = Vec::new();
        let next = Some(next(ticket));
        let mut stream = Stream { head, include_usage, next, _entry: entry, ready, silence, ping };
        if let Some(first) = stream.head.first_chunk() {
            stream.chunk(first);
        }
        stream
    }

    /// Says this in front of the answer.
    pub(super) fn say_first(&mut self, text: &str) {
        self.chunk(self.head.text_chunk(text, &[]));
    }

    /// The next bytes; `None` at the end.
    pub(super) fn poll_bytes(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        while self.ready.is_empty() {
            let Some(waiting) = &mut self.next else { return Poll::Ready(None) };
            match waiting.as_mut().poll(cx) {
                Poll::Ready((ticket, event)) => {
                    self.next = Some(next(ticket));
                    self.take(event);
                }
                Poll::Pending => {
                    std::task::ready!(self.silence.as_mut().poll(cx));
                    self.ready.extend_from_slice(b": ping\n\n");
                }
            }
        }
        self.silence.as_mut().reset(Instant::now() + self.ping);
        Poll::Ready(Some(std::mem::take(&mut self.ready).into()))
    }

    fn take(&mut self, event: Option<Event>) {
        match event {
            // A comment, as the ping is: clients of OpenAI's know no such event.
            Some(Event::Queued { position, eta }) => {
                let told = format!(": queued, position {position}, eta {} ms\n\n", eta.as_millis());
                self.ready.extend_from_slice(told.as_bytes());
            }
            Some(Event::Started | Event::Prefill { .. }) => {}
            Some(Event::Delta { text, logprobs, .. }) if text.is_empty() && logprobs.is_empty() => {
            }
            Some(Event::Delta { text, logprobs, .. }) => {
                self.chunk(self.head.text_chunk(&text, &logprobs));
            }
            Some(Event::Finished(finish)) => {
                self.chunk(self.head.last_chunk(&finish));
                if self.include_usage {
                    self.event(&Value::Object(self.head.usage_chunk(&finish)));
                }
                self.end();
            }
            Some(Event::Failed(refusal)) => self.fail(&refusal),
            None => self.fail(&lost()),
        }
    }

    /// The status is sent already, so the refusal comes as an event; OpenAI's own clients raise it.
    fn fail(&mut self, refusal: &Refusal) {
        self.event(&json!({"error": error_object(refusal, refusal.code.as_str())}));
        self.end();
    }

    fn end(&mut self) {
        self.ready.extend_from_slice(b"data: [DONE]\n\n");
        self.next = None;
    }

    fn chunk(&mut self, mut chunk: Map<String, Value>) {
        if self.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        self.event(&Value::Object(chunk));
    }

    /// JSON holds no line break, so an event is one `data` line.
    fn event(&mut self, value: &Value) {
        self.ready.extend_from_slice(format!("data: {value}\n\n").as_bytes());
    }
}
