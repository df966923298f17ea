//! A plain HTTP/1.1 client over a Unix socket: what curl would send, read to the byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::PATIENCE;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", self.body))
    }

    /// The first header of that name, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// GET, if there is somebody to answer.
pub(crate) fn try_get(socket: &Path, target: &str) -> Option<Answer> {
    try_bare(socket, "GET", target)
}

/// DELETE.
pub(crate) fn delete(socket: &Path, target: &str) -> Answer {
    try_bare(socket, "DELETE", target).unwrap_or_else(|| panic!("no answer to DELETE {target}"))
}

fn try_bare(socket: &Path, method: &str, target: &str) -> Option<Answer> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    read_answer(&mut BufReader::new(stream))
}

/// GET.
pub(crate) fn get(socket: &Path, target: &str) -> Answer {
    try_get(socket, target).unwrap_or_else(|| panic!("no answer to GET {target}"))
}

/// POST of JSON.
pub(crate) fn post(socket: &Path, target: &str, body: &Value) -> Answer {
    read_answer(&mut send(socket, target, body))
        .unwrap_or_else(|| panic!("no answer to POST {target}"))
}

/// POST of JSON with further headers, if somebody answers to the end.
pub(crate) fn try_post(
    socket: &Path,
    target: &str,
    body: &Value,
    headers: &[(&str, &str)],
) -> Option<Answer> {
    read_answer(&mut send_with(socket, target, body, headers))
}

/// POST of JSON whose answer is a stream of server-sent events; each `data:` line is one item, `[DONE]` the end.
pub(crate) fn stream(socket: &Path, target: &str, body: &Value) -> Events {
    let mut reader = send(socket, target, body);
    let (status, headers) = read_head(&mut reader).expect("an answer");
    assert_eq!(status, 200, "{:?}", read_body(&mut reader, &headers));
    Events { reader, rest: String::new(), done: false }
}

/// Joins the text of a stream's chunks: (text, finish reason).
pub(crate) fn collect(events: Events) -> (String, Option<String>) {
    let (mut text, mut finish) = (String::new(), None);
    for chunk in events {
        assert!(chunk.get("error").is_none(), "{chunk}");
        for choice in chunk["choices"].as_array().into_iter().flatten() {
            let piece = choice["delta"]["content"].as_str().or(choice["text"].as_str());
            text.push_str(piece.unwrap_or(""));
            finish = choice["finish_reason"].as_str().map(str::to_owned).or(finish);
        }
    }
    (text, finish)
}

/// The events of a stream as they come.
#[derive(Debug)]
pub(crate) struct Events {
    reader: BufReader<UnixStream>,
    rest: String,
    done: bool,
}

impl Iterator for Events {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.find("\n\n") {
                let event: String = self.rest.drain(..end + 2).collect();
                let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
                if data == "[DONE]" {
                    self.done = true;
                    return None;
                }
                return Some(serde_json::from_str(data).expect(data));
            }
            let Some(chunk) = read_chunk(&mut self.reader) else {
                assert!(self.done, "the stream ended without [DONE]; left: {:?}", self.rest);
                return None;
            };
            self.rest.push_str(&String::from_utf8(chunk).expect("chunks end between characters"));
        }
    }
}

fn send(socket: &Path, target: &str, body: &Value) -> BufReader<UnixStream> {
    send_with(socket, target, body, &[])
}

fn send_with(
    socket: &Path,
    target: &str,
    body: &Value,
    headers: &[(&str, &str)],
) -> BufReader<UnixStream> {
    let more = headers
        .iter()
        .fold(String::new(), |more, (name, value)| format!("{more}{name}: {value}\r\n"));
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{more}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // Who refuses by the head answers and closes before the body is read; the answer is there all the same.
    let _ = stream.write_all(body.as_bytes());
    BufReader::new(stream)
}

fn read_answer(reader: &mut BufReader<UnixStream>) -> Option<Answer> {
    let (status, headers) = read_head(reader)?;
    let body = read_body(reader, &headers)?;
    Some(Answer { status, headers, body })
}

fn read_head(reader: &mut BufReader<UnixStream>) -> Option<(u16, Vec<(String, String)>)> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let status = line.split(' ').nth(1)?.parse().ok()?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    Some((status, headers))
}

fn read_body(reader: &mut BufReader<UnixStream>, headers: &[(String, String)]) -> Option<String> {
    let mut bytes = Vec::new();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        while let Some(chunk) = read_chunk(reader) {
            bytes.extend(chunk);
        }
    } else {
        reader.read_to_end(&mut bytes).ok()?;
    }
    String::from_utf8(bytes).ok()
}

/// One chunk of a chunked body; `None` at the last one or at the end of the connection.
fn read_chunk(reader: &mut BufReader<UnixStream>) -> Option<Vec<u8>> {
    let mut size = String::new();
    reader.read_line(&mut size).ok()?;
    let size = usize::from_str_radix(size.trim(), 16).ok().filter(|size| *size > 0)?;
    let mut chunk = vec![0; size + 2];
    reader.read_exact(&mut chunk).ok()?;
    chunk.truncate(size);
    Some(chunk)
}
