//! A socket door on a temporary path with a scripted scheduler behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use promptd::engine::frames::{ModelInfo, Placement};
use promptd::request::{Event, Finish, FinishReason, Submission, Timings, Usage};
use promptd::scheduler::scripted::{Call, Events, Script, Verdict, scripted};
use promptd::scheduler::{State, Status};
use promptd::socket::{App, Patience, bind, serve, serve_lines};
use promptd::wire::{Limits, Policies, Profiles};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A test that takes longer than this hangs.
const HANGS: Duration = super::PATIENCE;

/// Which socket is tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Http,
    Lines,
}

/// A door and the script behind it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) path: PathBuf,
    pub(crate) script: Script,
    stop: Option<oneshot::Sender<()>>,
    server: JoinHandle<()>,
    dir: TempDir,
}

impl Door {
    pub(crate) fn open(kind: Kind) -> Door {
        Door::with(kind, Patience::default(), Limits::default())
    }

    pub(crate) fn with(kind: Kind, patience: Patience, limits: Limits) -> Door {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (scheduler, script) = scripted(ready());
        let profiles: Profiles =
            toml::from_str("[lights]\nschema = '{\"type\":\"object\"}'\n").unwrap();
        let app = App::new(scheduler, Policies::fixed(profiles), limits, Some("node7".to_owned()))
            .with_patience(patience);
        let bound = bind(&path, 0o600).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let app = Arc::new(app);
        let server = match kind {
            Kind::Http => tokio::spawn(serve(bound, app, stopped)),
            Kind::Lines => tokio::spawn(serve_lines(bound, app, stopped)),
        };
        Door { path, script, stop: Some(stop), server, dir }
    }

    /// Tells the door to stop.
    pub(crate) fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Waits until it has.
    pub(crate) async fn stopped(self) -> TempDir {
        soon(self.server).await.unwrap();
        self.dir
    }

    pub(crate) async fn connect(&self) -> Client {
        Client { stream: UnixStream::connect(&self.path).await.unwrap(), seen: Vec::new() }
    }

    /// The next prompt that is handed in.
    pub(crate) async fn submitted(&mut self) -> (Submission, Verdict) {
        match soon(self.script.next()).await.unwrap() {
            Call::Submit(submission, verdict) => (*submission, verdict),
            other => panic!("no prompt, but {other:?}"),
        }
    }

    /// Accepts the next prompt.
    pub(crate) async fn accepted(&mut self) -> Events {
        self.submitted().await.1.accept(7)
    }

    /// Accepts the next prompt and answers it.
    pub(crate) async fn answer(&mut self, pieces: &[&str]) -> Submission {
        let (submission, verdict) = self.submitted().await;
        let events = verdict.accept(7);
        for event in
            [prefill(), delta("")].into_iter().chain(pieces.iter().map(|piece| delta(piece)))
        {
            events.send(event);
        }
        events.send(finished());
        submission
    }
}

/// A client that writes and reads bytes.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
    /// Read, but not yet asked for.
    seen: Vec<u8>,
}

impl Client {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        soon(self.stream.write_all(bytes.as_ref())).await.unwrap();
    }

    /// Reads up to and with a marker.
    pub(crate) async fn until(&mut self, marker: &str) -> String {
        loop {
            let found =
                self.seen.windows(marker.len()).position(|bytes| bytes == marker.as_bytes());
            if let Some(at) = found {
                let rest = self.seen.split_off(at + marker.len());
                return String::from_utf8(std::mem::replace(&mut self.seen, rest)).unwrap();
            }
            let read = soon(self.stream.read_buf(&mut self.seen)).await.unwrap();
            assert_ne!(
                read,
                0,
                "no {marker:?}, but the end after {:?}",
                String::from_utf8_lossy(&self.seen)
            );
        }
    }

    /// Reads to the end of the connection. A reset counts as the end.
    pub(crate) async fn rest(&mut self) -> String {
        while let Ok(1..) = soon(self.stream.read_buf(&mut self.seen)).await {}
        String::from_utf8(std::mem::take(&mut self.seen)).unwrap()
    }
}

/// Waits, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(HANGS, future).await.expect("this takes too long")
}

/// The status of a scheduler that takes prompts.
pub(crate) fn ready() -> Status {
    let model = ModelInfo {
        name: "tiny model".to_owned(),
        architecture: "llama".to_owned(),
        context: 512,
        slots: 2,
        vocab_size: 512,
        chat: true,
        text: true,
        embedding: None,
        threads: 2,
        runtime_version: "1.24.0".to_owned(),
        placement: Box::new(Placement { provider: "CPU".to_owned(), ..Placement::default() }),
        load_ms: 12,
    };
    Status { state: State::Ready, model: Some(model.into()), queue_limit: 32, ..Status::default() }
}

pub(crate) fn prefill() -> Event {
    Event::Prefill { done: 3, total: 3 }
}

pub(crate) fn delta(text: &str) -> Event {
    Event::Delta { text: text.to_owned(), tokens: vec![1], logprobs: vec![] }
}

pub(crate) fn finished() -> Event {
    let ms = Duration::from_millis;
    let timings = Timings { queue: ms(1), prefill: ms(20), decode: ms(300) };
    let usage = Usage { prompt: 5, cached: 2, completion: 4, forgotten: 0 };
    Event::Finished(Finish { reason: FinishReason::Stop, usage, timings, seed: 7 })
}
