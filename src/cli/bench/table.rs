//! The figures of `promptd bench` for people.

use std::fmt::Write as _;

use crate::inference::Facts;
use crate::inference::bench::{Figure, Report};

/// One line of the table.
struct Row {
    what: String,
    unit: &'static str,
    /// One, or the median, the smallest and the largest.
    figures: Vec<f64>,
    note: String,
}

impl Row {
    fn one(what: impl Into<String>, unit: &'static str, figure: f64) -> Self {
        Row { what: what.into(), unit, figures: vec![figure], note: String::new() }
    }

    fn of(what: impl Into<String>, unit: &'static str, figure: Figure) -> Self {
        let figures = vec![figure.median, figure.min, figure.max];
        Row { what: what.into(), unit, figures, note: String::new() }
    }
}

/// The table.
pub(super) fn table(facts: &Facts, report: &Report) -> String {
    let each: Vec<String> = facts
        .placement
        .nodes
        .iter()
        .map(|(name, count)| format!("{count} nodes on {name}"))
        .collect();
    let threads = if facts.threads == 1 { "thread" } else { "threads" };
    let mut text = format!(
        "{} ({}), ONNX Runtime {}, {}, {} {threads}; {} rounds of {} tokens\n",
        facts.name,
        facts.architecture,
        facts.runtime_version,
        each.join(", "),
        facts.threads,
        report.rounds,
        report.tokens,
    );
    let rows = rows(report);
    let width = rows.iter().map(|row| row.what.len()).max().unwrap_or(0);
    // Writing into a String cannot fail.
    let _ = writeln!(text, "  {:width$}  {:>8}  {:>8}  {:>8}", "", "median", "least", "most");
    for row in rows {
        let _ = write!(text, "  {:width$}", row.what);
        for figure in &row.figures {
            let _ = write!(text, "  {:>8}", short(*figure));
        }
        let blank = (3 - row.figures.len().min(3)) * 10;
        let _ = writeln!(text, "{:blank$}  {}{}", "", row.unit, row.note);
    }
    text
}

fn rows(report: &Report) -> Vec<Row> {
    let mut rows = vec![
        Row::one("load", "s", report.load_seconds),
        Row::one("load and first token", "s", report.load_and_first_token_seconds),
    ];
    for prefill in &report.prefill {
        let what = format!("read {} tokens", prefill.tokens);
        rows.push(Row::of(what, "tokens/s", prefill.tokens_per_second));
    }
    for decode in &report.decode {
        let what = format!("write behind {} tokens", decode.depth);
        let mut row = Row::of(what, "tokens/s", decode.tokens_per_second);
        row.note = format!(
            ", {} ms of processor time a token",
            short(decode.processor_ms_per_token.median)
        );
        rows.push(row);
    }
    for streams in &report.streams {
        let answers = if streams.streams == 1 { "answer" } else { "answers" };
        let what = format!("write {} {answers} at once", streams.streams);
        rows.push(Row::of(what, "tokens/s", streams.tokens_per_second));
    }
    if let Some(shared) = &report.shared {
        let what = format!("first token of a prompt, {} and 16 tokens", shared.tokens);
        rows.push(Row::of(what, "s", shared.first_seconds));
        let what = format!("of another one, the same {}", shared.tokens);
        let mut row = Row::of(what, "s", shared.second_seconds);
        row.note = format!(", {} of its tokens were cached", shared.cached);
        rows.push(row);
    }
    if let Some(held) = &report.held {
        let what = format!("write {:.0} tokens, held to a schema", held.tokens);
        rows.push(Row::of(what, "tokens/s", held.tokens_per_second));
        rows.push(Row::of("as many, held to nothing", "tokens/s", held.free_tokens_per_second));
        let milliseconds = held.mask_seconds.map(|seconds| seconds * 1000.0);
        rows.push(Row::of("find the tokens that may come next", "ms", milliseconds));
    }
    let mebibytes = |bytes: u64| f64::from(u32::try_from(bytes >> 10).unwrap_or(u32::MAX)) / 1024.0;
    let memory = report.memory;
    rows.push(Row::one("memory that cannot be given back", "MiB", mebibytes(memory.anonymous)));
    rows.push(Row::one("pages of files", "MiB", mebibytes(memory.file)));
    rows.push(Row::one("most of both at once", "MiB", mebibytes(memory.peak)));
    rows
}

/// A number with three digits that count.
fn short(figure: f64) -> String {
    match figure.abs() {
        0.0..0.1 => format!("{figure:.4}"),
        0.1..10.0 => format!("{figure:.2}"),
        10.0..100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0.01234, 1.0, 12.34, 1234.5].map(short);
        assert_eq!(shown, ["0.0123", "1.00", "12.3", "1234"]);
    }
}
