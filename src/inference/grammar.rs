//! Answers that must have a form: JSON of a schema, a regular expression, one of several strings. Compiles the form
//! into a matcher that says before each token which tokens may come. Fails closed: no form, no answer.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use llguidance::api::TopLevelGrammar;
use llguidance::{JsonCompileOptions, Matcher, ParserFactory};
use serde_json::Value;
use toktrie::{ApproximateTokEnv, TokEnv};
use toktrie_hf_tokenizers::ByteTokenizer;

use super::form::{Endings, Form};
use super::lark;
use super::schema;
use super::tokenizer::Tokenizer;
use super::tools;
use super::trial::Trials;
use crate::request::{CallStyle, Code, Constraint, Refusal, ToolChoice, Tools};

/// The largest schema or expression. `OpenAI` allows 15,000 characters of names in a schema; this is several times that.
const MAX_SOURCE_BYTES: usize = 64 << 10;
/// Compilers of schemas and expressions recurse; `serde_json` itself ends at 128.
const MAX_DEPTH: usize = 64;
/// Regular expressions nest through brackets.
const MAX_BRACKETS: usize = 64;
/// Enough for what the limits above let through. Only touched pages count.
const STACK_BYTES: usize = 64 << 20;
/// Steps to build the lexer: llguidance's own default takes the largest known schemas within 20 ms.
const LEXER_FUEL: u64 = 1_000_000;
/// Symbols of a compiled grammar: a few megabytes.
const MAX_GRAMMAR: usize = 200_000;
/// States of the lexer, at 1 to 2 kB each.
const MAX_LEXER_STATES: usize = 50_000;

/// Honest schemas compile in milliseconds; some small ones take time exponential in their size, which llguidance's own
/// limits do not catch.
const DEADLINE: Duration = Duration::from_secs(5);
/// Compilations that passed the deadline cannot be stopped, only outlived: beyond this many no other is begun.
const MAX_OVERDUE: usize = 1;
/// Reasons reach clients; llguidance's can hold whole expressions.
const MAX_REASON_CHARS: usize = 300;

/// What an answer is held to.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Demand {
    /// Its form.
    pub(super) constraint: Constraint,
    /// The tools it may call, and how the model writes calls.
    pub(super) calls: Option<(Tools, CallStyle)>,
}

impl Demand {
    /// The demand of a request.
    pub(super) fn new(constraint: &Constraint, calls: Option<(&Tools, CallStyle)>) -> Self {
        let calls = calls.filter(|(tools, _)| tools.choice != ToolChoice::None);
        let calls = calls.map(|(tools, style)| (tools.clone(), style));
        Demand { constraint: constraint.clone(), calls }
    }
}

/// Compiles constraints for one tokenizer.
#[derive(Clone, Debug)]
pub(super) struct Grammars(Arc<Compiler>);

/// Prepared at the first use, because most devices never ask for a form.
struct Compiler {
    tokenizer: Arc<Tokenizer>,
    eos: Arc<[u32]>,
    vocab: usize,
    factory: OnceLock<Result<ParserFactory, String>>,
    endings: OnceLock<Arc<Endings>>,
    /// Forms are tried with these before they are compiled, where there is a program for it.
    trials: OnceLock<Trials>,
    /// Compilations that passed their deadline and still run.
    overdue: Mutex<Vec<JoinHandle<()>>>,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler").field("vocab", &self.vocab).finish_non_exhaustive()
    }
}

impl Grammars {
    /// `vocab` is the number of logits.
    pub(super) fn new(tokenizer: Arc<Tokenizer>, eos: Arc<[u32]>, vocab: usize) -> Self {
        Grammars(Arc::new(Compiler {
            tokenizer,
            eos,
            vocab,
            factory: OnceLock::new(),
            endings: OnceLock::new(),
            trials: OnceLock::new(),
            overdue: Mutex::default(),
        }))
    }

    /// Tries forms in processes of this program from now on.
    pub(super) fn try_with(&self, program: PathBuf) {
        // A second program would be the same one.
        let _ = self.0.trials.set(Trials::new(program));
    }

    /// The form of an answer that begins; `None` where any text will do.
    pub(super) fn compile(&self, demand: &Demand) -> Result<Option<Form>, Refusal> {
        let matcher = self.compile_within(demand, DEADLINE)?;
        let endings = || Arc::new(Endings::new(self.0.tokenizer.pieces(), self.0.vocab));
        Ok(matcher
            .map(|matcher| Form::new(matcher, Arc::clone(self.0.endings.get_or_init(endings)))))
    }

