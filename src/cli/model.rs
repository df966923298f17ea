//! `promptd model …`: looks at a model folder without a running service. Text goes to standard output, or one JSON object
//! with `--json`; what is wrong goes to standard error.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::args::{Check, Model, ModelCommand, Plan, Render, Tokenize};
use super::{World, args, exit, models};
use crate::inference::inspect::{self, Texts};
use crate::inference::{self, Config, Execution, Facts, Provider, measure, memory};
use crate::settings::find_library;

/// More than any prompt has; what comes from a pipe is not read without end.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// Runs the command in the process's own world.
pub async fn run(args: Model) -> ExitCode {
    ExitCode::from(World::real(async |world| run_in(args, world).await).await)
}

/// Runs the command; gives its exit code.
pub async fn run_in(args: Model, world: &mut World<'_>) -> u8 {
    let done = match args.command {
        ModelCommand::Check(args) => check(&args, world),
        ModelCommand::Plan(args) => plan(&args, world),
        ModelCommand::Tokenize(args) => tokenize(&args, world),
        ModelCommand::Render(args) => render(&args, world),
        ModelCommand::Prepare(args) => super::prepare::prepare(&args, world),
        ModelCommand::Pull(args) => Box::pin(models::pull(&args, world)).await,
        ModelCommand::Import(args) => models::import(&args, world),
        ModelCommand::Export(args) => models::export(&args, world),
        ModelCommand::List(args) => models::list(&args, world),
        ModelCommand::Verify(args) => models::verify(&args, world),
        ModelCommand::Use(args) => Box::pin(models::use_model(&args, world)).await,
        ModelCommand::Rollback(args) => Box::pin(models::rollback(&args, world)).await,
        ModelCommand::Rm(args) => models::remove(&args, world),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            world.complain(&*error);
            models::exit_code(&*error)
        }
    }
}

pub(super) type Done = Result<u8, Box<dyn std::error::Error>>;

fn check(args: &Check, world: &mut World<'_>) -> Done {
    let checked = inspect::check(&args.folder).map_err(Box::from).and_then(|model| {
        let loaded = args.load.then(|| load(args, world)).transpose()?;
        Ok((model, loaded))
    });
    let (model, loaded) = match checked {
        Ok(checked) => checked,
        Err(error) if args.json => {
            let error = super::with_causes(&*error);
            world.print(&format!("{}\n", json!({"ok": false, "error": error})))?;
            return Ok(exit::FAILURE);
        }
        Err(error) => return Err(error),
    };
    let root = args.folder.canonicalize()?;
    let short = |path: &Path| path.strip_prefix(&root).unwrap_or(path).display().to_string();
    let variants: Vec<String> = model.variants.iter().map(|path| short(path)).collect();
    if args.json {
        let object = as_json(&model, loaded.as_ref());
        world.print(&format!("{object}\n"))?;
        return Ok(exit::OK);
    }
    let chat = if model.chat { "with a chat template" } else { "no chat template" };
    let mut text = format!(
        "{}: {}, {} layers, a context of {} tokens, a vocabulary of {}, {chat}\n{}: {}, {} keys and values{}\n",
        model.name,
        model.architecture,
        model.layers,
        model.context,
        model.vocab_size,
        short(&model.graph),
        bytes(model.bytes),
        model.cache,
        if model.shares_buffer {
            ", past and present in one buffer"
        } else {
            ", copied in each step"
        },
    );
    if !variants.is_empty() {
        let also = variants.join(", ");
        text += "also there: ";
        text += &also;
        text += " (name the file instead of the folder to run it)\n";
    }
    text.extend(loaded.map(|facts| {
        let each: Vec<String> = (facts.placement.nodes.iter())
            .map(|(provider, count)| format!("{count} nodes on {provider}"))
            .collect();
        let why = facts.placement.why.map(|why| format!(" ({why})")).unwrap_or_default();
        format!("loaded by ONNX Runtime {}: {}{why}\n", facts.runtime_version, each.join(", "))
    }));
    world.print(&text)?;
    warn(world, &model.warnings);
    Ok(exit::OK)
}

