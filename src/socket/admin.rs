//! `POST /admin/…`: what only the operator may do.

use hyper::Response;
use serde_json::{Map, Value};

use super::App;
use super::accept::Peer;
use super::reply::{Fault, Reply, json_response};
use crate::control::Operation;
use crate::request::{Code, Refusal};
use crate::wire::status_object;

/// Does it, and answers with the state that came of it.
pub(super) async fn run(
    app: &App,
    peer: &Peer,
    key: Option<&str>,
    name: &str,
) -> Result<Response<Reply>, Fault> {
    let operation = Operation::by_name(name)?;
    let grant = app.policies.current().access.grant(peer.who(key));
    // Whoever could end the process anyway may do less as well.
    if !(grant.admin || peer.is_root() || peer.is_ourselves()) {
        let message = format!(
            "`{}` may not {name}; set `admin = true` in its entry of `[clients]`, or ask as root",
            grant.identity.0
        );
        return Err(Refusal::new(Code::Forbidden, message).into());
    }
    let Some(control) = &app.control else {
        return Err(Refusal::new(Code::Unsupported, "this promptd takes no orders here").into());
    };
    tracing::info!(operation = name, client = grant.identity.0, "asked for over the socket");
    control.run(operation).await?;
    let mut object = Map::new();
    object.insert("object".into(), "operation".into());
    object.insert("operation".into(), operation.name().into());
    object.insert("status".into(), status_object(&app.scheduler.status().borrow()));
    Ok(json_response(200, &Value::Object(object)))
}
