//! What the operator decides about requests: profiles, clients, and the values that profiles put into prompts. Read anew
//! when the configuration is, whole or not at all.

use std::sync::Arc;

use tokio::sync::watch;

use super::limits::Limits;
use super::profile::Profiles;
use super::readings::Readings;
use crate::identity::Access;

/// What the operator has decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// The profiles.
    pub profiles: Profiles,
    /// Who may what.
    pub access: Access,
    /// The largest request in bytes, where the operator says it here; else what the door was opened with.
    pub payload_bytes: Option<usize>,
}

impl From<Profiles> for Policy {
    fn from(profiles: Profiles) -> Self {
        Policy { profiles, access: Access::default(), payload_bytes: None }
    }
}

/// The policy as it is now; clones see the same one.
#[derive(Clone, Debug)]
pub struct Policies {
    current: watch::Receiver<Arc<Policy>>,
    readings: Arc<Readings>,
}

impl Policies {
    /// The first policy. Whoever holds the sender replaces it.
    pub fn new(policy: Policy) -> (watch::Sender<Arc<Policy>>, Policies) {
        let (sender, current) = watch::channel(Arc::new(policy));
        (sender, Policies { current, readings: Arc::default() })
    }

    /// A policy that stays.
    pub fn fixed(policy: impl Into<Policy>) -> Policies {
        Policies::new(policy.into()).1
    }

    /// The policy as it is now. A request is read against one, from beginning to end.
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.current.borrow())
    }

    /// The limits with which a door was opened, as they are now.
    pub fn limits(&self, opened: &Limits) -> Limits {
        let payload_bytes = self.current.borrow().payload_bytes.unwrap_or(opened.payload_bytes);
        Limits { payload_bytes, ..opened.clone() }
    }

    /// The newest values of the topics that profiles name.
    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    /// Waits for the next policy; for ever, where there will be none.
    pub async fn changed(&mut self) {
        if self.current.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
