//! `promptd status`: how the running service is, for people or as JSON.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Map, Value};

use super::args::Status;
use super::http::{Client, Trouble};
use super::world::clean;
use super::{World, exit};

/// Asks the service how it is, and prints it.
pub async fn run(args: Status) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args, world).await)).await
}

/// The same in a given world; returns the exit code.
pub async fn run_in(args: Status, world: &mut World<'_>) -> u8 {
    let socket = args.place.socket(world.environment);
    let ended = Box::pin(show(&socket, args.json, world)).await;
    world.end(ended)
}

async fn show(socket: &Path, as_json: bool, world: &mut World<'_>) -> Result<u8, Trouble> {
    let client = Client { socket };
    let (_, version) = client.json("/version", None).await?;
    let (_, status) = client.json("/health/ready", None).await?;
    let Some(state) = status.get("state").and_then(Value::as_str) else {
        return Err(client.strange("/health/ready names no state".to_owned()));
    };
    let code = match state {
        // A prompt that comes loads the model.
        // And one that comes while the record cannot be written is answered.
        "ready" | "unloaded" | "degraded" => exit::OK,
        "model_failed" => exit::FAILURE,
        _ => exit::LATER,
    };
    let text = if as_json {
        let mut object = Map::new();
        object.insert("version".into(), version.get("version").cloned().unwrap_or_default());
        object.insert("socket".into(), socket.display().to_string().into());
        object.extend(status.as_object().cloned().unwrap_or_default());
        format!("{}\n", Value::Object(object))
    } else {
        table(&version, socket, &status)
    };
    world.print(&text)?;
    Ok(code)
}

/// The status for people.
fn table(version: &Value, socket: &Path, status: &Value) -> String {
    let at = |path: &str| words(status.pointer(path).unwrap_or(&Value::Null));
    let mut rows: Vec<(&str, String)> = Vec::new();
    let state = match (status.pointer("/stage"), status.pointer("/message")) {
        (Some(stage), _) => format!("{}: {}", at("/state"), words(stage)),
        (_, Some(message)) => format!("{}: {}", at("/state"), words(message)),
        _ => at("/state"),
    };
    rows.push(("state", state));
    if let Some(model) = status.get("model") {
        let chat =
            if model.get("chat") == Some(&Value::Bool(true)) { "chat" } else { "no chat template" };
        let (name, architecture, context) =
            (at("/model/name"), at("/model/architecture"), at("/model/context"));
        rows.push((
            "model",
            format!("{name} ({architecture}, {context} tokens of context, {chat})"),
        ));
        let (runtime, provider) = (at("/model/runtime_version"), at("/model/provider"));
        let (threads, ms) = (at("/model/threads"), at("/model/load_ms"));
        rows.push((
            "runtime",
            format!("ONNX Runtime {runtime} on {provider}, {threads} threads, loaded in {ms} ms"),
        ));
        rows.extend(nodes(model).map(|text| ("graph", text)));
    }
    let eta = status.pointer("/queue/eta_ms").and_then(Value::as_u64).filter(|eta| *eta > 0);
    let eta = eta.map(|eta| format!(", a new one would begin in {} s", eta / 1000));
    rows.push((
        "queue",
        format!(
            "{} waiting, {} possible{}",
            at("/queue/waiting"),
            at("/queue/limit"),
            eta.unwrap_or_default()
        ),
    ));
    rows.extend(board(status).map(|text| ("board", text)));
    rows.extend(record(status).map(|text| ("record", text)));
    rows.extend(troubles(status));
    rows.extend(broker(status).map(|text| ("broker", text)));
    rows.extend(denied(status).map(|text| ("denied", text)));
    rows.extend(context(status).map(|text| ("context", text)));
    let running = at("/slots/running");
    rows.push((
        "running",
        status
            .pointer("/slots/total")
            .filter(|total| !total.is_null())
            .map_or_else(|| running.clone(), |total| format!("{running} of {}", words(total))),
    ));
    let pid = status.get("engine_pid").filter(|pid| !pid.is_null());
    let engine = pid.map_or_else(|| "none".to_owned(), |pid| format!("process {}", words(pid)));
    rows.push(("engine", format!("{engine}, restarted {} times", at("/counters/engine_restarts"))));
    let refused =
        status.pointer("/counters/refused").and_then(Value::as_object).cloned().unwrap_or_default();
    let refused: String =
        refused.iter().fold(String::new(), |all, (code, n)| format!("{all}, {} {code}", words(n)));
    rows.push((
        "prompts",
        format!(
            "{} accepted, {} finished{refused}",
            at("/counters/accepted"),
            at("/counters/finished")
        ),
    ));
    let (read, cached) = (at("/counters/prompt_tokens"), at("/counters/cached_tokens"));
    rows.push((
        "tokens",
        format!(
            "{read} read ({cached} of them cached), {} written",
            at("/counters/completion_tokens")
        ),
    ));

    let version = words(version.get("version").unwrap_or(&Value::Null));
    let mut text = format!("promptd {version} at {}\n", socket.display());
    for (name, value) in rows {
        // Writing into a String cannot fail.
        let _ = writeln!(text, "  {name:<8} {value}");
    }
    text
}

