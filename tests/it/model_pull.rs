//! `promptd model pull` against a hub of our own: what it fetches, goes on with, refuses and keeps.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::support::demo_model;
use crate::support::service::{command, output};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the hub has and how it misbehaves.
#[derive(Default)]
struct Shelf {
    /// Files by name.
    files: BTreeMap<String, Vec<u8>>,
    /// Those whose checksum is stated wrongly.
    lie: Option<String>,
    /// Connections that are cut in the middle of a large file before one goes through.
    cuts: usize,
    /// Answers of 503 before one of another kind.
    busy: usize,
    /// Whether ranges are ignored.
    whole: bool,
    /// The token without which nothing is given.
    token: Option<String>,
    /// What was asked: the line, the range and the authorization.
    asked: Vec<(String, Option<String>, Option<String>)>,
}

/// A hub and the server of large files that it sends everybody on to.
struct Hub {
    hub: SocketAddr,
    shelf: Arc<Mutex<Shelf>>,
}

impl Hub {
    fn with(files: BTreeMap<String, Vec<u8>>) -> Self {
        let shelf = Arc::new(Mutex::new(Shelf { files, ..Shelf::default() }));
        let cdn = serve(&shelf, None);
        let hub = serve(&shelf, Some(cdn));
        Hub { hub, shelf }
    }

    fn set(&self, change: impl FnOnce(&mut Shelf)) {
        change(&mut self.shelf.lock().unwrap());
    }

    /// What was asked for that begins so.
    fn asked(&self, begin: &str) -> Vec<(Option<String>, Option<String>)> {
        let shelf = self.shelf.lock().unwrap();
        let of = shelf.asked.iter().filter(|(line, _, _)| line.starts_with(begin));
        of.map(|(_, range, token)| (range.clone(), token.clone())).collect()
    }
}

/// Serves until the program ends; `cdn`: where large files are.
fn serve(shelf: &Arc<Mutex<Shelf>>, cdn: Option<SocketAddr>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shelf = Arc::clone(shelf);
    std::thread::Builder::new()
        .name("hub".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // Whoever goes away in the middle does so.
                let _ = answer(&stream, &shelf, cdn);
            }
        })
        .unwrap();
    address
}

fn answer(
    stream: &TcpStream,
    shelf: &Mutex<Shelf>,
    cdn: Option<SocketAddr>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let line = lines.next().unwrap()?;
    let path = line.split(' ').nth(1).unwrap().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut shelf = shelf.lock().unwrap();
    let (range, token) = (headers.get("range").cloned(), headers.get("authorization").cloned());
    shelf.asked.push((path.clone(), range.clone(), token.clone()));
    let say = |head: &str, body: &[u8]| {
        let mut stream = stream;
        write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\n")?;
        stream.write_all(b"\r\n")?;
        stream.write_all(body)
    };
    if shelf.busy > 0 {
        shelf.busy -= 1;
        return say("503 Busy\r\nRetry-After: 0\r\nContent-Length: 0", b"");
    }
    if cdn.is_some()
        && shelf.token.as_ref().is_some_and(|right| token != Some(format!("Bearer {right}")))
    {
        return say(
            "401 No\r\nX-Error-Message: Access to model o/m is restricted.\r\nContent-Length: 0",
            b"",
        );
    }
    if path.starts_with("/api/models/o/m/revision/") {
        if path != "/api/models/o/m/revision/main?blobs=true" {
            return say("404 No\r\nX-Error-Code: RevisionNotFound\r\nContent-Length: 0", b"");
        }
        let siblings: Vec<Value> = shelf
            .files
            .iter()
            .map(|(name, bytes)| sibling(name, bytes, shelf.lie.as_deref()))
            .collect();
        let body = json!({"sha": COMMIT, "siblings": siblings}).to_string();
        return say(&format!("200 OK\r\nContent-Length: {}", body.len()), body.as_bytes());
    }
    let name = path
        .strip_prefix(&format!("/o/m/resolve/{COMMIT}/"))
        .or_else(|| path.strip_prefix("/cdn/"));
    let Some(bytes) = name.and_then(|name| shelf.files.get(name)).cloned() else {
        return say("404 No\r\nX-Error-Code: EntryNotFound\r\nContent-Length: 0", b"");
    };
    if let Some(cdn) = cdn.filter(|_| is_large(&bytes)) {
        let to = format!("http://{cdn}/cdn/{}", name.unwrap());
        return say(&format!("302 Found\r\nLocation: {to}\r\nContent-Length: 0"), b"");
    }
    let from = range.and_then(|range| {
        range.strip_prefix("bytes=")?.trim_end_matches('-').parse::<usize>().ok()
    });
    let from = from.filter(|_| !shelf.whole).unwrap_or(0);
    let rest = &bytes[from..];
    let head = if from > 0 {
        format!(
            "206 Part\r\nContent-Range: bytes {from}-{}/{}\r\nContent-Length: {}",
            bytes.len() - 1,
            bytes.len(),
            rest.len()
        )
    } else {
        format!("200 OK\r\nContent-Length: {}", rest.len())
    };
    if is_large(&bytes) && shelf.cuts > 0 {
        shelf.cuts -= 1;
        return say(&head, &rest[..rest.len().min(400_000)]);
    }
    say(&head, rest)
}

