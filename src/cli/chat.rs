//! `promptd chat`: a conversation at a terminal. The conversation is kept here and sent whole with every question.

use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;

use http_body_util::BodyExt as _;
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};

use super::args::Chat;
use super::http::{Client, Events, Trouble};
use super::{World, exit, socket_path};

/// The most one event of a stream may have: a piece of text is some bytes.
const EVENT_BYTES: usize = 1 << 20;

const HELP: &str = "\
  /help          this
  /system TEXT   what the model is told first; without a text, nothing
  /profile NAME  the profile whose defaults hold; without a name, none
  /retry         ask the last question again
  /undo          forget the last question and its answer
  /new           begin a new conversation
  /show          the conversation so far
  /quit          leave (also Ctrl-D)
  A line that ends in \\ goes on in the next. Ctrl-C ends an answer, not the program.
";

/// Talks.
pub async fn run(args: Chat) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args, world).await)).await
}

/// The same in a given world; returns the exit code.
pub async fn run_in(args: Chat, world: &mut World<'_>) -> u8 {
    match Box::pin(talk(args, world)).await {
        Ok(()) => exit::OK,
        Err(trouble) => {
            world.complain(&trouble);
            trouble.exit_code()
        }
    }
}

/// The conversation.
struct Talk {
    args: Chat,
    turns: Vec<(String, String)>,
}

/// What a line asks for.
enum Said {
    Question(String),
    Done,
    Leave,
}

