//! A streamed answer: takes a ticket's events as they come and lets a voice say them. Dropping it cancels the prompt.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, Sleep};

use super::collect::lost;
use super::running::Entry;
use super::voice::Voice;
use crate::request::{Event, Finish, Refusal};
use crate::scheduler::Ticket;
use crate::wire::CallReader;

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
    voice: Box<dyn Voice>,
    reader: CallReader,
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
        f.debug_struct("Stream").field("voice", &self.voice).finish_non_exhaustive()
    }
}

impl Stream {
    /// The stream of an accepted prompt.
    pub(super) fn new(
        mut voice: Box<dyn Voice>,
        ticket: Ticket,
        entry: Entry,
        echo: Option<&str>,
        ping: Duration,
    ) -> Self {
        let silence = Box::pin(tokio::time::sleep(ping));
        let reader = CallReader::new(ticket.checked().calls);
        let mut ready = Vec::new();
        voice.begin(echo, &mut ready);
        let next = Some(next(ticket));
        Stream { voice, reader, next, _entry: entry, ready, silence, ping }
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
                    self.silence.as_mut().reset(Instant::now() + self.ping);
                    self.voice.alive("ping", &mut self.ready);
                }
            }
        }
        self.silence.as_mut().reset(Instant::now() + self.ping);
        Poll::Ready(Some(std::mem::take(&mut self.ready).into()))
    }

    fn take(&mut self, event: Option<Event>) {
        let out = &mut self.ready;
        match event {
            Some(Event::Queued { position, eta }) => {
                let why = format!("queued, position {position}, eta {} ms", eta.as_millis());
                self.voice.alive(&why, out);
            }
            Some(Event::Started { .. } | Event::Prefill { .. } | Event::Vector { .. }) => {}
            Some(Event::Delta { text, logprobs, .. }) => {
                let parts = self.reader.push(&text);
                if !(parts.is_empty() && logprobs.is_empty()) {
                    self.voice.parts(&parts, &logprobs, out);
                }
            }
            Some(Event::Finished(finish)) => self.finish(&finish),
            Some(Event::Failed(refusal)) => self.fail(&refusal),
            None => self.fail(&lost()),
        }
    }

    fn finish(&mut self, finish: &Finish) {
        match self.reader.finish() {
            Ok(rest) => {
                if let Some(part) = rest {
                    self.voice.parts(&[part], &[], &mut self.ready);
                }
                self.voice.finish(finish, &mut self.ready);
                self.next = None;
            }
            Err(refusal) => self.fail(&refusal),
        }
    }

    fn fail(&mut self, refusal: &Refusal) {
        self.voice.fail(refusal, &mut self.ready);
        self.next = None;
    }
}
