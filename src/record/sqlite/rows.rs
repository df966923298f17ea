//! Rows of the record and what they are in the file: each carries a digest, and one that is not what was written is left out.

use bytes::Bytes;
use rusqlite::{Connection, Error, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use crate::record::disk::{Change, Contents};
use crate::record::{AccountItem, Door, Item, Row, SessionItem, Stage};

pub(super) fn read(connection: &Connection) -> Result<Contents, Error> {
    let mut contents = Contents::default();
    read_prompts(connection, &mut contents)?;
    read_sessions(connection, &mut contents)?;
    read_accounts(connection, &mut contents)?;
    Ok(contents)
}

const PROMPT: &str =
    "number, door, stage, key, seed, starts, attempts, begun, until, data, digest, deaths";

pub(super) fn read_prompts(connection: &Connection, contents: &mut Contents) -> Result<(), Error> {
    // What is read was not migrated: it may have to be set aside as it is.
    let columns =
        if version(connection)? < 2 { PROMPT.replace("deaths", "0") } else { PROMPT.to_owned() };
    let mut statement =
        connection.prepare(&format!("SELECT {columns} FROM prompts ORDER BY number"))?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match prompt(row) {
            Ok(Some(item)) => contents.prompts.push(item),
            Ok(None) | Err(_) => contents.lost += 1,
        }
    }
    Ok(())
}

fn prompt(row: &rusqlite::Row<'_>) -> Result<Option<Item>, Error> {
    let door = match row.get::<_, i64>(1)? {
        0 => Door::Mqtt,
        1 => Door::Socket,
        _ => return Ok(None),
    };
    let stage = match row.get::<_, i64>(2)? {
        0 => Stage::Accepted,
        1 => Stage::Answered,
        2 => Stage::Delivered,
        _ => return Ok(None),
    };
    let item = Item {
        number: unsigned(row.get(0)?),
        door,
        stage,
        key: row.get(3)?,
        seed: unsigned(row.get(4)?),
        starts: row.get(5)?,
        attempts: row.get(6)?,
        begun: unsigned(row.get(7)?),
        until: unsigned(row.get(8)?),
        data: Bytes::from(row.get::<_, Vec<u8>>(9)?),
        deaths: row.get(11)?,
    };
    Ok((row.get::<_, [u8; 8]>(10)? == digest_of_prompt(&item)).then_some(item))
}

pub(super) fn read_sessions(connection: &Connection, contents: &mut Contents) -> Result<(), Error> {
    let mut statement =
        connection.prepare("SELECT client, name, used, data, digest FROM sessions")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match session(row) {
            Ok(Some(item)) => contents.sessions.push(item),
            Ok(None) | Err(_) => contents.lost += 1,
        }
    }
    Ok(())
}

fn session(row: &rusqlite::Row<'_>) -> Result<Option<SessionItem>, Error> {
    let item = SessionItem {
        client: row.get(0)?,
        name: row.get(1)?,
        used: unsigned(row.get(2)?),
        data: Bytes::from(row.get::<_, Vec<u8>>(3)?),
    };
    Ok((row.get::<_, [u8; 8]>(4)? == digest_of_session(&item)).then_some(item))
}

pub(super) fn read_accounts(connection: &Connection, contents: &mut Contents) -> Result<(), Error> {
    if version(connection)? < 3 {
        return Ok(());
    }
    let mut statement = connection.prepare("SELECT client, began, tokens, digest FROM accounts")?;
    let mut rows = statement.query([])?;
    while let Some(row) = rows.next()? {
        match account(row) {
            Ok(Some(item)) => contents.accounts.push(item),
            Ok(None) | Err(_) => contents.lost += 1,
        }
    }
    Ok(())
}

fn account(row: &rusqlite::Row<'_>) -> Result<Option<AccountItem>, Error> {
    let item = AccountItem {
        client: row.get(0)?,
        began: unsigned(row.get(1)?),
        tokens: unsigned(row.get(2)?),
    };
    Ok((row.get::<_, [u8; 8]>(3)? == digest_of_account(&item)).then_some(item))
}

