//! Prints for people and scripts. A reader that went away ends a command quietly.

use std::io::{self, IsTerminal as _, Write as _};

/// Text from elsewhere, for a terminal: without the control characters that could move the cursor or rename the window.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

/// Writes a text to standard output at once; cleaned where that is a terminal.
pub(super) fn text(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if out.is_terminal() {
        out.write_all(clean(text).as_bytes())?;
    } else {
        out.write_all(text.as_bytes())?;
    }
    out.flush()
}

/// Writes an error and its causes to standard error, on one line.
pub(super) fn error(error: &dyn std::error::Error) {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    // Whoever closed standard error does not want to know.
    let _ = writeln!(io::stderr().lock(), "promptd: {}", clean(&line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_safe() {
        assert_eq!(clean("a\u{1b}]0;x\u{7}b\tc\n\u{9b}1m你"), "a]0;xb\tc\n1m你");
    }
}
