//! A named prompt's way through the scheduler, as a task of its own, and what a start does with those an earlier one left.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::kept::Answer;
use super::row::{Promise, Row, answer_of, prompt_of};
use super::{Facts, Heard, Key, Name, Named, Open};
use crate::record::{Door, Item, Record, Stage, unix_ms};
use crate::request::{Code, Event, Finish, PromptId, Refusal, Submission};
use crate::scheduler::ticket::Returns;
use crate::scheduler::{Scheduler, State, Ticket, stopping};

/// Starts the task of a prompt that was just entered.
pub(super) fn begin(scheduler: &Scheduler, key: Key, name: &Name, mut submission: Submission) {
    let named = &scheduler.named;
    let number = named.number();
    let place = (number, key, name.body);
    let row = named.record.as_ref().and_then(|record| Row::draft(record, place, &submission));
    submission.recorded = row.as_ref().map(|_| number);
    tokio::spawn(Work::new(scheduler, key, number, row).run(scheduler.clone(), submission));
}

/// Takes up what an earlier start has left, now or, where the disk cannot be read yet, when it can.
pub(in crate::scheduler) fn restore(scheduler: &Scheduler) {
    let Some(record) = &scheduler.named.record else { return };
    let mut later = record.found_later(Door::Socket);
    take_up(scheduler, record, record.take(Door::Socket));
    if record.health().borrow().trouble.is_none() {
        return;
    }
    // A handle would keep the scheduler from ending.
    let (commands, status) = (scheduler.commands.downgrade(), scheduler.status.clone());
    let (record, named) = (record.clone(), Arc::clone(&scheduler.named));
    let traffic = scheduler.traffic.clone();
    tokio::spawn(async move {
        let found = later.recv().await;
        if let (Some(items), Some(commands)) = (found, commands.upgrade()) {
            take_up(&Scheduler { commands, status, named, traffic }, &record, items);
        }
    });
}

fn take_up(scheduler: &Scheduler, record: &Record, items: Vec<Item>) {
    let (mut again, now) = (0, Instant::now());
    for item in items {
        let (number, key, named) = (item.number, item.key, &scheduler.named);
        let done = match item.stage {
            Stage::Accepted => run_again(scheduler, record, item).map(|()| again += 1),
            Stage::Answered | Stage::Delivered => answer_of(&item, now).map(|(answer, at)| {
                let forgotten = named.lock().kept.keep(key, answer, at);
                named.drop_rows(&forgotten);
            }),
        };
        if done.is_none() {
            record.remove(number);
        }
    }
    tidy(&scheduler.named);
    if again > 0 {
        tracing::info!(again, "the record has named prompts of the sockets, which are run again");
    }
}

/// `None` where there is nothing to run.
fn run_again(scheduler: &Scheduler, record: &Record, item: Item) -> Option<()> {
    let left = item.left(unix_ms());
    if left == Some(Duration::ZERO) {
        // Who asks again asks anew; nobody else waits.
        return None;
    }
    let Some((stored, submission)) = prompt_of(&item, left) else {
        tracing::error!(number = item.number, "a row of the record cannot be used");
        return None;
    };
    let (key, number, named) = (item.key, item.number, &scheduler.named);
    {
        let mut inner = named.lock();
        if inner.open.contains_key(&key) || inner.kept.find(&key).is_some() {
            return None;
        }
        // The one who asked has lost his connection with the service, so nobody listens yet.
        inner.open.insert(key, Open::new(stored.body, true));
    }
    record.replayed();
    let row = Row::restored(record, item);
    tokio::spawn(Work::new(scheduler, key, number, Some(row)).run(scheduler.clone(), submission));
    Some(())
}

struct Work {
    named: Arc<Named>,
    key: Key,
    number: u64,
    row: Option<Row>,
    gone: Arc<Notify>,
    status: tokio::sync::watch::Receiver<crate::scheduler::Status>,
}

impl Work {
    fn new(scheduler: &Scheduler, key: Key, number: u64, row: Option<Row>) -> Self {
        let named = Arc::clone(&scheduler.named);
        let gone = named.lock().open.get(&key).map(|open| Arc::clone(&open.gone));
        let (gone, status) = (gone.unwrap_or_default(), scheduler.status.clone());
        Work { named, key, number, row, gone, status }
    }

    async fn run(self, scheduler: Scheduler, submission: Submission) {
        let accepted = tokio::select! {
            accepted = scheduler.submit(submission) => accepted,
            // Nothing of it is written yet.
            () = self.orphaned(None) => return,
        };
        // A handle would keep the scheduler from ending.
        drop(scheduler);
        match accepted {
            Ok(ticket) => self.listen(ticket).await,
            Err(refusal) => self.refused(&refusal),
        }
    }

    /// It was not accepted.
    fn refused(mut self, refusal: &Refusal) {
        let open = self.named.lock().open.remove(&self.key);
        for waiting in open.into_iter().flat_map(|open| open.waiting) {
            let _ = waiting.send(Err(refusal.clone()));
        }
        self.let_go(refusal);
    }

