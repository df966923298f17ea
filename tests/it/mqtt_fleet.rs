//! Boards that share `any/ask` on one mosquitto: who takes what, and what becomes of the prompts of a board that is gone.

use std::time::Duration;

use promptd::mqtt::Config;
use promptd::request::{Constraint, Event};
use promptd::scheduler::State;
use promptd::scheduler::scripted::Call;
use promptd::wire::Limits;
use rumqttc::v5::mqttbytes::QoS;
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::support::broker::{Board, Broker, Client, answer, json};
use crate::support::door::soon;
use crate::support::fleet::{Watcher, Worker, answers, ask, member, three_boards_share};

/// Long enough to see that nothing comes.
const A_WHILE: Duration = Duration::from_millis(500);

fn fleet(broker: &Broker, node: &str) -> Config {
    member(broker.port, node)
}

/// Makes the board of a script look as busy as this.
fn busy(board: &Board, running: usize, waiting: usize) {
    board.script.set_status(|status| {
        if let Some(model) = &mut status.model {
            std::sync::Arc::make_mut(model).slots = 1;
        }
        (status.running, status.waiting) = (running, waiting);
    });
}

/// All that came to this board was taken from it again.
async fn withdrawn(board: &mut Board) {
    while let Ok(Some(Call::Submit(_, mut verdict))) = timeout(A_WHILE, board.script.next()).await {
        soon(verdict.abandoned()).await;
    }
}

#[tokio::test]
async fn a_busy_board_hands_on_with_everything_that_belongs_to_the_prompt() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 1, 0);
    busy(&b, 0, 0);
    for (node, idle) in [("a", 0), ("b", 1)] {
        let is = |status: &Value| {
            status["fleet"]["peers"] == json!(1) && status["fleet"]["idle"] == json!(idle)
        };
        watcher.until(node, is).await;
    }
    // The broker deals them out in turn; all come to `b`, one after the other, whether they came there first or not.
    let mut me = Client::connect(broker.port, "me", &["me/r"], false).await;
    for data in [b"1", b"2", b"3", b"4"] {
        me.ask_back(
            "promptd/any/ask/lights",
            r#"{"prompt":"hi","timeout_ms":60000}"#,
            "me/r",
            data,
        )
        .await;
        let (submission, verdict) = b.submitted().await;
        assert_eq!(submission.identity.0, "mqtt:me");
        assert!(submission.timeout.is_some_and(|left| left <= Duration::from_secs(60)));
        assert_ne!(submission.request.constraint, Constraint::None, "the profile goes with it");
        answer(&verdict.accept(7), &["on"]);
        let message = me.next().await;
        assert_eq!(
            message.properties.as_ref().unwrap().correlation_data.as_deref(),
            Some(&data[..])
        );
        assert_eq!(json(&message)["node"], json!("b"));
        watcher.until("b", |status| status["fleet"]["idle"] == json!(1)).await;
    }
    withdrawn(&mut a).await;
    watcher.until("a", |status| status["fleet"]["handed"].as_u64() > Some(0)).await;
    // What was handed on stays, even where another board is free by then.
    busy(&a, 0, 0);
    busy(&b, 1, 0);
    watcher.until("a", |status| status["fleet"]["idle"] == json!(1)).await;
    watcher.until("b", |status| status["fleet"]["idle"] == json!(0)).await;
    me.ask("promptd/b/hop", "stay").await;
    b.answer(&["x"]).await;
    // And what was asked of one board is asked of no other.
    me.ask("promptd/b/ask", "stay").await;
    b.answer(&["x"]).await;
    assert!(a.idle(A_WHILE).await);
}

