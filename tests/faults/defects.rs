//! The test of the tests: each deliberate fault of `src/defect.rs` has to be found by the ledger test, and a build without
//! one has to pass the same histories in the same time.

use std::process::{Command, Stdio};
use std::time::Instant;

use promptd::defect::Defect;

use crate::mosquitto::program;
use crate::options::Options;
use crate::service::DEFECT;

/// Histories that a fault may hide in.
const RUNS: u64 = 150;

/// Seconds that prompts get to end; a history that waits for nothing waits so long. On a busy machine the longest answers
/// take ten.
const PATIENCE: u64 = 15;

/// The few of `make test`: one each of the door's, the queue's, the engine's and the record's faults, found by the first seeds.
const FEW: &[Defect] = &[
    Defect::WrongReplyTopic,
    Defect::LoseOutbox,
    Defect::ForgetRunning,
    Defect::RepeatToken,
    Defect::ForgetRecord,
];

pub(crate) fn run(options: &Options) -> Result<String, String> {
    if !cfg!(feature = "defects") {
        return Ok(
            "skipped: this build has no defects; `make defects` builds one that has".to_owned()
        );
    }
    if program("mosquitto").is_none() {
        return Ok("SKIPPED: mosquitto is not installed (`make broker`)".to_owned());
    }
    let begun = Instant::now();
    let all = if options.quick { FEW } else { Defect::ALL };
    // `make test` has just played them without one.
    if !options.quick
        && let Some(why) = found(None, options)
    {
        return Err(format!("without a defect the same histories have to pass:\n{why}"));
    }
    let mut missed = Vec::new();
    for defect in all {
        match found(Some(*defect), options) {
            Some(why) => {
                let line = why.lines().find(|line| line.starts_with("seed ")).unwrap_or_default();
                let short: String = line.chars().take(110).collect();
                println!("  {}: {short}", defect.name());
            }
            None => missed.push(defect.name()),
        }
    }
    if missed.is_empty() {
        let seconds = begun.elapsed().as_secs();
        return Ok(format!("all of {} defects were found in {seconds} s", all.len()));
    }
    Err(format!("not found: {}", missed.join(", ")))
}

/// What the ledger test has to say about a defect; `None` where it finds nothing.
fn found(defect: Option<Defect>, options: &Options) -> Option<String> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("ledger").args(["--seed".to_owned(), options.seed.to_string()]);
    command.args(["--runs".to_owned(), RUNS.to_string()]);
    command.args(["--jobs".to_owned(), options.jobs.to_string()]);
    command.args(["--patience".to_owned(), PATIENCE.to_string()]);
    if let Some(defect) = defect {
        command.env(DEFECT, defect.name());
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (!output.status.success()).then(|| text + &String::from_utf8_lossy(&output.stderr))
}
