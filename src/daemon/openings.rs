//! The open sockets of the service, and which conversation each of them holds.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::told;
use crate::socket::{self, App};

/// The sockets that are open.
pub(super) struct Openings {
    pub(super) http: Option<socket::Bound>,
    pub(super) tcp: Option<socket::Bound>,
    pub(super) lines: Option<socket::Bound>,
    pub(super) metrics: Option<socket::Bound>,
}

impl Openings {
    /// Answers on all of them until the service stops.
    pub(super) fn serve(
        self,
        tasks: &mut JoinSet<()>,
        app: &Arc<App>,
        stopping: &watch::Receiver<bool>,
    ) {
        for bound in [self.http, self.tcp].into_iter().flatten() {
            tasks.spawn(socket::serve(bound, Arc::clone(app), told(stopping.clone())));
        }
        if let Some(bound) = self.lines {
            tasks.spawn(socket::serve_lines(bound, Arc::clone(app), told(stopping.clone())));
        }
        if let Some(bound) = self.metrics {
            tasks.spawn(socket::serve_metrics(bound, Arc::clone(app), told(stopping.clone())));
        }
    }
}
