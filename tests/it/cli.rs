//! The commands for people against a door with a scripted scheduler.

use std::path::Path;

use promptd::cli::args::{Args, Command};
use promptd::cli::{World, ask, cancel, chat, status, top};
use promptd::request::{Code, Constraint, Event, Input, Refusal, Role};
use promptd::scheduler::{State, Status};
use serde_json::Value;

use crate::support::door::{Door, Kind, delta, finished, soon};

/// What a command did.
#[derive(Debug)]
struct Done {
    code: u8,
    out: String,
    err: String,
}

/// Runs a command line; `{}` in it is the socket's path.
async fn run(line: &[&str], socket: &Path, input: &str, terminal: bool) -> Done {
    use clap::Parser as _;

    let words = line.iter().map(|word| word.replace("{}", &socket.display().to_string()));
    let args = Args::try_parse_from(std::iter::once("promptd".to_owned()).chain(words)).unwrap();
    let (mut input, mut out, mut err) = (input.as_bytes(), Vec::new(), Vec::new());
    let named =
        |name: &str| (name == "PROMPTD__SOCKET__PATH").then(|| socket.as_os_str().to_owned());
    let mut world = World {
        environment: &named,
        input: &mut input,
        input_is_terminal: false,
        output: &mut out,
        output_is_terminal: terminal,
        errors: &mut err,
    };
    let code = soon(async {
        match args.command {
            Command::Ask(args) => ask::run_in(args, &mut world).await,
            Command::Status(args) => status::run_in(args, &mut world).await,
            Command::Chat(args) => chat::run_in(args, &mut world).await,
            Command::Top(args) => top::run_in(args, &mut world).await,
            Command::Cancel(args) => cancel::run_in(args, &mut world).await,
            other => panic!("{other:?}"),
        }
    })
    .await;
    Done { code, out: String::from_utf8(out).unwrap(), err: String::from_utf8(err).unwrap() }
}

#[tokio::test]
async fn an_answer_whole_streamed_and_as_json() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    for (line, terminal, expected) in [
        (&["ask", "is", "it", "on"][..], false, "It is \u{1b}on.\n"),
        (&["ask", "--stream", "is it on"], false, "It is \u{1b}on.\n"),
        // Nobody's terminal is steered by a model.
        (&["ask", "--socket", "{}", "is it on"], true, "It is on.\n"),
    ] {
        let (done, submission) =
            tokio::join!(run(line, &path, "", terminal), door.answer(&["It is", " \u{1b}on."]));
        assert_eq!(
            (done.code, done.out.as_str(), done.err.as_str()),
            (0, expected, ""),
            "{line:?}"
        );
        let Input::Chat(messages) = submission.request.input else { panic!("{submission:?}") };
        assert_eq!(
            (messages.len(), messages[0].role, messages[0].content.as_str()),
            (1, Role::User, "is it on")
        );
    }
    let (done, _) =
        tokio::join!(run(&["ask", "--json", "x"], &path, "", true), door.answer(&["y"]));
    let answer: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (done.code, &answer["object"], &answer["promptd"]["seed"]),
        (0, &"chat.completion".into(), &7.into())
    );
}

