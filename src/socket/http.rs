//! HTTP/1.1 on the socket: connections, and which path does what. Answers' shapes stand in `openai.rs`.

use std::convert::Infallible;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONNECTION, HeaderValue, TRANSFER_ENCODING};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioTimer;
use serde_json::json;

use super::accept::{self, Activity, Most, Peer, Stopping, stopped};
use super::asking::{bearer, turned_away};
use super::bind::Bound;
use super::connection::Arrival;
use super::openai::{self, Api};
use super::patience::Patient;
use super::prompts::complete;
use super::reply::{Fault, Reply, json_response, response};
use super::{App, admin, body, embeddings, guard, metrics, ollama, openapi, page, queue};
use crate::request::{Code, Refusal};
use crate::scheduler::State;
use crate::wire::{self, status_object};

/// Bytes of a request's head. Clients of an API send some hundred; 16 KiB is what servers commonly allow.
const HEAD_BYTES: usize = 16 << 10;

/// Fields of a request's head, for the same reason.
const HEAD_FIELDS: usize = 64;

/// Bytes hyper buffers for a connection in each direction: the head, or a few chunks of an answer.
const BUFFER_BYTES: usize = 64 << 10;

/// When the service stops, a connection that is not at work gets this many looks to hand over what it has written and to
/// end; together three seconds, which a client that reads at all does not need.
const FAREWELL_LOOKS: u32 = 15;
const LOOK: Duration = Duration::from_millis(200);

/// `/openapi.json`, made when somebody asks for the first time.
static DOCUMENT: OnceLock<Bytes> = OnceLock::new();