/// All that is known of a model, for programs.
fn as_json(model: &inspect::Checked, loaded: Option<&Facts>) -> Value {
    let mut object = json!({
        "ok": true,
        "name": model.name,
        "architecture": model.architecture,
        "graph": model.graph,
        "variants": model.variants,
        "context": model.context,
        "vocab_size": model.vocab_size,
        "layers": model.layers,
        "kv_cache": model.cache,
        "shared_buffer": model.shares_buffer,
        "bytes": model.bytes,
        "chat_template": model.chat,
        "eos_token_ids": model.eos,
        "warnings": model.warnings,
    });
    if let Some(facts) = loaded {
        let nodes: Map<String, Value> = (facts.placement.nodes.iter())
            .map(|(provider, count)| (provider.clone(), (*count).into()))
            .collect();
        object["loaded"] = json!({
            "provider": facts.placement.provider,
            "provider_reason": facts.placement.why,
            "nodes": nodes,
            "runtime_version": facts.runtime_version,
            "threads": facts.threads,
        });
    }
    object
}

/// Loads the model for one short prompt.
fn load(args: &Check, world: &World<'_>) -> Result<Facts, Box<dyn std::error::Error>> {
    let config = Config {
        model: args.folder.clone(),
        library: library(args.library.as_deref(), world)?,
        execution: Execution { provider: provider(args.provider), ..Execution::default() },
        store: None,
        hashes: None,
        slots: 1,
        // Whether a full context fits is what `plan` tells.
        context: 64,
        beside: None,
        prefill_chunk: 0,
    };
    let loaded = inference::load(&config, Arc::new(Instant::now), &mut |_| {})?;
    Ok(loaded.facts)
}

/// A provider as it is typed.
pub(super) fn provider(typed: args::Provider) -> Provider {
    match typed {
        args::Provider::Auto => Provider::Auto,
        args::Provider::Cpu => Provider::Cpu,
        args::Provider::Cuda => Provider::Cuda,
    }
}

/// libonnxruntime as typed, or where it is looked for.
pub(super) fn library(
    typed: Option<&Path>,
    world: &World<'_>,
) -> Result<PathBuf, Box<dyn std::error::Error>> {
    let named = (world.environment)("ORT_DYLIB_PATH").and_then(|path| path.into_string().ok());
    Ok(find_library(typed, named.as_deref(), &std::env::current_exe()?)?.path)
}

fn warn(world: &mut World<'_>, warnings: &[String]) {
    for warning in warnings {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(world.errors, "promptd: warning: {warning}");
    }
}

fn plan(args: &Plan, world: &mut World<'_>) -> Done {
    let needs_library = args.measure || args.store.is_some();
    let library = needs_library.then(|| library(args.library.as_deref(), world)).transpose()?;
    let copies = args.store.as_deref().zip(library.as_deref());
    let copies = copies.map(|(store, library)| inspect::Copies { store, library });
    let (plan, warnings) = inspect::plan(&args.folder, args.slots, args.context, copies)?;
    let measured = library
        .filter(|_| args.measure)
        .map(|library| measured(args, &plan, library))
        .transpose()?;
    let code = if plan.fits() { exit::OK } else { exit::FAILURE };
    if args.json {
        let mut object = json!({
            "weights_bytes": plan.weights,
            "packed_bytes": plan.packed,
            "mapped_bytes": plan.mapped,
            "kv_bytes_per_token": plan.cache_per_token,
            "kv_bytes": plan.cache,
            "other_bytes": plan.other,
            "peak_bytes": plan.peak,
            "available_bytes": plan.available,
            "slots": plan.slots,
            "context": plan.context,
            "largest_context": plan.largest_context,
            "fits": plan.fits(),
        });
        if let Some(measured) = measured {
            object["measured"] = json!({
                "anonymous_bytes": measured.anonymous,
                "resident_peak_bytes": measured.resident_peak,
                "tokens": measured.tokens,
            });
        }
        world.print(&format!("{object}\n"))?;
        return Ok(code);
    }
    let mut rows = vec![
        ("weights in the files".to_owned(), bytes(plan.weights)),
        ("weights in memory of their own".to_owned(), bytes(plan.packed)),
        ("keys and values of one token".to_owned(), bytes(plan.cache_per_token)),
        (format!("of {} slots of {} tokens", plan.slots, plan.context), bytes(plan.cache)),
        ("program, tokenizer, one step".to_owned(), bytes(plan.other)),
        ("peak that cannot be given back".to_owned(), bytes(plan.peak)),
        ("pages of the files besides".to_owned(), bytes(plan.mapped)),
        ("available here".to_owned(), plan.available.map_or("unknown".into(), bytes)),
        (
            format!("largest context with {} slots", plan.slots),
            format!("{} tokens", plan.largest_context),
        ),
    ];
    if let Some(measured) = measured {
        rows.push((
            format!("measured with {} tokens in each slot", measured.tokens),
            format!(
                "{} (with pages of the files {})",
                bytes(measured.anonymous),
                bytes(measured.resident_peak)
            ),
        ));
    }
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        rows.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    world.print(&(lines.join("\n") + "\n"))?;
    warn(world, &warnings);
    if !plan.fits() {
        warn(
            world,
            &["it does not fit: take a shorter context, fewer slots or a smaller model".to_owned()],
        );
    }
    Ok(code)
}

