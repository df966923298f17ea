//! `promptd top`: what the service does, every second: queue, slots, tokens a second, temperature, memory.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::args::Top;
use super::http::{Client, Trouble};
use super::world::clean;
use super::{World, exit};

/// The most prompts that are shown: a screen has some twenty lines.
const PROMPTS: usize = 12;

/// Shows it until Ctrl-C.
pub async fn run(args: Top) -> ExitCode {
    World::real(async |world| ExitCode::from(run_in(args, world).await)).await
}

/// The same in a given world; returns the exit code.
pub async fn run_in(args: Top, world: &mut World<'_>) -> u8 {
    let ended = Box::pin(watch(&args, world)).await;
    world.end(ended.map(|()| exit::OK))
}

async fn watch(args: &Top, world: &mut World<'_>) -> Result<(), Trouble> {
    let socket = args.place.socket(world.environment);
    let client = Client { socket: &socket };
    let live = world.output_is_terminal && !args.once && !args.json;
    let mut before: Option<(Instant, u64, u64)> = None;
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let mut view = look(&client).await?;
        let (now, read, written) = (
            Instant::now(),
            number(&view, "/counters/prompt_tokens"),
            number(&view, "/counters/completion_tokens"),
        );
        if let (Some((then, read_then, written_then)), Some(view)) = (before, view.as_object_mut())
        {
            let seconds = now.duration_since(then).as_secs_f64().max(0.001);
            let rate = |now: u64, then: u64| {
                let tokens = u32::try_from(now.saturating_sub(then)).unwrap_or(u32::MAX);
                (f64::from(tokens) / seconds * 10.0).round() / 10.0
            };
            let rates =
                json!({"read": rate(read, read_then), "written": rate(written, written_then)});
            view.insert("tokens_per_second".into(), rates);
        }
        before = Some((now, read, written));
        if live {
            // Home, and clear what is behind: less flicker than clearing first. `print` takes escapes out.
            let text = screen(&view, &socket).replace('\n', "\u{1b}[K\n");
            let page = format!("\u{1b}[H{text}\u{1b}[J");
            world.print_raw(&page)?;
        } else {
            let text = if args.json { format!("{view}\n") } else { screen(&view, &socket) };
            world.print(&text)?;
        }
        if args.once {
            return Ok(());
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_secs(args.interval.max(1).into())) => {}
            _ = &mut interrupted => return Ok(()),
        }
    }
}

/// Everything there is to see.
async fn look(client: &Client<'_>) -> Result<Value, Trouble> {
    let (_, status) = client.json("/health/ready", None).await?;
    let (_, queue) = client.json("/v1/queue", None).await?;
    let mut view: Map<String, Value> = status.as_object().cloned().unwrap_or_default();
    view.insert("prompts".into(), queue.get("prompts").cloned().unwrap_or_default());
    let engine = view.get("engine_pid").and_then(Value::as_u64);
    let service = client.pid().map(u64::from);
    view.insert(
        "memory_kib".into(),
        json!({
            "service": service.and_then(resident), "engine": engine.and_then(resident),
        }),
    );
    view.insert("temperature".into(), temperature().into());
    Ok(Value::Object(view))
}

/// Memory of a process in KiB, where it may be seen.
fn resident(pid: u64) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// The hottest zone in degrees Celsius, where the system tells.
fn temperature() -> Option<f64> {
    let zones = std::fs::read_dir("/sys/class/thermal").ok()?.filter_map(Result::ok);
    let read = |zone: std::fs::DirEntry| {
        let text = std::fs::read_to_string(zone.path().join("temp")).ok()?;
        text.trim().parse::<f64>().ok().map(|milli| milli / 1000.0)
    };
    zones.filter_map(read).max_by(f64::total_cmp)
}

fn number(view: &Value, path: &str) -> u64 {
    view.pointer(path).and_then(Value::as_u64).unwrap_or(0)
}

fn screen(view: &Value, socket: &Path) -> String {
    let at = |path: &str| match view.pointer(path) {
        None | Some(Value::Null) => "?".to_owned(),
        Some(Value::String(text)) => clean(text),
        Some(other) => other.to_string(),
    };
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = writeln!(
        text,
        "promptd at {}   {}   {}",
        socket.display(),
        at("/state"),
        at("/model/name")
    );
    let _ = writeln!(
        text,
        "  slots    {} of {} running, {} waiting of {}",
        at("/slots/running"),
        at("/slots/total"),
        at("/queue/waiting"),
        at("/queue/limit")
    );
    let _ = writeln!(
        text,
        "  tokens   {}/s read, {}/s written; {} and {} so far",
        at("/tokens_per_second/read"),
        at("/tokens_per_second/written"),
        at("/counters/prompt_tokens"),
        at("/counters/completion_tokens")
    );
    let _ = writeln!(
        text,
        "  prompts  {} accepted, {} finished",
        at("/counters/accepted"),
        at("/counters/finished")
    );
    let mib = |path: &str| {
        let kib = view.pointer(path).and_then(Value::as_u64);
        kib.map_or_else(|| "?".to_owned(), |kib| format!("{} MiB", kib / 1024))
    };
    let _ = writeln!(
        text,
        "  memory   service {}, engine {}",
        mib("/memory_kib/service"),
        mib("/memory_kib/engine")
    );
    if let Some(degrees) = view.get("temperature").and_then(Value::as_f64) {
        let _ = writeln!(text, "  hottest  {degrees:.1} °C");
    }
    let prompts = view.get("prompts").and_then(Value::as_array).cloned().unwrap_or_default();
    if !prompts.is_empty() {
        let _ = writeln!(
            text,
            "\n  {:>4}  {:>7}  {:<8}  {:<16}  id",
            "next", "in", "priority", "client"
        );
    }
    for prompt in prompts.iter().take(PROMPTS) {
        let word = |name: &str| {
            prompt.get(name).and_then(Value::as_str).map_or_else(|| "-".to_owned(), clean)
        };
        let seconds = number(prompt, "/eta_ms").div_ceil(1000);
        let _ = writeln!(
            text,
            "  {:>4}  {seconds:>5} s  {:<8}  {:<16}  {}",
            number(prompt, "/position"),
            word("priority"),
            word("client"),
            word("id")
        );
    }
    if let Some(more) = prompts.len().checked_sub(PROMPTS).filter(|more| *more > 0) {
        let _ = writeln!(text, "  and {more} more");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen() {
        let view = json!({
            "state": "ready", "model": {"name": "demo"}, "slots": {"running": 1, "total": 4},
            "queue": {"waiting": 1, "limit": 256}, "memory_kib": {"service": 9216, "engine": null},
            "counters": {"accepted": 3, "finished": 1, "prompt_tokens": 40, "completion_tokens": 9},
            "tokens_per_second": {"read": 0.0, "written": 41.5}, "temperature": 54.25,
            "prompts": [{"position": 1, "eta_ms": 1200, "priority": "high", "mine": false}],
        });
        assert_eq!(
            screen(&view, Path::new("/run/s")),
            "promptd at /run/s   ready   demo\n  slots    1 of 4 running, 1 waiting of 256\n  \
             tokens   0.0/s read, 41.5/s written; 40 and 9 so far\n  prompts  3 accepted, 1 finished\n  \
             memory   service 9 MiB, engine ?\n  hottest  54.2 °C\n\n  next       in  priority  client            id\n     \
             1      2 s  high      -                 -\n"
        );
    }
}
