//! An MQTT client that collects what it gets, and a door between a broker and a scripted scheduler.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use promptd::mqtt::{BrokerUrl, Config, ConfigError, Facts, serve};
use promptd::request::Submission;
use promptd::scheduler::scripted::{Call, Events, Script, Verdict, scripted};
use promptd::wire::{self, Limits, Policies, Profiles};
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::v5::{AsyncClient, Event as Polled, MqttOptions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

pub(crate) use super::mosquitto::{Broker, program};

use super::door::{delta, finished, prefill, ready, soon};

/// Stands between a door and its broker, and cuts the connection when it is told to.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    /// When connections were asked for.
    pub(crate) accepted: mpsc::Receiver<Instant>,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// A relay to this port.
    pub(crate) async fn to(target: u16) -> Relay {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (tell, accepted) = mpsc::channel(100);
        let (open, is_open) = watch::channel(true);
        let task = tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                tell.send(Instant::now()).await.unwrap();
                let mut is_open = is_open.clone();
                tokio::spawn(async move {
                    let pass = async {
                        let far = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, target));
                        tokio::io::copy_bidirectional(&mut near, &mut far.await.unwrap()).await
                    };
                    tokio::select! {
                        _ = is_open.wait_for(|open| !open) => {}
                        _ = pass => {}
                    }
                });
            }
        });
        Relay { port, accepted, open, task }
    }

    /// Cuts what there is and lets nothing through.
    pub(crate) fn cut(&self) {
        self.open.send_replace(false);
    }

    /// Lets new connections through.
    pub(crate) fn mend(&self) {
        self.open.send_replace(true);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A client of MQTT 5 that subscribed to something and collects what comes.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) sender: AsyncClient,
    messages: mpsc::Receiver<Publish>,
    poller: JoinHandle<()>,
}

impl Client {
    /// Connects and subscribes; returns when the broker has confirmed. With `keep` the broker keeps the session.
    pub(crate) async fn connect(port: u16, name: &str, topics: &[&str], keep: bool) -> Client {
        Client::with(MqttOptions::new(name, "127.0.0.1", port), topics, keep).await
    }

    /// [`Client::connect`] with a user name, a password or whatever else.
    pub(crate) async fn with(mut options: MqttOptions, topics: &[&str], keep: bool) -> Client {
        options.set_clean_start(!keep).set_session_expiry_interval(keep.then_some(600));
        options.set_max_packet_size(Some(4 << 20)).set_outgoing_inflight_upper_limit(100);
        let (sender, mut events) = AsyncClient::new(options, 1000);
        let (send, messages) = mpsc::channel(1000);
        let (ready, subscribed) = mpsc::channel(8);
        let poller = tokio::spawn(async move {
            loop {
                match events.poll().await {
                    Ok(Polled::Incoming(Packet::Publish(publish))) => {
                        let _ = send.send(publish).await;
                    }
                    Ok(Polled::Incoming(Packet::SubAck(_))) => {
                        let _ = ready.send(()).await;
                    }
                    Ok(_) => {}
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        });
        let mut subscribed = subscribed;
        for topic in topics {
            sender.subscribe(*topic, QoS::AtLeastOnce).await.unwrap();
            soon(subscribed.recv()).await.unwrap();
        }
        Client { sender, messages, poller }
    }

    /// Publishes a prompt without any property.
    pub(crate) async fn ask(&self, topic: &str, payload: impl Into<Vec<u8>>) {
        self.sender.publish(topic, QoS::AtLeastOnce, false, payload.into()).await.unwrap();
    }

    /// Asks the node `n` and waits for what comes next.
    pub(crate) async fn asked(&mut self, prompt: serde_json::Value) -> serde_json::Value {
        self.ask("promptd/n/ask", prompt.to_string()).await;
        json(&self.live().await)
    }

    /// Publishes a prompt with a Response Topic and Correlation Data.
    pub(crate) async fn ask_back(
        &self,
        topic: &str,
        payload: impl Into<Vec<u8>>,
        back: &str,
        data: &'static [u8],
    ) {
        let properties = PublishProperties {
            response_topic: Some(back.to_owned()),
            correlation_data: Some(bytes::Bytes::from_static(data)),
            ..PublishProperties::default()
        };
        let sent = self.sender.publish_with_properties(
            topic,
            QoS::AtLeastOnce,
            false,
            payload.into(),
            properties,
        );
        sent.await.unwrap();
    }

    /// The next message.
    pub(crate) async fn next(&mut self) -> Publish {
        soon(self.messages.recv()).await.unwrap()
    }

    /// The next message that the broker had not kept for whoever comes.
    pub(crate) async fn live(&mut self) -> Publish {
        loop {
            let message = self.next().await;
            if !message.retain {
                return message;
            }
        }
    }

    /// Waits for this text on this topic; what comes before is dropped.
    pub(crate) async fn until(&mut self, topic: &str, text: &str) {
        loop {
            let message = self.next().await;
            if message.topic == topic && message.payload == text {
                return;
            }
        }
    }

    /// Whether nothing more comes for this long.
    pub(crate) async fn silent(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.messages.recv()).await.is_err()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.poller.abort();
    }
}

/// The payload as JSON.
pub(crate) fn json(message: &Publish) -> serde_json::Value {
    serde_json::from_slice(&message.payload).unwrap()
}

/// The topic as text.
pub(crate) fn topic(message: &Publish) -> &str {
    std::str::from_utf8(&message.topic).unwrap()
}

/// A door whose scheduler a test plays.
#[derive(Debug)]
pub(crate) struct Board {
    pub(crate) script: Script,
    pub(crate) stop: watch::Sender<bool>,
    /// What `promptd status` tells about the broker.
    pub(crate) broker: watch::Receiver<wire::Broker>,
    pub(crate) door: JoinHandle<Result<(), ConfigError>>,
    /// Which of the kept models is in use and which came last.
    pub(crate) tell_versions: watch::Sender<Option<wire::ModelVersions>>,
}

impl Board {
    /// A door of the node `n` to this broker.
    pub(crate) fn open(port: u16) -> Board {
        Board::with(config(port), Limits::default())
    }

