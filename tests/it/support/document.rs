//! The lines to copy of a document, run as a reader would run them.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::broker::{Broker, program};
use super::service::{Service, output};

/// What the lines need of the machine; where something is missing the test says so.
pub(crate) fn has_tools() -> bool {
    let tools = ["mosquitto_rr", "mosquitto_sub", "mosquitto_pub", "bash", "stdbuf"];
    let missing = tools.iter().find(|tool| program(tool).is_none());
    if let Some(missing) = missing {
        println!("SKIPPED: {missing} is not installed");
    }
    missing.is_none()
}

/// A home in which the clients find this broker by their own configuration files.
pub(crate) fn home(broker: &Broker) -> tempfile::TempDir {
    let home = tempfile::tempdir().unwrap();
    for tool in ["mosquitto_rr", "mosquitto_sub", "mosquitto_pub"] {
        std::fs::write(home.path().join(tool), format!("-h 127.0.0.1\n-p {}\n", broker.port))
            .unwrap();
    }
    home
}

/// A line to copy, and what stands below it.
#[derive(Debug)]
struct Line {
    command: String,
    expected: Vec<String>,
}

/// The blocks of lines to copy.
fn blocks(text: &str) -> Vec<Vec<Line>> {
    let mut blocks = Vec::new();
    for block in text.split("```console\n").skip(1) {
        let (block, _) = block.split_once("```").unwrap();
        let mut lines: Vec<Line> = Vec::new();
        for line in block.lines() {
            match line.strip_prefix("$ ") {
                Some(command) => {
                    lines.push(Line { command: command.to_owned(), expected: Vec::new() });
                }
                None => lines.last_mut().unwrap().expected.push(line.to_owned()),
            }
        }
        blocks.push(lines);
    }
    blocks
}

/// Whether what came is of the form that the document shows: the same text, or an object with the fields that are named.
fn resembles(expected: &str, got: &str) -> bool {
    if !expected.starts_with('{') {
        return got == expected || (expected.contains('…') && !got.is_empty());
    }
    let names = expected.split('"').collect::<Vec<_>>();
    let fields = names.windows(2).filter(|pair| pair[1].starts_with(':')).map(|pair| pair[0]);
    let mut fields = fields.peekable();
    fields.peek().is_some() && fields.all(|name| got.contains(&format!("\"{name}\":")))
}

/// A shell with this service: the clients find the broker by their own configuration files.
pub(crate) fn shell(command: &str, home: &Path, service: &Service) -> Command {
    let lines = service.lines();
    let command = command
        .replace("/run/promptd/promptd-lines.sock", lines.to_str().unwrap())
        .replace("/run/promptd/promptd.sock", service.socket().to_str().unwrap());
    let promptd = Path::new(env!("CARGO_BIN_EXE_promptd")).parent().unwrap();
    let path = format!("{}:/usr/sbin:{}", promptd.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.args(["-c", &command]).env("PATH", path).env("XDG_CONFIG_HOME", home).env("HOME", home);
    shell.env("PROMPTD__SOCKET__PATH", service.socket());
    shell
}

/// Starts a line that ends in `&`, and waits until it has subscribed: the client says so, line by line where `stdbuf` makes it.
fn listen(
    command: &str,
    home: &Path,
    service: &Service,
) -> (Child, BufReader<std::process::ChildStdout>) {
    let command = command
        .trim_end_matches('&')
        .replace("mosquitto_sub ", "exec stdbuf -oL mosquitto_sub -d -W 60 ");
    let mut child = shell(&command, home, service).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("Subscribed") {
        line.clear();
        assert!(out.read_line(&mut line).unwrap() > 0, "{command} did not subscribe");
    }
    (child, out)
}

/// Runs every line of a document and holds what it prints against what stands below it. How many there were.
pub(crate) fn run_lines(text: &str, home: &Path, service: &Service) -> usize {
    let mut count = 0;
    for block in blocks(text) {
        let mut listening = Vec::new();
        for line in &block {
            count += 1;
            let missing = ["socat", "curl"]
                .into_iter()
                .find(|tool| line.command.contains(&format!("{tool} ")) && program(tool).is_none());
            if let Some(missing) = missing {
                println!("SKIPPED: {missing} is not installed: {}", line.command);
                continue;
            }
            if line.command.ends_with('&') {
                listening.push((line, listen(&line.command, home, service)));
                continue;
            }
            // Whatever a client waits for comes soon, or the test has to say which line it was.
            let bounded = line.command.replace("mosquitto_rr ", "mosquitto_rr -W 60 ");
            let (status, out, errors) = output(shell(&bounded, home, service));
            assert_eq!(status, 0, "{}\n{out}{errors}", line.command);
            for (expected, got) in line.expected.iter().zip(out.lines()) {
                assert!(resembles(expected, got), "{}\n{expected}\n{got}", line.command);
            }
            assert!(out.lines().count() >= line.expected.len(), "{}\n{out}", line.command);
        }
        for (line, (mut child, out)) in listening {
            // The client's own words come between the messages.
            let lines = out.lines().map(Result::unwrap).filter(|line| !line.starts_with("Client "));
            let lines: Vec<String> = lines.collect();
            let status = child.wait().unwrap();
            assert!(status.success(), "{}\n{status}\n{lines:?}\n{}", line.command, service.log());
            for expected in &line.expected {
                let found = lines.iter().any(|got| resembles(expected, got));
                assert!(found, "{}\n{expected}\n{lines:?}", line.command);
            }
        }
    }
    count
}
