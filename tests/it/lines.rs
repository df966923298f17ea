//! The line socket, as bytes: one request a line, one answer a line.

use std::time::Duration;

use promptd::request::{Code, Event, Input, Refusal};
use promptd::socket::Patience;
use promptd::wire::Limits;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;

use crate::support::door::{Client, Door, Kind, delta, finished, prefill, soon};

async fn line(client: &mut Client) -> Value {
    serde_json::from_str(&client.until("\n").await).unwrap()
}

#[tokio::test]
async fn text_and_json() {
    let mut door = Door::open(Kind::Lines);
    let mut client = door.connect().await;
    for sent in ["What is on?\r\n", "\n \n{\"id\":\"a\",\"prompt\":\"What is on?\"}\n"] {
        client.send(sent).await;
        let submission = door.answer(&["Not", "hing."]).await;
        assert_eq!(
            submission.request.input,
            Input::Ask { system: None, text: "What is on?".to_owned() }
        );
        let answer = line(&mut client).await;
        assert_eq!(answer.get("id"), sent.contains("id").then_some(&json!("a")));
        assert_eq!(
            (&answer["status"], &answer["text"], &answer["finish"]),
            (&json!("ok"), &json!("Nothing."), &json!("stop"))
        );
        assert_eq!(
            (&answer["node"], &answer["model"], &answer["seed"]),
            (&json!("node7"), &json!("tiny model"), &json!(7))
        );
        assert_eq!(answer["usage"], json!({"prompt": 5, "cached": 2, "completion": 4}));
    }
    client.send("{\"prompt\":\"on\",\"profile\":\"lights\"}\n").await;
    door.answer(&["{\"on\"", ":1}"]).await;
    assert_eq!(line(&mut client).await["json"], json!({"on": 1}));
}

#[tokio::test]
async fn a_streamed_answer() {
    let mut door = Door::open(Kind::Lines);
    let mut client = door.connect().await;
    client.send("{\"id\":\"a\",\"prompt\":\"x\",\"stream\":true}\n").await;
    let events = door.accepted().await;
    events.send(prefill());
    for (seq, piece) in ["Hel", "lo\n", "你"].into_iter().enumerate() {
        events.send(delta(piece));
        events.send(delta(""));
        assert_eq!(line(&mut client).await, json!({"id": "a", "seq": seq, "d": piece}));
    }
    events.send(finished());
    assert_eq!(line(&mut client).await["text"], "Hello\n你");
}

#[tokio::test]
async fn several_at_once_and_no_more_than_that() {
    let mut door = Door::open(Kind::Lines);
    let mut client = door.connect().await;
    for i in 0..10 {
        client.send(format!("{{\"id\":\"{i}\",\"prompt\":\"{i}\"}}\n")).await;
    }
    let mut running = Vec::new();
    for _ in 0..8 {
        running.push(door.accepted().await);
    }
    // The ninth line waits until one of the eight has ended.
    let none = tokio::time::timeout(std::time::Duration::from_millis(50), door.script.next()).await;
    assert!(none.is_err(), "{none:?}");
    for (i, events) in running.into_iter().enumerate().rev() {
        events.send(delta("x"));
        events.send(finished());
        assert_eq!(line(&mut client).await["id"], i.to_string());
    }
    for _ in 0..2 {
        door.answer(&["y"]).await;
    }
    for _ in 0..2 {
        assert_eq!(line(&mut client).await["text"], "y");
    }
}

