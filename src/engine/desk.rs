//! What the service has ordered and the engine has not done yet: checks and starts to prepare, then orders for the model.
//! One lock over all of it, so that a cancel meets its prompt wherever it stands.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::request::{CacheKey, Pinned, PromptId, Request, Reuse};

/// Jobs and orders that may lie here. The service has no more checks under way than its queue limit and the slots (64
/// and a few), and no more starts than slots; beyond this the reader waits, and the service's own bounds hold it back.
const LIMIT: usize = 256;

/// Checks whose preparing is kept for a start. A prompt that finds a free slot is started right after its check, with few others in
/// between; one that has waited in the queue for seconds does not mind being prepared again. Few, because each holds the tokens
/// of a prompt and the states of a grammar.
const KEPT: usize = 4;

/// Something to prepare.
#[derive(Debug, PartialEq)]
pub(super) enum Job {
    /// Prepare, and tell what was found.
    Check { check: u64, request: Request },
    /// Prepare and hand over to the model.
    Start {
        id: PromptId,
        check: Option<u64>,
        request: Request,
        seed: u64,
        resume: Vec<u32>,
        reuse: Reuse,
    },
    /// Turn these into tokens and hand them over to the model.
    Pin(Vec<Pinned>),
}

/// Something for the model to do. `P` is what preparing a prompt makes.
#[derive(Debug)]
pub(super) enum Order<P> {
    Start {
        id: PromptId,
        prepared: P,
        seed: u64,
        resume: Vec<u32>,
        reuse: Reuse,
    },
    Cancel {
        id: PromptId,
    },
    /// Keep these beginnings of prompts.
    Pin(Vec<(CacheKey, Vec<u32>)>),
}

/// The desk between the threads that read, prepare and compute.
pub(super) struct Desk<P> {
    papers: Mutex<Papers<P>>,
    /// There are jobs. Each side has a bell of its own: a thread that is woken for nothing is in the way of the one that has
    /// work.
    jobs: Condvar,
    /// There are orders.
    orders: Condvar,
    /// There is room.
    room: Condvar,
    /// Tells the model at once that a prompt is cancelled: the step it is in may take seconds.
    interrupt: OnceLock<Interrupter>,
}

/// Ends the step that the model is in, if that works for this prompt alone.
pub type Interrupter = Box<dyn Fn(PromptId) + Send + Sync>;

#[derive(Debug)]
struct Papers<P> {
    /// Starts wait apart: a slot of the model must not stand empty behind a line of checks.
    starts: VecDeque<Job>,
    checks: VecDeque<Job>,
    /// The check that is being prepared, until its outcome is told.
    checking: Option<u64>,
    /// The last check that came to nothing. The start that came with it may be read only now, and nothing is checked between the
    /// two, because nothing is read between them.
    refused: Option<u64>,
    /// Starts that wait for the outcome of their check.
    claims: VecDeque<Job>,
    /// The prompt whose start is being prepared, until it is cancelled.
    preparing: Option<PromptId>,
    /// What checks have prepared, by their numbers, the oldest first.
    checked: VecDeque<(u64, P)>,
    orders: VecDeque<Order<P>>,
    closed: bool,
}

impl<P> std::fmt::Debug for Desk<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl<P> Default for Desk<P> {
    fn default() -> Self {
        let papers = Papers {
            starts: VecDeque::new(),
            checks: VecDeque::new(),
            checking: None,
            refused: None,
            claims: VecDeque::new(),
            preparing: None,
            checked: VecDeque::new(),
            orders: VecDeque::new(),
            closed: false,
        };
        Desk {
            papers: Mutex::new(papers),
            jobs: Condvar::new(),
            orders: Condvar::new(),
            room: Condvar::new(),
            interrupt: OnceLock::new(),
        }
    }
}

