//! A hundred times the capacity, offered over MQTT and over the HTTP socket: what refusals cost, what the accepted notice of
//! it, what it does to memory and disk, and what another client notices of the one that floods.

use std::process::ExitCode;
use std::time::Duration;

use tokio::time::Instant;

use crate::asking::{chat, over_http, over_mqtt};
use crate::engine::{STEP, TOKENS};
use crate::figures::{Figures, mean, quantile};
use crate::mosquitto::Broker;
use crate::service::{Plan, Service};

/// Slots of the engine.
const SLOTS: u32 = 2;
/// What is offered, as a multiple of the capacity.
const TIMES: u32 = 100;

/// One prompt's time in the engine.
fn service_time() -> Duration {
    STEP * TOKENS
}

/// Plays the load: for so many seconds, with the figures of docs/promises.md as limits; without a number for a moment, and
/// only what does not depend on the machine's speed has to hold.
pub(crate) fn play(seconds: Option<u64>) -> ExitCode {
    let Some(broker) = Broker::start("max_inflight_messages 64\nmax_queued_messages 100000\n")
    else {
        return ExitCode::SUCCESS;
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(overload(&broker, seconds))
}

/// What was seen.
struct Seen {
    /// Every slot busy and nobody refused, before the flood.
    full: Figures,
    /// One that asks alone, and beside the flood.
    alone: Figures,
    polite: Figures,
    over_mqtt: Figures,
    over_http: Figures,
    /// Prompts that were accepted in all, and finished while the flood lasted.
    accepted: u64,
    finished: u64,
    lasted: Duration,
    /// Bytes of memory before, and the most beside the flood.
    idle: u64,
    most: u64,
    /// Bytes written to disk.
    written: u64,
    /// Bytes of the log.
    logged: u64,
}

async fn overload(broker: &Broker, seconds: Option<u64>) -> ExitCode {
    let lasts = Duration::from_secs(seconds.unwrap_or(6));
    let seen = measure(broker, lasts).await;
    seen.print();
    let misses = seen.misses(seconds.is_some());
    for miss in &misses {
        println!("MISSED: {miss}");
    }
    if misses.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn measure(broker: &Broker, lasts: Duration) -> Seen {
    // One client that floods through both doors.
    let uid = rustix::process::getuid().as_raw();
    let config = format!(
        "[mqtt]\nurl = \"mqtt://127.0.0.1:{}\"\nnode = \"n\"\n[queue]\nmax_wait_seconds = 3\n[clients.flood]\nuids = [{uid}]\nmqtt = [\"flood\"]\n",
        broker.port
    );
    let service = Service::start(&Plan { slots: SLOTS, more: config, ..Plan::paced(STEP) });
    let calm = (lasts / 10).clamp(Duration::from_secs(3), Duration::from_secs(30));
    let full = saturated(&service, Instant::now() + calm).await;
    let seldom = Duration::from_millis(300);
    let alone = over_mqtt(broker.port, "polite", seldom, Instant::now() + calm, true).await;
    let (idle, written, logged) = (service.memory(), service.written(), service.logged());
    let (accepted, finished) = (counted(&service, "accepted"), counted(&service, "finished"));

    // Half of the flood over each door, and one that asks politely beside it.
    let every = service_time() / SLOTS / TIMES * 2;
    let (begun, end) = (Instant::now(), Instant::now() + lasts);
    let watch = async {
        let mut most = 0;
        while Instant::now() < end {
            most = most.max(service.memory());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        (most, counted(&service, "finished") - finished, begun.elapsed())
    };
    let (over_mqtt, over_http, polite, (most, finished, lasted)) = tokio::join!(
        over_mqtt(broker.port, "flood", every, end, false),
        over_http(service.socket(), every, end),
        over_mqtt(broker.port, "polite", seldom, end, true),
        watch,
    );
    Seen {
        full,
        alone,
        polite,
        over_mqtt,
        over_http,
        accepted: counted(&service, "accepted") - accepted,
        finished,
        lasted,
        idle,
        most,
        written: service.written().saturating_sub(written),
        logged: service.logged().saturating_sub(logged),
    }
}

impl Seen {
    fn refusals(&self) -> Vec<Duration> {
        [&self.over_mqtt.refusals[..], &self.over_http.refusals[..]].concat()
    }

    fn answered(&self) -> usize {
        [&self.over_mqtt, &self.over_http, &self.polite].iter().map(|f| f.answers.len()).sum()
    }

    /// The time that the accepted took in the engine, before and beside the flood.
    fn service(&self) -> (Duration, Duration) {
        let flood = [&self.over_mqtt.service[..], &self.over_http.service[..]].concat();
        (mean(&self.full.service), mean(&flood))
    }

    fn slower(&self) -> f64 {
        let (before, beside) = self.service();
        beside.as_secs_f64() / before.as_secs_f64() - 1.0
    }

    /// Bytes of the log in a minute.
    #[expect(clippy::cast_precision_loss, reason = "bytes of a log, for people to read")]
    fn logged_a_minute(&self) -> f64 {
        self.logged as f64 / self.lasted.as_secs_f64().max(60.0) * 60.0
    }

    fn goodput(&self) -> f64 {
        per_second(u32::try_from(self.finished).unwrap(), self.lasted)
    }

    /// How much longer another client waits, of a hundred prompts the longest but one.
    fn delay(&self) -> Duration {
        quantile(&self.polite.answers, 0.99).saturating_sub(quantile(&self.alone.answers, 0.5))
    }

    fn print(&self) {
        let refusals = self.refusals();
        let offered = |figures: &Figures| figures.refusals.len() + figures.answers.len();
        println!(
            "offered {} over MQTT and {} over HTTP in {:.0} s, {} late; {} refused",
            offered(&self.over_mqtt),
            offered(&self.over_http),
            self.lasted.as_secs_f64(),
            self.over_mqtt.late + self.over_http.late,
            refusals.len(),
        );
        println!(
            "refusals: p50 {:?}, p99 {:?} (MQTT {:?}, HTTP {:?})",
            quantile(&refusals, 0.5),
            quantile(&refusals, 0.99),
            quantile(&self.over_mqtt.refusals, 0.99),
            quantile(&self.over_http.refusals, 0.99),
        );
        let (goodput, most) = (self.goodput(), capacity());
        println!("goodput {goodput:.2}/s of {most:.1}/s: {:.1} %", goodput / most * 100.0);
        let (before, beside) = self.service();
        let slower = self.slower() * 100.0;
        println!(
            "a prompt in the engine: {before:?} before, {beside:?} beside the flood ({slower:+.1} %)"
        );
        let more = self.most.saturating_sub(self.idle);
        println!("memory: {:.1} MiB idle, at most {:.1} MiB more", mib(self.idle), mib(more));
        let each = self.written / self.accepted.max(1);
        println!("disk: {} accepted, {each} bytes written for each", self.accepted);
        println!("log: {:.1} KiB a minute", self.logged_a_minute() / 1024.0);
        println!(
            "another client: {:?} alone, p50 {:?} and p99 {:?} beside the flood ({} asked; in the queue p50 {:?}, p99 {:?}): {:?} more",
            quantile(&self.alone.answers, 0.5),
            quantile(&self.polite.answers, 0.5),
            quantile(&self.polite.answers, 0.99),
            self.polite.answers.len(),
            quantile(&self.polite.queue, 0.5),
            quantile(&self.polite.queue, 0.99),
            self.delay(),
        );
    }

    /// What does not hold that has to; `measured`: in times as well.
    fn misses(&self, measured: bool) -> Vec<String> {
        let odd = [&self.over_mqtt.odd[..], &self.over_http.odd[..], &self.polite.odd[..]].concat();
        let (refusals, answered) = (self.refusals(), self.answered());
        let mut rules = vec![
            (odd.is_empty(), format!("a refusal is `busy` with retry_after_ms: {:?}", odd.first())),
            (self.polite.refusals.is_empty(), "nobody else is refused".to_owned()),
            (refusals.len() > 10 * answered, "what is too much is refused".to_owned()),
            (self.most <= self.idle + (64 << 20), "memory stays within 64 MiB of idle".to_owned()),
            // Forty answers in ten seconds are written, of 400 bytes each, and of refusals nearly none.
            (self.logged_a_minute() < 128.0 * 1024.0, "the log stays small".to_owned()),
            // Every prompt that was answered was accepted, and the other way round: each has its one end.
            (
                answered > 0 && u64::try_from(answered) == Ok(self.accepted),
                "what was accepted was answered".to_owned(),
            ),
        ];
        if measured {
            let p99 = quantile(&refusals, 0.99);
            let longest = service_time() + service_time() / 4;
            rules.extend([
                (p99 <= Duration::from_millis(50), "p99 of refusals is at most 50 ms".to_owned()),
                (self.goodput() >= 0.95 * capacity(), "goodput is at least 95 %".to_owned()),
                (self.slower() <= 0.05, "accepted work is slowed by at most 5 %".to_owned()),
                (self.delay() <= longest, "another waits for one prompt more at most".to_owned()),
            ]);
        }
        rules.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
    }
}

/// Prompts a second that the engine can answer.
fn capacity() -> f64 {
    per_second(SLOTS, service_time())
}

/// Twice as many clients as there are slots, each asking again when it is answered: what the service can do.
async fn saturated(service: &Service, end: Instant) -> Figures {
    let one = async || {
        let (mut figures, mut stream) = (Figures::default(), None);
        while Instant::now() < end {
            let asked = Instant::now();
            let (kept, object) = chat(stream.take(), &service.socket()).await;
            stream = Some(kept);
            figures.answered(&object, asked.elapsed());
        }
        figures
    };
    let (mut all, two, three, four) = tokio::join!(one(), one(), one(), one());
    for figures in [two, three, four] {
        all.add(figures);
    }
    all
}

fn counted(service: &Service, what: &str) -> u64 {
    service.health().and_then(|health| health["counters"][what].as_u64()).unwrap_or(0)
}

fn per_second(count: u32, time: Duration) -> f64 {
    f64::from(count) / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "bytes of memory, for people to read")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