#[tokio::test]
async fn what_waits_goes_as_soon_as_another_board_is_free() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 1, 0);
    busy(&b, 1, 0);
    watcher.together(&["a", "b"], 0).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    // Nobody is free: each waits where it came.
    for id in ["1", "2"] {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
    }
    let (first, second) = (a.accepted().await, b.accepted().await);
    assert!(!first.is_closed() && !second.is_closed());
    // One becomes free: the other's goes there.
    busy(&b, 0, 0);
    answer(&second, &["here"]);
    assert_eq!(json(&me.next().await)["node"], json!("b"));
    soon(first.closed()).await;
    b.answer(&["moved"]).await;
    let moved = me.next().await;
    assert_eq!(
        (json(&moved)["text"].clone(), json(&moved)["node"].clone()),
        (json!("moved"), json!("b"))
    );
    // One that has begun stays where it is.
    busy(&a, 1, 0);
    busy(&b, 1, 0);
    watcher.together(&["a", "b"], 0).await;
    for id in ["3", "4"] {
        me.ask("promptd/any/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
    }
    let (first, second) = (a.accepted().await, b.accepted().await);
    first.send(Event::Started { deaths: 0 });
    sleep(A_WHILE).await;
    busy(&b, 0, 0);
    answer(&second, &["x"]);
    assert_eq!(json(&me.next().await)["node"], json!("b"));
    assert!(b.idle(A_WHILE).await && !first.is_closed());
    // A cancel finds it wherever it is.
    me.ask("promptd/any/cancel", r#"{"all":true}"#).await;
    soon(first.closed()).await;
    assert_eq!(json(&me.next().await)["code"], json!("cancelled"));
}

#[tokio::test]
async fn a_board_that_drains_leaves_its_share_to_the_others() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 0, 0);
    busy(&b, 0, 0);
    watcher.together(&["a", "b"], 1).await;
    a.script.set_status(|status| status.state = State::Draining);
    watcher.until("a", |status| status["state"] == json!("draining")).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    for _ in 0..4 {
        me.ask("promptd/any/ask", "hi").await;
        b.answer(&["x"]).await;
    }
    assert!(a.idle(A_WHILE).await);
}

#[tokio::test]
async fn a_board_that_hears_nothing_of_what_is_handed_on_is_not_relied_on() {
    // It says that it is free, but nobody is there.
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    busy(&a, 1, 0);
    let me = Client::connect(broker.port, "me", &[], false).await;
    let told =
        json!({"state": "ready", "fleet": {"group": "g", "idle": 1, "room": 1, "places": 5}});
    for (place, text) in [("status", told.to_string()), ("availability", "online".to_owned())] {
        let topic = format!("promptd/ghost/{place}");
        me.sender.publish(topic, QoS::AtLeastOnce, true, text).await.unwrap();
    }
    watcher.until("a", |status| status["fleet"]["peers"] == json!(1)).await;
    me.ask("promptd/any/ask", "hi").await;
    // mosquitto says that nobody listens there, and the prompt is taken in here.
    let (_, mut verdict) = a.submitted().await;
    soon(verdict.abandoned()).await;
    a.answer(&["x"]).await;
}

#[tokio::test]
async fn what_was_handed_to_a_board_that_died_is_answered_by_another() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    let mut b = Board::with(fleet(&broker, "b"), Limits::default());
    busy(&a, 0, 0);
    busy(&b, 0, 0);
    watcher.together(&["a", "b"], 1).await;
    let mut me = Client::connect(broker.port, "me", &["me/r"], false).await;
    // It has come to the board, which is gone before it says yes or no.
    me.ask_back("promptd/b/hop", "first", "me/r", b"1").await;
    let (_, verdict) = b.submitted().await;
    b.door.abort();
    // It lies at the broker only, and for a profile.
    me.ask_back("promptd/b/hop/lights", "second", "me/r", b"2").await;
    for data in [b"1", b"2"] {
        let submission = a.answer(&["on"]).await;
        let has_form = submission.request.constraint != Constraint::None;
        assert_eq!(has_form, data == b"2", "the profile goes with it");
        let answer = me.next().await;
        let properties = answer.properties.clone().unwrap_or_default();
        assert_eq!(properties.correlation_data.as_deref(), Some(&data[..]));
        assert_eq!(json(&answer)["node"], json!("a"));
    }
    drop(verdict);
    // From then on nobody is taken for somebody there.
    assert!(a.idle(A_WHILE).await && me.silent(A_WHILE).await);
}

