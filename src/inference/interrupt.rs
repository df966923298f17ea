//! Ends a run of the model from another thread: the chunk of a prompt that is no longer wanted takes seconds on a small
//! board. Only a run that works for one prompt alone can be ended.

use std::sync::{Mutex, PoisonError};

use ort::session::{NoSelectedOutputs, RunOptions};

use crate::request::PromptId;

/// The run that is going on, as far as others may end it.
pub(super) struct Interrupt {
    options: RunOptions<NoSelectedOutputs>,
    /// The prompt that the run works for, and whether it was told to end.
    alone: Mutex<Option<(PromptId, bool)>>,
}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interrupt").field("alone", &self.alone).finish_non_exhaustive()
    }
}

impl Interrupt {
    /// No run yet.
    pub(super) fn new() -> ort::Result<Self> {
        Ok(Interrupt { options: RunOptions::new()?, alone: Mutex::new(None) })
    }

    /// The options that each run is given.
    pub(super) fn options(&self) -> &RunOptions<NoSelectedOutputs> {
        &self.options
    }

    /// A run for this prompt alone begins.
    pub(super) fn enter(&self, id: PromptId) {
        *self.lock() = Some((id, false));
    }

    /// It is over. Returns whether it was told to end.
    pub(super) fn leave(&self) -> bool {
        let mut alone = self.lock();
        let told = alone.take().is_some_and(|(_, told)| told);
        if told {
            // It fails only for a null pointer; the next run would then end with an error of its own.
            let _ = self.options.unterminate();
        }
        told
    }

    /// Ends the run if it works for this prompt.
    pub(super) fn cancel(&self, id: PromptId) {
        let mut alone = self.lock();
        if let Some((reading, told)) = alone.as_mut()
            && *reading == id
        {
            *told = self.options.terminate().is_ok();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(PromptId, bool)>> {
        self.alone.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
