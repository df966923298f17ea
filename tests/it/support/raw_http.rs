//! HTTP as bytes: requests as a client writes them, responses taken apart.

use serde_json::{Value, json};

use super::door::Door;

pub(crate) fn request(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

pub(crate) fn chat(fields: &Value) -> String {
    let mut body = json!({"model": "default", "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    request("POST", "/v1/chat/completions", &body.to_string())
}

/// A response in parts; a chunked body is put together.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn read(text: &str) -> Answer {
        let (head, rest) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response, but {text:?}"));
        let head = head.to_ascii_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut body = rest.to_owned();
        if head.contains("transfer-encoding: chunked") {
            body = String::new();
            let mut rest = rest;
            while let Some((size, tail)) = rest.split_once("\r\n") {
                let size = usize::from_str_radix(size, 16).unwrap();
                body.push_str(tail.get(..size).unwrap());
                rest = tail.get(size + 2..).unwrap_or_default();
            }
        }
        Answer { status, head, body }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }

    /// The data of the stream's events.
    pub(crate) fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> =
            self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{self:?}");
        data.into_iter().map(|data| serde_json::from_str(data).unwrap()).collect()
    }
}

pub(crate) async fn ask(door: &Door, bytes: impl AsRef<[u8]>) -> Answer {
    let mut client = door.connect().await;
    client.send(bytes).await;
    Answer::read(&client.rest().await)
}

pub(crate) async fn answered(door: &mut Door, bytes: &str, pieces: &[&str]) -> Answer {
    let mut client = door.connect().await;
    client.send(bytes).await;
    door.answer(pieces).await;
    Answer::read(&client.rest().await)
}
