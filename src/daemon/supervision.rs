//! What the service does while its doors are open: it tells the service manager how things are, proves that everything that has
//! to work does, and does what an operator asks for.

use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::reload::Reload;
use super::{DaemonError, Signals};
use crate::control::ReloadRequest;
use crate::scheduler::{Pulse, Scheduler, State, Status};
use crate::systemd::ServiceManager;
use crate::wire;

/// How often the manager's line is brought up to date while a model loads.
const PROGRESS: Duration = Duration::from_secs(1);

/// How often the board is looked at while there is work: heat and memory change within seconds.
const LOOK: Duration = Duration::from_secs(2);

/// And while there is none, when nothing of promptd's doing changes, and each look wakes a processor that could sleep. The first
/// prompt is reason for a look of its own.
const SELDOM: Duration = Duration::from_secs(10);

/// What an operator may want while the service runs.
pub(super) struct Operator<'a> {
    pub(super) hangup: &'a mut Signal,
    pub(super) reload: &'a mut Reload,
    pub(super) reloads: &'a mut mpsc::Receiver<ReloadRequest>,
    pub(super) policy: &'a watch::Sender<Arc<wire::Policy>>,
}

/// Works until somebody wants the service to end.
///
/// The watchdog is fed only with a proof: this task woke up, asked the scheduler, and the scheduler answered that the engine
/// computes, waits for work, or is being replaced within its time. Whatever hangs, the manager starts the service again.
///
/// # Errors
/// A door or the scheduler ended before it was told to.
pub(super) async fn watch_over(
    manager: ServiceManager,
    scheduler: &Scheduler,
    signals: &mut Signals,
    operator: Operator<'_>,
    (sockets, broker): (&mut JoinSet<()>, &mut JoinSet<()>),
) -> Result<(), DaemonError> {
    let Operator { hangup, reload, reloads, policy } = operator;
    let mut status = scheduler.status();
    let mut beats = manager.watchdog_interval().map(tokio::time::interval);
    let mut progress = tokio::time::interval(PROGRESS);
    let mut looks = Looks { next: Instant::now(), is_busy: false };
    let mut pulses = JoinSet::new();
    let mut said = Said::default();
    // Whether the manager has it.
    let mut told = true;
    let mut loading_since = Instant::now();
    loop {
        tokio::select! {
            () = signals.next() => return Ok(()),
            _ = hangup.recv() => {
                manager.reloading();
                // What is wrong is in the log and in the status.
                let _ = reload.now(scheduler, policy).await;
                manager.ready(&sentence(&status.borrow(), loading_since.elapsed()));
            }
            outcome = reload.changed() => reload.conclude(outcome, scheduler).await,
            Some(answer) = reloads.recv() => {
                let _ = answer.send(reload.now(scheduler, policy).await);
            }
            () = tokio::time::sleep_until(looks.next) => {
                looks.looked(Instant::now());
                if !told {
                    told = manager.status(&sentence(&status.borrow(), loading_since.elapsed()));
                }
                reload.look(scheduler).await;
            }
            // One at a time: where no answer comes, nothing is fed.
            () = next(&mut beats), if pulses.is_empty() => {
                let scheduler = scheduler.clone();
                pulses.spawn(async move { scheduler.pulse().await });
            }
            Some(pulse) = pulses.join_next() => match pulse {
                Ok(Pulse::Alive) => manager.alive(),
                Ok(Pulse::EngineOverdue(late)) => {
                    let late_seconds = late.as_secs();
                    tracing::error!(late_seconds, "the engine cannot be ended; the watchdog will start promptd again");
                }
                Ok(Pulse::Gone) | Err(_) => return Err(DaemonError::Fell("the scheduler")),
            },
            // Both end by themselves only when they are told to.
            Some(_) = sockets.join_next() => return Err(DaemonError::Fell("a socket")),
            Some(Err(_)) = broker.join_next() => return Err(DaemonError::Fell("the MQTT door")),
            _ = progress.tick(), if said.is_loading() => {
                manager.loading(&sentence(&status.borrow(), loading_since.elapsed()));
            }
            changed = status.changed() => {
                if changed.is_err() {
                    return Err(DaemonError::Fell("the scheduler"));
                }
                let status = status.borrow_and_update();
                let board = &status.board;
                let is_well = board.throttled.is_empty() && board.short_of_memory.is_none();
                looks.work(!status.is_idle() || !is_well, Instant::now());
                reload.see_to(status.went_back.as_ref());
                let news = Said::of(&status);
                if news != said {
                    if !said.is_loading() {
                        loading_since = Instant::now();
                    }
                    if (&news.state, &news.model) != (&said.state, &said.model) {
                        announce(&status);
                    }
                    said = news;
                    told = manager.status(&sentence(&status, loading_since.elapsed()));
                }
            }
        }
    }
}