/// What a client reads that comes while there are too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 132\r\n\r\n\
{\"error\":{\"message\":\"too many connections; try again soon\",\"type\":\"server_error\",\"param\":null,\
\"code\":\"busy\",\"retry_after_ms\":1000}}\n";

/// Answers HTTP on a socket until `shutdown` ends. Answers that run then are finished first; dropping the future ends them.
pub async fn serve(bound: Bound, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let most =
        Most { all: app.patience.connections, each: app.patience.connections_of_one, full: FULL };
    accept::run(bound, most, shutdown, move |arrival, peer, stopping, activity| {
        connection(arrival, peer, activity, Arc::clone(&app), Visit { stopping, metrics: false })
    })
    .await;
}

/// Answers `GET /metrics` and nothing else, until `shutdown` ends: for those who collect metrics and know neither Unix
/// sockets nor keys.
pub async fn serve_metrics(bound: Bound, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    // Two collectors, and somebody who looks.
    let most = Most { all: 8, each: 8, full: FULL };
    accept::run(bound, most, shutdown, move |arrival, peer, stopping, activity| {
        connection(arrival, peer, activity, Arc::clone(&app), Visit { stopping, metrics: true })
    })
    .await;
}

/// What is special about a connection.
struct Visit {
    stopping: Stopping,
    /// Only the metrics are there for it.
    metrics: bool,
}

async fn connection(arrival: Arrival, peer: Peer, activity: Activity, app: Arc<App>, visit: Visit) {
    let Visit { mut stopping, metrics } = visit;
    let patience = app.patience;
    // Until both have agreed on how to speak, a connection is as good as idle.
    let stream = tokio::select! {
        agreed = tokio::time::timeout(patience.head, arrival.agree()) => match agreed {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS connection did not come about");
                return;
            }
            Err(_) => return,
        },
        () = stopped(&mut stopping) => return,
    };
    let at_work = activity.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (app, peer, activity) = (Arc::clone(&app), peer.clone(), activity.clone());
        async move {
            // A request with a body has begun when that has arrived; until then its connection is as good as idle.
            let work = request.body().is_end_stream().then(|| activity.begin());
            let reply = if metrics {
                only_metrics(&app, &request).unwrap_or_else(Fault::into_response)
            } else {
                respond(&app, &peer, &activity, request).await
            };
            let work = work.unwrap_or_else(|| activity.begin());
            Ok::<_, Infallible>(reply.map(|reply| reply.holding(work)))
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(patience.head);
    builder.max_header_size(HEAD_BYTES).max_headers(HEAD_FIELDS).max_buf_size(BUFFER_BYTES);
    let mut connection =
        std::pin::pin!(builder.serve_connection(Patient::new(stream, patience.unread), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection => ended,
                () = idle(&at_work) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients come and go; none of this is the operator's trouble.
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Waits until no request has been at work for a while: what keeps the connection then is half a request.
async fn idle(activity: &Activity) {
    let mut quiet = 0;
    while quiet < FAREWELL_LOOKS {
        tokio::time::sleep(LOOK).await;
        quiet = if activity.is_idle() { quiet + 1 } else { 0 };
    }
}

fn only_metrics(app: &App, request: &Request<Incoming>) -> Result<Response<Reply>, Fault> {
    match request.uri().path() {
        "/metrics" => {
            only(request.method(), &[Method::GET, Method::HEAD], "GET").map(|()| metrics_page(app))
        }
        path => Err(Fault::no_path(path)),
    }
}

fn metrics_page(app: &App) -> Response<Reply> {
    let status = app.scheduler.status();
    let status = status.borrow();
    let looks = metrics::Looks::now(&app.board, &status);
    let page = metrics::text(&status, &app.scheduler.traffic().counts(), &looks);
    response(200, "text/plain; version=0.0.4; charset=utf-8", Reply::whole(page))
}

async fn respond(
    app: &Arc<App>,
    peer: &Peer,
    activity: &Activity,
    request: Request<Incoming>,
) -> Response<Reply> {
    let ollama = request.uri().path().starts_with("/api/");
    // Who sends a length beside the chunks may mean another end than we see; what comes behind it is nobody's request
    // (RFC 9112, 6.1).
    let last = request.headers().contains_key(TRANSFER_ENCODING);
    // Boxed: the futures of a request are large, and only one of them is needed at a time.
    let admitted = if peer.tcp {
        guard::admit(app, peer, request.uri().path(), request.headers())
    } else {
        Ok(peer.clone())
    };
    let answer = match admitted {
        Ok(peer) => Box::pin(route(app, &peer, activity, request)).await,
        Err(fault) => Err(fault),
    };
    let mut response = answer.unwrap_or_else(|fault| {
        if ollama { fault.in_ollamas_words() } else { fault }.into_response()
    });
    if last {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Who may not ask is told so before a byte of the body is read; whether promptd lives is nobody's secret.
fn check_allowed(app: &App, peer: &Peer, request: &Request<Incoming>) -> Result<(), Fault> {
    if request.uri().path().starts_with("/health/") {
        return Ok(());
    }
    let key = bearer(request.headers());
    let grant = app.policies.current().access.grant(peer.who(key.as_deref()));
    grant.check_allowed().map_err(|refusal| {
        turned_away(app, &grant.identity, &refusal);
        Fault::from(refusal).closing()
    })
}

async fn route(
    app: &Arc<App>,
    peer: &Peer,
    activity: &Activity,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    check_allowed(app, peer, &request)?;
    let get = || only(&method, &[Method::GET, Method::HEAD], "GET");
    let post = || only(&method, &[Method::POST], "POST");
    match path.as_str() {
        "/v1/chat/completions"
        | "/v1/completions"
        | "/v1/responses"
        | "/api/chat"
        | "/api/generate" => {
            post()?;
            let api = match path.as_str() {
                "/v1/chat/completions" => Api::Chat,
                "/v1/completions" => Api::Completion,
                "/v1/responses" => Api::Responses,
                "/api/chat" => Api::OllamaChat,
                _ => Api::OllamaGenerate,
            };
            complete(app, peer, activity, api, request).await
        }
        "/v1/embeddings" => {
            post()?;
            embeddings::embed(app, peer, activity, request).await
        }
        "/v1/models" => get().map(|()| models(app)),
        "/health/live" => get().map(|()| json_response(200, &json!({"state": "live"}))),
        "/health/ready" => get().map(|()| ready(app)),
        "/metrics" => get().map(|()| metrics_page(app)),
        "/v1/queue" => get().map(|()| {
            let status = app.scheduler.status();
            let key = bearer(request.headers());
            let grant = app.policies.current().access.grant(peer.who(key.as_deref()));
            let object = queue::object(&status.borrow(), &app.running, &grant, peer.is_root());
            json_response(200, &object)
        }),
        "/openapi.json" => get().map(|()| {
            let bytes = DOCUMENT.get_or_init(|| openapi::document().to_string().into());
            response(200, "application/json", Reply::whole(bytes.clone()))
        }),
        "/version" => get().map(|()| {
            let version = env!("CARGO_PKG_VERSION");
            json_response(
                200,
                &json!({"name": "promptd", "version": version, "protocol": wire::PROTOCOL}),
            )
        }),
        path => {
            if path.starts_with("/api/") {
                of_ollama(app, &method, path, request).await
            } else if let Some(operation) = path.strip_prefix("/admin/") {
                post()?;
                admin::run(app, peer, operation, request).await
            } else if let Some(name) = path.strip_prefix("/v1/models/") {
                get()?;
                model(app, name)
            } else if let Some(name) = path.strip_prefix("/v1/sessions/") {
                only(&method, &[Method::DELETE], "DELETE")?;
                end_session(app, peer, bearer(request.headers()).as_deref(), name).await
            } else if let Some(id) = path.strip_prefix("/v1/requests/") {
                only(&method, &[Method::DELETE], "DELETE")?;
                cancel(app, peer, id).await
            } else if path == page::PATH && peer.tcp && app.page {
                get().map(|()| page::show())
            } else {
                Err(Fault::no_path(path))
            }
        }
    }
}

fn only(method: &Method, possible: &[Method], allow: &'static str) -> Result<(), Fault> {
    if possible.contains(method) { Ok(()) } else { Err(Fault::wrong_method(method, allow)) }
}

/// What Ollama's clients ask besides answers.
async fn of_ollama(
    app: &App,
    method: &Method,
    path: &str,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let get = || only(method, &[Method::GET, Method::HEAD], "GET");
    let status = app.scheduler.status();
    match path {
        "/api/version" => get().map(|()| {
            let version = env!("CARGO_PKG_VERSION");
            json_response(200, &json!({"version": ollama::API_VERSION, "promptd": version}))
        }),
        "/api/tags" => get().map(|()| {
            json_response(200, &ollama::tags(status.borrow().model.as_deref(), app.started))
        }),
        "/api/ps" => {
            get().map(|()| json_response(200, &ollama::running(status.borrow().model.as_deref())))
        }
        "/api/show" => {
            only(method, &[Method::POST], "POST")?;
            let body = request.into_body();
            let body = body::read(body, app.limits().payload_bytes, app.patience.body).await?;
            ollama_show(app, &body)
        }
        path => Err(Fault::no_path(path)),
    }
}

/// `POST /api/show`: what is known of the model.
fn ollama_show(app: &App, body: &[u8]) -> Result<Response<Reply>, Fault> {
    let body: serde_json::Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("the request is no valid JSON: {error}")))?;
    let name = body.get("model").or_else(|| body.get("name")).and_then(|name| name.as_str());
    let name = name.map(|name| name.strip_suffix(":latest").unwrap_or(name));
    let Some(name) = name else {
        let message = "`model` is missing: the model's name";
        return Err(Refusal::bad_request(message).with_param("model").into());
    };
    let status = app.scheduler.status();
    let status = status.borrow();
    let Some(model) = &status.model else {
        return Err(Refusal::new(Code::NotFound, "no model is loaded yet").into());
    };
    wire::check_model(Some(name), Some(&model.name))?;
    Ok(json_response(200, &ollama::show(model, app.started)))
}

fn models(app: &App) -> Response<Reply> {
    let status = app.scheduler.status();
    let status = status.borrow();
    let list: Vec<_> = status
        .model
        .iter()
        .map(|model| openai::model(&model.name, app.started, model.context))
        .collect();
    json_response(200, &json!({"object": "list", "data": list}))
}

fn model(app: &App, encoded: &str) -> Result<Response<Reply>, Fault> {
    let name = decoded(encoded);
    let status = app.scheduler.status();
    let status = status.borrow();
    match &status.model {
        Some(model) if name == model.name || name == "default" || name == "promptd" => {
            Ok(json_response(200, &openai::model(&model.name, app.started, model.context)))
        }
        Some(model) => {
            let message =
                format!("there is no such model here; this promptd serves `{}`", model.name);
            Err(Refusal::new(Code::NotFound, message).with_param("model").into())
        }
        None => {
            Err(Refusal::new(Code::NotFound, "no model is loaded yet").with_param("model").into())
        }
    }
}

/// Whether prompts are taken, with everything `promptd status` shows.
fn ready(app: &App) -> Response<Reply> {
    let status = app.scheduler.status();
    let status = status.borrow();
    let code = if matches!(status.state, State::Ready | State::Unloaded) { 200 } else { 503 };
    let mut object = status_object(&status);
    if let (Some(broker), Some(map)) = (&app.broker, object.as_object_mut()) {
        map.insert("broker".into(), wire::broker_object(&broker.borrow()));
    }
    let policy = app.policies.current();
    let ages = policy.profiles.context_ages(app.policies.readings(), Instant::now());
    if let Some(map) = object.as_object_mut().filter(|_| !ages.is_empty()) {
        map.insert("context".into(), wire::context_object(&ages));
    }
    json_response(code, &object)
}

/// Forgets a conversation of the one who asks.
async fn end_session(
    app: &App,
    peer: &Peer,
    key: Option<&str>,
    encoded: &str,
) -> Result<Response<Reply>, Fault> {
    let name = decoded(encoded);
    let client = app.policies.current().access.grant(peer.who(key)).identity;
    if app.scheduler.end_session(client, name.clone()).await {
        return Ok(json_response(200, &json!({"id": name, "object": "session", "deleted": true})));
    }
    Err(Refusal::new(Code::NotFound, "you have no session of this name")
        .with_param("session")
        .into())
}

async fn cancel(app: &App, peer: &Peer, public: &str) -> Result<Response<Reply>, Fault> {
    let Some((id, owner)) = app.running.find(public) else {
        return Err(Refusal::new(Code::NotFound, "there is no running request with this id")
            .with_param("id")
            .into());
    };
    // root may end anybody's.
    if !owner.is(peer) && !peer.is_root() {
        return Err(Refusal::new(Code::Forbidden, "this request belongs to another user")
            .with_param("id")
            .into());
    }
    app.scheduler.cancel(id).await;
    Ok(json_response(200, &json!({"id": public, "object": "request", "cancelled": true})))
}

/// A path's segment with its `%XX` undone; malformed ones stay as they are, and then name nothing.
pub(super) fn decoded(segment: &str) -> String {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let pair = tail
            .get(..2)
            .filter(|_| *first == b'%')
            .and_then(|pair| std::str::from_utf8(pair).ok());
        if let Some(byte) = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            bytes.push(byte);
            rest = tail.get(2..).unwrap_or_default();
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments() {
        for (segment, name) in [
            ("a", "a"),
            ("a%20b", "a b"),
            ("%e4%bd%a0", "你"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz", "%zz"),
        ] {
            assert_eq!(decoded(segment), name);
        }
    }

    #[test]
    fn the_refusal_of_a_full_door_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
