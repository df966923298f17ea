//! `promptd bench --tune`: every trial runs in a process of its own, because a process keeps the cores it was bound to and
//! the memory of the model it had.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{Done, execution, load_average, processor};
use crate::cli::World;
use crate::cli::args::{self, Bench};
use crate::inference::Execution;
use crate::inference::tune::{self, Machine, Trial};

/// The work that is timed: a prompt of this many tokens and an answer of that many, which is what devices ask.
const WORK: (u32, u32) = (128, 64);

/// The first line of a file that was written here, and may be written again.
const HEADER: &str = "# Written by `promptd bench --tune`.";

pub(super) fn tune(args: &Bench, world: &mut World<'_>) -> Done<()> {
    let program = std::env::current_exe()?;
    let machine = Machine::here();
    let errors = &mut *world.errors;
    let mut measure = |execution: &Execution| -> Done<f64> {
        let seconds = run(&program, args, execution)?;
        // Whoever closed standard error does not want to know.
        let _ = writeln!(errors, "promptd: {}: {seconds:.2} s", words(execution));
        Ok(seconds)
    };
    let (best, trials) = tune::tune(&execution(args), &machine, args.rounds, &mut measure)?;
    let text = lines(args, &best, &trials);
    match &args.output {
        None => world.print(&text)?,
        Some(path) => {
            write(path, &text)?;
            let _ = writeln!(world.errors, "promptd: wrote {}", path.display());
        }
    }
    Ok(())
}

/// Seconds that the work takes, measured by this program in another process.
fn run(program: &Path, args: &Bench, execution: &Execution) -> Done<f64> {
    let mut command = Command::new(program);
    command.arg("bench").arg(&args.folder).arg("--json");
    command.args(["--streams", "0", "--shared", "0", "--keys", "0"]);
    command.args(["--depths", "0", "--tokens", "32", "--rounds", "2"]);
    command.args(["--prompts", &WORK.0.to_string()]);
    command.args(["--threads", &execution.threads.to_string()]);
    command.args(["--provider", provider_name(args.provider)]);
    if execution.spinning {
        command.arg("--spinning");
    }
    if !execution.cores.is_empty() {
        command.args(["--cores", &list(&execution.cores)]);
    }
    for (name, path) in [("--library", &args.library), ("--store", &args.store)] {
        if let Some(path) = path {
            command.arg(name).arg(path);
        }
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::piped()).output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or_default();
        return Err(format!("a trial failed: {}", last.trim_start_matches("promptd: ")).into());
    }
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let median = |path: &str| {
        let figure = report.pointer(path).and_then(Value::as_f64).filter(|figure| *figure > 0.0);
        figure.ok_or("a trial gave no figures: the context is too short for a prompt of 128 tokens")
    };
    let reading = median("/results/prefill/0/first_token_seconds/median")?;
    let writing = median("/results/decode/0/tokens_per_second/median")?;
    Ok(reading + f64::from(WORK.1) / writing)
}

fn provider_name(provider: args::Provider) -> &'static str {
    match provider {
        args::Provider::Auto => "auto",
        args::Provider::Cpu => "cpu",
        args::Provider::Cuda => "cuda",
    }
}

fn list(cores: &[u16]) -> String {
    let cores: Vec<String> = cores.iter().map(u16::to_string).collect();
    cores.join(",")
}

/// A way of executing in words.
fn words(execution: &Execution) -> String {
    let threads = if execution.threads == 1 { "thread" } else { "threads" };
    let mut text = format!("{} {threads}", execution.threads);
    if execution.spinning {
        text.push_str(", spinning");
    }
    if !execution.cores.is_empty() {
        text = format!("{text}, bound to {}", list(&execution.cores));
    }
    text
}

/// What was found, as a file for `conf.d`.
fn lines(args: &Bench, best: &Execution, trials: &[Trial]) -> String {
    let model = args.folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let on = processor().unwrap_or_else(|| "this machine".to_owned());
    let mut text = format!(
        "{HEADER} Seconds of a prompt of {} tokens and an answer of {}\n# with {model} on {on}",
        WORK.0, WORK.1
    );
    // Writing into a String cannot fail.
    let _ = match load_average() {
        Some(load) => writeln!(text, " (load average {load}):"),
        None => writeln!(text, ":"),
    };
    for trial in trials {
        let _ = writeln!(text, "#   {:6.2}  {}", trial.best(), words(&trial.execution));
    }
    let cores = list(&best.cores).replace(',', ", ");
    let _ = write!(
        text,
        "[runtime]\nthreads = {}\nspinning = {}\ncores = [{cores}]\n",
        best.threads, best.spinning
    );
    text
}

/// Writes the file, whole or not at all; never over one that somebody else wrote.
fn write(path: &Path, text: &str) -> Done<()> {
    if let Ok(there) = std::fs::read_to_string(path)
        && !there.starts_with(HEADER)
    {
        return Err(format!(
            "{} was not written by `promptd bench --tune`; name another file",
            path.display()
        )
        .into());
    }
    let failed = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    // A name that `conf.d/*.toml` does not take.
    let new = path.with_extension("toml.new");
    std::fs::File::create(&new)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .map_err(failed)?;
    std::fs::rename(&new, path).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_a_drop_in() {
        let execution = Execution {
            threads: 4,
            spinning: true,
            cores: vec![4, 5, 6, 7],
            ..Execution::default()
        };
        let trials = [Trial { execution: execution.clone(), seconds: vec![9.5, 9.25] }];
        let args = Bench { folder: "/models/one".into(), ..Bench::default() };
        let text = lines(&args, &execution, &trials);
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(table["runtime"]["threads"].as_integer(), Some(4));
        assert_eq!(table["runtime"]["spinning"].as_bool(), Some(true));
        assert_eq!(table["runtime"]["cores"].as_array().unwrap().len(), 4);
        assert!(text.contains("9.25  4 threads, spinning, bound to 4,5,6,7"), "{text}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("50-tuned.toml");
        write(&path, &text).unwrap();
        write(&path, &text).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        std::fs::write(&path, "[runtime]\nthreads = 1\n").unwrap();
        assert!(write(&path, &text).unwrap_err().to_string().contains("name another file"));
    }
}