/// What did not go as the operator wanted it.
fn troubles(status: &Value) -> Vec<(&'static str, String)> {
    let tell = |key: &str, what: &str| {
        status.get(key).filter(|why| !why.is_null()).map(|why| format!("{what}: {}", words(why)))
    };
    let reload = tell("configuration_error", "failed, the old configuration holds");
    let back = tell("went_back", "to the model before, for the current one did not come up");
    let next = status.get("next_model").filter(|next| !next.is_null());
    let next = next.map(|next| ("next", format!("{} is being loaded beside it", words(next))));
    let reload = reload.map(|text| ("reload", text));
    reload.into_iter().chain(back.map(|text| ("fallback", text))).chain(next).collect()
}

/// How many nodes of the graph run where, and why there.
fn nodes(model: &Value) -> Option<String> {
    let nodes = model.get("nodes").and_then(Value::as_object).filter(|nodes| !nodes.is_empty())?;
    let each: Vec<String> = nodes
        .iter()
        .map(|(name, count)| format!("{} nodes on {}", words(count), clean(name)))
        .collect();
    let why = model.get("provider_reason").filter(|why| !why.is_null()).map(words);
    Some(each.join(", ") + &why.map(|why| format!(" ({why})")).unwrap_or_default())
}

/// What the board says, where that is news.
fn board(status: &Value) -> Option<String> {
    let board = status.get("board")?;
    let held = board.get("throttled").and_then(Value::as_array).into_iter().flatten().map(words);
    let short = board.get("short_of_memory").map(|why| format!("no new prompts: {}", words(why)));
    let hot = board.get("celsius").map(|celsius| format!("about {} °C", words(celsius)));
    let all: Vec<String> = hot.into_iter().chain(held).chain(short).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// How things are with what outlasts the service, where anything does.
fn record(status: &Value) -> Option<String> {
    let record = status.get("record")?;
    let at = |name: &str| record.get(name).map(words).unwrap_or_default();
    let reason = record.get("reason").map(words);
    let state = reason.map_or_else(|| at("state"), |why| format!("degraded: {why}"));
    let (prompts, waiting, replayed) = (at("prompts"), at("waiting"), at("replayed"));
    Some(format!(
        "{state}; {prompts} prompts, {waiting} rows wait for the disk, {replayed} prompts run again"
    ))
}

/// How it stands with the broker, where there is one.
fn broker(status: &Value) -> Option<String> {
    let broker = status.get("broker")?;
    let at = |key: &str| words(broker.get(key).unwrap_or(&Value::Null));
    Some(match (broker.get("connected"), broker.get("trouble")) {
        (Some(Value::Bool(true)), _) => format!("{}, MQTT {}", at("url"), at("mqtt")),
        (_, Some(_)) => format!("{}, not connected: {}", at("url"), at("trouble")),
        _ => format!("{}, not connected yet", at("url")),
    })
}

/// What the broker's access rules refuse.
fn denied(status: &Value) -> Option<String> {
    let denied = status.pointer("/broker/denied")?.as_array()?;
    let one = |denied: &Value| {
        let at = |key: &str| words(denied.get(key).unwrap_or(&Value::Null));
        format!("{} {} ({})", at("action"), at("topic"), at("reason"))
    };
    let all: Vec<String> = denied.iter().map(one).collect();
    (!all.is_empty()).then(|| format!("{}; allow it in the broker's access rules", all.join(", ")))
}

/// The values that profiles put into prompts: which of them are used.
fn context(status: &Value) -> Option<String> {
    let all = status.get("context")?.as_array()?;
    let one = |reading: &Value| {
        let topic = words(reading.get("topic").unwrap_or(&Value::Null));
        match (reading.get("age_s").and_then(Value::as_u64), reading.get("stale")) {
            (None, _) => format!("{topic} has none yet"),
            (Some(age), Some(Value::Bool(true))) => format!("{topic} stale, {age} s old, not used"),
            (Some(age), _) => format!("{topic} {age} s old"),
        }
    };
    Some(all.iter().map(one).collect::<Vec<_>>().join("; "))
}

fn words(value: &Value) -> String {
    value
        .as_str()
        .map_or_else(|| if value.is_null() { "?".to_owned() } else { value.to_string() }, clean)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table() {
        let version = json!({"version": "0.1.0"});
        let status = json!({
            "state": "ready",
            "model": {"name": "demo", "architecture": "llama", "context": 512, "chat": true, "runtime_version": "1.24.0",
                "provider": "CPU", "provider_reason": "no GPU", "nodes": {"CPU": 12}, "threads": 4, "load_ms": 80},
            "queue": {"waiting": 0, "limit": 32}, "slots": {"running": 1, "total": 2}, "engine_pid": 7,
            "counters": {"accepted": 3, "finished": 1, "refused": {"busy": 1}, "prompt_tokens": 40, "cached_tokens": 8,
                "completion_tokens": 9, "engine_restarts": 0},
        });
        assert_eq!(
            table(&version, Path::new("/run/s"), &status),
            "promptd 0.1.0 at /run/s\n  state    ready\n  model    demo (llama, 512 tokens of context, chat)\n  \
             runtime  ONNX Runtime 1.24.0 on CPU, 4 threads, loaded in 80 ms\n  \
             graph    12 nodes on CPU (no GPU)\n  queue    0 waiting, 32 possible\n  \
             running  1 of 2\n  engine   process 7, restarted 0 times\n  prompts  3 accepted, 1 finished, 1 busy\n  \
             tokens   40 read (8 of them cached), 9 written\n"
        );
        let loading = table(
            &version,
            Path::new("/run/s"),
            &json!({"state": "loading", "stage": "loading the weights"}),
        );
        assert!(loading.contains("state    loading: loading the weights\n"), "{loading}");
        assert!(loading.contains("engine   none"), "{loading}");
    }
}
