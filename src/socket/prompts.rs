//! Prompts over HTTP: reads a request of one of the APIs, hands it in, and answers in that API's words.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use serde_json::{Map, Value};

use super::accept::{Activity, Peer};
use super::collect::{self, Whole};
use super::ollama::Lines;
use super::openai::{Api, Chunks, Head};
use super::reply::{Fault, Reply, json_response, response};
use super::responses;
use super::stream::Stream;
use super::voice::Voice;
use super::{App, body, unix_seconds};
use crate::request::{Door, Identity, Origin, Refusal};
use crate::scheduler::Name;
use crate::wire::{self, AskError, Asked, Context, OllamaAsked};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest idempotency key: that of the services that made the header known.
pub(super) const LONGEST_KEY: usize = 255;

/// What a request asks.
enum Wanted {
    /// An answer; a response repeats a part of its request.
    Answer(Box<Asked>, Map<String, Value>),
    /// That the model be loaded.
    Load(Option<String>),
}

/// Answers a prompt, whole or streamed.
pub(super) async fn complete(
    app: &Arc<App>,
    peer: &Peer,
    activity: &Activity,
    api: Api,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let (key, wait) = (bearer(request.headers()), willing_to_wait(request.headers()));
    let name = idempotency_key(request.headers())?;
    let policy = app.policies.current();
    let grant = policy.access.grant(peer.who(key.as_deref()));
    let client = grant.identity.clone();
    let refused = |refusal: &Refusal| turned_away(app, &client, refusal);
    let body = request.into_body();
    let limits = app.limits();
    let bytes = body::read(body, limits.payload_bytes, app.patience.body).await;
    let bytes = bytes.inspect_err(|fault| refused(fault.refusal()))?;
    let _work = activity.begin();
    let context = Context {
        profiles: &policy.profiles,
        readings: app.policies.readings(),
        limits: &limits,
        grant,
        now: std::time::Instant::now(),
        door: Door::Http,
    };
    let wanted = read(api, &bytes, &context).inspect_err(|error| refused(&error.refusal));
    let wanted = wanted.map_err(|error| Fault::from(*error.refusal))?;
    let name = name.map(|name| Name::of_one(&name, &[api.path().as_bytes(), &bytes]));
    drop(bytes);
    let (asked, echo) = match wanted {
        Wanted::Answer(asked, echo) => (*asked, echo),
        Wanted::Load(name) => return load(app, api, name).await,
    };
    asked.check_model(app.model().as_deref()).inspect_err(refused)?;
    let logprobs = asked.submission.request.logprobs.is_some();
    let mut submission = asked.submission;
    if !asked.stream {
        submission.timeout = submission.timeout.into_iter().chain(wait).min();
    }
    let ticket = match name {
        Some(name) => app.scheduler.submit_named(submission, &name).await?,
        None => app.scheduler.submit(submission).await?,
    };
    let entry = app.running.enter((ticket.id(), ticket.lasting_number()), peer, api.prefix());
    let model = app.model().unwrap_or_else(|| "promptd".to_owned());
    let (session, attempt) = (ticket.session().cloned(), ticket.attempt());
    let repeated = ticket.is_repeated();
    let (id, created) = (entry.public().to_owned(), unix_seconds());
    let head = Head { api, id, created, model, logprobs, session, attempt };
    let style = Style { head, echo, include_usage: asked.include_usage, named: asked.echo_model };
    if asked.stream {
        let kind = style.content_type();
        let voice = style.voice();
        let stream = Stream::new(voice, ticket, entry, asked.echo.as_deref(), app.patience.ping);
        return Ok(marked(response(200, kind, Reply::stream(stream)), repeated));
    }
    let mut whole = collect::whole(ticket).await?;
    whole.text.insert_str(0, &asked.echo.unwrap_or_default());
    Ok(marked(json_response(200, &style.whole(&whole)), repeated))
}