impl<P> Desk<P> {
    /// Puts down a job. Waits only while the desk is full. A start whose check has prepared it goes to the model at once, and
    /// one whose check is not done yet does when it is. One whose check came to nothing is dropped: that was told.
    pub(super) fn put(&self, job: Job) {
        let mut papers = self.lock();
        while papers.jobs() >= LIMIT && !papers.closed {
            papers = wait(&self.room, papers);
        }
        match job {
            Job::Start { id, check, request, seed, resume, reuse } => {
                if let Some(prepared) = check.and_then(|check| papers.take_checked(check)) {
                    papers.orders.push_back(Order::Start { id, prepared, seed, resume, reuse });
                    return self.orders.notify_one();
                }
                if check.is_some() && check == papers.refused {
                    return;
                }
                let is_checked = check.is_some_and(|check| papers.is_to_be_checked(check));
                let job = Job::Start { id, check, request, seed, resume, reuse };
                if is_checked {
                    return papers.claims.push_back(job);
                }
                papers.starts.push_back(job);
            }
            Job::Check { .. } | Job::Pin(_) => papers.checks.push_back(job),
        }
        self.jobs.notify_one();
    }

    /// Takes a check past the line: `false` where there is a line, or somebody prepares already.
    pub(super) fn takes_check(&self, check: u64) -> bool {
        let mut papers = self.lock();
        let is_busy = papers.checking.is_some() || papers.preparing.is_some();
        if is_busy || papers.jobs() > 0 || papers.closed {
            return false;
        }
        papers.checking = Some(check);
        true
    }

    /// The outcome of a check was told: what it has prepared goes to the model where a start waits for it, and is kept for one
    /// that may follow where none does. Only then, so that nothing is heard of an answer before it is heard that there will be
    /// one. A conversation that was shortened is checked again under the same number, and the newer counts.
    pub(super) fn checked(&self, check: u64, prepared: Option<P>) {
        let mut papers = self.lock();
        papers.checking = None;
        papers.refused = Some(check).filter(|_| prepared.is_none());
        let older = papers.take_checked(check);
        let mut refused = None;
        let prepared = match (papers.take_claim(check), prepared) {
            (Some(Job::Start { id, seed, resume, reuse, .. }), Some(prepared)) => {
                papers.orders.push_back(Order::Start { id, prepared, seed, resume, reuse });
                self.orders.notify_one();
                None
            }
            (claim, prepared) => {
                refused = claim;
                prepared
            }
        };
        papers.checked.extend(prepared.map(|prepared| (check, prepared)));
        let oldest = if papers.checked.len() > KEPT { papers.checked.pop_front() } else { None };
        drop(papers);
        // Freeing a grammar takes its time, and nobody is to wait for that.
        drop((older, oldest, refused));
    }

    /// Cancels a prompt: before it is prepared, while it is, or at the model.
    pub(super) fn cancel(&self, id: PromptId) {
        let mut papers = self.lock();
        let before = papers.jobs();
        let other = |job: &Job| !matches!(job, Job::Start { id: other, .. } if *other == id);
        papers.starts.retain(other);
        papers.claims.retain(other);
        if papers.jobs() < before {
            return;
        }
        if papers.preparing == Some(id) {
            papers.preparing = None;
            return;
        }
        while papers.orders.len() >= LIMIT && !papers.closed {
            papers = wait(&self.room, papers);
        }
        papers.orders.push_back(Order::Cancel { id });
        self.orders.notify_one();
        // Behind the order, so that the model finds it when its step has ended.
        if let Some(interrupt) = self.interrupt.get() {
            interrupt(id);
        }
    }

    /// From now on the model is told of cancels while it is in a step.
    pub(super) fn interrupt_with(&self, interrupt: Interrupter) {
        // There is one model in the life of a desk.
        let _ = self.interrupt.set(interrupt);
    }

    /// Gives the model something that nobody waits for.
    pub(super) fn order(&self, order: Order<P>) {
        self.lock().orders.push_back(order);
        self.orders.notify_one();
    }

    /// The next job, starts first. Waits for one; `None` when the desk is closed.
    pub(super) fn job(&self) -> Option<Job> {
        let mut papers = self.lock();
        loop {
            if papers.closed {
                return None;
            }
            if let Some(job) = papers.starts.pop_front().or_else(|| papers.checks.pop_front()) {
                match &job {
                    Job::Start { id, .. } => papers.preparing = Some(*id),
                    Job::Check { check, .. } => papers.checking = Some(*check),
                    Job::Pin(_) => {}
                }
                self.room.notify_one();
                return Some(job);
            }
            papers = wait(&self.jobs, papers);
        }
    }

