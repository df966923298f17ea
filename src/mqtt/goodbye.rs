//! How the door leaves: answers that exist are delivered, `offline` is published, and the rest is left to the broker.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::door::Door;
use super::fleet::Fleet;
use super::link::Event;

/// How long answers may take to reach the broker. A healthy broker needs milliseconds; systemd's patience with the
/// whole service is ten times as long.
const FLUSH: Duration = Duration::from_secs(3);
/// How long `offline` may take.
const FAREWELL: Duration = Duration::from_secs(1);

impl Door {
    /// Says goodbye, over a connection that is up; a broker that is away says `offline` by itself.
    pub(super) async fn goodbye(&mut self, events: &mut mpsc::Receiver<Event>) {
        self.leaving = true;
        // Those that waited for the record until now wait no longer: it is closed, and so written to its end, afterwards.
        self.say();
        if timeout(
            FLUSH,
            self.flush(events, |door| {
                door.prompts.is_empty() && door.outbox.is_empty() && !door.hands_on()
            }),
        )
        .await
        .is_err()
        {
            warn!(
                in_work = self.prompts.len(),
                "not all answers reached the broker before promptd stopped; it will send unanswered prompts again"
            );
        }
        let handed_back: Vec<u64> = self.prompts.keys().copied().collect();
        for number in handed_back {
            self.hand_back(number);
        }
        self.prompts.clear();
        if self.connection.is_none() {
            return;
        }
        // Before the others see that this board is gone: they take over what the broker has for it.
        self.fleet.iter_mut().for_each(Fleet::leave);
        self.publish_offline();
        let farewell = self.flush(events, |door| door.outbox.is_empty());
        if timeout(FAREWELL, farewell).await.is_err() {
            return;
        }
        if let Some(connection) = self.connection.take()
            && connection.client.disconnect().is_ok()
        {
            info!("said goodbye to the broker");
        }
    }

    /// Goes on until `enough`, or until the connection is gone.
    async fn flush(&mut self, events: &mut mpsc::Receiver<Event>, enough: impl Fn(&Door) -> bool) {
        self.upkeep(Instant::now());
        while self.connection.is_some() && !enough(self) {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event, Instant::now()),
                    None => return,
                },
                Some((line, event)) = Fleet::next(&mut self.fleet) => self.fleet_event(line, event, Instant::now()),
                Some((number, report)) = self.reports.1.recv() => self.report(number, report, Instant::now()),
            }
            self.upkeep(Instant::now());
        }
    }
}
