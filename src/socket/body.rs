//! Reads a request's body: within a size, within a time.

use std::time::Duration;

use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::time::{Instant, timeout, timeout_at};

use super::reply::Fault;
use crate::request::{Code, Refusal};

/// How much of a body that is too large is read and thrown away before it is refused: a client that is still writing when
/// the connection ends never sees the refusal.
const DISCARD_BYTES: usize = 32 << 20;

/// And for how long.
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// The whole body.
pub(super) async fn read(
    mut body: Incoming,
    limit: usize,
    patience: Duration,
) -> Result<Vec<u8>, Fault> {
    let deadline = Instant::now() + patience;
    let announced = body.size_hint().exact();
    if let Some(have) =
        announced.filter(|have| usize::try_from(*have).map_or(true, |have| have > limit))
    {
        return Err(too_large(body, limit, Some(have)).await);
    }
    let mut bytes = Vec::new();
    loop {
        match timeout_at(deadline, body.frame()).await {
            Err(_) => return Err(Fault::slow_body()),
            Ok(None) => return Ok(bytes),
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "a request's body broke off");
                return Err(
                    Fault::from(Refusal::bad_request("the request's body broke off")).closing()
                );
            }
            Ok(Some(Ok(frame))) => {
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > limit {
                    return Err(too_large(body, limit, None).await);
                }
                bytes.extend_from_slice(&data);
            }
        }
    }
}

async fn too_large(mut body: Incoming, limit: usize, have: Option<u64>) -> Fault {
    let discard = async {
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else {
                break;
            };
            left = rest;
        }
    };
    // Whoever sends still more, or too slowly, is cut off.
    let _ = timeout(DISCARD_TIME, discard).await;
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let mut refusal =
        Refusal::new(Code::PayloadTooLarge, format!("the request has more than {limit} bytes"));
    refusal.limit = Some(limit);
    refusal.have = have;
    Fault::from(refusal).closing()
}
