//! Clients that ask at a given pace, over the HTTP socket and over MQTT, whatever becomes of what they asked before.

use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, PublishProperties};
use rumqttc::v5::{AsyncClient, Event, MqttOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::figures::Figures;

/// Connections that ask over HTTP. One user may have 128.
const CONNECTIONS: usize = 100;
/// The longest that anything may take at the end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks over HTTP every so often until `end`.
pub(crate) async fn over_http(socket: PathBuf, every: Duration, end: Instant) -> Figures {
    let (mut all, mut asking) = (Figures::default(), JoinSet::new());
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    let idle: Arc<Mutex<VecDeque<BufReader<UnixStream>>>> = Arc::default();
    let mut next = Instant::now();
    while next < end {
        sleep_until(next).await;
        next += every;
        while let Some(done) = asking.try_join_next() {
            let (object, took) = done.unwrap();
            all.answered(&object, took);
        }
        let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
            all.late += 1;
            continue;
        };
        let (idle, socket) = (Arc::clone(&idle), socket.clone());
        asking.spawn(async move {
            let _permit = permit;
            // The one that was idle the longest: promptd closes what is idle for a minute.
            let kept = idle.lock().unwrap().pop_front();
            let asked = Instant::now();
            let (stream, object) = chat(kept, &socket).await;
            let took = asked.elapsed();
            idle.lock().unwrap().push_back(stream);
            (object, took)
        });
    }
    let rest = timeout(PATIENCE, async {
        while let Some(done) = asking.join_next().await {
            let (object, took) = done.unwrap();
            all.answered(&object, took);
        }
    });
    rest.await.expect("everybody is answered");
    all
}

/// One chat over a connection that is kept.
pub(crate) async fn chat(
    kept: Option<BufReader<UnixStream>>,
    socket: &Path,
) -> (BufReader<UnixStream>, Value) {
    let mut stream = match kept {
        Some(stream) => stream,
        None => BufReader::new(UnixStream::connect(socket).await.unwrap()),
    };
    let body =
        json!({"messages": [{"role": "user", "content": "How is the weather?"}]}).to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: l\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        assert!(stream.read_line(&mut line).await.unwrap() > 0, "promptd has hung up");
        let lower = line.trim_end().to_ascii_lowercase();
        if let Some(bytes) = lower.strip_prefix("content-length: ") {
            length = bytes.parse().unwrap();
        }
        if lower.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    (stream, serde_json::from_slice(&body).unwrap())
}

/// Asks over MQTT as this client, every so often until `end`; with `one_at_a_time` the next only when the last is answered.
pub(crate) async fn over_mqtt(
    port: u16,
    name: &str,
    every: Duration,
    end: Instant,
    one_at_a_time: bool,
) -> Figures {
    let mut options = MqttOptions::new(name, "127.0.0.1", port);
    options.set_clean_start(true).set_outgoing_inflight_upper_limit(1000);
    let (client, mut events) = AsyncClient::new(options, 1000);
    let back = format!("{name}/answer");
    client.subscribe(&back, QoS::AtMostOnce).await.unwrap();
    let mut waiting: HashMap<u64, Instant> = HashMap::new();
    // No number of an earlier time: what is asked again is answered again, without being run.
    let first = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_secs());
    let (mut figures, mut number, mut next) = (Figures::default(), first << 20, Instant::now());
    let mut deadline = end + PATIENCE;
    let mut subscribed = false;
    loop {
        let may_ask = subscribed && next < end && (!one_at_a_time || waiting.is_empty());
        if next >= end && waiting.is_empty() {
            return figures;
        }
        let event = tokio::select! {
            biased;
            () = sleep_until(next), if may_ask => {
                next = if one_at_a_time { Instant::now() + every } else { next + every };
                number += 1;
                let properties = PublishProperties {
                    response_topic: Some(back.clone()),
                    correlation_data: Some(Bytes::from(number.to_string())),
                    user_properties: vec![("client".to_owned(), name.to_owned())],
                    ..PublishProperties::default()
                };
                let (topic, body) = ("promptd/n/ask", "How is the weather?");
                let sent = client.try_publish_with_properties(
                    topic, QoS::AtLeastOnce, false, body, properties,
                );
                if sent.is_ok() {
                    waiting.insert(number, Instant::now());
                } else {
                    figures.late += 1;
                }
                continue;
            }
            event = events.poll() => event.expect("the broker is there"),
            () = sleep_until(deadline) => {
                figures.odd.push(format!("{} prompts got no answer", waiting.len()));
                return figures;
            }
        };
        match event {
            Event::Incoming(Packet::SubAck(_)) => {
                subscribed = true;
                next = Instant::now();
            }
            Event::Incoming(Packet::Publish(answer)) => {
                let data = answer.properties.as_ref().and_then(|p| p.correlation_data.clone());
                let number = data.and_then(|data| std::str::from_utf8(&data).ok()?.parse().ok());
                match number.and_then(|number: u64| waiting.remove(&number)) {
                    Some(asked) => {
                        let object = serde_json::from_slice(&answer.payload).unwrap();
                        figures.answered(&object, asked.elapsed());
                        deadline = deadline.max(Instant::now() + Duration::from_secs(1));
                    }
                    None => figures.odd.push("an answer that nobody waits for".to_owned()),
                }
            }
            _ => {}
        }
    }
}