#[tokio::test]
async fn a_prompt_stays_until_the_other_board_says_that_it_is_safe_there() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let mut a = Board::with(fleet(&broker, "a"), Limits::default());
    busy(&a, 1, 0);
    let mut ghost = Client::connect(broker.port, "ghost", &["promptd/ghost/hop/#"], false).await;
    let load = json!({"group": "g", "idle": 1, "room": 1, "places": 5, "confirms": true});
    let told = json!({"state": "ready", "fleet": load});
    for (place, text) in [("status", told.to_string()), ("availability", "online".to_owned())] {
        let topic = format!("promptd/ghost/{place}");
        ghost.sender.publish(topic, QoS::AtLeastOnce, true, text).await.unwrap();
    }
    watcher.until("a", |status| status["fleet"]["peers"] == json!(1)).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    me.ask("promptd/any/ask", "first").await;
    let (_, mut verdict) = a.submitted().await;
    soon(verdict.abandoned()).await;
    let handed = ghost.next().await;
    let user = handed.properties.unwrap().user_properties;
    let (_, hop) = user.iter().find(|(name, _)| name == "hop").unwrap();
    let word = hop.strip_prefix("a/").unwrap().to_owned();
    // The broker has it long ago; the board has said nothing yet.
    sleep(A_WHILE).await;
    assert_eq!(watcher.status["a"]["fleet"]["handed"], json!(0));
    let say = PublishProperties {
        user_properties: vec![("took".to_owned(), word)],
        ..PublishProperties::default()
    };
    let said =
        ghost.sender.publish_with_properties("promptd/a/hop", QoS::AtLeastOnce, false, "", say);
    said.await.unwrap();
    watcher.until("a", |status| status["fleet"]["handed"] == json!(1)).await;
    // Of the next one nothing is heard, as if the broker had died with it: it is answered here after a while.
    me.ask("promptd/any/ask", "second").await;
    let (_, mut verdict) = a.submitted().await;
    soon(verdict.abandoned()).await;
    assert_eq!(ghost.next().await.payload, "second");
    a.answer(&["x"]).await;
}

#[tokio::test]
async fn three_boards_of_different_speed_are_all_at_work() {
    let Some(broker) = Broker::start("") else { return };
    three_boards_share(["a", "b", "c"].map(|node| fleet(&broker, node)), broker.port).await;
}

#[tokio::test]
async fn a_board_that_is_drained_answers_what_it_accepted_and_leaves_the_rest_to_others() {
    let Some(broker) = Broker::start("") else { return };
    let mut watcher = Watcher::new(broker.port).await;
    let names = ["a", "b"];
    let service = Duration::from_millis(200);
    let [mut a, b] = names.map(|node| Worker::start(fleet(&broker, node), service, None));
    watcher.together(&names, 1).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    ask(&me, 0..12).await;
    soon(a.begun.recv()).await.unwrap();
    // It ends in order, with what it has in work; what is asked meanwhile goes to the other.
    let stopped = tokio::spawn(a.stop());
    watcher.until("a", |status| status["state"] == json!("draining")).await;
    ask(&me, 12..20).await;
    assert_eq!(answers(&mut me, 0..20).await, 20, "each once");
    soon(stopped).await.unwrap();
    b.kill().await;
}

#[tokio::test]
async fn a_board_that_is_killed_loses_nothing() {
    let Some(broker) = Broker::start("") else { return };
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut watcher = Watcher::new(broker.port).await;
    let names = ["a", "b", "c"];
    let service = Duration::from_millis(200);
    // `c` writes nothing down: what it has in work is the broker's until it is answered.
    let mut boards: Vec<Worker> = (0..3)
        .map(|at| {
            let dir = (at < 2).then(|| dirs[at].path());
            Worker::start(fleet(&broker, names[at]), service, dir)
        })
        .collect();
    watcher.together(&names, 1).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/+/answer/#"], false).await;
    ask(&me, 0..24).await;
    for board in &mut boards {
        soon(board.begun.recv()).await.unwrap();
    }
    // None of them has the last word; the others go on.
    boards.pop().unwrap().kill().await;
    ask(&me, 24..30).await;
    answers(&mut me, 0..30).await;
    // What a board had written down it answers when it is back; everything else is answered without it.
    ask(&me, 30..50).await;
    let mut killed = boards.pop().unwrap();
    while killed.begun.try_recv().is_ok() {}
    soon(killed.begun.recv()).await.unwrap();
    killed.kill().await;
    sleep(Duration::from_secs(2)).await;
    let again = Worker::start(fleet(&broker, "b"), service, Some(dirs[1].path()));
    answers(&mut me, 30..50).await;
    // One that is stopped finishes what it has.
    watcher.together(&["a", "b"], 1).await;
    ask(&me, 50..60).await;
    again.stop().await;
    answers(&mut me, 50..60).await;
    for board in boards {
        board.kill().await;
    }
}
