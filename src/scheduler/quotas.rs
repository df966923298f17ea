//! How much each identity has asked lately, against what it may. Takes the time as a parameter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::record::Record;
use crate::request::{Code, Identity, Quota, Refusal};

/// Identities that are counted at once. Names on MQTT cost nothing to invent: beyond this number those who are new share
/// one account, rather than each having a fresh one or the memory of the board.
const MAX_ACCOUNTS: usize = 4096;

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

/// The accounts of those who have a quota.
#[derive(Debug, Default)]
pub(super) struct Quotas {
    accounts: HashMap<Identity, Account>,
    /// Where days outlast the service.
    record: Option<Record>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    /// Prompts that may be asked now; grows back with time up to the minute's number.
    prompts: f64,
    at: Instant,
    /// The day that began with the first token.
    day: Instant,
    tokens: u64,
}

impl Quotas {
    /// Accounts whose days outlast the service.
    pub(super) fn kept(record: Option<Record>) -> Self {
        Quotas { accounts: HashMap::new(), record }
    }

    /// Takes up what an earlier start has left. It may come late, where the disk could not be read at first; what was used
    /// meanwhile was used besides.
    fn restore(&mut self, now: Instant) {
        let left = self.record.as_ref().map(Record::take_accounts).unwrap_or_default();
        for (client, age, tokens) in left {
            if age >= DAY || self.accounts.len() >= MAX_ACCOUNTS {
                self.forget(&client);
                continue;
            }
            // A system that has not run for so long has no time of its own that long ago.
            let day = now.checked_sub(age).unwrap_or(now);
            let account = self.accounts.entry(Identity(client)).or_insert(Account {
                prompts: f64::MAX,
                at: now,
                day,
                tokens: 0,
            });
            account.day = account.day.min(day);
            account.tokens = account.tokens.saturating_add(tokens);
        }
    }

    fn forget(&self, client: &str) {
        if let Some(record) = &self.record {
            record.forget_account(client);
        }
    }

    /// Lets a prompt in and counts it, or says why not and when. `in_work` are those of the same identity that wait or run.
    pub(super) fn enter(
        &mut self,
        identity: &Identity,
        quota: &Quota,
        in_work: usize,
        now: Instant,
    ) -> Result<(), Refusal> {
        let limited = |message: String, limit: u64, have: u64, after: Duration| {
            let refusal = Refusal::new(Code::RateLimited, message);
            Err(refusal.with_limit(limit, have).with_retry_after(after))
        };
        let in_work = u64::try_from(in_work).unwrap_or(u64::MAX);
        if let Some(most) = quota.concurrent.map(u64::from).filter(|most| in_work >= *most) {
            let message = format!(
                "`{}` has {in_work} prompts in work, and may have {most} at a time; ask again when one is answered",
                identity.0
            );
            return limited(message, most, in_work, Duration::from_secs(1));
        }
        if quota.per_minute.is_none() && quota.tokens_per_day.is_none() {
            return Ok(());
        }
        let account = self.account(identity, quota, now);
        if let Some(most) = quota.tokens_per_day.filter(|most| account.tokens >= *most) {
            let left = DAY.saturating_sub(now.saturating_duration_since(account.day));
            let have = account.tokens;
            let message = format!(
                "`{}` has used {have} tokens in 24 hours, and may use {most}; the day ends in {} minutes",
                identity.0,
                left.as_secs().div_ceil(60)
            );
            return limited(message, most, have, left);
        }
        let Some(most) = quota.per_minute else { return Ok(()) };
        let passed = now.saturating_duration_since(account.at).as_secs_f64();
        let each = MINUTE.as_secs_f64() / f64::from(most.max(1));
        account.prompts = (account.prompts + passed / each).min(f64::from(most));
        account.at = now;
        if account.prompts < 1.0 {
            let after = Duration::from_secs_f64(each * (1.0 - account.prompts));
            let message = format!("`{}` may ask {most} prompts a minute", identity.0);
            return limited(message, most.into(), u64::from(most) + 1, after);
        }
        account.prompts -= 1.0;
        Ok(())
    }

    /// Counts the tokens of a prompt that has ended.
    pub(super) fn spend(&mut self, identity: &Identity, quota: &Quota, tokens: u64, now: Instant) {
        if quota.tokens_per_day.is_some() {
            let account = self.account(identity, quota, now);
            account.tokens = account.tokens.saturating_add(tokens);
            let (age, tokens) = (now.saturating_duration_since(account.day), account.tokens);
            let shared = !self.accounts.contains_key(identity);
            let client = if shared { "" } else { identity.0.as_str() };
            if let Some(record) = self.record.as_ref().filter(|_| tokens > 0) {
                record.keep_account(client, age, tokens);
            }
        }
    }

