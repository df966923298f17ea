//! One prompt's way through the scheduler, as a task that reports to the door. Knows no topic.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use crate::request::{Code, Event, Finish, PromptId, Refusal, Submission, TokenLogprob};
use crate::scheduler::{InSession, Scheduler, State};

/// Pieces of a streamed answer that come faster than this are put together: a broker and its clients gain nothing from
/// twenty messages a second for each reader.
const PIECE_EVERY: Duration = Duration::from_millis(100);
/// How often it is told how far the reading of a prompt is.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);

/// What happened to a prompt.
#[derive(Debug)]
pub(crate) enum Report {
    /// The scheduler took it.
    Accepted { id: PromptId, seed: u64, session: Option<InSession> },
    /// An engine begins with it; so many died while they ran it.
    Started { deaths: u32 },
    /// The model reads it or begins to write.
    Progress(Event),
    /// The next piece of text.
    Piece(Text),
    /// It is over: the whole text, or why there is none.
    Ended(Result<(Text, Finish), Refusal>),
    /// Not a prompt, but an operator's request, and it is done.
    Operated(Result<(), Refusal>),
}

/// Text of an answer, and what the model thought of its tokens where that was asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Text {
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprob>,
}

/// What a report is about.
pub(crate) type Numbered = (u64, Report);

/// How a prompt is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Manner {
    /// Whether its pieces are reported.
    pub(crate) stream: bool,
    /// Whether it waits while the model is being loaded. What the broker kept while the board was off, or sends again
    /// after a crash, comes just then; refused it would be lost.
    pub(crate) patient: bool,
}

/// Sends a prompt to the scheduler and reports until it ends; `Ended` comes exactly once. `stop` (or its being
/// dropped) cancels the prompt.
pub(crate) async fn run(
    number: u64,
    scheduler: Scheduler,
    submission: Submission,
    manner: Manner,
    (reports, stop): (mpsc::Sender<Numbered>, oneshot::Receiver<()>),
) {
    let work = Work { number, stream: manner.stream, reports: &reports };
    let through = async {
        let submission =
            if manner.patient { patience(&scheduler, submission).await? } else { submission };
        work.through(&scheduler, submission).await
    };
    // Dropping the ticket is what cancels.
    let result = tokio::select! {
        result = through => result,
        _ = stop => Err(Refusal::new(Code::Cancelled, "the prompt was cancelled")),
    };
    // A door that is gone has nobody to tell.
    let _ = reports.send((number, Report::Ended(result))).await;
}

/// Waits until the model is loaded, or cannot be, but not beyond the prompt's deadline.
async fn patience(
    scheduler: &Scheduler,
    mut submission: Submission,
) -> Result<Submission, Refusal> {
    let mut status = scheduler.status();
    if !matches!(status.borrow().state, State::Loading(_)) {
        return Ok(submission);
    }
    let began = Instant::now();
    let decided = status.wait_for(|status| !matches!(status.state, State::Loading(_)));
    let Some(timeout) = submission.timeout else {
        // A scheduler that is gone refuses by itself.
        let _ = decided.await;
        return Ok(submission);
    };
    if tokio::time::timeout(timeout, decided).await.is_err() {
        return Err(Refusal::new(
            Code::Timeout,
            "the deadline passed while the model was being loaded",
        ));
    }
    submission.timeout =
        Some(timeout.saturating_sub(began.elapsed()).max(Duration::from_millis(1)));
    Ok(submission)
}

struct Work<'a> {
    number: u64,
    stream: bool,
    reports: &'a mpsc::Sender<Numbered>,
}

