//! Prompts over HTTP: reads a request of one of the APIs, hands it in, and answers in that API's words.

use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};
use hyper::{HeaderMap, Request, Response};
use serde_json::{Map, Value};

use super::accept::{Activity, Peer};
use super::asking::Asking;
use super::collect::{self, Whole};
use super::ollama::Lines;
use super::openai::{Api, Chunks, Head};
use super::reply::{Fault, Reply, json_response, response};
use super::responses;
use super::stream::Stream;
use super::voice::Voice;
use super::{App, unix_seconds};
use crate::request::Refusal;
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
    let name = idempotency_key(request.headers())?;
    let mut asking = Asking::arrive(app, peer, activity, request).await?;
    let wanted = read(api, asking.body(), &asking.context());
    let wanted = wanted.inspect_err(|error| asking.turned_away(&error.refusal));
    let wanted = wanted.map_err(|error| Fault::from(*error.refusal))?;
    let name = name.map(|name| Name::of_one(&name, &[api.path().as_bytes(), asking.body()]));
    asking.forget_body();
    let (asked, echo) = match wanted {
        Wanted::Answer(asked, echo) => (*asked, echo),
        Wanted::Load(name) => return load(app, api, name).await,
    };
    asked.check_model(app.model().as_deref()).inspect_err(|refusal| asking.turned_away(refusal))?;
    let logprobs = asked.submission.request.logprobs.is_some();
    // A stream may say something in time and still go on when its client's patience ends.
    let submission = asked.submission;
    let submission = if asked.stream { submission } else { asking.in_time(submission) };
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