    async fn listen(mut self, mut ticket: Ticket) {
        let attempt = self.row.as_ref().map_or(1, Row::attempt);
        let mut promise = self.row.as_mut().and_then(|row| row.accepted(ticket.seed()));
        let facts = Facts {
            id: ticket.id(),
            number: self.number,
            attempt,
            seed: ticket.seed(),
            checked: ticket.checked(),
            session: ticket.session().cloned(),
        };
        let returns = Arc::new(Returns::default());
        let mut heard = Some(Heard {
            facts,
            text: String::new(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            outlets: Vec::new(),
            listening: 0,
            returns: Arc::clone(&returns),
        });
        loop {
            // Nobody hears of it before it is safe.
            if promise.is_none()
                && let Some(heard) = heard.take()
            {
                self.give_out(heard);
            }
            let event = tokio::select! {
                event = ticket.next() => event,
                () = kept(promise.as_mut()), if promise.is_some() => {
                    promise = None;
                    continue;
                }
                // Dropping the ticket is what cancels.
                () = self.orphaned(Some(&returns)) => {
                    self.row.into_iter().for_each(Row::forget);
                    return;
                }
            };
            if let Some(Event::Started { deaths }) = event
                && let Some(row) = &mut self.row
            {
                row.started(deaths);
            }
            match event {
                Some(Event::Finished(_) | Event::Failed(_)) | None => {
                    if let Some(heard) = heard.take() {
                        self.give_out(heard);
                    }
                    return self.end(event.unwrap_or_else(|| Event::Failed(stopping())));
                }
                Some(event) => match &mut heard {
                    Some(heard) => heard.hear(&event),
                    None => self.hear(&event),
                },
            }
        }
    }

    /// Those who wait become those who listen.
    fn give_out(&self, mut heard: Heard) {
        let mut inner = self.named.lock();
        let Some(open) = inner.open.get_mut(&self.key) else { return };
        for waiting in std::mem::take(&mut open.waiting) {
            // The ticket of one that is gone is dropped, which is a return.
            let _ = waiting.send(Ok(heard.join()));
        }
        open.heard = Some(heard);
    }

    fn hear(&self, event: &Event) {
        let mut inner = self.named.lock();
        if let Some(heard) = inner.open.get_mut(&self.key).and_then(|open| open.heard.as_mut()) {
            heard.hear(event);
        }
    }

    /// Waits until nobody wants it any more, and takes it out.
    async fn orphaned(&self, returns: Option<&Returns>) {
        loop {
            let returned = tokio::select! {
                returned = taken(returns) => returned,
                () = self.gone.notified() => 0,
            };
            let mut inner = self.named.lock();
            let Some(open) = inner.open.get_mut(&self.key) else { return };
            if let Some(heard) = &mut open.heard {
                heard.listening = heard.listening.saturating_sub(returned);
            }
            if open.is_orphan() {
                inner.open.remove(&self.key);
                return;
            }
        }
    }

    fn end(mut self, event: Event) {
        let mut inner = self.named.lock();
        let Some(Open { body, heard: Some(mut heard), .. }) = inner.open.remove(&self.key) else {
            return;
        };
        match event {
            Event::Finished(finish) => {
                let answer = answer_from(&heard, body, &finish);
                let forgotten = inner.kept.keep(self.key, answer.clone(), Instant::now());
                drop(inner);
                self.named.drop_rows(&forgotten);
                if let Some(mut row) = self.row.take() {
                    row.answered(&answer);
                }
                heard.hear(&Event::Finished(finish));
                tidy(&self.named);
            }
            event => {
                drop(inner);
                if let Event::Failed(refusal) = &event {
                    self.let_go(refusal);
                }
                heard.hear(&event);
            }
        }
    }

    /// There is no answer: nothing is kept of it, unless the next start can give one.
    fn let_go(&mut self, refusal: &Refusal) {
        let is_left = matches!(refusal.code, Code::Cancelled | Code::Busy | Code::Internal)
            && self.status.borrow().state == State::Draining;
        match self.row.take() {
            Some(mut row) if is_left => row.hand_back(),
            Some(row) => row.forget(),
            None => {}
        }
    }
}

fn answer_from(heard: &Heard, body: [u8; 32], finish: &Finish) -> Answer {
    Answer {
        // What it had as a prompt may belong to another after the next start.
        facts: Facts { id: PromptId(heard.facts.number), ..heard.facts.clone() },
        body,
        text: heard.text.clone(),
        tokens: heard.tokens.clone(),
        logprobs: heard.logprobs.clone(),
        finish: finish.clone(),
    }
}

/// Waits until tickets were dropped: how many.
async fn taken(returns: Option<&Returns>) -> usize {
    match returns {
        Some(returns) => returns.taken().await.len(),
        None => std::future::pending().await,
    }
}

async fn kept(promise: Option<&mut Promise>) {
    if let Some(promise) = promise {
        promise.kept().await;
    }
}

/// Sees that answers are forgotten when their time is over, as long as there are any.
fn tidy(named: &Arc<Named>) {
    {
        let mut inner = named.lock();
        if inner.is_tidied || inner.kept.next_end().is_none() {
            return;
        }
        inner.is_tidied = true;
    }
    let named = Arc::downgrade(named);
    tokio::spawn(async move {
        while let Some(end) = next_end(&named) {
            tokio::time::sleep_until(end).await;
        }
    });
}

/// Forgets what is over, and says when the next is.
fn next_end(named: &Weak<Named>) -> Option<Instant> {
    let named = named.upgrade()?;
    let mut inner = named.lock();
    let forgotten = inner.kept.forget(Instant::now());
    named.drop_rows(&forgotten);
    let end = inner.kept.next_end();
    inner.is_tidied = end.is_some();
    end
}