fn measured(
    args: &Plan,
    plan: &memory::Plan,
    library: PathBuf,
) -> Result<measure::Measured, inference::LoadError> {
    let config = Config {
        model: args.folder.clone(),
        library,
        execution: Execution { provider: Provider::Cpu, ..Execution::default() },
        store: args.store.clone(),
        hashes: None,
        slots: args.slots,
        context: plan.context,
        beside: None,
        prefill_chunk: 0,
    };
    measure::measure(&config, plan.context)
}

fn tokenize(args: &Tokenize, world: &mut World<'_>) -> Done {
    let texts = Texts::open(&args.folder)?;
    if args.lines {
        // Taken out of the world for as long as lines come, for answers are written meanwhile.
        let World { input, output, .. } = world;
        let mut reader = BufReader::new(input);
        loop {
            let mut line = String::new();
            if (&mut reader).take(MAX_INPUT_BYTES).read_line(&mut line)? == 0 {
                return Ok(exit::OK);
            }
            if line.trim().is_empty() {
                continue;
            }
            let answer = if args.decode {
                let ids: Vec<u32> = serde_json::from_str(&line)
                    .map_err(|error| format!("a line is no array of token ids: {error}"))?;
                json!(texts.decode(&ids))
            } else {
                let text: String = serde_json::from_str(&line)
                    .map_err(|error| format!("a line is no JSON string: {error}"))?;
                json!(encode(&texts, &text, args)?)
            };
            writeln!(output, "{answer}")?;
            output.flush()?;
        }
    }
    let text = input(world)?;
    if args.decode {
        let ids: Vec<u32> = serde_json::from_str(&text)
            .map_err(|error| format!("standard input is no array of token ids: {error}"))?;
        world.print(&texts.decode(&ids))?;
        return Ok(exit::OK);
    }
    let ids = encode(&texts, &text, args)?;
    world.print(&format!("{}\n", json!(ids)))?;
    Ok(exit::OK)
}

fn encode(texts: &Texts, text: &str, args: &Tokenize) -> Result<Vec<u32>, String> {
    let ids = texts
        .encode(text, args.special)
        .map_err(|reason| format!("the text cannot be turned into tokens: {reason}"))?;
    Ok(if args.bos { texts.beginning().into_iter().chain(ids).collect() } else { ids })
}

fn render(args: &Render, world: &mut World<'_>) -> Done {
    let text = input(world)?;
    let conversation: Value = serde_json::from_str(&text)
        .map_err(|error| format!("standard input is no JSON object: {error}"))?;
    if !conversation.get("messages").is_some_and(Value::is_array) {
        return Err("standard input has no `messages` (an array)".into());
    }
    let prompt = inspect::render(&args.folder, args.template.as_deref(), &conversation)?;
    world.print(&prompt)?;
    Ok(exit::OK)
}

/// All of standard input.
fn input(world: &mut World<'_>) -> Result<String, Box<dyn std::error::Error>> {
    let mut text = String::new();
    world.input.take(MAX_INPUT_BYTES + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_INPUT_BYTES {
        return Err(format!("standard input has more than {MAX_INPUT_BYTES} bytes").into());
    }
    Ok(text)
}

/// Bytes for people, with three digits.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut unit = 0;
    let mut hundredths = u128::from(bytes) * 100 / 1024;
    while hundredths >= 102_400 && unit < 3 {
        hundredths /= 1024;
        unit += 1;
    }
    let (whole, part) = (hundredths / 100, hundredths % 100);
    match whole {
        0..10 => format!("{whole}.{part:02} {}", UNITS[unit]),
        10..100 => format!("{whole}.{} {}", part / 10, UNITS[unit]),
        _ => format!("{whole} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_at_a_glance() {
        let table = [
            (10, "10 bytes"),
            (1536, "1.50 KiB"),
            (20 << 20, "20.0 MiB"),
            (500 << 20, "500 MiB"),
            (5_003_000_000, "4.65 GiB"),
        ];
        for (size, text) in table {
            assert_eq!(bytes(size), text);
        }
    }
}