async fn talk(args: Chat, world: &mut World<'_>) -> Result<(), Trouble> {
    let socket = socket_path(args.socket.clone(), world.environment);
    let client = Client { socket: &socket };
    let (_, status) = client.json("/health/ready", None).await?;
    if status.pointer("/model/chat").and_then(Value::as_bool) == Some(false) {
        let message = "the model has no chat template, so it cannot talk; `promptd ask` has it continue a text";
        return Err(Trouble::Usage(message.to_owned()));
    }
    let model = status.pointer("/model/name").and_then(Value::as_str).unwrap_or("promptd");
    let person = world.input_is_terminal && world.output_is_terminal;
    if person {
        let hello = format!("{model} at {}; /help tells more\n", socket.display());
        world.print(&hello).map_err(Trouble::Output)?;
    }
    let colour = person && (world.environment)("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut lines = Lines::new(person, colour)?;
    let mut talk = Talk { args, turns: Vec::new() };
    while let Some(line) = lines.next(world)? {
        let question = match talk.read(&line, world)? {
            Said::Question(question) => question,
            Said::Done => continue,
            Said::Leave => break,
        };
        match talk.ask(&client, &question, world).await {
            Ok(answer) => talk.turns.push((question, answer)),
            // The next question may fare better; a script wants to know.
            Err(trouble @ (Trouble::Refused { .. } | Trouble::Unreachable { .. })) if person => {
                world.complain(&trouble);
            }
            Err(trouble) => return Err(trouble),
        }
    }
    Ok(())
}

impl Talk {
    fn read(&mut self, line: &str, world: &mut World<'_>) -> Result<Said, Trouble> {
        let line = line.trim();
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = Some(rest.trim().to_owned()).filter(|rest| !rest.is_empty());
        let mut say = |text: &str| world.print(text).map_err(Trouble::Output);
        match word {
            "" => {}
            "/help" | "/?" => say(HELP)?,
            "/quit" | "/exit" | "/bye" => return Ok(Said::Leave),
            "/new" | "/clear" => self.turns.clear(),
            "/undo" => drop(self.turns.pop()),
            "/system" => self.args.system = rest,
            "/profile" => self.args.profile = rest,
            "/retry" => {
                if let Some((question, _)) = self.turns.pop() {
                    return Ok(Said::Question(question));
                }
                say("there is no question yet\n")?;
            }
            "/show" => {
                for (question, answer) in &self.turns {
                    say(&format!("> {question}\n{answer}\n"))?;
                }
            }
            command if command.starts_with('/') => {
                say(&format!("there is no {command}; /help shows what there is\n"))?;
            }
            _ => return Ok(Said::Question(line.to_owned())),
        }
        Ok(Said::Done)
    }

    fn request(&self, question: &str) -> Value {
        let message = |role: &str, text: &str| json!({"role": role, "content": text});
        let system = self.args.system.iter().map(|text| message("system", text));
        let turns =
            self.turns.iter().flat_map(|(q, a)| [message("user", q), message("assistant", a)]);
        let messages: Vec<Value> = system.chain(turns).chain([message("user", question)]).collect();
        let mut body = Map::new();
        body.insert("messages".into(), messages.into());
        body.insert("stream".into(), true.into());
        for (name, value) in [
            ("profile", self.args.profile.as_deref().map(Value::from)),
            ("temperature", self.args.temperature.map(Value::from)),
            ("max_tokens", self.args.max_tokens.map(Value::from)),
        ] {
            body.extend(value.map(|value| (name.to_owned(), value)));
        }
        Value::Object(body)
    }

    /// Asks, prints the answer as it comes, and returns it: as much as came, where Ctrl-C ended it.
    async fn ask(
        &self,
        client: &Client<'_>,
        question: &str,
        world: &mut World<'_>,
    ) -> Result<String, Trouble> {
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let body = self.request(question);
        let mut response = tokio::select! {
            response = client.send("/v1/chat/completions", Some(&body)) => response?,
            _ = &mut interrupted => return Ok(String::new()),
        };
        if !response.status().is_success() {
            let (_, answer) = client.read_json(response).await?;
            return Err(Trouble::refused(answer.get("error").unwrap_or(&Value::Null)));
        }
        let (mut events, mut answer) = (Events::default(), String::new());
        loop {
            let frame = tokio::select! {
                frame = response.body_mut().frame() => frame,
                // Dropping the response closes the connection, which cancels the prompt.
                _ = &mut interrupted => {
                    world.print(" …\n").map_err(Trouble::Output)?;
                    return Ok(answer);
                }
            };
            let Some(frame) = frame else { return Err(client.cut_off()) };
            let frame = frame.map_err(|error| client.broken(error))?;
            for data in events.push(frame.data_ref().map_or(&[], |data| data.as_ref())) {
                if data == "[DONE]" {
                    world.print("\n").map_err(Trouble::Output)?;
                    return Ok(answer);
                }
                let event: Value = serde_json::from_str(&data)
                    .map_err(|error| client.strange(format!("no JSON, {error}")))?;
                if let Some(error) = event.get("error") {
                    if !answer.is_empty() {
                        world.print("\n").map_err(Trouble::Output)?;
                    }
                    return Err(Trouble::refused(error));
                }
                let text = event.pointer("/choices/0/delta/content").and_then(Value::as_str);
                if let Some(text) = text.filter(|text| !text.is_empty()) {
                    answer.push_str(text);
                    world.print(text).map_err(Trouble::Output)?;
                }
            }
            if events.unfinished() > EVENT_BYTES {
                return Err(client.strange("an event does not end".to_owned()));
            }
        }
    }
}

/// Where questions come from.
enum Lines {
    /// A person types; the arrows bring earlier lines back.
    Editor { editor: Box<DefaultEditor>, prompt: &'static str },
    /// A script or a file.
    Input,
}

impl Lines {
    fn new(person: bool, colour: bool) -> Result<Self, Trouble> {
        if !person {
            return Ok(Lines::Input);
        }
        let failed =
            |error: ReadlineError| Trouble::Usage(format!("cannot read the terminal: {error}"));
        let editor = Box::new(DefaultEditor::new().map_err(failed)?);
        Ok(Lines::Editor { editor, prompt: if colour { "\u{1b}[1;36m>\u{1b}[0m " } else { "> " } })
    }

    /// The next line, with those behind it where it ends in a backslash. `None` at the end.
    fn next(&mut self, world: &mut World<'_>) -> Result<Option<String>, Trouble> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.one(world, !whole.is_empty())? else {
                return Ok((!whole.is_empty()).then_some(whole));
            };
            if let Some(part) = line.strip_suffix('\\') {
                whole.push_str(part);
                whole.push('\n');
            } else {
                whole.push_str(&line);
                return Ok(Some(whole));
            }
        }
    }

    fn one(&mut self, world: &mut World<'_>, more: bool) -> Result<Option<String>, Trouble> {
        match self {
            Lines::Editor { editor, prompt } => loop {
                match editor.readline(if more { ". " } else { prompt }) {
                    Ok(line) => {
                        // A history that is full forgets its oldest line.
                        let _ = editor.add_history_entry(&line);
                        return Ok(Some(line));
                    }
                    // Ctrl-C empties the line.
                    Err(ReadlineError::Interrupted) => {}
                    Err(ReadlineError::Eof) => return Ok(None),
                    Err(error) => {
                        return Err(Trouble::Usage(format!("cannot read the terminal: {error}")));
                    }
                }
            },
            Lines::Input => {
                let mut line = Vec::new();
                // One byte at a time: what is behind the line belongs to the next call.
                let read =
                    BufReader::with_capacity(1, &mut *world.input).read_until(b'\n', &mut line);
                let read =
                    read.map_err(|source| Trouble::File { path: "standard input".into(), source })?;
                if read == 0 {
                    return Ok(None);
                }
                let line = String::from_utf8_lossy(&line);
                Ok(Some(line.trim_end_matches(['\n', '\r']).to_owned()))
            }
        }
    }
}
