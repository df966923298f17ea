//! HTTP/1.1 on the socket: connections, and which path does what. Answers' shapes stand in `openai.rs`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioTimer;
use serde_json::json;
use tokio::net::UnixStream;

use super::accept::{self, Peer, Stopping, stopped};
use super::bind::Bound;
use super::openai::{self, Api, Chunks, Head};
use super::patience::Patient;
use super::reply::{Fault, Reply, Work, json_response, response};
use super::stream::Stream;
use super::{App, admin, body, collect, metrics, queue, unix_seconds};
use crate::request::{Code, Refusal};
use crate::scheduler::State;
use crate::wire::{self, Context, status_object};

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

/// What a client reads that comes while there are too many.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
connection: close\r\ncontent-length: 132\r\n\r\n\
{\"error\":{\"message\":\"too many connections; try again soon\",\"type\":\"server_error\",\"param\":null,\
\"code\":\"busy\",\"retry_after_ms\":1000}}\n";

/// Answers HTTP on a socket until `shutdown` ends. Answers that run then are finished first; dropping the future ends them.
pub async fn serve(bound: Bound, app: Arc<App>, shutdown: impl Future<Output = ()>) {
    let most = app.patience.connections;
    accept::run(bound, most, FULL, shutdown, move |stream, peer, stopping| {
        connection(stream, peer, stopping, Arc::clone(&app))
    })
    .await;
}

async fn connection(stream: UnixStream, peer: Peer, mut stopping: Stopping, app: Arc<App>) {
    let patience = app.patience;
    let work = Work::default();
    let held = Arc::clone(&work);
    let service = service_fn(move |request| {
        let (app, peer, work) = (Arc::clone(&app), peer.clone(), Arc::clone(&held));
        async move {
            Ok::<_, Infallible>(
                respond(&app, &peer, request).await.map(|reply| reply.holding(work)),
            )
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
                () = idle(&work) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients come and go; none of this is the operator's trouble.
        tracing::debug!(%error, "an HTTP connection ended early");
    }
}

/// Waits until no request has been at work for a while: what keeps the connection then is half a request.
async fn idle(work: &Work) {
    let mut quiet = 0;
    while quiet < FAREWELL_LOOKS {
        tokio::time::sleep(LOOK).await;
        // One is ours, one is the service's.
        quiet = if Arc::strong_count(work) > 2 { 0 } else { quiet + 1 };
    }
}

async fn respond(app: &Arc<App>, peer: &Peer, request: Request<Incoming>) -> Response<Reply> {
    // Boxed: the futures of a request are large, and only one of them is needed at a time.
    Box::pin(route(app, peer, request)).await.unwrap_or_else(Fault::into_response)
}

async fn route(
    app: &Arc<App>,
    peer: &Peer,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let get = || only(&method, &[Method::GET, Method::HEAD], "GET");
    let post = || only(&method, &[Method::POST], "POST");
    match path.as_str() {
        "/v1/chat/completions" => {
            post()?;
            complete(app, peer, Api::Chat, request).await
        }
        "/v1/completions" => {
            post()?;
            complete(app, peer, Api::Completion, request).await
        }
        "/v1/models" => get().map(|()| models(app)),
        "/health/live" => get().map(|()| json_response(200, &json!({"state": "live"}))),
        "/health/ready" => get().map(|()| ready(app)),
        "/metrics" => get().map(|()| {
            let page = metrics::text(&app.scheduler.status().borrow());
            response(200, "text/plain; version=0.0.4; charset=utf-8", Reply::whole(page))
        }),
        "/v1/queue" => get().map(|()| {
            let status = app.scheduler.status();
            let grant = app.policies.current().access.grant(peer.who(None));
            let object = queue::object(&status.borrow(), &app.running, &grant, peer.is_root());
            json_response(200, &object)
        }),
        "/version" => get().map(|()| {
            let version = env!("CARGO_PKG_VERSION");
            json_response(
                200,
                &json!({"name": "promptd", "version": version, "protocol": wire::PROTOCOL}),
            )
        }),
        path => {
            if let Some(operation) = path.strip_prefix("/admin/") {
                post()?;
                admin::run(app, peer, bearer(request.headers()).as_deref(), operation).await
            } else if let Some(name) = path.strip_prefix("/v1/models/") {
                get()?;
                model(app, name)
            } else if let Some(name) = path.strip_prefix("/v1/sessions/") {
                only(&method, &[Method::DELETE], "DELETE")?;
                end_session(app, peer, bearer(request.headers()).as_deref(), name).await
            } else if let Some(id) = path.strip_prefix("/v1/requests/") {
                only(&method, &[Method::DELETE], "DELETE")?;
                cancel(app, peer, id).await
            } else {
                Err(Fault::no_path(path))
            }
        }
    }
}

fn only(method: &Method, possible: &[Method], allow: &'static str) -> Result<(), Fault> {
    if possible.contains(method) { Ok(()) } else { Err(Fault::wrong_method(method, allow)) }
}

/// Answers a prompt, whole or streamed.
async fn complete(
    app: &Arc<App>,
    peer: &Peer,
    api: Api,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let (key, wait) = (bearer(request.headers()), willing_to_wait(request.headers()));
    let body = request.into_body();
    let bytes = body::read(body, app.limits.payload_bytes, app.patience.body).await?;
    let policy = app.policies.current();
    let context = Context {
        profiles: &policy.profiles,
        readings: app.policies.readings(),
        limits: &app.limits,
        grant: policy.access.grant(peer.who(key.as_deref())),
        now: std::time::Instant::now(),
    };
    let asked = match api {
        Api::Chat => wire::parse_chat(&bytes, &context),
        Api::Completion => wire::parse_completion(&bytes, &context),
    };
    drop(bytes);
    let asked = asked.map_err(|error| Fault::from(*error.refusal))?;
    asked.check_model(app.model().as_deref())?;
    let logprobs = asked.submission.request.logprobs.is_some();
    let mut submission = asked.submission;
    if !asked.stream {
        submission.timeout = submission.timeout.into_iter().chain(wait).min();
    }
    let ticket = app.scheduler.submit(submission).await?;
    let entry = app.running.enter(ticket.id(), peer, api.prefix());
    let model = app.model().unwrap_or_else(|| "promptd".to_owned());
    let session = ticket.session().cloned();
    let (id, created) = (entry.public().to_owned(), unix_seconds());
    let head = Head { api, id, created, model, logprobs, session };
    if asked.stream {
        let voice = Box::new(Chunks::new(head, asked.include_usage));
        let stream = Stream::new(voice, ticket, entry, asked.echo.as_deref(), app.patience.ping);
        return Ok(response(200, "text/event-stream", Reply::stream(stream)));
    }
    let mut whole = collect::whole(ticket).await?;
    whole.text.insert_str(0, &asked.echo.unwrap_or_default());
    Ok(json_response(200, &head.whole(&whole)))
}

/// How long a client says that it waits for a whole answer: `Prefer: wait=10` (RFC 7240), or the time limit that OpenAI's
/// clients set for themselves and tell.
fn willing_to_wait(headers: &hyper::HeaderMap) -> Option<Duration> {
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
fn bearer(headers: &hyper::HeaderMap) -> Option<String> {
    let value = headers.get(hyper::header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, key) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim().to_owned())
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
    json_response(code, &status_object(&status))
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
    if owner.uid != peer.uid && !peer.is_root() {
        return Err(Refusal::new(Code::Forbidden, "this request belongs to another user")
            .with_param("id")
            .into());
    }
    app.scheduler.cancel(id).await;
    Ok(json_response(200, &json!({"id": public, "object": "request", "cancelled": true})))
}

/// A path's segment with its `%XX` undone; malformed ones stay as they are, and then name nothing.
fn decoded(segment: &str) -> String {
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
    fn times_that_clients_wait() {
        let headers = |pairs: &[(&'static str, &str)]| -> hyper::HeaderMap {
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

    #[test]
    fn the_refusal_of_a_full_door_is_well_formed() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())), "{}", body.len());
        serde_json::from_str::<serde_json::Value>(body).unwrap();
    }
}
