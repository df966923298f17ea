//! `promptd chat`: a conversation at a terminal. The conversation is kept here and sent whole with every question.

use std::io::{BufRead as _, BufReader};
use std::process::ExitCode;

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use serde_json::{Map, Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::answering::Answering;
use super::args::Chat;
use super::http::{Client, Trouble};
use super::{World, exit};

const HELP: &str = "  /help          this
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
    let ended = Box::pin(talk(args, world)).await;
    world.end(ended.map(|()| exit::OK))
}

/// The conversation.
struct Talk {
    args: Chat,
    turns: Vec<(String, String)>,
    interrupts: Interrupts,
}

/// Ctrl-C of a person while there is no editor that reads it as a key. A script's has the usual effect.
struct Interrupts(Option<Signal>);

impl Interrupts {
    /// Listens from now on, so that no moment is left in which Ctrl-C ends the program.
    fn of(person: bool) -> Result<Self, Trouble> {
        let listen = || signal(SignalKind::interrupt());
        let signal = person.then(listen).transpose();
        signal
            .map(Interrupts)
            .map_err(|error| Trouble::Usage(format!("cannot listen for Ctrl-C: {error}")))
    }

    /// Forgets those of an answer that had ended by itself.
    async fn forget(&mut self) {
        while tokio::select! {
            biased;
            () = self.next() => true,
            () = std::future::ready(()) => false,
        } {}
    }

    async fn next(&mut self) {
        if let Some(signal) = &mut self.0 {
            signal.recv().await;
        } else {
            std::future::pending::<()>().await;
        }
    }
}

/// What a line asks for.
enum Said {
    Question(String),
    Done,
    Leave,
}

async fn talk(args: Chat, world: &mut World<'_>) -> Result<(), Trouble> {
    let socket = args.place.socket(world.environment);
    let client = Client { socket: &socket };
    let (_, status) = client.json("/health/ready", None).await?;
    if status.pointer("/model/chat").and_then(Value::as_bool) == Some(false) {
        let message = "the model has no chat template, so it cannot talk; `promptd ask` has it continue a text";
        return Err(Trouble::Usage(message.to_owned()));
    }
    let model = status.pointer("/model/name").and_then(Value::as_str).unwrap_or("promptd");
    let person = world.input_is_terminal && world.output_is_terminal && !args.json;
    if person {
        let hello = format!("{model} at {}; /help tells more\n", socket.display());
        world.print(&hello)?;
    }
    let colour = person && (world.environment)("NO_COLOR").is_none_or(|value| value.is_empty());
    let term = (world.environment)("TERM").unwrap_or_default();
    // Where the cursor cannot be moved there is no editing.
    let simple = ["dumb", "emacs", "cons25"].iter().any(|name| term == *name);
    let mut lines = Lines::new(person, simple, colour && !simple)?;
    let interrupts = Interrupts::of(person)?;
    let mut talk = Talk { args, turns: Vec::new(), interrupts };
    while let Some(line) = lines.next(world).await? {
        talk.interrupts.forget().await;
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
        // What is no answer goes elsewhere where a program reads the answers.
        let aside = self.args.json;
        let mut say = |text: &str| {
            if !aside {
                return world.print(text);
            }
            let _ = world.errors.write_all(text.as_bytes());
            Ok(())
        };
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
        body.insert("stream_options".into(), json!({"include_usage": true}));
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
        &mut self,
        client: &Client<'_>,
        question: &str,
        world: &mut World<'_>,
    ) -> Result<String, Trouble> {
        let body = self.request(question);
        let mut answering = tokio::select! {
            answering = Answering::begin(client, "/v1/chat/completions", &body) => answering?,
            () = self.interrupts.next() => return Ok(String::new()),
        };
        let mut answer = String::new();
        loop {
            let piece = tokio::select! {
                piece = answering.next() => piece,
                () = self.interrupts.next() => {
                    world.print(" …\n")?;
                    return Ok(answer);
                }
            };
            match piece {
                Ok(Some(text)) => {
                    if !self.args.json {
                        world.print(&text)?;
                    }
                    answer.push_str(&text);
                }
                Ok(None) => break,
                Err(trouble) => {
                    if !answer.is_empty() && !self.args.json {
                        world.print("\n")?;
                    }
                    return Err(trouble);
                }
            }
        }
        if self.args.json {
            let (finish, usage) = (answering.finish, answering.usage);
            let line =
                json!({"question": question, "answer": answer, "finish": finish, "usage": usage});
            world.print(&format!("{line}\n"))?;
        } else {
            world.print("\n")?;
        }
        Ok(answer)
    }
}

/// Where questions come from.
enum Lines {
    /// A person types; the arrows bring earlier lines back.
    Editor { editor: Option<Box<DefaultEditor>>, prompt: &'static str },
    /// A script, a file, or a person at a terminal that cannot edit, who is shown where to type.
    Input { person: bool },
}

impl Lines {
    fn new(person: bool, simple: bool, colour: bool) -> Result<Self, Trouble> {
        if !person || simple {
            return Ok(Lines::Input { person });
        }
        let failed =
            |error: ReadlineError| Trouble::Usage(format!("cannot read the terminal: {error}"));
        let editor = Some(Box::new(DefaultEditor::new().map_err(failed)?));
        Ok(Lines::Editor { editor, prompt: if colour { "\u{1b}[1;36m>\u{1b}[0m " } else { "> " } })
    }

    /// The next line, with those behind it where it ends in a backslash. `None` at the end.
    async fn next(&mut self, world: &mut World<'_>) -> Result<Option<String>, Trouble> {
        let mut whole = String::new();
        loop {
            let Some(line) = self.one(world, !whole.is_empty()).await? else {
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

    async fn one(&mut self, world: &mut World<'_>, more: bool) -> Result<Option<String>, Trouble> {
        match self {
            Lines::Editor { editor, prompt } => {
                let prompt = if more { ". " } else { *prompt };
                let Some(own) = editor.take() else { return Ok(None) };
                // On a thread of its own: the connection of an answer that was ended closes while the person types.
                let read = tokio::task::spawn_blocking(move || type_line(own, prompt)).await;
                let gone = |error| Trouble::Usage(format!("cannot read the terminal: {error}"));
                let (own, line) = read.map_err(gone)?;
                *editor = Some(own);
                line.map_err(|error| Trouble::Usage(format!("cannot read the terminal: {error}")))
            }
            Lines::Input { person } => {
                if *person {
                    world.print(if more { ". " } else { "> " })?;
                }
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

/// Has a person type a line; the editor comes back with it. `None` at the end.
fn type_line(
    mut editor: Box<DefaultEditor>,
    prompt: &str,
) -> (Box<DefaultEditor>, Result<Option<String>, ReadlineError>) {
    let line = loop {
        match editor.readline(prompt) {
            Ok(line) => {
                // A history that is full forgets its oldest line.
                let _ = editor.add_history_entry(&line);
                break Ok(Some(line));
            }
            // Ctrl-C empties the line.
            Err(ReadlineError::Interrupted) => {}
            Err(ReadlineError::Eof) => break Ok(None),
            Err(error) => break Err(error),
        }
    };
    (editor, line)
}
