//! What everything that asks the model over HTTP begins with: who asks and what they may, how long they wait, and the body
//! within its limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Incoming;
use hyper::{HeaderMap, Request};

use super::accept::{Activity, Peer, Work};
use super::reply::Fault;
use super::{App, body};
use crate::identity::Grant;
use crate::request::{Door, Identity, Origin, Refusal, Submission};
use crate::wire::{Context, Limits, Policy};

/// A request that has arrived whole, and who sent it.
pub(super) struct Asking<'a> {
    app: &'a App,
    policy: Arc<Policy>,
    grant: Grant,
    limits: Limits,
    wait: Option<Duration>,
    body: Vec<u8>,
    /// Its connection is at work as long as this is there.
    _work: Work,
}

impl<'a> Asking<'a> {
    /// Reads a request to its end.
    pub(super) async fn arrive(
        app: &'a App,
        peer: &Peer,
        activity: &Activity,
        request: Request<Incoming>,
    ) -> Result<Asking<'a>, Fault> {
        let (key, wait) = (bearer(request.headers()), willing_to_wait(request.headers()));
        let policy = app.policies.current();
        let grant = policy.access.grant(peer.who(key.as_deref()));
        let limits = app.limits();
        let body = body::read(request.into_body(), limits.payload_bytes, app.patience.body).await;
        let body = body.inspect_err(|fault| turned_away(app, &grant.identity, fault.refusal()))?;
        Ok(Asking { app, policy, grant, limits, wait, body, _work: activity.begin() })
    }

    /// What was sent.
    pub(super) fn body(&self) -> &[u8] {
        &self.body
    }

    /// What was sent is read, and may have been megabytes.
    pub(super) fn forget_body(&mut self) {
        self.body = Vec::new();
    }

    /// What it is read against.
    pub(super) fn context(&self) -> Context<'_> {
        Context {
            profiles: &self.policy.profiles,
            readings: self.app.policies.readings(),
            limits: &self.limits,
            grant: self.grant.clone(),
            now: Instant::now(),
            door: Door::Http,
        }
    }

    /// It does not reach the scheduler.
    pub(super) fn turned_away(&self, refusal: &Refusal) {
        turned_away(self.app, &self.grant.identity, refusal);
    }

    /// The same prompt, no later than its client waits for a whole answer.
    pub(super) fn in_time(&self, mut submission: Submission) -> Submission {
        submission.timeout = submission.timeout.into_iter().chain(self.wait).min();
        submission
    }
}

/// Counts and logs a request that does not reach the scheduler.
pub(super) fn turned_away(app: &App, client: &Identity, refusal: &Refusal) {
    app.scheduler.traffic().turned_away(&Origin::new(Door::Http), Some(client), refusal);
}

/// How long a client says that it waits for a whole answer: `Prefer: wait=10` (RFC 7240), or the time limit that OpenAI's
/// clients set for themselves and tell.
pub(super) fn willing_to_wait(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    let preferred = text("prefer").flat_map(|value| value.split(',')).filter_map(|preference| {
        let (name, seconds) = preference.split_once('=')?;
        name.trim().eq_ignore_ascii_case("wait").then(|| seconds.trim())
    });
    let seconds =
        preferred.chain(text("x-stainless-timeout")).filter_map(|seconds| seconds.parse().ok());
    // What is no time, or none worth the name, is no wish.
    let times = seconds.filter_map(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    times.filter(|time| !time.is_zero()).min()
}

/// The API key of a request, if there is one.
pub(super) fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(hyper::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_that_clients_wait() {
        let headers = |pairs: &[(&'static str, &str)]| -> HeaderMap {
            let pair = |(name, value): &(&'static str, &str)| {
                (hyper::header::HeaderName::from_static(name), value.parse().unwrap())
            };
            pairs.iter().map(pair).collect()
        };
        for (pairs, seconds) in [
            (&[("prefer", "respond-async, wait=10")][..], Some(10.0)),
            (&[("x-stainless-timeout", "0.5")], Some(0.5)),
            (&[("prefer", "Wait = 7"), ("x-stainless-timeout", "600")], Some(7.0)),
            (&[("prefer", "wait=soon"), ("x-stainless-timeout", "NOT_GIVEN")], None),
            (&[("prefer", "wait=0"), ("x-stainless-timeout", "-1")], None),
            (&[("x-stainless-timeout", "inf")], None),
            (&[], None),
        ] {
            let wait = willing_to_wait(&headers(pairs));
            assert_eq!(wait.map(|wait| wait.as_secs_f64()), seconds, "{pairs:?}");
        }
    }
}
