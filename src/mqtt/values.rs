//! The topics that the door listens to besides prompts: values for profiles, and operators' requests. That the broker
//! refuses one of them is the operator's to know and no reason to leave.

use std::collections::BTreeSet;

use tracing::{error, warn};

use super::client::Purpose;
use super::door::Door;

impl Door {
    /// A new policy: other profiles, other topics.
    pub(super) fn policy_changed(&mut self) {
        self.facts.limits = self.facts.policies.limits(&self.facts.limits);
        self.status_dirty = true;
        // The status may be the same; the info is not.
        self.status_last = None;
        self.follow_values();
    }

    /// The connection is up and prompts come: listens to the rest.
    pub(super) fn listen_besides(&mut self) {
        self.followed.clear();
        self.listen_again();
    }

    /// Listens to what it does not listen to yet.
    pub(super) fn listen_again(&mut self) {
        self.follow_values();
        let Some(connection) = self.connection.as_ref().filter(|_| self.facts.control.is_some())
        else {
            return;
        };
        if connection.client.subscribe(&[self.topics.requests()], Purpose::Besides).is_err() {
            error!("a new connection took no subscription; this is a bug");
        }
    }

    /// Asks for the topics that no connection has asked for yet. Those that no profile names any more are not worth a word
    /// to the broker: their values are not kept, and the next connection does not ask for them.
    fn follow_values(&mut self) {
        let wanted = self.facts.policies.current().profiles.context_topics();
        self.facts.policies.readings().follow(&wanted);
        let wanted: BTreeSet<String> = wanted.into_iter().chain(self.birth()).collect();
        let Some(connection) = self.connection.as_ref().filter(|c| c.subscribed) else { return };
        let new: Vec<String> = wanted.difference(&self.followed).cloned().collect();
        if new.is_empty() {
            return;
        }
        if connection.client.follow(&new, Purpose::Besides).is_ok() {
            self.followed = wanted.union(&self.followed).cloned().collect::<BTreeSet<_>>();
        } else {
            warn!(
                "the connection is too busy to listen to new `context_topics`; the next connection does"
            );
        }
    }
}