/// Says of an answer that it was given before, in the header that others use for it.
fn marked(mut response: Response<Reply>, repeated: bool) -> Response<Reply> {
    if repeated {
        let header = HeaderName::from_static("idempotent-replayed");
        response.headers_mut().insert(header, HeaderValue::from_static("true"));
    }
    response
}

fn read(api: Api, bytes: &[u8], context: &Context<'_>) -> Result<Wanted, AskError> {
    let plain = |asked| Wanted::Answer(Box::new(asked), Map::new());
    let ollama = |asked| match asked {
        OllamaAsked::Prompt(asked) => Wanted::Answer(asked, Map::new()),
        OllamaAsked::Load(model) => Wanted::Load(model),
    };
    match api {
        Api::Chat => wire::parse_chat(bytes, context).map(plain),
        Api::Completion => wire::parse_completion(bytes, context).map(plain),
        Api::Responses => wire::parse_response(bytes, context)
            .map(|(asked, echo)| Wanted::Answer(Box::new(asked), echo)),
        Api::OllamaChat => wire::parse_ollama_chat(bytes, context).map(ollama),
        Api::OllamaGenerate => wire::parse_ollama_generate(bytes, context).map(ollama),
    }
}

/// Counts and logs a request that does not reach the scheduler.
pub(super) fn turned_away(app: &App, client: &Identity, refusal: &Refusal) {
    app.scheduler.traffic().turned_away(&Origin::new(Door::Http), Some(client), refusal);
}

/// Has the model loaded, for a client of Ollama's that asks nothing.
async fn load(app: &Arc<App>, api: Api, name: Option<String>) -> Result<Response<Reply>, Fault> {
    wire::check_model(name.as_deref(), app.model().as_deref())?;
    app.scheduler.load().await?;
    let model = name.or_else(|| app.model()).unwrap_or_else(|| "promptd".to_owned());
    let lines = Lines { chat: api == Api::OllamaChat, model, open: None };
    Ok(json_response(200, &lines.loaded()))
}

/// How an answer is written.
struct Style {
    head: Head,
    echo: Map<String, Value>,
    include_usage: bool,
    /// The model as the client named it.
    named: Option<String>,
}

impl Style {
    fn content_type(&self) -> &'static str {
        match self.head.api {
            Api::Chat | Api::Completion | Api::Responses => "text/event-stream",
            Api::OllamaChat | Api::OllamaGenerate => "application/x-ndjson",
        }
    }

    fn lines(self) -> Lines {
        let chat = self.head.api == Api::OllamaChat;
        Lines { chat, model: self.named.unwrap_or(self.head.model), open: None }
    }

    fn voice(self) -> Box<dyn Voice> {
        match self.head.api {
            Api::Chat | Api::Completion => Box::new(Chunks::new(self.head, self.include_usage)),
            Api::Responses => {
                let response = responses::Response { head: self.head, echo: self.echo };
                Box::new(responses::Events::new(response))
            }
            Api::OllamaChat | Api::OllamaGenerate => Box::new(self.lines()),
        }
    }

    fn whole(self, answer: &Whole) -> Value {
        match self.head.api {
            Api::Chat | Api::Completion => self.head.whole(answer),
            Api::Responses => {
                responses::Response { head: self.head, echo: self.echo }.whole(answer)
            }
            Api::OllamaChat | Api::OllamaGenerate => self.lines().whole(answer),
        }
    }
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

/// The name that a client gives to its request, to have it answered once however often it sends it
/// (draft-ietf-httpapi-idempotency-key-header).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    let mut values = headers.get_all(IDEMPOTENCY_KEY).into_iter();
    let Some(value) = values.next() else { return Ok(None) };
    let text = value
        .to_str()
        .ok()
        .map(str::trim)
        .filter(|text| (1..=LONGEST_KEY).contains(&text.len()))
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()) && values.next().is_none());
    let Some(text) = text else {
        let message = format!(
            "an idempotency key has 1 to {LONGEST_KEY} visible ASCII characters, and a request one of them"
        );
        return Err(Refusal::bad_request(message).with_param("Idempotency-Key"));
    };
    Ok(Some(text.to_owned()))
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