    /// The matcher alone, for tests.
    #[cfg(test)]
    pub(super) fn compile_matcher(&self, constraint: &Constraint) -> Result<Matcher, Refusal> {
        self.compile_within(&Demand::new(constraint, None), DEADLINE)?
            .ok_or_else(|| unusable("there is none"))
    }

    /// Compilers recurse, may panic and may take for ever: each runs on a thread of its own.
    fn compile_within(
        &self,
        demand: &Demand,
        deadline: Duration,
    ) -> Result<Option<Matcher>, Refusal> {
        if demand.constraint == Constraint::None && demand.calls.is_none() {
            return Ok(None);
        }
        check(demand)?;
        if let Some(trials) = self.0.trials.get() {
            trials.pass(demand, deadline)?;
        }
        if self.0.overdue() >= MAX_OVERDUE {
            let message = "another request's schema has been compiling for too long; ask again later, or without a schema";
            return Err(Refusal::new(Code::Busy, message).with_retry_after(DEADLINE));
        }
        let (compiler, demand) = (Arc::clone(&self.0), demand.clone());
        let (sender, receiver) = sync_channel(1);
        // Nobody receives when the deadline passed.
        let work = move || drop(sender.send(compiler.build(&demand)));
        let thread =
            std::thread::Builder::new().name("grammar".into()).stack_size(STACK_BYTES).spawn(work);
        let failed = |error| {
            Refusal::new(
                Code::Internal,
                format!("cannot start a thread to compile the schema: {error}"),
            )
        };
        let thread = thread.map_err(failed)?;
        match receiver.recv_timeout(deadline) {
            Ok(result) => {
                end(thread);
                result.map(Some)
            }
            Err(RecvTimeoutError::Disconnected) => {
                end(thread);
                Err(unusable("it made the grammar compiler fail"))
            }
            Err(RecvTimeoutError::Timeout) => {
                self.0.overdue.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
                let limit = deadline.as_secs_f32();
                Err(unusable(format!("it took more than {limit} s to compile; make it simpler")))
            }
        }
    }
}

/// Waits for a thread that has said its last word. To drop its handle instead would detach it at the moment when it ends, and
/// glibc reads a detached thread's memory when that may be gone already (sourceware bug 19951): a rare SIGSEGV.
fn end(thread: JoinHandle<()>) {
    let _ = thread.join();
}

impl Compiler {
    /// Compilations that passed their deadline and still run.
    fn overdue(&self) -> usize {
        let mut overdue = self.overdue.lock().unwrap_or_else(PoisonError::into_inner);
        for at in (0..overdue.len()).rev() {
            if overdue[at].is_finished() {
                end(overdue.swap_remove(at));
            }
        }
        overdue.len()
    }

    fn build(&self, demand: &Demand) -> Result<Matcher, Refusal> {
        let factory = self.factory.get_or_init(|| self.factory()).as_ref();
        let factory = factory.map_err(|reason| {
            let message = format!("this model's tokenizer cannot be constrained: {reason}");
            Refusal::new(Code::Unsupported, message).with_param("response_format")
        })?;
        let mark =
            demand.calls.as_ref().and_then(|(_, style)| self.tokenizer.control(style.mark()));
        compile(factory, demand, mark)
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let mut bytes = ByteTokenizer::from_tokenizer(self.tokenizer.inner())
            .map_err(|error| error.to_string())?;
        let known = bytes.tokrx_info().vocab_size;
        if self.eos.is_empty() || self.eos.iter().any(|id| *id >= known) {
            return Err("it has no usable end-of-sequence token".into());
        }
        bytes.set_eos_tokens(&self.eos);
        let environment =
            bytes.into_tok_env(Some(self.vocab)).map_err(|error| error.to_string())?;
        limited(&environment)
    }
}

