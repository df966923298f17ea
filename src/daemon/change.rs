//! Another model, loaded beside the one that answers: an engine of its own comes up with it, is asked the manifest's golden prompts,
//! and takes over. Where memory has no room for both, the old one makes room first.

use tokio::task::JoinHandle;

use crate::engine::client::SpawnConfig;
use crate::engine::frames::LoadRequest;
use crate::engine::trial::{self, Successor, TrialError};
use crate::engine::{Death, DeathReport};
use crate::inference::manifest::Manifest;

/// How the kernel ends what takes too much memory.
const SIGKILL: i32 = 9;

/// A change that is under way. Dropped, it ends the engine it has started.
#[derive(Debug)]
pub(super) struct Change {
    /// What answers meanwhile.
    pub(super) before: LoadRequest,
    task: JoinHandle<Result<Successor, Failure>>,
}

/// Why no engine could be had beside the other.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is no room for both.
    Room(String),
    /// It is no good.
    Model(String),
}

impl Change {
    /// Begins to load `engine.load`. `spare`: bytes that have to stay free.
    pub(super) fn begin(mut engine: SpawnConfig, before: LoadRequest, spare: u64) -> Self {
        engine.load.beside = Some(spare);
        let task = tokio::spawn(async move {
            let manifest = Manifest::of(&engine.load.model).map_err(|error| {
                // As the engine would say it.
                Failure::Model(crate::request::Refusal::from(error).message)
            })?;
            let golden = manifest.map(|manifest| manifest.golden).unwrap_or_default();
            Ok(trial::beside(engine, &golden).await?)
        });
        Change { before, task }
    }

    /// Waits for what comes of it.
    pub(super) async fn outcome(&mut self) -> Result<Successor, Failure> {
        let outcome = (&mut self.task).await;
        outcome.unwrap_or_else(|error| Err(Failure::Model(format!("the change fell: {error}"))))
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl From<TrialError> for Failure {
    fn from(error: TrialError) -> Self {
        match &error {
            TrialError::Room(why) => Failure::Room(why.clone()),
            // Reckoning has its limits; the kernel's word is the last one.
            TrialError::Died(DeathReport { how: Death::Killed(SIGKILL), .. }) => {
                Failure::Room(error.to_string())
            }
            _ => Failure::Model(error.to_string()),
        }
    }
}