#[tokio::test]
async fn what_is_asked_for_is_sent() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    let schema = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(schema.path(), r#"{"type":"object","properties":{"b":{},"a":{}}}"#).unwrap();
    let file = schema.path().to_str().unwrap();
    let line =
        ["ask", "-s", "Short.", "--schema", file, "-n", "9", "-t", "0.5", "--seed", "-1", "-"];
    let (done, submission) =
        tokio::join!(run(&line, &path, "from\ninput\n", false), door.answer(&["{}"]));
    assert_eq!((done.code, done.out.as_str()), (0, "{}\n"));
    let request = submission.request;
    assert_eq!((request.max_tokens, request.sampling.seed), (Some(9), Some(u64::MAX)));
    let schema = r#"{"type":"object","properties":{"b":{},"a":{}}}"#;
    assert_eq!(request.constraint, Constraint::JsonSchema(schema.to_owned()));
    let Input::Chat(messages) = request.input else { panic!("{:?}", request.input) };
    let said: Vec<_> =
        messages.iter().map(|message| (message.role, message.content.as_str())).collect();
    assert_eq!(said, [(Role::System, "Short."), (Role::User, "from\ninput")]);

    // A model without a chat template continues the text.
    door.script
        .set_status(|status| std::sync::Arc::make_mut(status.model.as_mut().unwrap()).chat = false);
    let (done, submission) =
        tokio::join!(run(&["ask", "Once"], &path, "", false), door.answer(&[" upon"]));
    assert_eq!((done.code, done.out.as_str()), (0, " upon\n"));
    assert_eq!(submission.request.input, Input::Completion("Once".to_owned()));
    let done = run(&["ask", "-s", "Short.", "x"], &path, "", false).await;
    assert_eq!((done.code, done.err.contains("no chat template")), (2, true), "{done:?}");
}

#[tokio::test]
async fn exit_codes_tell_what_was_wrong() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    for (code, expected) in
        [(Code::Busy, 75), (Code::WouldMissDeadline, 75), (Code::ContextLengthExceeded, 1)]
    {
        for line in [&["ask", "x"][..], &["ask", "--stream", "x"]] {
            let refuse = async { door.submitted().await.1.refuse(Refusal::new(code, "not now")) };
            let (done, ()) = tokio::join!(run(line, &path, "", false), refuse);
            assert_eq!((done.code, done.out.as_str()), (expected, ""), "{done:?}");
            assert_eq!(done.err, format!("promptd: not now ({})\n", code.as_str()));
        }
    }
    let fail = async {
        let events = door.accepted().await;
        events.send(delta("Half"));
        events.send(Event::Failed(Refusal::new(Code::ModelFailed, "died")));
    };
    let (done, ()) = tokio::join!(run(&["ask", "--stream", "x"], &path, "", false), fail);
    assert_eq!(
        (done.code, done.out.as_str(), done.err.as_str()),
        (1, "Half\n", "promptd: died (model_failed)\n")
    );

    for (line, part) in [
        (&["ask", "--profile", "nobody", "x"][..], "there are: lights"),
        (&["ask", "--temperature", "9", "x"], "`temperature`"),
    ] {
        let done = run(line, &path, "", false).await;
        assert_eq!((done.code, done.err.contains(part)), (1, true), "{done:?}");
    }
    for (line, part) in [
        (&["ask"][..], "standard input is empty"),
        (&["ask", "--schema", "/nowhere/schema.json", "x"], "/nowhere/schema.json"),
    ] {
        let done = run(line, &path, "", false).await;
        assert_eq!((done.code, done.err.contains(part)), (2, true), "{done:?}");
    }

    door.script.set_status(|status| *status = Status::default());
    let done = run(&["ask", "x"], &path, "", false).await;
    assert_eq!((done.code, done.err.contains("opening libonnxruntime")), (75, true), "{done:?}");
    let nowhere = path.with_file_name("nowhere");
    for line in [&["ask", "x"][..], &["status"]] {
        let done = run(line, &nowhere, "", false).await;
        assert_eq!(done.code, 69, "{done:?}");
        assert!(
            done.err.contains(nowhere.to_str().unwrap())
                && done.err.contains("systemctl status promptd"),
            "{done:?}"
        );
    }
}