    fn account(&mut self, identity: &Identity, quota: &Quota, now: Instant) -> &mut Account {
        self.restore(now);
        let prompts = f64::from(quota.per_minute.unwrap_or(0));
        let fresh = Account { prompts, at: now, day: now, tokens: 0 };
        let over = |account: &Account| now.saturating_duration_since(account.day) >= DAY;
        if self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(identity) {
            // Who has not asked for a minute and used nothing today is as good as new.
            let busy = |a: &Account| now.saturating_duration_since(a.at) < MINUTE;
            let record = self.record.as_ref();
            self.accounts.retain(|client, account| {
                let stays = busy(account) || (account.tokens > 0 && !over(account));
                if let Some(record) = record.filter(|_| !stays && account.tokens > 0) {
                    record.forget_account(&client.0);
                }
                stays
            });
        }
        let full = self.accounts.len() >= MAX_ACCOUNTS && !self.accounts.contains_key(identity);
        let name = if full { Identity(String::new()) } else { identity.clone() };
        let account = self.accounts.entry(name).or_insert(fresh);
        if over(account) {
            *account = Account { day: now, tokens: 0, ..*account };
        }
        account
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn who(name: &str) -> Identity {
        Identity(name.to_owned())
    }

    #[test]
    fn prompts_a_minute_grow_back() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { per_minute: Some(6), ..Quota::default() };
        let mut at = |who: &Identity, seconds| quotas.enter(who, &quota, 0, now + SECOND * seconds);
        (0..6).for_each(|_| at(&who("a"), 0).unwrap());
        let refusal = at(&who("a"), 0).unwrap_err();
        assert_eq!((refusal.code, refusal.retry_after), (Code::RateLimited, Some(10 * SECOND)));
        at(&who("b"), 0).unwrap();
        assert_eq!(at(&who("a"), 4).unwrap_err().retry_after, Some(6 * SECOND));
        at(&who("a"), 11).unwrap();
        assert!(at(&who("a"), 12).is_err());
        // A quiet hour is no credit for more than a minute.
        (0..6).for_each(|_| at(&who("a"), 3600).unwrap());
        assert!(at(&who("a"), 3600).is_err());
    }

    #[test]
    fn prompts_at_a_time() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { concurrent: Some(2), ..Quota::default() };
        quotas.enter(&who("a"), &quota, 1, now).unwrap();
        let refusal = quotas.enter(&who("a"), &quota, 2, now).unwrap_err();
        assert_eq!((refusal.limit, refusal.have), (Some(2), Some(2)));
        assert!(quotas.accounts.is_empty(), "nothing has to be remembered");
    }

    #[test]
    fn tokens_a_day_begin_anew_after_a_day() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { tokens_per_day: Some(100), ..Quota::default() };
        quotas.enter(&who("a"), &quota, 0, now).unwrap();
        quotas.spend(&who("a"), &quota, 99, now);
        quotas.enter(&who("a"), &quota, 0, now + MINUTE).unwrap();
        quotas.spend(&who("a"), &quota, 40, now + MINUTE);
        let refusal = quotas.enter(&who("a"), &quota, 0, now + 60 * MINUTE).unwrap_err();
        assert_eq!(refusal.retry_after, Some(23 * 60 * MINUTE));
        assert_eq!((refusal.limit, refusal.have), (Some(100), Some(139)));
        quotas.enter(&who("a"), &quota, 0, now + DAY).unwrap();
    }

    #[tokio::test]
    async fn a_restart_gives_nobody_a_new_day() {
        let (folder, now) = (tempfile::tempdir().unwrap(), Instant::now());
        let open = || Record::open(folder.path(), crate::record::Pace::default()).unwrap();
        let quota = Quota { tokens_per_day: Some(100), ..Quota::default() };
        let (record, keeper) = open();
        let mut quotas = Quotas::kept(Some(record));
        quotas.enter(&who("a"), &quota, 0, now).unwrap();
        quotas.spend(&who("a"), &quota, 60, now);
        quotas.spend(&who("a"), &quota, 60, now + MINUTE);
        quotas.spend(&who("b"), &quota, 99, now + MINUTE);
        assert!(keeper.close(60 * SECOND).await);

        let (record, keeper) = open();
        let mut quotas = Quotas::kept(Some(record));
        let refusal = quotas.enter(&who("a"), &quota, 0, now).unwrap_err();
        assert_eq!((refusal.code, refusal.have), (Code::RateLimited, Some(120)));
        assert!(refusal.retry_after.unwrap() + 10 * MINUTE > DAY, "{refusal:?}");
        quotas.enter(&who("b"), &quota, 0, now).unwrap();
        quotas.spend(&who("b"), &quota, 1, now);
        assert!(quotas.enter(&who("b"), &quota, 0, now).is_err());
        // Their day ends all the same.
        quotas.enter(&who("a"), &quota, 0, now + DAY + MINUTE).unwrap();
        assert!(keeper.close(60 * SECOND).await);
    }

    #[test]
    fn invented_names_share_one_account_when_there_are_too_many() {
        let (mut quotas, now) = (Quotas::default(), Instant::now());
        let quota = Quota { per_minute: Some(1), ..Quota::default() };
        for n in 0..=MAX_ACCOUNTS {
            quotas.enter(&who(&n.to_string()), &quota, 0, now).unwrap();
        }
        assert!(quotas.enter(&who("one more"), &quota, 0, now).is_err());
        assert!(quotas.accounts.len() <= MAX_ACCOUNTS + 1);
        quotas.enter(&who("later"), &quota, 0, now + 2 * MINUTE).unwrap();
        assert!(quotas.accounts.len() <= 2);
    }
}