/// The version of the file's form, which is not migrated before it is read.
fn version(connection: &Connection) -> Result<i64, Error> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes the changes. `synced` is whether the last and this transaction are made safe.
pub(super) fn write(
    connection: &mut Connection,
    changes: &[Change],
    synced: (bool, bool),
) -> Result<(), Error> {
    if synced.0 != synced.1 {
        connection.pragma_update(None, "synchronous", if synced.1 { "FULL" } else { "NORMAL" })?;
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut put = transaction.prepare(&format!(
            "INSERT OR REPLACE INTO prompts ({PROMPT}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)"
        ))?;
        let mut keep =
            transaction.prepare("INSERT OR REPLACE INTO sessions VALUES (?1, ?2, ?3, ?4, ?5)")?;
        let mut count =
            transaction.prepare("INSERT OR REPLACE INTO accounts VALUES (?1, ?2, ?3, ?4)")?;
        let mut remove = transaction.prepare("DELETE FROM prompts WHERE number = ?1")?;
        let mut end =
            transaction.prepare("DELETE FROM sessions WHERE client = ?1 AND name = ?2")?;
        let mut close = transaction.prepare("DELETE FROM accounts WHERE client = ?1")?;
        for change in changes {
            match change {
                Change::Prompt(item) => put.execute(params![
                    signed(item.number),
                    item.door as i64,
                    item.stage as i64,
                    item.key,
                    signed(item.seed),
                    item.starts,
                    item.attempts,
                    signed(item.begun),
                    signed(item.until),
                    item.data.as_ref(),
                    digest_of_prompt(item),
                    item.deaths,
                ])?,
                Change::Session(item) => keep.execute(params![
                    item.client,
                    item.name,
                    signed(item.used),
                    item.data.as_ref(),
                    digest_of_session(item),
                ])?,
                Change::Account(item) => count.execute(params![
                    item.client,
                    signed(item.began),
                    signed(item.tokens),
                    digest_of_account(item),
                ])?,
                Change::Remove(Row::Prompt(number)) => remove.execute(params![signed(*number)])?,
                Change::Remove(Row::Session(client, name)) => end.execute(params![client, name])?,
                Change::Remove(Row::Account(client)) => close.execute(params![client])?,
            };
        }
        // A transaction without a change writes nothing, and makes nothing safe.
        if changes.is_empty() {
            transaction.execute("UPDATE openings SET count = count + 1", [])?;
        }
    }
    transaction.commit()
}

fn digest_of_prompt(item: &Item) -> [u8; 8] {
    let mut hash = Sha256::new();
    for number in [
        item.number,
        item.door as u64,
        item.stage as u64,
        item.seed,
        item.starts.into(),
        item.attempts.into(),
        item.begun,
        item.until,
    ] {
        hash.update(number.to_le_bytes());
    }
    // Rows of the first version have none.
    if item.deaths > 0 {
        hash.update(item.deaths.to_le_bytes());
    }
    hash.update(item.key);
    hash.update(&item.data);
    first_eight(&hash.finalize())
}

fn digest_of_session(item: &SessionItem) -> [u8; 8] {
    let mut hash = Sha256::new();
    for part in [item.client.as_bytes(), item.name.as_bytes(), &item.used.to_le_bytes()] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(&item.data);
    first_eight(&hash.finalize())
}

fn digest_of_account(item: &AccountItem) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(item.began.to_le_bytes());
    hash.update(item.tokens.to_le_bytes());
    hash.update(item.client.as_bytes());
    first_eight(&hash.finalize())
}

fn first_eight(digest: &[u8]) -> [u8; 8] {
    digest.first_chunk().copied().unwrap_or_default()
}

/// The file's integers have a sign; the bits are what counts.
fn signed(number: u64) -> i64 {
    number.cast_signed()
}

fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}
