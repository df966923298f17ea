//! Those who ask: a client of MQTT 5 that keeps everything it gets, and clients of both sockets that read a stream.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A final message that came to the clients.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Final {
    pub(crate) topic: String,
    pub(crate) correlation: Option<Bytes>,
    pub(crate) object: Value,
}

/// A client of the broker.
pub(crate) struct Client {
    sender: AsyncClient,
    finals: Arc<Mutex<Vec<Final>>>,
    poller: JoinHandle<()>,
}

/// A prompt as it is published.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) topic: String,
    pub(crate) payload: String,
    pub(crate) back: Option<String>,
    pub(crate) correlation: Option<String>,
    pub(crate) expiry: Option<u32>,
}

impl Client {
    /// Connects and subscribes, and does both again whenever that is needed.
    pub(crate) async fn connect(port: u16, name: &str, topics: Vec<String>) -> Client {
        let mut options = MqttOptions::new(name, "127.0.0.1", port);
        options.set_clean_start(false).set_session_expiry_interval(Some(120));
        options.set_outgoing_inflight_upper_limit(50);
        let (sender, mut events) = AsyncClient::new(options, 1000);
        let finals = Arc::new(Mutex::new(Vec::new()));
        let (ready, mut subscribed) = mpsc::channel(64);
        let (subscriber, kept) = (sender.clone(), Arc::clone(&finals));
        let poller = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Event::Incoming(Packet::ConnAck(ack))) if !ack.session_present => {
                        for topic in &topics {
                            let _ = subscriber.try_subscribe(topic.as_str(), QoS::AtLeastOnce);
                        }
                    }
                    Ok(Event::Incoming(Packet::SubAck(_))) => {
                        let _ = ready.try_send(());
                    }
                    Ok(Event::Incoming(Packet::Publish(publish))) => keep(&kept, publish),
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        });
        subscribed.recv().await;
        Client { sender, finals, poller }
    }

    /// Publishes without waiting for anything.
    pub(crate) fn publish(&self, letter: &Letter) {
        let properties = PublishProperties {
            response_topic: letter.back.clone(),
            correlation_data: letter.correlation.clone().map(Bytes::from),
            message_expiry_interval: letter.expiry,
            ..PublishProperties::default()
        };
        let _ = self.sender.try_publish_with_properties(
            letter.topic.as_str(),
            QoS::AtLeastOnce,
            false,
            letter.payload.clone(),
            properties,
        );
    }

    /// What came so far.
    pub(crate) fn finals(&self) -> Vec<Final> {
        self.finals.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

fn keep(finals: &Mutex<Vec<Final>>, publish: Publish) {
    let topic = String::from_utf8_lossy(&publish.topic).into_owned();
    let object = serde_json::from_slice(&publish.payload).unwrap_or_else(
        |_| json!({"not_json": String::from_utf8_lossy(&publish.payload).into_owned()}),
    );
    let correlation = publish.properties.and_then(|properties| properties.correlation_data);
    let new = Final { topic, correlation, object };
    let mut finals = finals.lock().unwrap_or_else(PoisonError::into_inner);
    // What the broker repeats, because it lost our acknowledgement, is not promptd's doing.
    if !(publish.dup && finals.contains(&new)) {
        finals.push(new);
    }
}

/// What a client of a socket saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The pieces in a row.
    pub(crate) text: String,
    /// How it ended: `ok`, or a code. `None`: the connection broke, or the client left.
    pub(crate) end: Option<String>,
}

/// How long one that was not answered waits until it asks again, where its prompt has a name.
const ASK_AGAIN: Duration = Duration::from_millis(30);

impl Seen {
    /// Whether there is nothing to be had by asking again under the same name. Who did not cancel is told `cancelled` by a
    /// service that stops.
    fn is_the_end(&self) -> bool {
        let later = |end| matches!(end, "model_loading" | "busy" | "cancelled");
        self.end.as_deref().is_some_and(|end| !later(end))
    }
}

/// Asks over HTTP and reads the stream; under a name again and again until there is an end.
pub(crate) async fn over_http(socket: PathBuf, body: Value, name: Option<String>) -> Seen {
    loop {
        let mut seen = Seen::default();
        let _ = http(&socket, &body, name.as_deref(), &mut seen).await;
        if name.is_none() || seen.is_the_end() {
            return seen;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn http(socket: &PathBuf, body: &Value, name: Option<&str>, seen: &mut Seen) -> Option<()> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (read, mut write) = stream.into_split();
    let body = body.to_string();
    let name = name.map_or_else(String::new, |name| format!("Idempotency-Key: {name}\r\n"));
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\n{name}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    write.write_all(head.as_bytes()).await.ok()?;
    let mut read = BufReader::new(read);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        if read.read_line(&mut line).await.ok()? <= 2 {
            break;
        }
        let lower = line.to_lowercase();
        if let Some(value) = lower.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    if length > 0 {
        // No stream: a refusal.
        let mut body = vec![0; length];
        read.read_exact(&mut body).await.ok()?;
        let object: Value = serde_json::from_slice(&body).ok()?;
        seen.end = Some(object["error"]["code"].as_str().unwrap_or("no code").to_owned());
        return Some(());
    }
    let mut text = String::new();
    loop {
        line.clear();
        read.read_line(&mut line).await.ok()?;
        let size = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; size + 2];
        read.read_exact(&mut chunk).await.ok()?;
        text.push_str(std::str::from_utf8(chunk.get(..size)?).ok()?);
        while let Some(end) = text.find("\n\n") {
            let event: String = text.drain(..end + 2).collect();
            let Some(data) = event.trim_end().strip_prefix("data: ") else { continue };
            let Ok(object) = serde_json::from_str::<Value>(data) else { continue };
            if let Some(code) = object["error"]["code"].as_str() {
                seen.end = Some(code.to_owned());
            }
            seen.text.push_str(object["choices"][0]["text"].as_str().unwrap_or_default());
            if object["choices"][0]["finish_reason"].is_string() {
                seen.end = Some("ok".to_owned());
            }
        }
        if size == 0 {
            return Some(());
        }
    }
}

/// The same over the line socket, where the name is the `id`.
pub(crate) async fn over_lines(socket: PathBuf, mut body: Value, name: Option<String>) -> Seen {
    if let Some(name) = &name {
        body["id"] = json!(name);
    }
    loop {
        let mut seen = Seen::default();
        let _ = lines(&socket, &body, &mut seen).await;
        if name.is_none() || seen.is_the_end() {
            return seen;
        }
        tokio::time::sleep(ASK_AGAIN).await;
    }
}

async fn lines(socket: &PathBuf, body: &Value, seen: &mut Seen) -> Option<()> {
    let stream = UnixStream::connect(socket).await.ok()?;
    let (read, mut write) = stream.into_split();
    write.write_all(format!("{body}\n").as_bytes()).await.ok()?;
    let mut read = BufReader::new(read).lines();
    while let Some(line) = read.next_line().await.ok()? {
        let object: Value = serde_json::from_str(&line).ok()?;
        seen.text.push_str(object["d"].as_str().unwrap_or_default());
        match object["status"].as_str() {
            Some("ok") => {
                // The answer is whole, and what the pieces were.
                let same = object["text"] == seen.text.as_str();
                seen.end = Some(if same { "ok" } else { "not what the pieces were" }.to_owned());
                return Some(());
            }
            Some(_) => {
                seen.end = Some(object["code"].as_str().unwrap_or("no code").to_owned());
                return Some(());
            }
            None => {}
        }
    }
    None
}