#[tokio::test]
async fn how_the_service_is() {
    let door = Door::open(Kind::Http);
    let path = door.path.clone();
    let done = run(&["status"], &path, "", true).await;
    assert_eq!(done.code, 0, "{done:?}");
    assert!(
        done.out.contains("state    ready\n") && done.out.contains("tiny model (llama, 512 tokens"),
        "{done:?}"
    );
    let done = run(&["status", "--json"], &path, "", false).await;
    let status: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!(
        (&status["state"], &status["version"]),
        (&"ready".into(), &env!("CARGO_PKG_VERSION").into())
    );
    assert_eq!(status["socket"], path.to_str().unwrap());
    let failed = State::ModelFailed(Refusal::new(Code::ModelFailed, "no such folder"));
    for (state, code) in [(State::Draining, 75), (State::default(), 75), (failed, 1)] {
        door.script.set_status(|status| status.state = state);
        let done = run(&["status"], &path, "", false).await;
        assert_eq!((done.code, done.err.as_str()), (code, ""), "{done:?}");
    }
    assert!(run(&["status"], &path, "", false).await.out.contains("model_failed: no such folder"));
}

/// Standard output whose reader is gone, as in `promptd ask … | head -c0`.
struct Closed;
impl std::io::Write for Closed {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::BrokenPipe.into())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_reader_that_is_gone_ends_the_command_quietly() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    let script = async {
        let events = door.accepted().await;
        events.send(delta("a"));
        events.send(finished());
    };
    let (mut input, mut out, mut err) = (std::io::empty(), Closed, Vec::new());
    let mut world = World {
        environment: &|_| None,
        input: &mut input,
        input_is_terminal: true,
        output: &mut out,
        output_is_terminal: false,
        errors: &mut err,
    };
    let args = promptd::cli::args::Ask {
        prompt: vec!["x".to_owned()],
        place: promptd::cli::args::Place { socket: Some(path) },
        ..Default::default()
    };
    let (code, ()) = tokio::join!(soon(ask::run_in(args, &mut world)), script);
    assert_eq!((code, err.as_slice()), (1, &b""[..]));
}

#[tokio::test]
async fn a_conversation() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    let typed = "/system Be short.\nHi \\\nthere\n\n/nonsense\nAnd now?\n/undo\n/retry\n/quit\nnever asked\n";
    let answers = async {
        let mut asked = Vec::new();
        for text in ["Hello.", "Now.", "Again."] {
            let Input::Chat(messages) = door.answer(&[text]).await.request.input else {
                panic!("no chat")
            };
            asked.push(messages.iter().map(|m| m.content.clone()).collect::<Vec<_>>());
        }
        asked
    };
    let (done, asked) = tokio::join!(run(&["chat"], &path, typed, false), answers);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert_eq!(
        done.out,
        "Hello.\nthere is no /nonsense; /help shows what there is\nNow.\nAgain.\n"
    );
    assert_eq!(asked[1], ["Be short.", "Hi \nthere", "Hello.", "And now?"]);
    assert_eq!(asked[2], ["Be short.", "Hi \nthere"]);
}

#[tokio::test]
async fn a_look_and_a_cancel() {
    let mut door = Door::open(Kind::Http);
    let path = door.path.clone();
    let done = run(&["top", "--once"], &path, "", false).await;
    assert!(done.code == 0 && done.out.contains("ready   tiny model"), "{done:?}");
    let done = run(&["top", "--once", "--json"], &path, "", false).await;
    let look: Value = serde_json::from_str(&done.out).unwrap();
    assert!(look["memory_kib"]["service"].as_u64().unwrap() > 1000, "{look}");
    for (id, code, word) in [("chatcmpl-0-1", 1, "not_found"), ("../x", 2, "no id")] {
        let done = run(&["cancel", id], &path, "", false).await;
        assert!(done.code == code && done.err.contains(word), "{done:?}");
    }
    let mut client = door.connect().await;
    client.send(crate::support::raw_http::chat(&serde_json::json!({"stream": true}))).await;
    let events = door.accepted().await;
    let head = client.until("\"object\"").await;
    let id = head.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let done = run(&["cancel", &id, "--json"], &path, "", false).await;
    assert!(done.code == 0 && done.out.contains("\"cancelled\":true"), "{done:?}");
    drop(events);
}
