//! Tests of prompts that continue a conversation.

use super::tests::{Bench, SECOND, finish, submission};
use super::*;
use crate::engine::frames::FromEngine;
use crate::request::{Input, Role};
use crate::session::Overflow;

fn said(who: &str, text: &str) -> Submission {
    let mut said = submission(who);
    said.request.input = Input::Ask { system: Some("Be brief.".to_owned()), text: text.to_owned() };
    said.session = Some("s".to_owned());
    said
}

/// What the last check or start gives the model to read, in short: `system|user|assistant|…`.
fn read(actions: &[Action]) -> Option<String> {
    let request = actions.iter().rev().find_map(|action| match action {
        Action::Send(ToEngine::Check { request, .. } | ToEngine::Start { request, .. }) => {
            Some(request)
        }
        _ => None,
    })?;
    let Input::Chat(messages) = &request.input else { panic!("{:?}", request.input) };
    assert_eq!(messages[0].role, Role::System);
    let texts: Vec<&str> = messages.iter().map(|message| message.content.as_str()).collect();
    Some(texts.join("|"))
}

/// Asks, answers with the token's text, and says what the model read.
fn turn(bench: &mut Bench, who: &str, text: &str, token: u32) -> String {
    let id = bench.accept(said(who, text));
    bench.event(id, super::tests::delta(token));
    let actions = bench.core.take_actions();
    bench.event(id, finish(SECOND, SECOND, 1));
    bench.core.take_actions();
    read(&actions).expect("it was started")
}

fn checked(bench: &mut Bench, check: u64, prompt_tokens: u32, max_tokens: u32) {
    let result = Ok(CheckedPrompt { prompt_tokens, max_tokens, calls: None });
    bench.frame(FromEngine::Checked { check, result });
}

#[test]
fn the_turns_before_are_read_again() {
    let mut bench = Bench::ready(4, 1);
    assert_eq!(turn(&mut bench, "a", "one", 1), "Be brief.|one");
    assert_eq!(turn(&mut bench, "a", "two", 2), "Be brief.|one|<1>|two");
    assert_eq!(turn(&mut bench, "b", "mine", 3), "Be brief.|mine", "another client's session");
    assert_eq!(turn(&mut bench, "a", "three", 4), "Be brief.|one|<1>|two|<2>|three");
    bench.pass(bench.core.config.sessions.expires);
    assert_eq!(turn(&mut bench, "a", "late", 5), "Be brief.|late");
    assert!(bench.core.end_session(&Identity("a".to_owned()), "s"));
    assert_eq!(turn(&mut bench, "a", "anew", 6), "Be brief.|anew");
}

#[test]
fn a_turn_that_fails_is_not_kept() {
    let mut bench = Bench::ready(4, 1);
    turn(&mut bench, "a", "one", 1);
    let id = bench.accept(said("a", "two"));
    bench.event(id, super::tests::delta(2));
    bench.core.cancel(id, bench.now);
    bench.core.take_actions();
    assert_eq!(turn(&mut bench, "a", "three", 3), "Be brief.|one|<1>|three");
}

#[test]
fn one_prompt_of_a_session_at_a_time() {
    let mut bench = Bench::ready(4, 2);
    let first = bench.accept(said("a", "one"));
    let refusal = bench.refused(said("a", "two"));
    assert_eq!((refusal.code, refusal.param.as_deref()), (Code::Busy, Some("session")));
    bench.accept(said("b", "other"));
    bench.event(first, finish(SECOND, SECOND, 1));
    let check = bench.core.submit(said("a", "two"), bench.now);
    assert_eq!(bench.refused(said("a", "three")).code, Code::Busy, "one is being checked");
    bench.check(check);
}

