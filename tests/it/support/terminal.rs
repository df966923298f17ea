//! A command at a terminal that `script` (util-linux) makes.

use std::process::{ExitStatus, Stdio};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::PATIENCE;
use super::broker::program;

/// The command at its terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    child: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    seen: Vec<u8>,
}

impl Terminal {
    /// Whether there is a `script` to make one; says so where there is none.
    pub(crate) fn is_there() -> bool {
        let found = program("script").is_some();
        if !found {
            println!("SKIPPED: `script` is not installed (Debian: bsdutils)");
        }
        found
    }

    pub(crate) fn open(command: &str, variables: &[(&str, &str)]) -> Terminal {
        // In the shell's place: one that stays (dash) is ended by the Ctrl-C that is meant for the command, and its end is told
        // instead of the command's.
        let command = format!("exec {command}");
        let mut script = Command::new("script");
        script.args(["--quiet", "--return", "--flush", "--command", &command, "/dev/null"]);
        script.env("TERM", "xterm").env_remove("NO_COLOR").envs(variables.iter().copied());
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = script.spawn().unwrap();
        let (keys, screen) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Terminal { child, keys, screen, seen: Vec::new() }
    }

    pub(crate) async fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.unwrap();
        self.keys.flush().await.unwrap();
    }

    /// Waits until this stands on the screen; what comes behind it stays for the next.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        let mut bytes = [0; 4096];
        loop {
            // Bytes, because a read may end in the middle of a character.
            let found = self.seen.windows(text.len()).position(|part| part == text.as_bytes());
            if let Some(at) = found {
                let rest = self.seen.split_off(at + text.len());
                return shown(&std::mem::replace(&mut self.seen, rest));
            }
            let read = tokio::time::timeout(PATIENCE, self.screen.read(&mut bytes)).await;
            let read = read.unwrap_or_else(|_| panic!("no {text:?}, but {:?}", shown(&self.seen)));
            let read = read.unwrap();
            assert_ne!(read, 0, "no {text:?}, but the end after {:?}", shown(&self.seen));
            self.seen.extend_from_slice(&bytes[..read]);
        }
    }

    /// Waits until the command has ended.
    pub(crate) async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }
}

fn shown(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
