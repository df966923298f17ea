//! `promptd doctor`: what could keep promptd from working well on this board, each finding with its way out. It looks at the board, at
//! the software and its files, and at the service that runs; it changes nothing.

mod board;
mod service;
mod software;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::json;

use super::args::Doctor;
use super::{World, exit};
use crate::settings::Environment;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Grade {
    /// All is well.
    Ok,
    /// Worth knowing; nothing has to be done.
    Note,
    /// It works, but not as well as it could, or not for long.
    Warning,
    /// It does not work.
    Problem,
}

impl Grade {
    fn word(self) -> &'static str {
        match self {
            Grade::Ok => "ok",
            Grade::Note => "note",
            Grade::Warning => "warning",
            Grade::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub about: &'static str,
    /// How bad it is.
    pub grade: Grade,
    /// What was found.
    pub says: String,
    /// What to do about it. Everything worse than a note has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

impl Finding {
    fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Finding { about, grade: Grade::Ok, says: says.into(), fix: None }
    }

    fn bad(
        about: &'static str,
        grade: Grade,
        says: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Finding { about, grade, says: says.into(), fix: Some(fix.into()) }
    }
}

/// Where the board's own words are: `/`, or a folder that a test wrote.
#[derive(Clone, Debug)]
pub struct Board(PathBuf);

impl Board {
    /// The board below this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Board(root.into())
    }

    fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// A file's text without its last line end; `None` where it cannot be read.
    fn read(&self, absolute: &str) -> Option<String> {
        std::fs::read_to_string(self.path(absolute)).ok().map(|text| text.trim_end().to_owned())
    }

    /// The names in a folder, in order.
    fn list(&self, absolute: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.path(absolute)).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// Runs the command in the process's own world.
pub async fn run(args: Doctor) -> ExitCode {
    let environment = super::environment();
    World::real(async |world| ExitCode::from(run_in(args, &environment, world).await)).await
}

/// The same in a given world. Exit codes: 0 no problem, 1 at least one.
pub async fn run_in(args: Doctor, environment: &Environment, world: &mut World<'_>) -> u8 {
    let board = Board::at(&args.root);
    let socket = args.place.socket(world.environment);
    let mut findings = board::look(&board);
    let (settings, of_software) = software::look(&args.config, environment);
    findings.extend(of_software);
    findings.extend(Box::pin(service::look(settings.as_ref(), &socket)).await);
    let worst = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Ok);
    let text = if args.json {
        format!("{}\n", json!({"v": 1, "ok": worst < Grade::Problem, "findings": findings}))
    } else {
        table(&findings)
    };
    if let Err(error) = world.print(&text) {
        world.complain(&error);
        return exit::FAILURE;
    }
    if worst == Grade::Problem { exit::FAILURE } else { exit::OK }
}

fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let fix = finding.fix.as_ref().map(|fix| format!("\n{:23}→ {fix}", "")).unwrap_or_default();
        let (word, about, says) = (finding.grade.word(), finding.about, &finding.says);
        // Writing to a string does not fail.
        let _ = writeln!(text, "{word:8} {about:13} {says}{fix}");
    }
    let of = |grade| findings.iter().filter(|finding| finding.grade == grade).count();
    let count = |many: usize, what| format!("{many} {what}{}", if many == 1 { "" } else { "s" });
    let (problems, warnings) = (of(Grade::Problem), of(Grade::Warning));
    text + &format!("{}, {}\n", count(problems, "problem"), count(warnings, "warning"))
}
