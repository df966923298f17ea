//! An answer as it comes from the service, piece by piece: what `ask` and `chat` print.

use std::collections::VecDeque;

use http_body_util::BodyExt as _;
use hyper::Response;
use hyper::body::Incoming;
use serde_json::Value;

use super::http::{Client, Events, Trouble};

/// The most one event of a stream may have: a piece of text is some bytes.
const EVENT_BYTES: usize = 1 << 20;

/// An answer that is being written. Dropping it closes the connection, which cancels the prompt.
pub(super) struct Answering<'a> {
    client: &'a Client<'a>,
    response: Response<Incoming>,
    events: Events,
    whole: VecDeque<String>,
    /// Why it ended, as soon as that is known.
    pub(super) finish: Value,
    /// Tokens and times, where they were asked for.
    pub(super) usage: Value,
}

impl<'a> Answering<'a> {
    /// Sends a request with `"stream":true`.
    pub(super) async fn begin(
        client: &'a Client<'a>,
        path: &str,
        body: &Value,
    ) -> Result<Self, Trouble> {
        let response = client.send(path, Some(body)).await?;
        if !response.status().is_success() {
            let (_, answer) = client.read_json(response).await?;
            return Err(Trouble::refused(answer.get("error").unwrap_or(&Value::Null)));
        }
        let (events, whole) = (Events::default(), VecDeque::new());
        Ok(Self { client, response, events, whole, finish: Value::Null, usage: Value::Null })
    }

    /// The next piece of its text; `None` at its end. Nothing is lost when the future is dropped in between.
    pub(super) async fn next(&mut self) -> Result<Option<String>, Trouble> {
        loop {
            while let Some(data) = self.whole.pop_front() {
                if data == "[DONE]" {
                    return Ok(None);
                }
                if let Some(text) = self.read(&data)? {
                    return Ok(Some(text));
                }
            }
            if self.events.unfinished() > EVENT_BYTES {
                return Err(self.client.strange("an event does not end".to_owned()));
            }
            let frame = self.response.body_mut().frame().await;
            let frame = frame.ok_or_else(|| self.client.cut_off())?;
            let frame = frame.map_err(|error| self.client.broken(error))?;
            self.whole.extend(self.events.push(frame.data_ref().map_or(&[], |data| data.as_ref())));
        }
    }

    fn read(&mut self, data: &str) -> Result<Option<String>, Trouble> {
        let event: Value = serde_json::from_str(data)
            .map_err(|error| self.client.strange(format!("no JSON, {error}")))?;
        if let Some(error) = event.get("error") {
            return Err(Trouble::refused(error));
        }
        if let Some(usage) = event.get("usage").filter(|usage| usage.is_object()) {
            self.usage = usage.clone();
        }
        let Some(choice) = event.pointer("/choices/0") else { return Ok(None) };
        if let Some(finish) = choice.get("finish_reason").filter(|finish| finish.is_string()) {
            self.finish = finish.clone();
        }
        let text = choice.pointer("/delta/content").or_else(|| choice.get("text"));
        Ok(text.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned))
    }
}
