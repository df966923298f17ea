//! `promptd ask`: one question to the running service, its answer on standard output.

use std::io::Read as _;
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use super::answering::Answering;
use super::args::Ask;
use super::http::{Client, Trouble};
use super::{World, exit};

/// The most that is read from standard input: what the service could be configured to take, and one byte more so that the
/// service's own refusal comes instead of a prompt cut short.
const INPUT_BYTES: u64 = (16 << 20) + 1;

/// Asks, and prints the answer.
pub async fn run(args: Ask) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args, world).await)).await
}

/// The same in a given world; returns the exit code.
pub async fn run_in(args: Ask, world: &mut World<'_>) -> u8 {
    // Boxed: an HTTP exchange is a large future, and there is only one.
    let ended = Box::pin(ask(args, world)).await;
    world.end(ended.map(|()| exit::OK))
}

async fn ask(args: Ask, world: &mut World<'_>) -> Result<(), Trouble> {
    let prompt = prompt(&args.prompt, world)?;
    let schema = schema(&args)?;
    let socket = args.place.socket(world.environment);
    let client = Client { socket: &socket };
    let chat = has_chat(&client).await?;
    let stream = !args.json && (args.stream || world.output_is_terminal);
    let (path, body) = request(&args, chat, &prompt, schema, stream)?;
    if stream {
        return print_stream(&client, path, &body, world).await;
    }
    let (_, answer) = client.json(path, Some(&body)).await?;
    if let Some(error) = answer.get("error") {
        return Err(Trouble::refused(error));
    }
    if args.json {
        return world.print(&format!("{answer}\n"));
    }
    let choice = answer.pointer("/choices/0").unwrap_or(&Value::Null);
    let text =
        choice.pointer("/message/content").or_else(|| choice.get("text")).and_then(Value::as_str);
    let text = text.ok_or_else(|| client.strange("an answer without text".to_owned()))?;
    world.print(&with_line_end(text))
}

/// The prompt as typed, or from standard input.
fn prompt(typed: &[String], world: &mut World<'_>) -> Result<String, Trouble> {
    if !typed.is_empty() && typed != ["-"] {
        return Ok(typed.join(" "));
    }
    if typed.is_empty() && world.input_is_terminal {
        return Err(Trouble::Usage(
            "there is no prompt: promptd ask \"Is the light on?\"".to_owned(),
        ));
    }
    let mut text = String::new();
    let read = world.input.take(INPUT_BYTES).read_to_string(&mut text);
    read.map_err(|source| Trouble::File { path: "standard input".into(), source })?;
    let text = text.trim_end_matches(['\n', '\r']);
    if text.trim().is_empty() {
        return Err(Trouble::Usage("the prompt on standard input is empty".to_owned()));
    }
    Ok(text.to_owned())
}

fn schema(args: &Ask) -> Result<Option<Value>, Trouble> {
    let Some(path) = &args.schema else { return Ok(None) };
    let failed = |source| Trouble::File { path: path.clone(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let schema = serde_json::from_str(&text);
    schema
        .map(Some)
        .map_err(|error| Trouble::Usage(format!("{} is no JSON: {error}", path.display())))
}

/// Whether the model takes a conversation. A service that takes no prompts now says why.
async fn has_chat(client: &Client<'_>) -> Result<bool, Trouble> {
    let (_, status) = client.json("/health/ready", None).await?;
    let refused =
        |code: &str, message: String| Err(Trouble::Refused { code: code.to_owned(), message });
    match status.get("state").and_then(Value::as_str) {
        // A prompt that comes loads the model; most can chat, and one that cannot says so.
        Some("ready" | "unloaded") => {
            Ok(status.pointer("/model/chat").and_then(Value::as_bool).unwrap_or(true))
        }
        Some("loading") => {
            let stage = status.get("stage").and_then(Value::as_str).unwrap_or("starting");
            refused("model_loading", format!("promptd is still {stage}; ask again in a moment"))
        }
        Some("draining") => refused("busy", "promptd is stopping".to_owned()),
        Some("model_failed") => Err(Trouble::refused(&status)),
        _ => Err(client.strange("/health/ready names no state".to_owned())),
    }
}

/// The path and the body. A model without a chat template continues the prompt.
fn request(
    args: &Ask,
    chat: bool,
    prompt: &str,
    schema: Option<Value>,
    stream: bool,
) -> Result<(&'static str, Value), Trouble> {
    let mut body = Map::new();
    let path = if chat {
        let system = args.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> =
            system.chain([json!({"role": "user", "content": prompt})]).collect();
        body.insert("messages".into(), messages.into());
        "/v1/chat/completions"
    } else if args.system.is_some() {
        let message = "the model has no chat template, so it has no place for --system";
        return Err(Trouble::Usage(message.to_owned()));
    } else {
        body.insert("prompt".into(), prompt.into());
        "/v1/completions"
    };
    let given: [(&str, Option<Value>); 5] = [
        ("profile", args.profile.as_deref().map(Value::from)),
        ("max_tokens", args.max_tokens.map(Value::from)),
        ("temperature", args.temperature.map(Value::from)),
        ("seed", args.seed.map(Value::from)),
        (
            "response_format",
            schema.map(|schema| json!({"type": "json_schema", "json_schema": {"schema": schema}})),
        ),
    ];
    body.extend(given.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    body.insert("stream".into(), stream.into());
    Ok((path, Value::Object(body)))
}

/// Prints an answer as it comes.
async fn print_stream(
    client: &Client<'_>,
    path: &str,
    body: &Value,
    world: &mut World<'_>,
) -> Result<(), Trouble> {
    let mut answering = Answering::begin(client, path, body).await?;
    let mut line_is_open = false;
    let ended = loop {
        match answering.next().await {
            Ok(Some(text)) => {
                line_is_open = !text.ends_with('\n');
                world.print(&text)?;
            }
            Ok(None) => break Ok(()),
            Err(trouble) => break Err(trouble),
        }
    };
    if line_is_open {
        world.print("\n")?;
    }
    ended
}

fn with_line_end(text: &str) -> String {
    if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests() {
        let args = Ask {
            system: Some("S".to_owned()),
            profile: Some("lights".to_owned()),
            max_tokens: Some(5),
            seed: Some(-1),
            ..Ask::default()
        };
        let (path, body) =
            request(&args, true, "P", Some(json!({"type": "object"})), true).unwrap();
        assert_eq!(path, "/v1/chat/completions");
        assert_eq!(
            body.to_string(),
            r#"{"messages":[{"role":"system","content":"S"},{"role":"user","content":"P"}],"profile":"lights","max_tokens":5,"seed":-1,"response_format":{"type":"json_schema","json_schema":{"schema":{"type":"object"}}},"stream":true}"#
        );
        assert_eq!(request(&args, false, "P", None, false).unwrap_err().exit_code(), 2);
        let (path, body) = request(&Ask::default(), false, "P", None, false).unwrap();
        assert_eq!(
            (path, body.to_string().as_str()),
            ("/v1/completions", r#"{"prompt":"P","stream":false}"#)
        );
    }
}