/// A maker of parsers within our limits.
fn limited(environment: &TokEnv) -> Result<ParserFactory, String> {
    let mut factory = ParserFactory::new_simple(environment).map_err(|error| error.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.initial_lexer_fuel = LEXER_FUEL;
    limits.max_grammar_size = MAX_GRAMMAR;
    limits.max_lexer_states = MAX_LEXER_STATES;
    // Errors reach clients: the reason, not the parser's state.
    limits.verbose_errors = false;
    Ok(factory)
}

fn compile(
    factory: &ParserFactory,
    demand: &Demand,
    mark: Option<u32>,
) -> Result<Matcher, Refusal> {
    let grammar = match &demand.calls {
        None => grammar(&demand.constraint)?,
        Some((list, style)) => {
            let lark = tools::grammar(list, *style, mark, &demand.constraint)?;
            TopLevelGrammar::from_lark(lark)
        }
    };
    let parser = factory.create_parser(grammar).map_err(|error| unusable(error.to_string()))?;
    let mut matcher = Matcher::new(Ok(parser));
    match matcher.get_error() {
        Some(error) => Err(unusable(error)),
        None => match matcher.compute_mask() {
            Ok(mask) if mask.num_set() > 0 => Ok(matcher),
            Ok(_) => Err(unusable("no text can satisfy it")),
            Err(error) => Err(unusable(error.to_string())),
        },
    }
}

/// Compiles a form for a tokenizer of single bytes, in a process that may end by it.
pub(super) fn try_alone(demand: Demand) -> Result<(), Refusal> {
    let work = move || {
        check(&demand)?;
        let factory = limited(&ApproximateTokEnv::single_byte_env()).map_err(unusable)?;
        compile(&factory, &demand, None).map(drop)
    };
    let thread = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(work);
    let thread = thread.map_err(|error| unusable(format!("there is no room for it: {error}")))?;
    thread.join().unwrap_or_else(|_| Err(unusable("it made the grammar compiler fail")))
}

fn grammar(constraint: &Constraint) -> Result<TopLevelGrammar, Refusal> {
    match constraint {
        Constraint::None => Err(unusable("there is none")),
        Constraint::JsonObject => Ok(of_schema(serde_json::json!({"type": "object"}))),
        Constraint::JsonSchema(source) => Ok(of_schema(schema::read(source)?)),
        Constraint::Regex(source) => Ok(TopLevelGrammar::from_regex(source)),
        Constraint::Lark(source) => {
            lark::check(source)?;
            Ok(TopLevelGrammar::from_lark(source.clone()))
        }
        Constraint::Choices(choices) => {
            let choices: Vec<String> = choices.iter().map(|choice| escape(choice)).collect();
            Ok(TopLevelGrammar::from_regex(&format!("({})", choices.join("|"))))
        }
    }
}

/// A schema with our own compiler options, which also takes the place of any that the client wrote into it.
fn of_schema(value: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_options(value, "", ":"))
}

/// A schema with the compiler's options inside. `space` stands behind a comma, `colon` between name and value.
pub(super) fn with_options(mut value: Value, space: &str, colon: &str) -> Value {
    // Free white space would let a weak model write spaces until its tokens run out.
    let options = JsonCompileOptions {
        whitespace_flexible: false,
        // Each character has one way to be written: a name in `\u` escapes would pass for another than it is.
        json_allowed_escapes: Some("nrbtf\\\"".to_owned()),
        item_separator: format!(",{space}"),
        key_separator: colon.to_owned(),
        ..JsonCompileOptions::default()
    };
    options.apply_to(&mut value);
    value
}

fn check(demand: &Demand) -> Result<(), Refusal> {
    if let Some((tools, _)) = &demand.calls {
        let all: usize = tools.list.iter().map(|tool| tool.parameters.len()).sum();
        let deepest = tools.list.iter().map(|tool| nesting(&tool.parameters)).max().unwrap_or(0);
        within(all, deepest, MAX_DEPTH).map_err(|refusal| refusal.with_param("tools"))?;
    }
    check_constraint(&demand.constraint)
}

fn check_constraint(constraint: &Constraint) -> Result<(), Refusal> {
    let (length, depth, limit) = match constraint {
        Constraint::None | Constraint::JsonObject => return Ok(()),
        Constraint::JsonSchema(source) => (source.len(), nesting(source), MAX_DEPTH),
        Constraint::Regex(source) | Constraint::Lark(source) => {
            (source.len(), nesting(source), MAX_BRACKETS)
        }
        Constraint::Choices(choices) => {
            if choices.is_empty() || choices.iter().any(String::is_empty) {
                return Err(unusable("choices are strings that are not empty, and at least one"));
            }
            (choices.iter().map(String::len).sum(), 0, 1)
        }
    };
    within(length, depth, limit)
}

fn within(length: usize, depth: usize, limit: usize) -> Result<(), Refusal> {
    if length > MAX_SOURCE_BYTES {
        let refusal =
            unusable(format!("it has {length} bytes, at most {MAX_SOURCE_BYTES} are compiled"));
        return Err(refusal.with_limit(MAX_SOURCE_BYTES as u64, length as u64));
    }
    if depth > limit {
        return Err(unusable(format!(
            "it nests {depth} deep, at most {limit} levels are compiled"
        )));
    }
    Ok(())
}

/// The deepest nesting of brackets, those inside of strings counted as well: a little stricter than need be.
fn nesting(source: &str) -> usize {
    let (mut depth, mut deepest) = (0_usize, 0);
    for byte in source.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

fn escape(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, c| {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            out.push('\\');
        }
        out.push(c);
        out
    })
}