impl Work<'_> {
    async fn report(&self, report: Report) {
        let _ = self.reports.send((self.number, report)).await;
    }

    async fn through(
        &self,
        scheduler: &Scheduler,
        submission: Submission,
    ) -> Result<(Text, Finish), Refusal> {
        let mut ticket = scheduler.submit(submission).await?;
        let (id, seed) = (ticket.id(), ticket.seed());
        self.report(Report::Accepted { id, seed, session: ticket.session().cloned() }).await;
        let mut text = Text::default();
        let mut pieces = Pieces::default();
        let mut progress = Progress::default();
        loop {
            let event = tokio::select! {
                event = ticket.next() => event,
                () = sleep_until(pieces.due.unwrap_or_else(Instant::now)), if pieces.due.is_some() => {
                    if let Some(piece) = pieces.take(Instant::now()) {
                        self.report(Report::Piece(piece)).await;
                    }
                    continue;
                }
            };
            if self.stream
                && let Some(event) =
                    event.as_ref().filter(|event| progress.is_news(event, Instant::now()))
            {
                self.report(Report::Progress(event.clone())).await;
            }
            match event {
                Some(Event::Queued { .. } | Event::Prefill { .. } | Event::Vector { .. }) => {}
                Some(Event::Started { deaths }) => self.report(Report::Started { deaths }).await,
                Some(Event::Delta { text: piece, logprobs, .. }) => {
                    text.text.push_str(&piece);
                    text.logprobs.extend_from_slice(&logprobs);
                    if self.stream
                        && let Some(piece) = pieces.add(&piece, logprobs, Instant::now())
                    {
                        self.report(Report::Piece(piece)).await;
                    }
                }
                Some(Event::Finished(finish)) => {
                    if let Some(piece) = pieces.take(Instant::now()) {
                        self.report(Report::Piece(piece)).await;
                    }
                    return Ok((text, finish));
                }
                Some(Event::Failed(refusal)) => return Err(refusal),
                None => {
                    return Err(Refusal::new(Code::Internal, "the prompt ended without an answer"));
                }
            }
        }
    }
}

impl Text {
    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.logprobs.is_empty()
    }
}

/// Puts pieces together that come quickly.
#[derive(Debug, Default)]
struct Pieces {
    waiting: Text,
    last: Option<Instant>,
    due: Option<Instant>,
}

impl Pieces {
    /// Adds a piece; gives what is to be sent now.
    fn add(&mut self, piece: &str, logprobs: Vec<TokenLogprob>, now: Instant) -> Option<Text> {
        self.waiting.text.push_str(piece);
        self.waiting.logprobs.extend(logprobs);
        let at = self.last.map_or(now, |last| last + PIECE_EVERY);
        if at <= now {
            return self.take(now);
        }
        self.due = (!self.waiting.is_empty()).then_some(at);
        None
    }

    /// Gives all that waits.
    fn take(&mut self, now: Instant) -> Option<Text> {
        self.due = None;
        if self.waiting.is_empty() {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.waiting))
    }
}

/// Keeps progress to what is news.
#[derive(Debug, Default)]
struct Progress {
    last: Option<Instant>,
    decoding: bool,
}

impl Progress {
    fn is_news(&mut self, event: &Event, now: Instant) -> bool {
        match event {
            Event::Queued { .. } => true,
            Event::Prefill { done, total } => {
                let news =
                    done == total || self.last.is_none_or(|last| now >= last + PROGRESS_EVERY);
                if news {
                    self.last = Some(now);
                }
                news
            }
            Event::Delta { .. } => !std::mem::replace(&mut self.decoding, true),
            Event::Started { .. }
            | Event::Vector { .. }
            | Event::Finished(_)
            | Event::Failed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_pieces_go_together() {
        let (mut pieces, start) = (Pieces::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let text = |piece: Option<Text>| piece.map(|piece| piece.text);
        assert_eq!(text(pieces.add("a", vec![], at(0))).as_deref(), Some("a"));
        assert_eq!(pieces.add("b", vec![], at(10)), None);
        assert_eq!(pieces.add("c", vec![], at(90)), None);
        assert_eq!(pieces.due, Some(at(100)));
        assert_eq!(text(pieces.take(at(100))).as_deref(), Some("bc"));
        assert_eq!((pieces.due, pieces.take(at(101))), (None, None));
        assert_eq!(pieces.add("", vec![], at(150)), None);
        assert_eq!(pieces.due, None);
        assert_eq!(text(pieces.add("d", vec![], at(300))).as_deref(), Some("d"));
    }

    #[test]
    fn progress_is_told_now_and_then() {
        let (mut progress, start) = (Progress::default(), Instant::now());
        let prefill = |done| Event::Prefill { done, total: 9 };
        let delta = Event::Delta { text: String::new(), tokens: vec![1], logprobs: vec![] };
        assert!(progress.is_news(&prefill(1), start));
        assert!(!progress.is_news(&prefill(2), start + PROGRESS_EVERY / 2));
        assert!(progress.is_news(&prefill(3), start + PROGRESS_EVERY));
        assert!(progress.is_news(&prefill(9), start + PROGRESS_EVERY));
        assert!(progress.is_news(&delta, start));
        assert!(!progress.is_news(&delta, start));
    }
}