/// When the board is looked at.
#[derive(Debug)]
struct Looks {
    next: Instant,
    /// Whether prompts wait or run, or the board is not well, which somebody waits to see end.
    is_busy: bool,
}

impl Looks {
    /// There was a look. One that came late is not made up for.
    fn looked(&mut self, now: Instant) {
        self.next = now + if self.is_busy { LOOK } else { SELDOM };
    }

    /// There is work, or none. What was seen while there was none is old.
    fn work(&mut self, is_busy: bool, now: Instant) {
        if is_busy && !self.is_busy && self.next > now + LOOK {
            self.next = now;
        }
        self.is_busy = is_busy;
    }
}

/// What the log and the manager were told last.
#[derive(Debug, Default, PartialEq)]
struct Said {
    state: State,
    model: Option<String>,
    next: Option<String>,
}

impl Said {
    fn of(status: &Status) -> Self {
        let model = status.model.as_ref().map(|model| model.name.clone());
        Said { state: status.state.clone(), model, next: status.next_model.clone() }
    }

    fn is_loading(&self) -> bool {
        matches!(self.state, State::Loading(_))
    }
}

/// The next beat. Without a watchdog there is none.
async fn next(beats: &mut Option<tokio::time::Interval>) {
    match beats {
        Some(beats) => drop(beats.tick().await),
        None => std::future::pending().await,
    }
}

/// The state in a log line, once for each change.
fn announce(status: &Status) {
    match &status.state {
        State::Ready => {
            if let Some(model) = &status.model {
                tracing::info!(
                    model = model.name,
                    context = model.context,
                    slots = model.slots,
                    threads = model.threads,
                    onnxruntime = model.runtime_version,
                    provider = model.placement.provider,
                    why = model.placement.why,
                    load_ms = model.load_ms,
                    "the model answers"
                );
            }
        }
        State::ModelFailed(refusal) => tracing::error!("{}", refusal.message),
        State::Loading(stage) => tracing::debug!(stage = stage.as_str(), "loading"),
        State::Unloaded | State::Draining => {}
    }
}

/// The state for `systemctl status`; `loading`: for how long it has been.
pub(super) fn sentence(status: &Status, loading: Duration) -> String {
    match &status.state {
        State::Loading(stage) => format!("loading: {}, {} s", stage.as_str(), loading.as_secs()),
        State::Ready => {
            let name = status.model.as_ref().map_or("", |model| model.name.as_str());
            let next = status.next_model.as_ref();
            let next = next.map(|next| format!("; {next} is being loaded beside it"));
            format!("answering with {name}{}", next.unwrap_or_default())
        }
        State::Unloaded => "no model is loaded; the next prompt loads it".to_owned(),
        State::ModelFailed(refusal) => format!("no model: {}", refusal.message),
        State::Draining => "stopping".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_is_looked_at_seldom_without_work_and_at_once_with_the_first() {
        let start = Instant::now();
        let mut looks = Looks { next: start, is_busy: false };
        looks.looked(start);
        assert_eq!(looks.next, start + SELDOM);
        let asked = start + LOOK;
        looks.work(true, asked);
        assert_eq!(looks.next, asked, "what is known is two seconds old");
        looks.looked(asked);
        looks.work(true, asked);
        assert_eq!(looks.next, asked + LOOK);
        // Work that comes and goes is looked at no more often than work that stays.
        looks.work(false, asked);
        looks.work(true, asked);
        assert_eq!(looks.next, asked + LOOK);
        looks.work(false, asked);
        looks.looked(asked);
        assert_eq!(looks.next, asked + SELDOM);
    }
}
