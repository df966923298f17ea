//! docs/cli.md shows what the commands print: every block of it is run against the real service and compared, numbers and
//! paths aside. `PROMPTD_WRITE_DOCS=1` puts what came in the place of what was there.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::broker::program;
use crate::support::door::soon;
use crate::support::service::{Plan, Service, output};
use crate::support::terminal::Terminal;
use crate::support::{TrueAtTheEnd, http, wait_for};

const PROMPTD: &str = env!("CARGO_BIN_EXE_promptd");

/// The socket that the document shows.
const SOCKET: &str = "/run/promptd/promptd.sock";

const HOUSE: &str =
    "[profiles.house]\nsystem = \"\"\"\ngreenhouse temperature: 21.5 °C\ngarage door: open\"\"\"\n";

/// What is typed in the conversation.
const TALK: &[&str] = &["How warm is it in the greenhouse?", "/new", "Who are \\", "you?", "/help"];

fn document() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/cli.md")
}

/// A line without what is different every time: numbers, ids, who asks.
fn form(line: &str) -> String {
    let mut form = String::new();
    let mut rest = line.trim_end();
    while let Some(c) = rest.chars().next() {
        let number = |c: char| c.is_ascii_digit() || c == '.';
        let id = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let used = if rest.starts_with("cmpl-") {
            form.push_str("cmpl-#");
            rest.find(|c| !id(c)).unwrap_or(rest.len())
        } else if c.is_ascii_digit() {
            // Numbers stand to the right of their column.
            let shorter = form.trim_end().len();
            if form.len() > shorter {
                form.truncate(shorter + 1);
            }
            form.push('#');
            rest.find(|c| !number(c)).unwrap_or(rest.len())
        } else {
            form.push(c);
            c.len_utf8()
        };
        rest = rest.split_at(used).1;
    }
    // Why the graph runs where it does, and what the board says, depend on the machine.
    match form.split_once(" nodes on CPU (") {
        Some((head, _)) => format!("{head} nodes on CPU"),
        None => form,
    }
}

/// The forms of a text's lines; several rows of one form count as one.
fn forms(text: &str) -> Vec<String> {
    let mut forms: Vec<String> = text.lines().map(form).collect();
    forms.retain(|form| !form.starts_with("  board ") && !form.starts_with("  hottest "));
    forms.dedup();
    forms
}

/// What the lines of a block print, one after the other in one shell.
fn in_a_shell(block: &str, service: &Service) -> String {
    let mut script = String::new();
    for command in block.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let quoted = command.replace('\'', "'\\''");
        writeln!(script, "printf '%s\\n' '$ {quoted}'\n{command}").unwrap();
    }
    let bin = Path::new(PROMPTD).parent().unwrap();
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec 2>&1\n{script}")]);
    shell.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
    shell.env("PROMPTD__SOCKET__PATH", service.socket());
    shell.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo"));
    let (_, out, errors) = output(shell);
    assert_eq!(errors, "");
    out
}

/// A conversation at a terminal that knows nothing but lines.
async fn conversation(service: &Service) -> String {
    let command = format!("{PROMPTD} chat --profile house --socket {}", service.socket().display());
    let mut terminal = Terminal::open(&command, &[("TERM", "dumb"), ("NO_COLOR", "1")]);
    let mut seen = terminal.until("\r\n> ").await;
    for line in TALK {
        terminal.press(&format!("{line}\n")).await;
        let next = if line.ends_with('\\') { "\r\n. " } else { "\r\n> " };
        seen += &terminal.until(next).await;
    }
    terminal.press("\u{4}").await;
    assert!(soon(terminal.ended()).await.unwrap().success());
    let seen = seen.replace("\r\n", "\n");
    format!("$ promptd chat --profile house\n{}\n", seen.strip_suffix("\n> ").unwrap())
}