#[tokio::test]
async fn errors_come_as_lines_and_the_connection_stays() {
    let limits = Limits { payload_bytes: 100, ..Limits::default() };
    let mut door = Door::with(Kind::Lines, Patience::default(), limits);
    let mut client = door.connect().await;
    let long = format!("{}\n", "x".repeat(300_000));
    for (sent, id, code, param) in [
        ("{\"prompt\":\n", json!(null), "bad_request", json!(null)),
        ("{\"id\":\"a\",\"promt\":\"x\"}\n", json!("a"), "bad_request", json!("promt")),
        (
            "{\"id\":\"a\",\"prompt\":\"x\",\"format\":\"text\"}\n",
            json!("a"),
            "unsupported",
            json!("format"),
        ),
        (
            "{\"id\":\"a\",\"prompt\":\"x\",\"reply_to\":\"b\"}\n",
            json!("a"),
            "unsupported",
            json!("reply_to"),
        ),
        (
            "{\"id\":\"a\",\"prompt\":\"x\",\"model\":\"b\"}\n",
            json!("a"),
            "not_found",
            json!("model"),
        ),
        (long.as_str(), json!(null), "payload_too_large", json!(null)),
    ] {
        client.send(sent).await;
        let answer = line(&mut client).await;
        let found = (&answer["status"], &answer["id"], &answer["code"], &answer["param"]);
        assert_eq!(found, (&json!("error"), &id, &json!(code), &param), "{answer}");
    }
    client.send([b'\xff', b'\n']).await;
    assert_eq!(line(&mut client).await["code"], "bad_request");
    let fits = format!("{}\n", "x".repeat(100));
    client.send(fits).await;
    door.submitted().await.1.refuse(Refusal::new(Code::Busy, "full").with_limit(3, 4));
    let answer = line(&mut client).await;
    assert_eq!(
        (&answer["code"], &answer["limit"], &answer["have"]),
        (&json!("busy"), &json!(3), &json!(4))
    );
    client.send("x\n").await;
    door.accepted().await.send(Event::Failed(Refusal::new(Code::Timeout, "late")));
    assert_eq!(line(&mut client).await["code"], "timeout");
}

#[tokio::test]
async fn who_only_closes_the_writing_end_still_gets_answers() {
    let mut door = Door::open(Kind::Lines);
    let mut client = door.connect().await;
    // The last line has no end, as `echo -n` leaves it.
    client.send("one\ntwo").await;
    client.stream.shutdown().await.unwrap();
    door.answer(&["1"]).await;
    assert_eq!(line(&mut client).await["text"], "1");
    // Longer than it takes to look whether the client is gone.
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    door.answer(&["2"]).await;
    assert_eq!(line(&mut client).await["text"], "2");
    assert_eq!(client.rest().await, "");
}

#[tokio::test]
async fn who_goes_away_cancels() {
    let mut door = Door::open(Kind::Lines);
    for sent in ["x\n", "{\"prompt\":\"x\",\"stream\":true}\n"] {
        let mut client = door.connect().await;
        client.send(sent).await;
        let events = door.accepted().await;
        drop(client);
        soon(events.closed()).await;
    }
}

#[tokio::test]
async fn stopping_finishes_what_runs() {
    let mut door = Door::open(Kind::Lines);
    let (mut idle, mut client) = (door.connect().await, door.connect().await);
    client.send("x\n").await;
    let events = door.accepted().await;
    door.stop();
    assert_eq!(idle.rest().await, "");
    events.send(delta("to the end"));
    events.send(finished());
    assert_eq!(line(&mut client).await["text"], "to the end");
    let path = door.path.clone();
    let _dir = door.stopped().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn who_does_not_read_counts_as_gone() {
    let patience = Patience { unread: Duration::from_millis(50), ..Patience::default() };
    let mut door = Door::with(Kind::Lines, patience, Limits::default());
    let mut deaf = door.connect().await;
    deaf.send("{\"prompt\":\"x\",\"stream\":true}\n").await;
    let unread = door.accepted().await;
    let mut other = door.connect().await;
    other.send("{\"prompt\":\"y\",\"stream\":true}\n").await;
    let events = door.accepted().await;
    let piece = "x".repeat(10_000);
    let fill = async {
        loop {
            unread.send(delta(&piece));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    soon(async {
        tokio::select! { () = fill => {}, () = unread.closed() => {} }
    })
    .await;
    // Nobody else waits for it.
    events.send(delta("here"));
    assert_eq!(line(&mut other).await["d"], "here");
    events.send(finished());
    assert_eq!(line(&mut other).await["text"], "here");
    drop(deaf);
}
