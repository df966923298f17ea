//! What the engine is told about its KV cache: whose rows a prompt may start behind, and which stay.

use std::hash::BuildHasher;

use super::{Action, Core};
use crate::engine::frames::ToEngine;
use crate::request::{CacheKey, Identity, Pinned, Reuse};

impl Core {
    /// Whose rows a prompt may start behind: its asker's, and those of the profile it names.
    pub(super) fn reuse(&self, asker: &Identity, profile: Option<&str>) -> Reuse {
        let own = CacheKey(self.keys.hash_one(("asker", &asker.0)));
        Reuse { own, profile: profile.map(|name| self.profile_key(name)) }
    }

    /// Tells the engine which beginnings to keep.
    pub(super) fn pin(&mut self) {
        let pinned = self.config.pinned.iter().map(|profile| Pinned {
            key: self.profile_key(&profile.profile),
            system: profile.system.clone(),
            goes_on: profile.goes_on,
        });
        let pinned = pinned.collect();
        self.actions.push(Action::Send(ToEngine::Pin(pinned)));
    }

    fn profile_key(&self, name: &str) -> CacheKey {
        CacheKey(self.keys.hash_one(("profile", name)))
    }
}