/// The first picture of the live view that shows both slots at work and somebody who waits.
async fn live_view(service: &Service) -> String {
    let command = format!("{PROMPTD} top --socket {}", service.socket().display());
    let mut terminal = Terminal::open(&command, &[]);
    let mut picture = String::new();
    // One a second.
    for _ in 0..60 {
        terminal.until("\u{1b}[H").await;
        picture = terminal.until("\u{1b}[J").await;
        picture = picture.replace("\u{1b}[K", "").replace("\u{1b}[J", "").replace('\r', "");
        let busy = picture.contains("2 of 2 running") && picture.contains("cmpl-");
        if busy && !picture.contains("?/s") {
            terminal.press("\u{3}").await;
            assert!(soon(terminal.ended()).await.unwrap().success());
            return format!("$ promptd top\n{picture}");
        }
    }
    panic!("both slots are never seen at work: {picture}");
}

/// More prompts than there are slots, again and again until `quiet`.
fn crowd(socket: &Path, quiet: &AtomicBool) {
    let body =
        json!({"prompt": "Once", "regex": "[a-z]{400}", "temperature": 1, "max_tokens": 440});
    let body = body.to_string();
    let request = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: l\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    while !quiet.load(Ordering::Relaxed) {
        let mut stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut bytes = [0; 1024];
        // Who goes away in between cancels, so that nobody waits for the crowd.
        while !quiet.load(Ordering::Relaxed) {
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => break,
                _ => {}
            }
        }
    }
}

#[test]
fn what_the_document_shows_is_what_the_commands_print() {
    if let Some(missing) = ["bash", "jq"].iter().find(|tool| program(tool).is_none()) {
        return println!("SKIPPED: {missing} is not installed");
    }
    if !Terminal::is_there() {
        return;
    }
    let mut plan = Plan::demo().with(HOUSE);
    plan.slots = Some(2);
    let service = Service::start(&plan).ready();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let text = std::fs::read_to_string(document()).unwrap();
    let (mut new, mut shown) = (String::new(), 0);
    for (at, part) in text.split("```").enumerate() {
        if at > 0 {
            new.push_str("```");
        }
        let block = part.strip_prefix("console\n").filter(|block| !block.contains("$ sudo "));
        let Some(block) = block.filter(|_| at % 2 == 1) else {
            new.push_str(part);
            continue;
        };
        shown += 1;
        let quiet = AtomicBool::new(false);
        let (quiet, socket) = (&quiet, service.socket());
        let got = thread::scope(|scope| {
            let _quiet = TrueAtTheEnd(quiet);
            if block.contains("$ promptd top\n") || block.contains("$ promptd cancel") {
                for _ in 0..10 {
                    let socket = socket.clone();
                    scope.spawn(move || crowd(&socket, quiet));
                }
                wait_for("somebody who waits", || {
                    let queue = http::try_get(&service.socket(), "/v1/queue")?.json();
                    (!queue["prompts"].as_array()?.is_empty()).then_some(())
                });
            }
            if block.starts_with("$ promptd chat") {
                runtime.block_on(conversation(&service))
            } else if block.starts_with("$ promptd top\n") {
                runtime.block_on(live_view(&service))
            } else {
                in_a_shell(block, &service)
            }
        });
        // The places are told every half a second.
        wait_for("the crowd to be gone", || {
            let queue = http::try_get(&socket, "/v1/queue")?.json();
            let nobody = queue["prompts"] == json!([]) && queue["queue"]["eta_ms"] == 0;
            (nobody && queue["slots"]["running"] == 0).then_some(())
        });
        let got = got.replace(socket.to_str().unwrap(), SOCKET);
        if std::env::var_os("PROMPTD_WRITE_DOCS").is_none() {
            assert_eq!(
                forms(&got),
                forms(block),
                "the document shows\n{block}\nand this came\n{got}"
            );
        }
        write!(new, "console\n{got}").unwrap();
    }
    assert!(shown >= 6, "{shown} blocks are shown");
    if std::env::var_os("PROMPTD_WRITE_DOCS").is_some() {
        std::fs::write(document(), new).unwrap();
    }
}

#[test]
fn forms_forget_numbers_and_keep_words() {
    let text =
        "  queue    0 waiting, 256 possible\n     1      12 s  normal\n     2       3 s  normal\n";
    assert_eq!(forms(text), ["  queue # waiting, # possible", " # # s  normal"]);
    assert_eq!(form("cmpl-3a2ab936-55 is cancelled"), "cmpl-# is cancelled");
    assert_ne!(form("  queue    1 waits"), form("  queue    1 waiting"));
}