/// Kept outside of git, as hubs do it.
fn is_large(bytes: &[u8]) -> bool {
    bytes.len() > 100_000
}

fn sibling(name: &str, bytes: &[u8], lie: Option<&str>) -> Value {
    use sha1::Sha1;
    let mut file = json!({"rfilename": name, "size": bytes.len()});
    let lies = lie == Some(name);
    if is_large(bytes) {
        let sha256 = promptd::inference::hex(&Sha256::digest(bytes));
        let sha256 = if lies { sha256.replace('a', "b") } else { sha256 };
        file["lfs"] = json!({"sha256": sha256, "size": bytes.len(), "pointerSize": 130});
    } else {
        let blob = Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes);
        let blob = promptd::inference::hex(&blob.finalize());
        file["blobId"] = if lies { "00".repeat(20).into() } else { blob.into() };
    }
    file
}

/// The demo model as a repository, without a manifest.
fn repository() -> BTreeMap<String, Vec<u8>> {
    let names = [
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ];
    let mut files: BTreeMap<String, Vec<u8>> = names
        .iter()
        .map(|name| ((*name).to_owned(), std::fs::read(demo_model().join(name)).unwrap()))
        .collect();
    files.insert("model.safetensors".into(), vec![1; 200_000]);
    files.insert(".gitattributes".into(), b"x".to_vec());
    files
}

struct Board {
    folder: tempfile::TempDir,
}

