//! What the operator decides about requests: profiles, clients, and the values that profiles put into prompts. Read anew
//! when the configuration is, whole or not at all.

use std::sync::Arc;

use tokio::sync::watch;

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
}

impl From<Profiles> for Policy {
    fn from(profiles: Profiles) -> Self {
        Policy { profiles, access: Access::default() }
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
