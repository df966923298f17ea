//! What promptd adds to a question and its answer over mosquitto: beside an echo of the same broker that only sends back what it is asked,
//! with accepted prompts kept in memory or on the disk, and with a scripted engine in its own process (what the door and the scheduler
//! add) or in another (what all of promptd adds); how many it accepts and refuses in a second; and its memory.

use std::fs::File;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::figures::quantile;
use crate::mosquitto::Broker;
use crate::raw_mqtt::{self, Receiver, Sender};
use crate::service::{Plan, Service, Where};

/// The limits: against the echo's median, beside the disk's own, and each second.
const TIMES: f64 = 1.5;
const REFUSED: f64 = 2000.0;
const ACCEPTED: f64 = 500.0;
const MEMORY: u64 = 25 << 20;
/// Without `set_tcp_nodelay` mosquitto's small packets wait some 40 ms for the acknowledgement of those before, and whatever promptd takes
/// is lost in that wait.
const NODELAY: &str = "max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true\n";
/// Prompts under way at once when they are counted: fewer than one client has places, and enough for a broker.
const AT_ONCE: u16 = 16;

/// Echoes and answers take turns so often: what disturbs the machine for a while disturbs both.
const ROUNDS: u32 = 10;

/// Medians of each round.
#[derive(Default)]
struct Rounds {
    echoes: Vec<Duration>,
    answers: Vec<Duration>,
    syncs: Vec<Duration>,
}

impl Rounds {
    /// How many echoes an answer took, in the median of the rounds; where the disk is waited for, without what that may take.
    fn times(&self, disk: bool) -> f64 {
        let rounds = self.answers.iter().zip(&self.echoes).zip(&self.syncs);
        let of = |((answer, echo), sync): ((&Duration, &Duration), &Duration)| {
            let waits = if disk { sync.mul_f64(TIMES) } else { Duration::ZERO };
            answer.saturating_sub(waits).as_secs_f64() / echo.as_secs_f64()
        };
        let mut all: Vec<f64> = rounds.map(of).collect();
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    }
}

/// One asker.
struct Asker {
    sender: Sender,
    receiver: Receiver,
    asked: u32,
}

impl Asker {
    fn new(port: u16, name: &str, answers: &str) -> Asker {
        let (mut sender, mut receiver) = raw_mqtt::connect(port, name, false);
        sender.subscribe(answers);
        while receiver.packet().unwrap().0 != 0x90 {}
        Asker { sender, receiver, asked: 0 }
    }

