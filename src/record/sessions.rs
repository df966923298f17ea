//! Conversations that last as long as the record does.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::disk::Change;
use super::{Record, Row, SessionItem, unix_ms};
use crate::session::{Key, Store, Turn};
use std::time::Duration;

/// Keeps conversations in the record. What nobody can read any more is left out.
#[derive(Debug)]
pub struct Kept {
    record: Record,
}

/// A turn as it lies on the disk.
#[derive(Serialize, Deserialize)]
struct Stored {
    question: String,
    answer: String,
    #[serde(default)]
    prompt: Option<u64>,
}

impl Kept {
    /// The conversations of this record.
    pub fn new(record: Record) -> Self {
        Kept { record }
    }
}

impl Store for Kept {
    fn load(&mut self) -> Vec<(Key, Vec<Turn>, Duration)> {
        let now = unix_ms();
        let items = std::mem::take(&mut self.record.shared.lock().sessions);
        let mut sessions = Vec::new();
        for SessionItem { client, name, used, data } in items {
            let key = Key { client, name };
            let Ok(turns) = serde_json::from_slice::<Vec<Stored>>(&data) else {
                tracing::error!(
                    session = key.name,
                    "a conversation in the record cannot be read; it begins anew"
                );
                self.remove(&key);
                continue;
            };
            let turns = turns
                .into_iter()
                .map(|Stored { question, answer, prompt }| Turn { question, answer, prompt })
                .collect();
            // A clock that was set back makes it new, not old.
            sessions.push((key, turns, Duration::from_millis(now.saturating_sub(used))));
        }
        sessions
    }

    fn save(&mut self, key: &Key, turns: &[Turn]) {
        let stored: Vec<Stored> = turns
            .iter()
            .cloned()
            .map(|Turn { question, answer, prompt }| Stored { question, answer, prompt })
            .collect();
        // Text always is JSON.
        let data = serde_json::to_vec(&stored).unwrap_or_default();
        let (client, name) = (key.client.clone(), key.name.clone());
        let item = SessionItem { client, name, used: unix_ms(), data: Bytes::from(data) };
        // Where too much waits, the conversation lasts as long as the service.
        let _ = self.record.shared.change(row(key), Change::Session(item), false);
    }

    fn remove(&mut self, key: &Key) {
        let _ = self.record.shared.change(row(key), Change::Remove(row(key)), false);
    }
}

fn row(key: &Key) -> Row {
    Row::Session(key.client.clone(), key.name.clone())
}
