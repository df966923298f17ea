//! `POST /admin/…`: what only the operator may do.

use hyper::body::Incoming;
use hyper::{Request, Response};
use serde_json::{Map, Value};

use super::accept::Peer;
use super::asking::bearer;
use super::reply::{Fault, Reply, json_response};
use super::{App, body};
use crate::control::Operation;
use crate::request::{Code, Refusal};
use crate::wire::status_object;

/// The operation that has an argument and needs nobody but the log.
const LOG_LEVEL: &str = "loglevel";

/// Bytes of an order: an operation has one short argument at most.
const ORDER_BYTES: usize = 4096;

/// Does it, and answers with the state that came of it.
pub(super) async fn run(
    app: &App,
    peer: &Peer,
    name: &str,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let operation = if name == LOG_LEVEL { None } else { Some(Operation::by_name(name)?) };
    let key = bearer(request.headers());
    let grant = app.policies.current().access.grant(peer.who(key.as_deref()));
    // Whoever could end the process anyway may do less as well.
    if !(grant.admin || peer.is_root() || peer.is_ourselves()) {
        let message = format!(
            "`{}` may not {name}; set `admin = true` in its entry of `[clients]`, or ask as root",
            grant.identity.0
        );
        return Err(Fault::from(Refusal::new(Code::Forbidden, message)).closing());
    }
    let Some(control) = &app.control else {
        return Err(Refusal::new(Code::Unsupported, "this promptd takes no orders here").into());
    };
    tracing::info!(operation = name, client = grant.identity.0, "asked for over the socket");
    let mut object = Map::new();
    object.insert("object".into(), "operation".into());
    object.insert("operation".into(), name.into());
    // Read in any case: a client that is still writing when the connection ends may miss the answer.
    let order = body::read(request.into_body(), ORDER_BYTES, app.patience.body).await?;
    if let Some(operation) = operation {
        control.run(operation).await?;
    } else {
        let level = level(&order)?;
        control.set_log_level(&level)?;
        object.insert("level".into(), level.into());
    }
    object.insert("status".into(), status_object(&app.scheduler.status().borrow()));
    Ok(json_response(200, &Value::Object(object)))
}

/// The level that an order names: `{"level":"debug"}`.
fn level(body: &[u8]) -> Result<String, Refusal> {
    let order: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
        let message = format!("the order is no JSON object like {{\"level\":\"debug\"}}: {error}");
        Refusal::bad_request(message)
    })?;
    if let Some(other) = order.keys().find(|key| *key != "level") {
        let shown: String = other.chars().take(40).collect();
        return Err(Refusal::bad_request(format!("there is no field {shown:?}; `level` is one"))
            .with_param(shown));
    }
    let level = order.get("level").and_then(Value::as_str).map(str::to_owned);
    level.ok_or_else(|| {
        Refusal::bad_request("`level` is missing: error, warn, info, debug, trace or directives")
            .with_param("level")
    })
}
