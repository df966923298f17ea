//! The door without a broker and without a clock: what happens is handed to it with its time, and what it sends is read where a
//! connection would take it.

use crate::board::Board;
use crate::mqtt::client::Command;
use crate::mqtt::message::Message;
use crate::mqtt::prompt::Report;
use crate::mqtt::{BrokerUrl, Config};
use crate::request::PromptId;
use crate::scheduler::scripted::{Script, scripted};
use crate::wire::{Broker, Limits, Policies, Profiles};

use super::*;

fn door() -> (Door, Script) {
    let (scheduler, script) = scripted(Status::default());
    let config = Config::new(BrokerUrl::parse("mqtt://localhost").unwrap(), "n");
    let facts = Facts {
        version: "1".to_owned(),
        policies: Policies::fixed(Profiles::default()),
        control: None,
        limits: Limits::default(),
        broker: watch::channel(Broker::default()).0,
        record: None,
        board: Board::default(),
        versions: watch::channel(None).1,
    };
    (Door::new(&config, scheduler, facts).unwrap(), script)
}

/// Lets the door into a broker that takes this many messages before it has acknowledged the first.
fn up(door: &mut Door, window: usize) -> mpsc::Receiver<Command> {
    let (client, commands, _) = Client::pair();
    let welcome = Welcome {
        session: false,
        version: Version::V5,
        window,
        max_packet: 1 << 20,
        acknowledges: true,
        retains: true,
    };
    door.event(Event::Up { epoch: 1, client, welcome }, Instant::now());
    commands
}

fn prompt(packet: u16, payload: &'static str) -> Event {
    Event::Message(Message {
        topic: "promptd/n/ask".to_owned(),
        payload: payload.into(),
        delivery: Some(Delivery { epoch: 1, packet }),
        ..Message::default()
    })
}

/// What the connection was told since it was looked at last, in short.
fn told(commands: &mut mpsc::Receiver<Command>) -> Vec<String> {
    let mut told = Vec::new();
    while let Ok(command) = commands.try_recv() {
        told.push(match command {
            Command::Publish { publication, acknowledged, .. } => {
                format!("{} {}", publication.topic, if acknowledged { "QoS 1" } else { "QoS 0" })
            }
            Command::Acknowledge { packet } => format!("acknowledges {packet}"),
            Command::Subscribe { .. } => "subscribes".to_owned(),
            other => format!("{other:?}"),
        });
    }
    told
}

/// Two prompts are refused, and a broker that takes one message at a time has the first refusal: b's waits.
fn behind_an_unacknowledged_refusal() -> (Door, mpsc::Receiver<Command>, Instant) {
    let (mut door, _) = door();
    let mut commands = up(&mut door, 1);
    let now = Instant::now();
    door.event(prompt(1, r#"{"id":"a","promt":1}"#), now);
    door.event(prompt(2, r#"{"id":"b","promt":1}"#), now);
    door.upkeep(now);
    assert_eq!(told(&mut commands), ["subscribes", "promptd/n/answer/a QoS 1"]);
    (door, commands, now)
}

/// A broker may read and be slow to acknowledge what it has read.
#[tokio::test]
async fn a_refusal_that_waited_too_long_is_said_before_its_prompt_is_acknowledged() {
    let (mut door, mut commands, now) = behind_an_unacknowledged_refusal();
    door.upkeep(now + REFUSAL_WANTED / 2);
    assert_eq!(told(&mut commands), [""; 0], "it waits for the first one's acknowledgement");
    door.upkeep(now + REFUSAL_WANTED);
    assert_eq!(told(&mut commands), ["promptd/n/answer/b QoS 0", "acknowledges 2"]);
    // The first is on its way, and its prompt is the broker's until that has arrived.
    door.upkeep(now + REFUSAL_WANTED * 2);
    assert_eq!(told(&mut commands), [""; 0]);
}

#[tokio::test]
async fn a_refusal_that_waited_too_long_and_finds_no_room_waits_on() {
    let (mut door, mut commands, now) = behind_an_unacknowledged_refusal();
    let client = door.connection.as_ref().unwrap().client.clone();
    while client.acknowledge(9).is_ok() {}
    door.upkeep(now + REFUSAL_WANTED);
    assert!(!told(&mut commands).contains(&"acknowledges 2".to_owned()));
    door.upkeep(now + REFUSAL_WANTED + SAID_AGAIN);
    assert_eq!(told(&mut commands), ["promptd/n/answer/b QoS 0", "acknowledges 2"]);
}

/// The broker is away; who was promised an end hears of it when it is back.
#[tokio::test]
async fn an_error_of_an_accepted_prompt_waits_as_long_as_its_answer_would() {
    let (mut door, _script) = door();
    let commands = up(&mut door, 8);
    let now = Instant::now();
    door.event(prompt(1, r#"{"id":"a","prompt":"hi"}"#), now);
    door.report(1, Report::Accepted { id: PromptId(7), seed: 1, session: None }, now);
    door.event(Event::Down, now);
    drop(commands);
    let failed = Refusal::new(Code::ModelFailed, "two engines died");
    door.report(1, Report::Ended(Err(failed)), now);
    door.upkeep(now + REFUSAL_WANTED * 30);
    let mut commands = up(&mut door, 8);
    door.upkeep(now + REFUSAL_WANTED * 30);
    assert_eq!(told(&mut commands), ["subscribes", "promptd/n/answer/a QoS 1"]);
}
