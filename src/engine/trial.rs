//! A model on trial: an engine of its own loads it, answers questions and is timed. Afterwards it is gone again, or takes the
//! place of the one that answers.

use tokio::sync::mpsc;

use super::DeathReport;
use super::client::{EngineEvent, EnginePort, SpawnConfig, supervise};
use super::frames::{FromEngine, ModelInfo, ToEngine};
use crate::inference::manifest::Golden;
use crate::request::{
    Constraint, ContextOverflow, Event, Finish, Input, PromptId, Request, Reuse, Sampling,
};

/// What is written to find out how quick it is: long enough to even out, short enough for a board that writes a token a second.
const TIMED: &str = "[a-z ]{64,96}";
/// The most tokens that this can have, at a letter each, and some for whoever ends it.
const TIMED_TOKENS: u32 = 128;

/// How a model did.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// What the engine says of it.
    pub model: ModelInfo,
    /// Its answers to the questions, in their order.
    pub answers: Vec<String>,
    /// Tokens a second that it wrote, one answer at a time.
    pub tokens_per_second: f64,
}

/// An engine that has passed its trial and waits for work.
#[derive(Debug)]
pub struct Successor {
    /// What watches over it.
    pub port: EnginePort,
    /// Its process.
    pub pid: u32,
    /// The way to it.
    pub to: mpsc::Sender<ToEngine>,
    /// What it says of its model.
    pub model: ModelInfo,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// It cannot be loaded.
    #[error("it cannot be loaded: {0}")]
    Load(String),
    /// There is no room for it at present.
    #[error("{0}")]
    Room(String),
    /// A question cannot be answered.
    #[error("the question `{question}` cannot be answered: {reason}")]
    Question {
        /// The question.
        question: String,
        /// Why.
        reason: String,
    },
    /// The engine died of it.
    #[error("{0}")]
    Died(DeathReport),
    /// An answer is not what it must be.
    #[error("to `{question}` it answers `{answer}`, which {wrong}")]
    Wrong {
        /// The question.
        question: String,
        /// The answer.
        answer: String,
        /// What is wrong with it.
        wrong: String,
    },
    /// It is too slow.
    #[error(
        "it writes {measured:.2} tokens a second here, its manifest asks for {least} (`min_tokens_per_second`)"
    )]
    Slow {
        /// What was measured.
        measured: f64,
        /// What is asked for.
        least: f64,
    },
    /// The engine was given up without a word.
    #[error("the engine could not be watched; try again")]
    Gone,
}

