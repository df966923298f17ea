//! How promptd is, every minute: what no state tells because it changes all the time.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::door::Door;
use super::message::Publication;
use crate::wire::payload::{Health, HealthBoard, HealthModel, HealthMqtt, HealthOs, HealthProcess};

/// Often enough for a graph of a day, seldom enough for a broker with a thousand boards.
pub(super) const HEALTH_EVERY: Duration = Duration::from_mins(1);

/// What is counted from one health to the next.
#[derive(Debug)]
pub(super) struct Pulse {
    began: Instant,
    /// When it was told last, and how many tokens there were.
    last: Option<(Instant, u64)>,
    /// Connections that were up.
    pub(super) connections: u64,
    /// Connections on which the broker had no session for promptd, beside the first.
    pub(super) sessions_lost: u64,
}

impl Pulse {
    pub(super) fn new(now: Instant) -> Pulse {
        Pulse { began: now, last: None, connections: 0, sessions_lost: 0 }
    }

    /// When the next one is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.last.map(|(last, _)| last + HEALTH_EVERY)
    }

    /// A connection is up.
    pub(super) fn connected(&mut self, session: bool) {
        self.connections += 1;
        self.sessions_lost += u64::from(!session && self.connections > 1);
        // Whoever comes to the board sees it soon.
        self.last = None;
    }
}

impl Door {
    /// Tells it where it is due. It may be lost: the next one comes in a minute.
    pub(super) fn publish_health(&mut self, now: Instant) {
        if self.pulse.due().is_some_and(|due| now < due) {
            return;
        }
        let (reading, system) = (self.facts.board.read(), self.facts.board.system());
        let status = self.status.borrow();
        let tokens = status.counters.completion_tokens;
        let rate = self.pulse.last.map_or(0.0, |(last, before)| {
            let seconds = now.saturating_duration_since(last).as_secs_f64().max(1.0);
            // Counters of a minute are exact in a double.
            #[expect(clippy::cast_precision_loss, reason = "tokens of a minute")]
            let tokens = tokens.saturating_sub(before) as f64;
            (tokens / seconds * 10.0).round() / 10.0
        });
        let health = Health {
            process: HealthProcess {
                uptime_s: now.saturating_duration_since(self.pulse.began).as_secs(),
                service_bytes: self.facts.board.resident(None),
                engine_bytes: status
                    .engine_pid
                    .and_then(|pid| self.facts.board.resident(Some(pid))),
            },
            mqtt: HealthMqtt {
                connections: self.pulse.connections,
                sessions_lost: self.pulse.sessions_lost,
                waiting: self.outbox.len(),
            },
            model: HealthModel { state: status.state_name(), tokens_per_second: rate },
            board: HealthBoard {
                temperature: reading.temperature.map(tenths),
                throttled: reading.throttled,
            },
            os: HealthOs {
                name: system.name,
                kernel: system.kernel,
                architecture: std::env::consts::ARCH,
                load: system.load,
                available_bytes: reading.available,
            },
        };
        drop(status);
        self.pulse.last = Some((now, tokens));
        let object = serde_json::to_value(health).unwrap_or(Value::Null);
        let publication =
            Publication { retain: true, ..Publication::json(self.topics.health(), &object) };
        self.tell(&publication);
    }
}

/// A tenth of a degree is more than a sensor knows.
fn tenths(degrees: f64) -> f64 {
    (degrees * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_lost_but_for_the_first() {
        let mut pulse = Pulse::new(Instant::now());
        for session in [false, true, false] {
            pulse.connected(session);
        }
        assert_eq!((pulse.connections, pulse.sessions_lost, pulse.due()), (3, 1, None));
    }
}
