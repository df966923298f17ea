//! What a mosquitto's access rules refuse promptd: told to the operator, and well again when the rules are mended.

use std::path::Path;
use std::time::Duration;

use promptd::mqtt::Config;
use promptd::wire::{Broker as Told, Limits, broker_object};
use serde_json::json;

use crate::support::broker::{Board, Broker, Client, config, json as object};
use crate::support::door::soon;

async fn told(board: &mut Board, action: &str, topic: &str, is: bool) -> Told {
    let denied = |told: &Told| {
        is == told.denied.iter().any(|denied| (denied.action, &*denied.topic) == (action, topic))
    };
    let told = tokio::time::timeout(Duration::from_secs(50), board.broker.wait_for(denied)).await;
    told.unwrap_or_else(|_| panic!("{action} {topic}: {is}")).unwrap().clone()
}

#[tokio::test]
async fn a_message_that_the_rules_refuse_is_told_and_goes_once_they_are_mended() {
    // Everybody may everything but write below `promptd/n/answer` and say how promptd is.
    let closed = "topic readwrite #\ntopic deny promptd/n/answer/#\ntopic deny promptd/n/info\n";
    let Some(mut broker) = Broker::prepare("acl_file ACL") else { return };
    let (rules, settings) = (broker.dir.path().join("acl"), broker.dir.path().join("m.conf"));
    std::fs::write(&rules, closed).unwrap();
    let text = std::fs::read_to_string(&settings).unwrap();
    std::fs::write(&settings, text.replace("ACL", rules.to_str().unwrap())).unwrap();
    broker.run();
    let mut board = Board::open(broker.port);
    told(&mut board, "publish", "promptd/n/info", true).await;
    let me = Client::connect(broker.port, "me", &[], false).await;
    for id in ["a", "b"] {
        me.ask("promptd/n/ask", format!(r#"{{"id":"{id}","prompt":"hi"}}"#)).await;
        board.answer(&["x"]).await;
    }
    // One line for the answers of all ids, in words that an operator can look for.
    let state = told(&mut board, "publish", "promptd/n/answer/#", true).await;
    assert_eq!(
        broker_object(&state)["denied"],
        json!([
            {"action": "publish", "topic": "promptd/n/answer/#", "reason": "not authorized"},
            {"action": "publish", "topic": "promptd/n/info", "reason": "not authorized"},
        ])
    );
    assert!(state.connected.is_some(), "it is no reason to leave");
    std::fs::write(&rules, "topic readwrite #\n").unwrap();
    broker.read_again();
    // The state comes by itself; the next answer is delivered and ends the complaint.
    told(&mut board, "publish", "promptd/n/info", false).await;
    let mut me = Client::connect(broker.port, "me", &["promptd/n/answer/#"], false).await;
    me.ask("promptd/n/ask", r#"{"id":"c","prompt":"hi"}"#).await;
    board.answer(&["x"]).await;
    assert_eq!(object(&me.next().await)["text"], json!("x"));
    told(&mut board, "publish", "promptd/n/answer/#", false).await;
}

/// mosquitto's `acl_file` lets everybody subscribe and then delivers nothing; its plug-in says no.
const PLUGIN: &str = "mosquitto_dynamic_security.so";

fn plugin() -> Option<String> {
    let places =
        ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found =
        places.iter().map(|place| Path::new(place).join(PLUGIN)).find(|file| file.is_file());
    if found.is_none() {
        println!("SKIPPED: mosquitto's {PLUGIN} is not installed");
    }
    found.map(|file| file.display().to_string())
}

#[tokio::test]
async fn a_subscription_that_the_rules_refuse_is_told_and_made_once_they_are_mended() {
    let Some(plugin) = plugin() else { return };
    let Some(mut broker) = Broker::prepare("") else { return };
    let (rules, settings) =
        (broker.dir.path().join("rules.json"), broker.dir.path().join("m.conf"));
    let may = json!({
        "defaultACLAccess": {"publishClientSend": true, "publishClientReceive": true, "subscribe": true, "unsubscribe": true},
        "groups": [{"groupname": "all", "roles": [{"rolename": "some"}]}],
        "roles": [{"rolename": "some", "acls": [
            {"acltype": "publishClientSend", "topic": "$CONTROL/#", "allow": true},
            {"acltype": "subscribePattern", "topic": "promptd/n/ask/#", "allow": false},
            {"acltype": "subscribePattern", "topic": "homeassistant/status", "allow": false},
        ]}],
        "anonymousGroup": "all",
    });
    std::fs::write(&rules, may.to_string()).unwrap();
    let text = std::fs::read_to_string(&settings).unwrap();
    let text = format!("{text}plugin {plugin}\nplugin_opt_config_file {}\n", rules.display());
    std::fs::write(&settings, text).unwrap();
    broker.run();
    let settings =
        Config { discovery_prefix: Some("homeassistant".to_owned()), ..config(broker.port) };
    let mut board = Board::with(settings, Limits::default());
    let state = told(&mut board, "subscribe", "promptd/n/ask/#", true).await;
    assert_eq!(state.denied.len(), 1, "{state:?}: the other one is not asked for yet");
    // The administrator allows one after the other.
    let admin = Client::connect(broker.port, "admin", &[], false).await;
    let allow = async |topic: &str| {
        let acl = json!({"command": "removeRoleACL", "rolename": "some", "acltype": "subscribePattern", "topic": topic});
        admin.ask("$CONTROL/dynamic-security/v1", json!({"commands": [acl]}).to_string()).await;
    };
    allow("promptd/n/ask/#").await;
    told(&mut board, "subscribe", "promptd/n/ask/#", false).await;
    soon(admin_asks(&broker, &mut board)).await;
    told(&mut board, "subscribe", "homeassistant/status", true).await;
    allow("homeassistant/status").await;
    let state = told(&mut board, "subscribe", "homeassistant/status", false).await;
    assert!(state.connected.is_some() && state.denied.is_empty(), "{state:?}");
}

/// Prompts come now.
async fn admin_asks(broker: &Broker, board: &mut Board) {
    let me = Client::connect(broker.port, "me", &[], false).await;
    me.ask("promptd/n/ask", "hi").await;
    board.answer(&["x"]).await;
}
