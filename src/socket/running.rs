//! The prompts that came over HTTP and have not ended: who asked them, and the public ids under which they can be cancelled.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::request::PromptId;
use crate::socket::accept::Peer;

/// The register of running prompts; clones mean the same one.
#[derive(Clone, Debug)]
pub(super) struct Running {
    /// Distinguishes this run of the service, so that an id from before a restart never means a new prompt.
    run: u32,
    // A std lock: held for one map operation, never across an await.
    prompts: Arc<Mutex<HashMap<PromptId, (Peer, String)>>>,
}

impl Default for Running {
    fn default() -> Self {
        let mut bytes = [0; 4];
        // Without randomness ids only become easier to guess, and cancelling still needs the same user.
        let _ = getrandom::fill(&mut bytes);
        Running { run: u32::from_le_bytes(bytes), prompts: Arc::default() }
    }
}

impl Running {
    /// Enters a prompt; it is in the register until the entry is dropped.
    pub(super) fn enter(&self, id: PromptId, peer: &Peer, prefix: &str) -> Entry {
        let public = format!("{prefix}-{:08x}-{}", self.run, id.0);
        let mut prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        prompts.insert(id, (peer.clone(), public.clone()));
        drop(prompts);
        Entry { running: self.clone(), id, public }
    }

    /// The prompt with a public id, and who asked it.
    pub(super) fn find(&self, public: &str) -> Option<(PromptId, Peer)> {
        let mut parts = public.splitn(3, '-');
        let (prefix, run, number) = (parts.next()?, parts.next()?, parts.next()?);
        let right = matches!(prefix, "chatcmpl" | "cmpl" | "resp" | "ollama")
            && u32::from_str_radix(run, 16) == Ok(self.run);
        let id = PromptId(number.parse().ok().filter(|_| right)?);
        let (peer, _) =
            self.prompts.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()?;
        Some((id, peer))
    }

    /// The public id of a prompt that runs.
    pub(super) fn public_of(&self, id: PromptId) -> Option<String> {
        let prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        prompts.get(&id).map(|(_, public)| public.clone())
    }
}

/// A prompt's place in the register.
#[derive(Debug)]
pub(super) struct Entry {
    running: Running,
    id: PromptId,
    public: String,
}

impl Entry {
    /// The id the client knows.
    pub(super) fn public(&self) -> &str {
        &self.public
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.running.prompts.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_while_it_runs() {
        let running = Running::default();
        let peer = Peer { uid: Some(7), gid: Some(7), tcp: false, name: None };
        let entry = running.enter(PromptId(12), &peer, "chatcmpl");
        let public = entry.public().to_owned();
        assert_eq!(running.find(&public), Some((PromptId(12), peer)));
        for stranger in [
            "",
            "-",
            "chatcmpl",
            "chatcmpl--12",
            "x-0-12",
            &public.replace("chatcmpl", "x"),
            "cmpl-zz-é",
        ] {
            assert_eq!(running.find(stranger), None, "{stranger}");
        }
        drop(entry);
        assert_eq!(running.find(&public), None);
    }
}