pub(super) fn unusable(reason: impl std::fmt::Display) -> Refusal {
    let reason = reason.to_string();
    // Behind the reason llguidance may add its own state or a backtrace.
    let reason = schema::explained(reason.split("\n<").next().unwrap_or_default());
    let more = if reason.chars().count() > MAX_REASON_CHARS { "…" } else { "" };
    let reason: String = reason.chars().take(MAX_REASON_CHARS).collect();
    Refusal::bad_request(format!("the form of the answer cannot be used: {reason}{more}"))
        .with_param("response_format")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::tokenizer::tests::tiny;

    fn grammars() -> Grammars {
        let tokenizer = tiny();
        let vocab = tokenizer.vocab_size();
        Grammars::new(Arc::new(tokenizer), Arc::new([2]), vocab)
    }

    /// The only text a constraint allows, where it allows only one.
    fn forced(constraint: &Constraint) -> String {
        let mut matcher =
            grammars().compile_within(&Demand::new(constraint, None), DEADLINE).unwrap().unwrap();
        let mut bytes = Vec::new();
        while !matcher.is_stopped() {
            let mask = matcher.compute_mask().unwrap();
            let mut allowed = Vec::new();
            mask.iter_set_entries(|id| allowed.push(u32::try_from(id).unwrap()));
            bytes.extend_from_slice(tiny().pieces().bytes(allowed[0]));
            matcher.consume_token(allowed[0]).unwrap();
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn forms_are_enforced() {
        assert_eq!(
            forced(&Constraint::JsonSchema(r#"{"const":{"a":[1,null]}}"#.into())),
            r#"{"a":[1,null]}"#
        );
        assert_eq!(forced(&Constraint::Regex("ab{2}c".into())), "abbc");
        assert_eq!(forced(&Constraint::Choices(vec!["a.b(c) #&~-/".into()])), "a.b(c) #&~-/");
        assert!(grammars().compile(&Demand::new(&Constraint::None, None)).unwrap().is_none());
        assert!(grammars().compile(&Demand::new(&Constraint::JsonObject, None)).unwrap().is_some());
    }

    #[test]
    fn what_cannot_be_used_is_refused_with_its_reason() {
        let cases = [
            (Constraint::JsonSchema("{".into()), "not JSON"),
            (Constraint::JsonSchema("[]".into()), "object"),
            (Constraint::JsonSchema("false".into()), "no text"),
            (Constraint::JsonSchema(r#"{"$ref":"http://example.org/x"}"#.into()), ""),
            (Constraint::JsonSchema(r#"{"type":"string","pattern":"("}"#.into()), ""),
            (
                Constraint::JsonSchema(format!("{}{}", "[".repeat(100), "]".repeat(100))),
                "nests 100",
            ),
            (
                Constraint::JsonSchema(format!(
                    "{{\"allOf\":[{}{{}}]}}",
                    "{\"pattern\":\"a\"},".repeat(9)
                )),
                "an `allOf` holds 9",
            ),
            (Constraint::Regex("(".into()), ""),
            (Constraint::Regex("(".repeat(1000)), "nests 1000"),
            (Constraint::Regex("a".repeat(70_000)), "at most 65536"),
            (Constraint::Choices(vec![]), "at least one"),
        ];
        for (constraint, words) in cases {
            let refusal = grammars().compile(&Demand::new(&constraint, None)).err().unwrap();
            assert_eq!(
                (refusal.code, refusal.param.as_deref()),
                (Code::BadRequest, Some("response_format"))
            );
            assert!(refusal.message.contains(words), "{} / {words}", refusal.message);
        }
    }

    #[test]
    fn what_takes_too_long_is_refused_and_does_not_pile_up() {
        let grammars = grammars();
        let choice = Constraint::Choices(vec!["a".into()]);
        // Some ten thousand states: a hundred times the deadline.
        let slow = Constraint::JsonSchema(r#"{"type":"number","multipleOf":9973}"#.into());
        let late = grammars
            .compile_within(&Demand::new(&slow, None), Duration::from_millis(1))
            .err()
            .unwrap();
        assert!(late.message.contains("more than 0.001 s"), "{}", late.message);
        let patience = std::time::Instant::now() + Duration::from_mins(1);
        while grammars.0.overdue() > 0 {
            let refused = grammars.compile(&Demand::new(&choice, None)).err();
            assert!(refused.is_none_or(|refusal| refusal.code == Code::Busy));
            assert!(std::time::Instant::now() < patience);
            std::thread::yield_now();
        }
        assert!(grammars.compile(&Demand::new(&choice, None)).unwrap().is_some());
    }
}
