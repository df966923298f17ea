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
    prompts: Arc<Mutex<HashMap<PromptId, Asked>>>,
}

#[derive(Debug)]
struct Asked {
    peer: Peer,
    public: String,
    /// Requests that wait for its answer: several, where it was asked again under its name.
    requests: usize,
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
    /// `lasting` is the number of one that has a name: its id is the same whenever it is asked again.
    pub(super) fn enter(
        &self,
        (id, lasting): (PromptId, Option<u64>),
        peer: &Peer,
        prefix: &str,
    ) -> Entry {
        let public = match lasting {
            Some(number) => format!("{prefix}-{number:016x}"),
            None => format!("{prefix}-{:08x}-{}", self.run, id.0),
        };
        let mut prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || Asked { peer: peer.clone(), public: public.clone(), requests: 0 };
        prompts.entry(id).or_insert_with(new).requests += 1;
        drop(prompts);
        Entry { running: self.clone(), id, public }
    }

    /// The prompt with a public id, and who asked it.
    pub(super) fn find(&self, public: &str) -> Option<(PromptId, Peer)> {
        let prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        let (id, asked) = prompts.iter().find(|(_, asked)| asked.public == public)?;
        Some((*id, asked.peer.clone()))
    }

    /// The public id of a prompt that runs.
    pub(super) fn public_of(&self, id: PromptId) -> Option<String> {
        let prompts = self.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        prompts.get(&id).map(|asked| asked.public.clone())
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
        let mut prompts = self.running.prompts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asked) = prompts.get_mut(&self.id) {
            asked.requests -= 1;
            if asked.requests == 0 {
                prompts.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_while_it_runs() {
        let running = Running::default();
        let peer = Peer { uid: Some(7), gid: Some(7), groups: [].into(), tcp: false, name: None };
        let entry = running.enter((PromptId(12), None), &peer, "chatcmpl");
        let public = entry.public().to_owned();
        assert_eq!(running.find(&public), Some((PromptId(12), peer.clone())));
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
        // Asked twice under a name, it is one prompt with one id, until the last has gone.
        let twice = [(); 2].map(|()| running.enter((PromptId(13), Some(0xabc)), &peer, "cmpl"));
        let public = twice[0].public().to_owned();
        assert_eq!((public.as_str(), twice[1].public()), ("cmpl-0000000000000abc", &*public));
        let [first, second] = twice;
        drop(first);
        assert_eq!(running.find(&public), Some((PromptId(13), peer)));
        drop(second);
        assert_eq!(running.find(&public), None);
    }
}