    pub(crate) fn with(config: Config, limits: Limits) -> Board {
        let (scheduler, script) = scripted(ready());
        let profiles: Profiles = toml::from_str("[lights]\nchoices = [\"on\", \"off\"]\n").unwrap();
        let (state, broker) = watch::channel(wire::Broker::default());
        let (tell_versions, versions) = watch::channel(None);
        let facts = Facts {
            version: "1.2.3".to_owned(),
            policies: Policies::fixed(profiles),
            control: None,
            limits,
            broker: state,
            record: None,
            board: promptd::board::Board::default(),
            versions,
        };
        let (stop, stopped) = watch::channel(false);
        let door = tokio::spawn(serve(config, scheduler, facts, stopped));
        Board { script, stop, broker, door, tell_versions }
    }

    /// The next prompt.
    pub(crate) async fn submitted(&mut self) -> (Submission, Verdict) {
        match soon(self.script.next()).await.unwrap() {
            Call::Submit(submission, verdict) => (*submission, verdict),
            other => panic!("no prompt, but {other:?}"),
        }
    }

    /// Accepts the next prompt.
    pub(crate) async fn accepted(&mut self) -> Events {
        self.submitted().await.1.accept(7)
    }

    /// Accepts the next prompt and answers it with these pieces.
    pub(crate) async fn answer(&mut self, pieces: &[&str]) -> Submission {
        let (submission, verdict) = self.submitted().await;
        answer(&verdict.accept(7), pieces);
        submission
    }

    /// Whether no prompt is handed in for this long.
    pub(crate) async fn idle(&mut self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.script.next()).await.is_err()
    }

    /// Waits until the door says this of its broker.
    pub(crate) async fn troubled(&mut self, text: &str) {
        let says = |state: &wire::Broker| {
            state.connected.is_none()
                && state.trouble.as_deref().is_some_and(|trouble| trouble.contains(text))
        };
        let state = soon(self.broker.wait_for(says)).await;
        assert!(state.is_ok(), "the door is gone");
    }

    /// Tells the door to leave and waits until it has.
    pub(crate) async fn leave(self) {
        self.stop.send(true).unwrap();
        soon(self.door).await.unwrap().unwrap();
    }
}

pub(crate) fn config(port: u16) -> Config {
    let url = BrokerUrl::parse(&format!("mqtt://127.0.0.1:{port}")).unwrap();
    Config { keep_alive: Duration::from_secs(5), ..Config::new(url, "n") }
}

/// The events of an answer.
pub(crate) fn answer(events: &Events, pieces: &[&str]) {
    events.send(prefill());
    for piece in pieces {
        events.send(delta(piece));
    }
    events.send(finished());
}