    /// Ends the preparing of a start: gives it to the model if it could be prepared. Returns whether it was still wanted.
    pub(super) fn prepared(&self, id: PromptId, order: Option<Order<P>>) -> bool {
        let mut papers = self.lock();
        let wanted = papers.preparing.take() == Some(id);
        if wanted {
            papers.orders.extend(order);
            self.orders.notify_one();
        }
        wanted
    }

    /// The orders for the model, oldest first. Waits for one if `idle`. `None` when the desk is closed.
    pub(super) fn orders(&self, idle: bool) -> Option<VecDeque<Order<P>>> {
        let mut papers = self.lock();
        while idle && papers.orders.is_empty() && !papers.closed {
            papers = wait(&self.orders, papers);
        }
        if papers.closed {
            return None;
        }
        let orders = std::mem::take(&mut papers.orders);
        self.room.notify_one();
        Some(orders)
    }

    /// Ends all waiting: the process is to end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        for bell in [&self.jobs, &self.orders, &self.room] {
            bell.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Papers<P>> {
        self.papers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P> Papers<P> {
    fn jobs(&self) -> usize {
        self.starts.len() + self.checks.len() + self.claims.len()
    }

    /// Whether the outcome of this check is still to come.
    fn is_to_be_checked(&self, check: u64) -> bool {
        let is_it = |job: &Job| matches!(job, Job::Check { check: other, .. } if *other == check);
        self.checking == Some(check) || self.checks.iter().any(is_it)
    }

    fn take_claim(&mut self, check: u64) -> Option<Job> {
        let is_its = |job: &Job| matches!(job, Job::Start { check: of, .. } if *of == Some(check));
        let at = self.claims.iter().position(is_its)?;
        self.claims.remove(at)
    }

    fn take_checked(&mut self, check: u64) -> Option<P> {
        let at = self.checked.iter().position(|(other, _)| *other == check)?;
        self.checked.remove(at).map(|(_, prepared)| prepared)
    }
}

fn wait<'a, P>(bell: &Condvar, papers: MutexGuard<'a, Papers<P>>) -> MutexGuard<'a, Papers<P>> {
    bell.wait(papers).unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Constraint, ContextOverflow, Input, Sampling};

    fn request() -> Request {
        let input = Input::Completion("once".to_owned());
        Request {
            input,
            sampling: Sampling::default(),
            max_tokens: None,
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            context_overflow: ContextOverflow::default(),
            constraint: Constraint::None,
            logprobs: None,
            tools: None,
        }
    }

    fn start(id: u64) -> Job {
        let (request, resume, reuse) = (request(), Vec::new(), Reuse::default());
        Job::Start { id: PromptId(id), check: None, request, seed: 0, resume, reuse }
    }

    fn order(id: u64) -> Order<()> {
        let (resume, reuse) = (Vec::new(), Reuse::default());
        Order::Start { id: PromptId(id), prepared: (), seed: 0, resume, reuse }
    }

    fn said(desk: &Desk<()>) -> Vec<String> {
        let orders = desk.orders(false).unwrap();
        let say = |order: &Order<()>| match order {
            Order::Start { id, .. } => format!("start {id}"),
            Order::Cancel { id } => format!("cancel {id}"),
            Order::Pin(beginnings) => format!("pin {}", beginnings.len()),
        };
        orders.iter().map(say).collect()
    }

    #[test]
    fn starts_go_before_checks() {
        let desk = Desk::<()>::default();
        desk.put(Job::Check { check: 7, request: request() });
        desk.put(start(1));
        assert_eq!(desk.job(), Some(start(1)));
        assert!(matches!(desk.job(), Some(Job::Check { check: 7, .. })));
    }

    #[test]
    fn what_a_check_has_prepared_is_started_without_a_second_preparing() {
        let desk = Desk::<u64>::default();
        let start = |id, check| Job::Start {
            id: PromptId(id),
            check: Some(check),
            request: request(),
            seed: 0,
            resume: Vec::new(),
            reuse: Reuse::default(),
        };
        let kept = u64::try_from(KEPT).unwrap();
        (0..=kept).for_each(|check| desk.checked(check, Some(check * 10)));
        desk.checked(2, Some(21));
        desk.checked(3, None);
        for check in 0..4 {
            desk.put(start(check + 100, check));
        }
        let started: Vec<u64> = desk
            .orders(true)
            .unwrap()
            .into_iter()
            .map(|order| match order {
                Order::Start { prepared, .. } => prepared,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(started, [10, 21], "of check 2 the newer one");
        // The oldest gave way, and the last came to nothing, which its asker was told.
        assert_eq!(desk.job(), Some(start(100, 0)));
        desk.put(start(200, 2));
        assert_eq!(desk.job(), Some(start(200, 2)), "it is taken once");
    }

    #[test]
    fn a_cancel_meets_its_prompt_wherever_it_stands() {
        let desk = Desk::<()>::default();
        // Before it is prepared.
        desk.put(start(1));
        desk.put(start(2));
        desk.cancel(PromptId(1));
        assert_eq!(desk.job(), Some(start(2)));
        // While it is prepared.
        desk.cancel(PromptId(2));
        assert!(!desk.prepared(PromptId(2), Some(order(2))));
        assert_eq!(said(&desk), [""; 0]);
        // When the model has it, or is about to.
        desk.put(start(3));
        desk.job();
        assert!(desk.prepared(PromptId(3), Some(order(3))));
        desk.cancel(PromptId(3));
        assert_eq!(said(&desk), ["start p3", "cancel p3"]);
    }

    fn claim(id: u64, check: u64) -> Job {
        match start(id) {
            Job::Start { id, request, seed, resume, reuse, .. } => {
                Job::Start { id, check: Some(check), request, seed, resume, reuse }
            }
            other => other,
        }
    }

    #[test]
    fn a_start_waits_for_the_outcome_of_its_check() {
        let desk = Desk::<()>::default();
        for check in 1..=3 {
            desk.put(Job::Check { check, request: request() });
        }
        // One before its check is looked at, and two while it is.
        desk.put(claim(10, 1));
        desk.job();
        assert_eq!(said(&desk), [""; 0], "nothing is started before it is told that it may be");
        desk.checked(1, Some(()));
        assert_eq!(said(&desk), ["start p10"]);
        desk.job();
        desk.put(claim(20, 2));
        desk.checked(2, None);
        desk.put(claim(21, 2));
        assert_eq!(said(&desk), [""; 0], "what is refused is not started");
        desk.job();
        desk.put(claim(30, 3));
        desk.cancel(PromptId(30));
        desk.checked(3, Some(()));
        assert_eq!(said(&desk), [""; 0], "nor what was cancelled meanwhile");
        desk.put(claim(31, 3));
        assert_eq!(said(&desk), ["start p31"], "what was prepared for it is not lost");
    }

    #[test]
    fn a_check_passes_no_other_job() {
        let desk = Desk::<()>::default();
        assert!(desk.takes_check(1));
        assert!(!desk.takes_check(2), "somebody prepares");
        desk.put(claim(10, 1));
        desk.checked(1, Some(()));
        assert_eq!(said(&desk), ["start p10"]);
        desk.put(start(11));
        assert!(!desk.takes_check(3), "somebody waits");
        desk.job();
        assert!(!desk.takes_check(3), "somebody prepares");
        desk.prepared(PromptId(11), None);
        assert!(desk.takes_check(3));
    }

    #[test]
    fn the_model_hears_of_a_cancel_in_its_step() {
        let desk = Desk::<()>::default();
        let heard = std::sync::Arc::new(Mutex::new(Vec::new()));
        let ear = std::sync::Arc::clone(&heard);
        desk.interrupt_with(Box::new(move |id| ear.lock().unwrap().push(id)));
        desk.put(start(1));
        desk.cancel(PromptId(1));
        desk.cancel(PromptId(2));
        assert_eq!(*heard.lock().unwrap(), [PromptId(2)], "the model never had the first");
    }

    #[test]
    fn a_closed_desk_lets_everybody_go() {
        let desk = Desk::<()>::default();
        desk.put(start(1));
        desk.close();
        assert_eq!(desk.job(), None);
        assert!(desk.orders(true).is_none());
    }
}
