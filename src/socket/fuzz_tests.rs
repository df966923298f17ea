//! Lines in pieces, paths, and headers, damaged at random: a line is what stands between two line breaks, however it comes,
//! and no header opens a door.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};
use tokio::io::{AsyncRead, BufReader, ReadBuf};

use super::asking::{bearer, willing_to_wait};
use super::guard::is_known;
use super::http::decoded;
use super::lines::{Line, Lines};
use crate::identity::Grant;
use crate::random::{Random, runs, told};
use crate::request::Identity;
use crate::wire::{Context as Reading, Limits, Profiles, Readings, parse_ask};

/// Bytes that come in pieces of a size that changes.
struct Pieces {
    bytes: Vec<u8>,
    at: usize,
    sizes: Random,
}

impl AsyncRead for Pieces {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let size = (1 + self.sizes.below(24)).min(self.bytes.len() - self.at).min(buf.remaining());
        buf.put_slice(&self.bytes[self.at..self.at + size]);
        self.at += size;
        Poll::Ready(Ok(()))
    }
}

const LINES: &[&str] = &[
    "{\"prompt\":\"hi\"}\n",
    "{\"id\":\"a\",\"prompt\":\"hi\",\"stream\":true}\r\n",
    "Is the light on?\n",
    "\n\n  \n",
    "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}",
];

#[test]
fn fuzz_lines() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (profiles, limits, readings) =
        (Profiles::default(), Limits::default(), Readings::default());
    let began = Instant::now();
    let context = Reading {
        profiles: &profiles,
        limits: &limits,
        readings: &readings,
        grant: Grant::all(Identity("fuzz".to_owned())),
        now: began,
        door: crate::request::Door::Lines,
    };
    let mut random = Random::of_target(0x9e37_79b9_7f4a_7c15);
    let (mut asked, mut long, mut refused) = (0_u64, 0_u64, 0_u64);
    let all = runs(1);
    runtime.block_on(async {
        for run in 0..all {
            let mut bytes = Vec::new();
            for _ in 0..=random.below(3) {
                bytes.extend_from_slice(random.pick(LINES).as_bytes());
            }
            random.damage(&mut bytes, LINES);
            let limit = 1 + random.below(60);
            let pieces = Pieces { bytes: bytes.clone(), at: 0, sizes: Random(run + 1) };
            let capacity = 1 + random.below(32);
            let reader = BufReader::with_capacity(capacity, pieces);
            let mut lines = Lines { reader, line: Vec::new(), limit };
            // The same by the book.
            let mut parts: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
            if parts.last().is_some_and(|rest| rest.is_empty()) {
                parts.pop();
            }
            for part in parts {
                let line = lines.next(|| limit).await;
                if part.len() > limit {
                    assert_eq!(line, Line::TooLong);
                    long += 1;
                    continue;
                }
                assert_eq!(line, Line::Whole(part.to_vec()));
                match parse_ask(part.strip_suffix(b"\r").unwrap_or(part), None, &context) {
                    Ok(_) => asked += 1,
                    Err(error) => {
                        refused += 1;
                        assert!(error.refusal.code.http_status() != 500, "{}", error.refusal);
                    }
                }
            }
            assert_eq!(lines.next(|| limit).await, Line::End);
        }
    });
    assert!(asked > 0 && long > 0 && refused > 0);
    told("lines", began, all, &format!("{asked} asked, {long} too long, {refused} refused"));
}

fn damaged(random: &mut Random, text: &str, words: &[&str]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    random.damage(&mut bytes, words);
    String::from_utf8_lossy(&bytes).into_owned()
}

const HEADERS: &[&str] = &[
    "localhost",
    "127.0.0.1:80",
    "[::1]:8808",
    "board.lan",
    "evil.example",
    "http://localhost:3000",
    "Bearer 0123456789abcdef",
    "wait=10, respond-async",
    "%e4%bd%a0/%2e%2e",
    "[",
    ":",
];

#[test]
fn fuzz_headers_and_paths() {
    let hosts = ["board.lan".to_owned()];
    let mut random = Random::of_target(0x2545_f491_4f6c_dd1d);
    let began = Instant::now();
    let (mut known, mut waits) = (0_u64, 0_u64);
    let all = runs(1);
    for _ in 0..all {
        let seed = random.pick(HEADERS);
        let text = damaged(&mut random, seed, HEADERS);
        let decoded = decoded(&text);
        assert!(decoded.len() <= text.len() * 3);
        if is_known(&hosts, &text) {
            known += 1;
            // What a page on another machine could not have: no name of its own.
            let bare = text.trim_start_matches('[').split([']', '%']).next().unwrap_or_default();
            let bare = bare
                .rsplit_once(':')
                .filter(|_| !text.starts_with('['))
                .map_or(bare, |(name, _)| name);
            let address = bare.parse::<std::net::IpAddr>().is_ok();
            let named =
                ["localhost", "board.lan"].iter().any(|name| bare.eq_ignore_ascii_case(name));
            assert!(address || named || text.parse::<std::net::IpAddr>().is_ok(), "{text:?}");
        }
        if let Ok(value) = HeaderValue::from_bytes(text.as_bytes()) {
            let mut headers = HeaderMap::new();
            for name in ["prefer", "x-stainless-timeout", "authorization"] {
                headers.append(HeaderName::from_static(name), value.clone());
            }
            let wait = willing_to_wait(&headers);
            assert!(wait.is_none_or(|wait| !wait.is_zero()));
            waits += u64::from(wait.is_some());
            assert!(bearer(&headers).is_none_or(|key| key.len() < text.len()));
        }
    }
    assert!(known > 0 && waits > 0, "{known} known, {waits} waits");
    told("headers and paths", began, all, &format!("{known} hosts known, {waits} times"));
}