/// Loads a model in an engine of its own, asks it and times it. `say` is told what is being done.
///
/// # Errors
/// It cannot be loaded, an answer is not what it must be, or it is too slow.
pub async fn run(
    config: SpawnConfig,
    golden: &[Golden],
    least: Option<f64>,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, TrialError> {
    let mut port = supervise(config);
    let done = examine(&mut port, golden, least, say).await;
    port.end().await;
    done
}

/// Loads a model in an engine beside the one that answers and asks it. It is not timed: two engines at work are slower than one.
/// Whoever gives the future up ends the engine.
///
/// # Errors
/// It cannot be loaded, there is no room for both, or an answer is not what it must be. The engine is gone then.
pub async fn beside(config: SpawnConfig, golden: &[Golden]) -> Result<Successor, TrialError> {
    let alone = super::frames::LoadRequest { beside: None, ..config.load.clone() };
    let mut port = supervise(config);
    let passed = async {
        let (pid, to, model) = come_up(&mut port, &mut |_| ()).await?;
        ask(&mut port, &to, golden, &mut |_| ()).await?;
        Ok((pid, to, model))
    };
    match passed.await {
        Ok((pid, to, model)) => {
            // Should it die one day, the next one has the board to itself.
            port.load_next(alone);
            Ok(Successor { port, pid, to, model })
        }
        Err(error) => {
            port.end().await;
            Err(error)
        }
    }
}

async fn examine(
    port: &mut EnginePort,
    golden: &[Golden],
    least: Option<f64>,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Report, TrialError> {
    let (_, to, model) = come_up(port, say).await?;
    let answers = ask(port, &to, golden, say).await?;
    say("timing it");
    let timed = Request {
        max_tokens: Some(TIMED_TOKENS),
        constraint: Constraint::Regex(TIMED.to_owned()),
        ..asked(&Golden { prompt: "Tell me something.".to_owned(), ..Golden::default() })
    };
    let _ = to.send(start(0, timed)).await;
    let question = "(timing)".to_owned();
    let (_, finish) =
        answer(port).await?.map_err(|reason| TrialError::Question { question, reason })?;
    let measured = finish.timings.tokens_per_second(&finish.usage);
    match least {
        Some(least) if measured < least => Err(TrialError::Slow { measured, least }),
        _ => Ok(Report { model, answers, tokens_per_second: measured }),
    }
}

/// Waits until an engine is there and its model is loaded.
async fn come_up(
    port: &mut EnginePort,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<(u32, mpsc::Sender<ToEngine>, ModelInfo), TrialError> {
    loop {
        let EngineEvent::Started { pid, to } = next(port).await? else { continue };
        return Ok((pid, to, loaded(port, say).await?));
    }
}

/// Asks the questions and gives the answers, which are right.
async fn ask(
    port: &mut EnginePort,
    to: &mpsc::Sender<ToEngine>,
    golden: &[Golden],
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<Vec<String>, TrialError> {
    let mut answers = Vec::with_capacity(golden.len());
    for (question, id) in golden.iter().zip(1..) {
        say(&format!("asking: {}", question.prompt));
        let request = asked(question);
        let start = start(id, request);
        // An engine that is gone tells by its death.
        let _ = to.send(start).await;
        let (answer, _) = answer(port)
            .await?
            .map_err(|reason| TrialError::Question { question: question.prompt.clone(), reason })?;
        judge(question, &answer)?;
        answers.push(answer);
    }
    Ok(answers)
}

/// Waits until the model is loaded.
async fn loaded(
    port: &mut EnginePort,
    say: &mut (dyn FnMut(&str) + Send),
) -> Result<ModelInfo, TrialError> {
    loop {
        match next(port).await? {
            EngineEvent::Frame(FromEngine::Loading(stage)) => say(stage.as_str()),
            EngineEvent::Frame(FromEngine::Ready(model)) => return Ok(model),
            EngineEvent::Frame(FromEngine::LoadFailed(refusal)) => {
                let short_of_memory = refusal.limit.is_some();
                let why = refusal.message;
                return Err(if short_of_memory {
                    TrialError::Room(why)
                } else {
                    TrialError::Load(why)
                });
            }
            _ => {}
        }
    }
}

/// Waits for a whole answer.
async fn answer(port: &mut EnginePort) -> Result<Result<(String, Finish), String>, TrialError> {
    let mut text = String::new();
    loop {
        let EngineEvent::Frame(FromEngine::Event { event, .. }) = next(port).await? else {
            continue;
        };
        match event {
            Event::Delta { text: piece, .. } => text.push_str(&piece),
            Event::Finished(finish) => return Ok(Ok((text, finish))),
            Event::Failed(refusal) => return Ok(Err(refusal.message)),
            Event::Queued { .. }
            | Event::Started { .. }
            | Event::Prefill { .. }
            | Event::Vector { .. } => {}
        }
    }
}

async fn next(port: &mut EnginePort) -> Result<EngineEvent, TrialError> {
    match port.events.recv().await {
        // One that dies once has failed, whatever a second one would do.
        Some(EngineEvent::Died { report, .. }) => Err(TrialError::Died(report)),
        Some(event) => Ok(event),
        None => Err(TrialError::Gone),
    }
}

fn start(id: u64, request: Request) -> ToEngine {
    let (id, reuse) = (PromptId(id), Reuse::default());
    ToEngine::Start { id, check: None, request, seed: 0, resume: Vec::new(), reuse }
}

/// A question at temperature 0.
fn asked(question: &Golden) -> Request {
    Request {
        input: Input::Ask { system: question.system.clone(), text: question.prompt.clone() },
        sampling: Sampling::default(),
        max_tokens: Some(question.max_tokens.max(1)),
        stop: Vec::new(),
        stop_token_ids: Vec::new(),
        context_overflow: ContextOverflow::default(),
        constraint: Constraint::None,
        logprobs: None,
        tools: None,
    }
}

/// Holds an answer against what it must be.
fn judge(question: &Golden, answer: &str) -> Result<(), TrialError> {
    let wrong = match (&question.answer, &question.contains) {
        (Some(right), _) if right.trim() != answer.trim() => format!("should be `{right}`"),
        (_, Some(part)) if !answer.contains(part.as_str()) => {
            format!("should have `{part}` in it")
        }
        (None, None) if answer.trim().is_empty() => "says nothing".to_owned(),
        _ => return Ok(()),
    };
    let (question, answer) = (question.prompt.clone(), answer.to_owned());
    Err(TrialError::Wrong { question, answer, wrong })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_held_against_the_manifest() {
        let golden = |answer: Option<&str>, contains: Option<&str>| Golden {
            prompt: "2 + 2?".into(),
            answer: answer.map(str::to_owned),
            contains: contains.map(str::to_owned),
            ..Golden::default()
        };
        for (question, answer, wrong) in [
            (golden(Some("4"), None), " 4\n", None),
            (golden(Some("4"), None), "5", Some("should be `4`")),
            (golden(None, Some("4")), "It is 4.", None),
            (golden(None, Some("4")), "It is 5.", Some("should have `4` in it")),
            (golden(None, None), "Anything.", None),
            (golden(None, None), " \n", Some("says nothing")),
        ] {
            match (judge(&question, answer), wrong) {
                (Ok(()), None) => {}
                (Err(error), Some(words)) => assert!(error.to_string().contains(words), "{error}"),
                (result, wrong) => panic!("{answer}: {result:?}, expected {wrong:?}"),
            }
        }
    }
}
