//! The service with an engine in its own process, which finds every prompt good and answers it with one token at once.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use promptd::engine::client::{EngineEvent, EnginePort, SpawnConfig};
use promptd::engine::frames::{CheckedPrompt, FromEngine, LoadRequest, ToEngine};
use promptd::request::{Event, Finish, FinishReason, Timings, Usage};
use promptd::{daemon, settings, telemetry};
use tokio::sync::mpsc;

use crate::engine;

/// Orders that wait for this engine: as many as for the real one.
const CHANNEL: usize = 16;

/// `--config FILE`.
pub(crate) fn run(arguments: &[String]) -> ExitCode {
    let config = PathBuf::from(&arguments[1]);
    let environment = std::env::vars().collect();
    let read = settings::load(&config, &environment).unwrap();
    let level = telemetry::start(&read.log, false).unwrap();
    let program = std::env::current_exe().unwrap();
    let surroundings = daemon::Surroundings { program, environment: std::env::vars_os().collect() };
    let reread = move || settings::load(&config, &environment).map_err(|error| error.to_string());
    daemon::run(&read, surroundings, supervise, Box::new(reread), level).unwrap();
    ExitCode::SUCCESS
}

fn supervise(config: SpawnConfig) -> EnginePort {
    let (events, received) = mpsc::channel(CHANNEL);
    tokio::spawn(work(events, config.load.clone()));
    EnginePort::new(received, config.load).0
}

/// Answers until the service is gone.
async fn work(events: mpsc::Sender<EngineEvent>, load: LoadRequest) -> Option<()> {
    let (to, mut orders) = mpsc::channel(CHANNEL);
    let say = |frame| events.send(EngineEvent::Frame(frame));
    events.send(EngineEvent::Started { pid: std::process::id(), to }).await.ok()?;
    say(FromEngine::Ready(engine::info(&load))).await.ok()?;
    loop {
        match orders.recv().await? {
            ToEngine::Check { check, .. } => {
                let checked = CheckedPrompt { prompt_tokens: 1, max_tokens: 1, calls: None };
                say(FromEngine::Checked { check, result: Ok(checked) }).await.ok()?;
            }
            ToEngine::Start { id, seed, .. } => {
                for event in answer(seed) {
                    say(FromEngine::Event { id, event }).await.ok()?;
                }
            }
            ToEngine::Load(_) | ToEngine::Pin(_) | ToEngine::Cancel { .. } => {}
        }
    }
}

fn answer(seed: u64) -> [Event; 2] {
    let zero = Duration::ZERO;
    let timings = Timings { queue: zero, prefill: zero, decode: zero };
    let usage = Usage { prompt: 1, cached: 0, completion: 1, forgotten: 0 };
    [
        Event::Delta { text: " 1".to_owned(), tokens: vec![1], logprobs: Vec::new() },
        Event::Finished(Finish { reason: FinishReason::Stop, usage, timings, seed }),
    ]
}
