//! What a command reads and prints: standard input and output, and the environment, so that tests can be all of them.

use std::ffi::OsString;
use std::io::{self, IsTerminal as _, Read, Write};

use super::http::Trouble;

/// The world around a command.
pub struct World<'a> {
    /// The environment's variables.
    pub environment: &'a dyn Fn(&str) -> Option<OsString>,
    /// Standard input.
    pub input: &'a mut dyn Read,
    /// Whether a person types there.
    pub input_is_terminal: bool,
    /// Standard output.
    pub output: &'a mut dyn Write,
    /// Whether a person reads there.
    pub output_is_terminal: bool,
    /// Standard error.
    pub errors: &'a mut dyn Write,
}

impl std::fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let terminals = (self.input_is_terminal, self.output_is_terminal);
        f.debug_struct("World").field("terminals", &terminals).finish_non_exhaustive()
    }
}

impl World<'_> {
    /// Runs a command in the process's own world.
    pub(super) async fn real<T>(command: impl AsyncFnOnce(&mut World<'_>) -> T) -> T {
        let (mut input, mut output, mut errors) =
            (io::stdin().lock(), io::stdout().lock(), io::stderr().lock());
        let (input_is_terminal, output_is_terminal) = (input.is_terminal(), output.is_terminal());
        let mut world = World {
            environment: &|name| std::env::var_os(name),
            input: &mut input,
            input_is_terminal,
            output: &mut output,
            output_is_terminal,
            errors: &mut errors,
        };
        command(&mut world).await
    }

    /// Writes a text at once; without control characters where a person reads.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Trouble> {
        if self.output_is_terminal { self.print_raw(&clean(text)) } else { self.print_raw(text) }
    }

    /// Writes a text at once, with what moves a terminal's cursor.
    pub(super) fn print_raw(&mut self, text: &str) -> Result<(), Trouble> {
        let written = self.output.write_all(text.as_bytes()).and_then(|()| self.output.flush());
        written.map_err(Trouble::Output)
    }

    /// The exit code of a command that ended like this; what was wrong is said.
    pub(super) fn end(&mut self, ended: Result<u8, Trouble>) -> u8 {
        ended.unwrap_or_else(|trouble| {
            // `promptd ask … | head` has seen enough; that is no error worth a word.
            let quiet = matches!(&trouble, Trouble::Output(source) if source.kind() == io::ErrorKind::BrokenPipe);
            if !quiet {
                self.complain(&trouble);
            }
            trouble.exit_code()
        })
    }

    /// Writes an error and its causes on one line.
    pub(super) fn complain(&mut self, error: &dyn std::error::Error) {
        // Whoever closed standard error does not want to know.
        let _ = writeln!(self.errors, "promptd: {}", clean(&super::with_causes(error)));
    }
}

/// Text from elsewhere without the control characters that could move a terminal's cursor or rename its window.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || matches!(c, '\n' | '\t')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terminals_are_safe() {
        assert_eq!(clean("a\u{1b}]0;x\u{7}b\tc\n\u{9b}1m你"), "a]0;xb\tc\n1m你");
    }
}
