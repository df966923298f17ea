//! What is played, how often, and how that is told.

use std::process::ExitCode;

/// What was asked for on the command line: `[NAME…] [--seed S] [--runs N] [--jobs J] [--patience SECONDS] [--quick]
/// [--keep-going]`. Other options are the test harness's and mean nothing here.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    names: Vec<String>,
    /// The first seed.
    pub(crate) seed: u64,
    /// How many seeds.
    pub(crate) runs: u64,
    /// Histories at a time. They mostly wait.
    pub(crate) jobs: u64,
    /// Seconds that a prompt gets to end after the last fault.
    pub(crate) patience: u64,
    /// A few defects only.
    pub(crate) quick: bool,
    /// Plays on after a history that was not as promised.
    pub(crate) keep_going: bool,
}

impl Options {
    fn read(words: impl Iterator<Item = String>) -> Options {
        let mut options = Options {
            names: Vec::new(),
            seed: 1,
            runs: 300,
            jobs: 16,
            patience: 60,
            quick: false,
            keep_going: false,
        };
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let field = match word.as_str() {
                "--seed" => &mut options.seed,
                "--runs" => &mut options.runs,
                "--jobs" => &mut options.jobs,
                "--patience" => &mut options.patience,
                "--quick" => {
                    options.quick = true;
                    continue;
                }
                "--keep-going" => {
                    options.keep_going = true;
                    continue;
                }
                _ if word.starts_with('-') => continue,
                _ => {
                    options.names.push(word);
                    continue;
                }
            };
            let value = words.next().unwrap_or_default();
            *field =
                value.parse().unwrap_or_else(|_| panic!("{word} wants a number, not `{value}`"));
        }
        options
    }

    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|word| name.contains(word.as_str()))
    }
}

/// A test: its name, and what gives a summary or what was wrong.
pub(crate) type Suite = (&'static str, fn(&Options) -> Result<String, String>);

/// Plays what was asked for.
pub(crate) fn play(suites: &[Suite]) -> ExitCode {
    if std::env::args().any(|word| word == "--list") {
        for (name, _) in suites {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    crate::words::check();
    let options = Options::read(std::env::args().skip(1));
    let mut failed = 0;
    for (name, suite) in suites.iter().filter(|(name, _)| options.wants(name)) {
        match suite(&options) {
            Ok(summary) => println!("faults::{name} ... ok\n  {summary}"),
            Err(why) => {
                failed += 1;
                println!("faults::{name} ... FAILED\n{why}");
            }
        }
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
