//! `promptd chat` at a terminal: Ctrl-C ends an answer and not the program.

use crate::support::door::{Door, Kind, delta, finished, soon};
use crate::support::terminal::Terminal;

fn chat(door: &Door) -> Option<String> {
    let command =
        format!("{} chat --socket {}", env!("CARGO_BIN_EXE_promptd"), door.path.display());
    Terminal::is_there().then_some(command)
}

#[tokio::test]
async fn ctrl_c_ends_an_answer_and_not_the_program() {
    let mut door = Door::open(Kind::Http);
    let Some(command) = chat(&door) else { return };
    let mut terminal = Terminal::open(&command, &[("NO_COLOR", "1")]);
    terminal.until("/help tells more").await;
    terminal.until("> ").await;
    // Twice: what was true of the first answer is true of every other.
    for (question, piece) in [("Who are you?", "I am"), ("And now?", "I was")] {
        terminal.press(&format!("{question}\r")).await;
        let events = door.accepted().await;
        events.send(delta(piece));
        terminal.until(piece).await;
        terminal.press("\u{3}").await;
        terminal.until("…").await;
        soon(events.closed()).await;
        terminal.until("> ").await;
    }
    // At the prompt it only empties the line.
    terminal.press("half a quest").await;
    terminal.until("half a quest").await;
    terminal.press("\u{3}").await;
    terminal.until("> ").await;
    terminal.press("Still there?\r").await;
    let events = door.accepted().await;
    events.send(delta("Yes."));
    events.send(finished());
    terminal.until("Yes.").await;
    terminal.until("> ").await;
    terminal.press("\u{4}").await;
    assert!(soon(terminal.ended()).await.unwrap().success());
}

#[tokio::test]
async fn colours_only_where_they_are_wanted() {
    let door = Door::open(Kind::Http);
    let Some(command) = chat(&door) else { return };
    for (variables, colour) in
        [(&[][..], true), (&[("NO_COLOR", "1")], false), (&[("NO_COLOR", "")], true)]
    {
        let mut terminal = Terminal::open(&command, variables);
        let head = terminal.until(if colour { "\u{1b}[1;36m>" } else { "> " }).await;
        assert_eq!(head.contains("\u{1b}[1;36m"), colour, "{variables:?}: {head:?}");
        terminal.press("\u{4}").await;
        assert!(soon(terminal.ended()).await.unwrap().success());
    }
}

#[tokio::test]
async fn a_terminal_that_cannot_edit_is_enough() {
    let mut door = Door::open(Kind::Http);
    let Some(command) = chat(&door) else { return };
    let mut terminal = Terminal::open(&command, &[("TERM", "dumb")]);
    terminal.until("\r\n> ").await;
    terminal.press("Who are \\\n").await;
    terminal.until(". ").await;
    terminal.press("you?\n").await;
    door.answer(&["Nobody."]).await;
    let seen = terminal.until("\r\n> ").await;
    assert!(seen.contains("Nobody.") && !seen.contains('\u{1b}'), "{seen:?}");
    terminal.press("\u{4}").await;
    assert!(soon(terminal.ended()).await.unwrap().success());
}
