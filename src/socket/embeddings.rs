//! `POST /v1/embeddings`: vectors that stand for texts, in OpenAI's words.

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, Response};
use serde::Serialize;

use super::App;
use super::accept::{Activity, Peer};
use super::asking::Asking;
use super::base64::base64;
use super::collect::lost;
use super::reply::{Fault, Reply, response};
use crate::request::{Code, Event, Refusal, Usage};
use crate::scheduler::Ticket;
use crate::wire;

/// What the ids of such prompts begin with, in `/v1/queue`.
const PREFIX: &str = "embd";

/// Answers with a vector for each text.
pub(super) async fn embed(
    app: &Arc<App>,
    peer: &Peer,
    activity: &Activity,
    request: Request<Incoming>,
) -> Result<Response<Reply>, Fault> {
    let mut asking = Asking::arrive(app, peer, activity, request).await?;
    let asked = wire::parse_embeddings(asking.body(), &asking.context());
    let asked = asked.inspect_err(|refusal| asking.turned_away(refusal))?;
    asking.forget_body();
    asked.check_model(app.model().as_deref()).inspect_err(|refusal| asking.turned_away(refusal))?;
    let submission = asking.in_time(asked.submission);
    let ticket = app.scheduler.submit(submission).await?;
    let entry = app.running.enter((ticket.id(), ticket.lasting_number()), peer, PREFIX);
    let model = app.model().unwrap_or_else(|| "promptd".to_owned());
    let (vectors, usage) = vectors(ticket, asked.texts).await?;
    drop(entry);
    // Megabytes of numbers take a while to write, and the connections' thread is everybody's.
    let write = move || written(&model, &vectors, asked.base64, usage);
    let page = tokio::task::spawn_blocking(write).await;
    let page = page
        .ok()
        .flatten()
        .ok_or_else(|| Refusal::new(Code::Internal, "the vectors could not be written as JSON"))?;
    Ok(response(200, "application/json", Reply::whole(page)))
}

/// Waits for all vectors. Dropping the future cancels the prompt.
async fn vectors(mut ticket: Ticket, count: usize) -> Result<(Vec<Vec<f32>>, Usage), Refusal> {
    let mut vectors: Vec<Vec<f32>> = vec![Vec::new(); count];
    loop {
        match ticket.next().await {
            Some(Event::Vector { index, values }) => {
                let place = usize::try_from(index).ok().and_then(|index| vectors.get_mut(index));
                if let Some(place) = place {
                    *place = values;
                }
            }
            Some(Event::Finished(finish)) => {
                if vectors.iter().any(Vec::is_empty) {
                    let message = "the engine has not given a vector for each text";
                    return Err(Refusal::new(Code::Internal, message));
                }
                return Ok((vectors, finish.usage));
            }
            Some(Event::Failed(refusal)) => return Err(refusal),
            Some(
                Event::Queued { .. }
                | Event::Started { .. }
                | Event::Prefill { .. }
                | Event::Delta { .. },
            ) => {}
            None => return Err(lost()),
        }
    }
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
    model: &'a str,
    usage: Tokens,
}

#[derive(Serialize)]
struct Entry<'a> {
    object: &'static str,
    index: usize,
    embedding: Vector<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Vector<'a> {
    Numbers(&'a [f32]),
    /// Its numbers as bytes, the lowest first, as OpenAI's clients read them.
    Base64(String),
}

#[derive(Serialize)]
struct Tokens {
    prompt_tokens: u32,
    total_tokens: u32,
}

fn written(model: &str, vectors: &[Vec<f32>], in_base64: bool, usage: Usage) -> Option<Bytes> {
    let entry = |(index, values): (usize, _)| {
        let embedding =
            if in_base64 { Vector::Base64(in_bytes(values)) } else { Vector::Numbers(values) };
        Entry { object: "embedding", index, embedding }
    };
    let data = vectors.iter().map(Vec::as_slice).enumerate().map(entry).collect();
    let usage = Tokens { prompt_tokens: usage.prompt, total_tokens: usage.prompt };
    let mut bytes = serde_json::to_vec(&List { object: "list", data, model, usage }).ok()?;
    bytes.push(b'\n');
    Some(bytes.into())
}

fn in_bytes(values: &[f32]) -> String {
    let bytes: Vec<u8> = values.iter().flat_map(|number| number.to_le_bytes()).collect();
    base64(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn both_ways_to_write_a_vector() {
        let vectors = [vec![0.6, -0.8], vec![1.0, 0.0]];
        let usage = Usage { prompt: 7, ..Usage::default() };
        let page = |in_base64| -> Value {
            serde_json::from_slice(&written("m", &vectors, in_base64, usage).unwrap()).unwrap()
        };
        // The shortest digits that mean the number in single precision, not those of its double.
        let text = written("m", &vectors, false, usage).unwrap();
        assert!(std::str::from_utf8(&text).unwrap().contains("[0.6,-0.8]"));
        assert_eq!(
            page(true),
            json!({"object": "list", "model": "m", "usage": {"prompt_tokens": 7, "total_tokens": 7}, "data": [
                {"object": "embedding", "index": 0, "embedding": "mpkZP83MTL8="},
                {"object": "embedding", "index": 1, "embedding": "AACAPwAAAAA="},
            ]})
        );
    }
}
