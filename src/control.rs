//! What an operator may ask of a running promptd at either door: load, unload, reload, drain, and what is logged.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::request::{Code, Refusal};
use crate::scheduler::Scheduler;

/// What can be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Load the model; try again if it could not be loaded.
    Load,
    /// Take the model out of memory.
    Unload,
    /// Read the configuration again, as SIGHUP does.
    Reload,
    /// Take no new prompts from now on; those that are accepted end. Only another start ends it.
    Drain,
}

/// All operations, with the names under which the doors know them.
pub const OPERATIONS: [(&str, Operation); 4] = [
    ("load", Operation::Load),
    ("unload", Operation::Unload),
    ("reload", Operation::Reload),
    ("drain", Operation::Drain),
];

impl Operation {
    /// The operation of this name.
    ///
    /// # Errors
    /// `not_found`, with the names there are.
    pub fn by_name(name: &str) -> Result<Operation, Refusal> {
        let found = OPERATIONS.iter().find(|(known, _)| *known == name);
        found.map(|(_, operation)| *operation).ok_or_else(|| {
            let names = OPERATIONS.map(|(name, _)| name).join(", ");
            Refusal::new(Code::NotFound, format!("there is no such operation; there are: {names}"))
        })
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        OPERATIONS.iter().find(|(_, known)| *known == self).map_or("", |(name, _)| name)
    }
}

/// Somebody asks for the configuration to be read again, and waits for the outcome.
pub type ReloadRequest = oneshot::Sender<Result<(), Refusal>>;

/// Sets what is logged: a level, or directives; an error says what is wrong with them.
type SetLevel = dyn Fn(&str) -> Result<(), String> + Send + Sync;

/// The most bytes of a level: a few directives, each the path of a module.
const LEVEL_BYTES: usize = 1024;

/// The way to those who can do it; clones mean the same ones.
#[derive(Clone)]
pub struct Control {
    scheduler: Scheduler,
    reload: mpsc::Sender<ReloadRequest>,
    set_level: Arc<SetLevel>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

impl Control {
    /// `reload` leads to whoever reads the configuration, `set_level` to whoever logs.
    pub fn new(
        scheduler: Scheduler,
        reload: mpsc::Sender<ReloadRequest>,
        set_level: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Control { scheduler, reload, set_level: Arc::new(set_level) }
    }

    /// Logs by this level, or these directives, until the configuration is read again or promptd starts again. The engine
    /// keeps its own.
    ///
    /// # Errors
    /// `bad_request` for `level`.
    pub fn set_log_level(&self, level: &str) -> Result<(), Refusal> {
        let wrong = |message: String| Refusal::bad_request(message).with_param("level");
        if level.trim().is_empty() || level.len() > LEVEL_BYTES {
            let message = format!(
                "`level` is error, warn, info, debug, trace or directives of at most {LEVEL_BYTES} bytes"
            );
            return Err(wrong(message));
        }
        (self.set_level)(level).map_err(wrong)
    }

    /// Does it, and returns when it is done. Dropping the future leaves a load going on.
    ///
    /// # Errors
    /// What each cannot do: `model_failed`, `busy`, `bad_request` for a configuration that is wrong.
    pub async fn run(&self, operation: Operation) -> Result<(), Refusal> {
        match operation {
            Operation::Load => self.scheduler.load().await,
            Operation::Unload => self.scheduler.unload().await,
            Operation::Drain => {
                self.scheduler.drain().await;
                Ok(())
            }
            Operation::Reload => {
                let (reply, answer) = oneshot::channel();
                let gone =
                    || Refusal::new(Code::Busy, "promptd is stopping and reads no configuration");
                self.reload.send(reply).await.map_err(|_| gone())?;
                answer.await.map_err(|_| gone())?
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for (name, operation) in OPERATIONS {
            assert_eq!((Operation::by_name(name), operation.name()), (Ok(operation), name));
        }
        let refusal = Operation::by_name("halt").unwrap_err();
        assert!(refusal.message.ends_with("load, unload, reload, drain"), "{refusal}");
    }
}
