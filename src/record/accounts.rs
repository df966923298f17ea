//! What clients have used of their day, so that a restart does not give it back to them.

use std::time::Duration;

use super::disk::Change;
use super::{AccountItem, Record, Row, unix_ms};

impl Record {
    /// What an earlier start has left: who, how long ago the day began, and the tokens since. Each is given once; what the disk
    /// has to say later is given later.
    pub(crate) fn take_accounts(&self) -> Vec<(String, Duration, u64)> {
        let now = unix_ms();
        let items = std::mem::take(&mut self.shared.lock().accounts);
        let age = |began| Duration::from_millis(now.saturating_sub(began));
        items.into_iter().map(|item| (item.client, age(item.began), item.tokens)).collect()
    }

    /// Somebody has used so many tokens in a day that began so long ago.
    pub(crate) fn keep_account(&self, client: &str, age: Duration, tokens: u64) {
        let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let client = client.to_owned();
        let item =
            AccountItem { client: client.clone(), began: unix_ms().saturating_sub(age), tokens };
        // Where too much waits for the disk, it is counted as long as the service lasts.
        let _ = self.shared.change(Row::Account(client), Change::Account(item), false);
    }

    /// That day is over.
    pub(crate) fn forget_account(&self, client: &str) {
        let row = Row::Account(client.to_owned());
        let _ = self.shared.change(row.clone(), Change::Remove(row), false);
    }
}