impl Board {
    fn new() -> Self {
        Board { folder: tempfile::tempdir().unwrap() }
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    fn pull(&self, hub: &Hub, more: &[&str]) -> (i32, String, String) {
        let mut typed = command(&["model", "pull", "o/m", "--pause-ms", "1", "--json", "--models"]);
        typed.arg(self.models()).arg("--hub").arg(format!("http://{}", hub.hub)).args(more);
        output(typed)
    }

    fn pulled(&self, hub: &Hub, more: &[&str]) -> Value {
        let (code, text, errors) = self.pull(hub, more);
        assert_eq!(code, 0, "{errors}");
        serde_json::from_str(&text).unwrap()
    }

    /// What lies under way.
    fn under_way(&self) -> usize {
        std::fs::read_dir(self.models().join("incoming")).map_or(0, Iterator::count)
    }
}

#[test]
fn a_model_is_fetched_pinned_and_whole() {
    let (hub, board) = (Hub::with(repository()), Board::new());
    let kept = board.pulled(&hub, &[]);
    assert_eq!(kept["model"], "m@0123456789ab");
    let folder = board.models().join("m@0123456789ab");
    for (name, bytes) in repository() {
        let there = std::fs::read(folder.join(&name)).ok();
        let wanted = name != "model.safetensors" && name != ".gitattributes";
        assert_eq!(there, wanted.then_some(bytes), "{name}");
    }
    let manifest = std::fs::read_to_string(folder.join("manifest.toml")).unwrap();
    assert!(manifest.contains(&format!("/o/m@{COMMIT}\"")), "{manifest}");
    let mut verify = command(&["model", "verify", "--models"]);
    verify.arg(board.models());
    assert_eq!(output(verify).0, 0);
    assert_eq!(board.under_way(), 0);
    assert_eq!(hub.asked("/cdn/").len(), 1);
}

#[test]
fn what_was_cut_off_is_gone_on_with() {
    let (hub, board) = (Hub::with(repository()), Board::new());
    hub.set(|shelf| (shelf.cuts, shelf.busy) = (3, 2));
    board.pulled(&hub, &[]);
    let ranges: Vec<_> =
        hub.asked("/cdn/model.onnx.data").into_iter().map(|(range, _)| range).collect();
    let expected: Vec<_> =
        [None, Some("bytes=400000-"), Some("bytes=800000-"), Some("bytes=1200000-")]
            .map(|range| range.map(str::to_owned))
            .to_vec();
    assert_eq!(ranges, expected);

    // The command itself is interrupted: the hub cuts off more often than it is asked again.
    let (hub, board) = (Hub::with(repository()), Board::new());
    hub.set(|shelf| shelf.busy = 100);
    assert_eq!(board.pull(&hub, &[]).0, 1);
    hub.set(|shelf| (shelf.busy, shelf.cuts) = (0, 1));
    let name = format!("pull-o-m-{}--", "0123456789ab");
    let part = board.models().join("incoming").join(name).join("model.onnx.data.part");
    std::fs::create_dir_all(part.parent().unwrap()).unwrap();
    std::fs::write(&part, &repository()["model.onnx.data"][..1_000_000]).unwrap();
    board.pulled(&hub, &[]);
    assert_eq!(hub.asked("/cdn/")[0].0.as_deref(), Some("bytes=1000000-"));

    // A server that knows no ranges: from the start, and right all the same.
    let (hub, board) = (Hub::with(repository()), Board::new());
    hub.set(|shelf| (shelf.whole, shelf.cuts) = (true, 2));
    board.pulled(&hub, &[]);
}

#[test]
fn what_is_not_what_the_hub_says_is_not_kept() {
    for (name, words) in
        [("model.onnx.data", "has the sha256"), ("genai_config.json", "has the git object id")]
    {
        let (hub, board) = (Hub::with(repository()), Board::new());
        hub.set(|shelf| shelf.lie = Some(name.into()));
        let (code, _, errors) = board.pull(&hub, &[]);
        assert_eq!(code, 1);
        assert!(errors.contains(&format!("{name} {words}")), "{errors}");
        assert!(!board.models().join("m@0123456789ab").exists());
        // What is right by then is there; the same command ends it when the hub has come to its senses.
        hub.set(|shelf| shelf.lie = None);
        board.pulled(&hub, &[]);
    }
    // Whole, and no model.
    let mut broken = repository();
    broken.insert("tokenizer.json".into(), b"{}".to_vec());
    let (hub, board) = (Hub::with(broken), Board::new());
    let (code, _, errors) = board.pull(&hub, &[]);
    assert!(code == 1 && errors.contains("tokenizer.json"), "{errors}");
    assert!(!board.models().join("m@0123456789ab").exists());
}

#[test]
fn a_token_goes_to_the_hub_and_to_nobody_else() {
    let (hub, board) = (Hub::with(repository()), Board::new());
    hub.set(|shelf| shelf.token = Some("hf_secret".into()));
    let (code, _, errors) = board.pull(&hub, &[]);
    assert_eq!(code, 1);
    assert!(errors.contains("401") && errors.contains("--token-file"), "{errors}");
    let token = board.folder.path().join("token");
    std::fs::write(&token, "hf_secret\n").unwrap();
    let (code, text, errors) = board.pull(&hub, &["--token-file", token.to_str().unwrap()]);
    assert_eq!(code, 0, "{errors}");
    assert!(!text.contains("hf_secret") && !errors.contains("hf_secret"));
    assert!(
        hub.asked("/cdn/").iter().all(|(_, token)| token.is_none()),
        "{:?}",
        hub.asked("/cdn/")
    );
}

#[test]
fn what_is_not_there_is_said() {
    let hub =
        Hub::with(BTreeMap::from([("cpu/int4/genai_config.json".to_owned(), b"{}".to_vec())]));
    let board = Board::new();
    for (more, words) in [
        (&["--revision", "v2"][..], "RevisionNotFound"),
        (&[], "name one of its folders with --folder: cpu/int4"),
        (&["--folder", "cpu/int4"], "no ONNX graph"),
        (&["--hub", "hub"], "no address of a hub"),
    ] {
        let more: Vec<&str> = more.to_vec();
        let mut typed = command(&["model", "pull", "o/m", "--pause-ms", "1", "--models"]);
        typed.arg(board.models());
        if !more.contains(&"--hub") {
            typed.arg("--hub").arg(format!("http://{}", hub.hub));
        }
        let (code, _, errors) = output({
            typed.args(&more);
            typed
        });
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains(words), "{errors} / {words}");
    }
}

#[test]
fn no_quicker_than_it_may() {
    let (hub, board) = (Hub::with(repository()), Board::new());
    let begun = std::time::Instant::now();
    // The model has 2.8 MB.
    board.pulled(&hub, &["--limit-rate", "2000000"]);
    assert!(begun.elapsed().as_millis() >= 1300, "{:?}", begun.elapsed());
}