#[test]
fn what_no_longer_fits_is_dropped_from_the_oldest_turn_and_told() {
    let mut bench = Bench::ready(4, 1);
    for n in 1..=4 {
        turn(&mut bench, "a", &format!("q{n}"), n);
    }
    let check = bench.core.submit(said("a", "now"), bench.now);
    assert_eq!(
        read(&bench.core.take_actions()).unwrap(),
        "Be brief.|q1|<1>|q2|<2>|q3|<3>|q4|<4>|now"
    );
    let too_long = Refusal::new(Code::ContextLengthExceeded, "too long").with_limit(60, 100);
    bench.frame(FromEngine::Checked { check, result: Err(too_long) });
    assert_eq!(read(&bench.core.take_actions()).unwrap(), "Be brief.|q3|<3>|q4|<4>|now");
    // It fits, but leaves no room for an answer.
    checked(&mut bench, check, 58, 2);
    let again = bench.core.take_actions();
    assert_eq!(read(&again).unwrap(), "Be brief.|now", "{again:?}");
    checked(&mut bench, check, 20, 2);
    let accepted = bench.core.take_actions().into_iter().find_map(|action| match action {
        Action::Accept { session, .. } => session,
        _ => None,
    });
    assert_eq!(accepted, Some(InSession { name: "s".to_owned(), turns: 0, dropped: 4 }));
}

#[test]
fn the_operator_may_have_long_conversations_refused() {
    let mut bench = Bench::ready(4, 1);
    bench.core.config.sessions.overflow = Overflow::Refuse;
    bench.core.config.sessions.tokens = 50;
    turn(&mut bench, "a", "one", 1);
    let check = bench.core.submit(said("a", "two"), bench.now);
    bench.core.take_actions();
    checked(&mut bench, check, 51, 400);
    let Some(Action::Refuse { refusal, .. }) = bench.core.take_actions().pop() else {
        panic!("not refused")
    };
    assert_eq!(
        (refusal.code, refusal.limit, refusal.have),
        (Code::ContextLengthExceeded, Some(50), Some(51))
    );
    // A first question has nothing to drop: its length is its own.
    let check = bench.core.submit(said("b", "long"), bench.now);
    checked(&mut bench, check, 51, 400);
    assert!(matches!(bench.core.take_actions()[1], Action::Accept { .. }));
}

fn accepted(bench: &mut Bench, who: &str, text: &str) -> (PromptId, InSession) {
    let check = bench.core.submit(said(who, text), bench.now);
    checked(bench, check, 20, 400);
    let accepted = bench.core.take_actions().into_iter().find_map(|action| match action {
        Action::Accept { id, session, .. } => Some((id, session.unwrap())),
        _ => None,
    });
    accepted.expect("accepted")
}

#[test]
fn turns_beyond_the_limit_are_dropped_and_told_or_refused() {
    let mut bench = Bench::ready(4, 1);
    bench.core.config.sessions.turns = 2;
    for (turns, dropped) in [(0, 0), (1, 0), (2, 1), (2, 1)] {
        let (id, session) = accepted(&mut bench, "a", "more");
        assert_eq!((session.turns, session.dropped), (turns, dropped));
        bench.event(id, finish(SECOND, SECOND, 1));
        bench.core.take_actions();
    }
    bench.core.config.sessions.overflow = Overflow::Refuse;
    let refusal = bench.refused(said("a", "more"));
    assert_eq!(
        (refusal.code, refusal.param.as_deref(), refusal.limit, refusal.have),
        (Code::ContextLengthExceeded, Some("session"), Some(2), Some(3))
    );
    // One that an earlier start had accepted is run all the same.
    let mut again = said("a", "more");
    again.again = Some(crate::request::Again { deaths: 0, ends: 1 });
    let check = bench.core.submit(again, bench.now);
    assert!(bench.core.checks.contains_key(&check));
}

#[test]
fn who_resends_the_conversation_needs_no_session() {
    let mut bench = Bench::ready(4, 1);
    let mut resent = said("a", "x");
    let message = |role| crate::request::Message::new(role, "x");
    resent.request.input =
        Input::Chat(vec![message(Role::User), message(Role::Assistant), message(Role::User)]);
    let refusal = bench.refused(resent);
    assert_eq!((refusal.code, refusal.param.as_deref()), (Code::BadRequest, Some("session")));
}