    fn ask(&mut self, topic: &str, right: bool) {
        self.asked += 1;
        let field = if right { "prompt" } else { "promt" };
        let text = format!(r#"{{"id":"a{}","{field}":"hi","max_tokens":1}}"#, self.asked);
        self.sender.publish(topic, u16::try_from(self.asked % 60_000 + 1).unwrap(), &text);
    }

    fn answer(&mut self, right: bool) {
        let (_, payload) = self.receiver.message().unwrap();
        let text = String::from_utf8_lossy(&payload);
        let is_error = text.contains(r#""status":"error""#);
        assert_eq!(is_error, !right, "{text}");
    }

    /// Times of questions one after the other.
    fn times(&mut self, topic: &str, lasts: Duration) -> Vec<Duration> {
        let (mut times, begun) = (Vec::new(), Instant::now());
        while times.len() < 20 || begun.elapsed() < lasts {
            let asked = Instant::now();
            self.ask(topic, true);
            self.answer(true);
            times.push(asked.elapsed());
        }
        times
    }

    /// How many answers come in a second with so many questions under way.
    fn rate(&mut self, topic: &str, right: bool, at_once: u16, lasts: Duration) -> f64 {
        (0..at_once).for_each(|_| self.ask(topic, right));
        let (mut count, begun) = (0_u32, Instant::now());
        while begun.elapsed() < lasts {
            self.answer(right);
            self.ask(topic, right);
            count += 1;
        }
        let rate = f64::from(count) / begun.elapsed().as_secs_f64();
        (0..at_once).for_each(|_| self.answer(right));
        rate
    }
}

/// Measures for so many seconds, with the limits; without a number only for a moment, and nothing is judged.
pub(crate) fn play(seconds: Option<u64>) -> ExitCode {
    let Some(broker) = Broker::start(NODELAY) else {
        return ExitCode::SUCCESS;
    };
    let lasts = Duration::from_millis(seconds.map_or(200, |seconds| seconds * 1000 / 12));
    let port = broker.port;
    let (mut back, mut questions) = raw_mqtt::connect(port, "echo", false);
    back.subscribe("echo/ask");
    while questions.packet().unwrap().0 != 0x90 {}
    // It ends with this process.
    let echo = move || {
        let mut number = 0_u16;
        while let Some((_, payload)) = questions.message() {
            number = number % 60_000 + 1;
            back.publish("echo/answer", number, &String::from_utf8_lossy(&payload));
        }
    };
    std::thread::Builder::new().spawn(echo).unwrap();
    let mut echo = Asker::new(port, "echoes", "echo/answer");
    let mut misses = Vec::new();
    let kinds = [Where::Inside, Where::Outside];
    for (durability, engine) in ["memory", "disk"].into_iter().flat_map(|d| kinds.map(|k| (d, k))) {
        let inside = engine == Where::Inside;
        let node = format!("{durability}-{}", if inside { "inside" } else { "outside" });
        let plan = Plan { slots: 4, engine, ..Plan::paced(Duration::ZERO) };
        let more = format!(
            "durability = {durability:?}\n[mqtt]\nurl = \"mqtt://127.0.0.1:{port}\"\nnode = {node:?}\n"
        );
        let service = Service::start(&Plan { more, ..plan });
        let ask = format!("promptd/{node}/ask");
        // The retained word comes when promptd listens.
        let mut online = Asker::new(port, "watcher", &format!("promptd/{node}/availability"));
        assert_eq!(online.receiver.message().unwrap().1, b"online");
        let mut asker = Asker::new(port, "asker", &format!("promptd/{node}/answer/#"));
        let mut rounds = Rounds::default();
        for _ in 0..ROUNDS {
            rounds.echoes.push(quantile(&echo.times("echo/ask", lasts / ROUNDS), 0.5));
            rounds.answers.push(quantile(&asker.times(&ask, lasts / ROUNDS), 0.5));
            rounds.syncs.push(quantile(&syncs(), 0.5));
        }
        let times = rounds.times(durability == "disk");
        let accepted = asker.rate(&ask, true, AT_ONCE, lasts);
        let refused = asker.rate(&ask, false, AT_ONCE * 4, lasts);
        let memory = service.memory();
        let median = |times: &[Duration]| quantile(times, 0.5);
        println!(
            "{durability}, engine {}: {:?}; an echo {:?}, a sync {:?}; {times:.2} of an echo{}; {accepted:.0} accepted and \
             {refused:.0} refused a second; {} KiB",
            if inside { "in the service's process" } else { "in its own process" },
            median(&rounds.answers),
            median(&rounds.echoes),
            median(&rounds.syncs),
            if durability == "disk" { " without the syncs" } else { "" },
            memory >> 10
        );
        for (holds, what) in [
            // What a second process adds has a limit of its own, in `overhead`.
            (
                times <= TIMES || !inside,
                format!("{node}: an answer takes {TIMES} echoes at most: {times:.2}"),
            ),
            (accepted >= ACCEPTED, format!("{node}: {ACCEPTED} accepted a second")),
            (refused >= REFUSED, format!("{node}: {REFUSED} refused a second")),
            (memory <= MEMORY, format!("{node}: {MEMORY} bytes of memory at most")),
        ] {
            misses.extend((!holds && seconds.is_some()).then_some(what));
        }
    }
    for miss in &misses {
        println!("MISSED: {miss}");
    }
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What this disk needs for one write that is safe.
fn syncs() -> Vec<Duration> {
    let folder = tempfile::Builder::new().prefix("promptd-l-").tempdir_in("/tmp").unwrap();
    let mut file = File::create(folder.path().join("f")).unwrap();
    let mut times = Vec::new();
    for _ in 0..20 {
        let begun = Instant::now();
        file.write_all(&[7; 4096]).unwrap();
        file.sync_data().unwrap();
        times.push(begun.elapsed());
    }
    times
}
