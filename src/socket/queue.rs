//! `GET /v1/queue`: who waits, in which order and for how long, as far as the one who asks may know it.

use serde_json::{Map, Value, json};

use super::running::Running;
use crate::identity::Grant;
use crate::request::Priority;
use crate::scheduler::Status;
use crate::wire::status_object;

/// The queue as an object. Everybody sees the whole order; whose a prompt is, and the id that cancels it, is told only to
/// its asker, to root and to clients with `admin = true`.
pub(super) fn object(status: &Status, running: &Running, grant: &Grant, root: bool) -> Value {
    let sees_all = root || grant.admin;
    let prompts = status.places.iter().zip(1_u64..).map(|(place, position)| {
        let eta_ms = u64::try_from(place.begins_in.as_millis()).unwrap_or(u64::MAX);
        let mut entry = Map::new();
        entry.insert("position".into(), position.into());
        entry.insert("eta_ms".into(), eta_ms.into());
        entry.insert("priority".into(), priority(place.priority).into());
        let mine = place.identity == grant.identity;
        entry.insert("mine".into(), mine.into());
        if mine || sees_all {
            entry.insert("client".into(), place.identity.0.as_str().into());
            // What came over MQTT or the line socket has promptd's number alone.
            let id = running.public_of(place.id).unwrap_or_else(|| place.id.to_string());
            entry.insert("id".into(), id.into());
        }
        Value::Object(entry)
    });
    let mut object = status_object(status);
    let mut take = |key: &str| object.get_mut(key).map(Value::take).unwrap_or_default();
    let (state, queue, slots) = (take("state"), take("queue"), take("slots"));
    json!({
        "object": "queue", "state": state, "queue": queue, "slots": slots,
        "prompts": prompts.collect::<Vec<_>>(),
    })
}

fn priority(priority: Priority) -> &'static str {
    match priority {
        Priority::Low => "low",
        Priority::Normal => "normal",
        Priority::High => "high",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::accept::Peer;
    use super::*;
    use crate::request::{Identity, PromptId};
    use crate::scheduler::Place;

    #[test]
    fn strangers_see_the_order_and_nothing_else() {
        let place = |id, who: &str, seconds| Place {
            id: PromptId(id),
            identity: Identity(who.to_owned()),
            priority: Priority::High,
            begins_in: Duration::from_secs(seconds),
        };
        let places = [place(4, "uid:7", 2), place(5, "mqtt:esp", 9)];
        let status = Status { waiting: 2, places: places.into(), ..Status::default() };
        let running = Running::default();
        let grant = |uid: u32| Grant::all(Identity(format!("uid:{uid}")));
        let entry = running.enter(
            (PromptId(4), None),
            &Peer { uid: Some(7), gid: None, groups: [].into(), tcp: false, name: None },
            "cmpl",
        );
        let seen = object(&status, &running, &grant(7), false);
        assert_eq!((&seen["object"], &seen["queue"]["waiting"]), (&json!("queue"), &json!(2)));
        assert_eq!(
            seen["prompts"],
            json!([
                {"position": 1, "eta_ms": 2000, "priority": "high", "mine": true, "client": "uid:7",
                 "id": entry.public()},
                {"position": 2, "eta_ms": 9000, "priority": "high", "mine": false},
            ])
        );
        let root = object(&status, &running, &grant(0), true);
        assert_eq!(
            (&root["prompts"][1]["client"], &root["prompts"][1]["id"]),
            (&json!("mqtt:esp"), &json!("p5"))
        );
        assert!(object(&status, &running, &grant(8), false)["prompts"][0].get("id").is_none());
    }
}
