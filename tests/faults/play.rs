//! Plays one schedule against a service, a broker and clients that are all real, and gathers what the judge needs.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::asker::{Client, Final, Letter, Seen, over_http, over_lines};
use crate::mosquitto::Broker;
use crate::relay::{Pass, Relay, Tape, Verdict};
use crate::schedule::{Ask, Door, Schedule, What, When};
use crate::service::{Plan, Service, signal};

/// A client that got no answer publishes its prompt again after this long, where the broker may have lost it.
const ASK_AGAIN: Duration = Duration::from_millis(1500);

/// Everything that can be known of a history when it is over.
pub(crate) struct Story {
    pub(crate) schedule: Schedule,
    pub(crate) finals: Vec<Final>,
    /// What the clients of the sockets saw; `None` for other asks, and for those still waiting.
    pub(crate) seen: Vec<Option<Seen>>,
    pub(crate) copies: Vec<usize>,
    pub(crate) tape: Tape,
    pub(crate) service: Service,
    /// Deaths and ends of the service.
    pub(crate) ends: usize,
    /// Broken connections to the broker, and its ends.
    pub(crate) breaks: usize,
    /// Engines that were killed from outside.
    pub(crate) kills: usize,
    /// What went wrong while it was played.
    pub(crate) wrong: Vec<String>,
}

/// Where the answer of an ask goes: its own topic, and its twin's.
pub(crate) fn topics(schedule: &Schedule, ask: &Ask) -> Vec<String> {
    let (seed, id) = (schedule.seed, &ask.task.id);
    let Door::Mqtt { who, twin, .. } = ask.door else { return Vec::new() };
    let own = who.map_or_else(|| format!("promptd/n{seed}/answer/{id}"), |who| inbox(seed, who));
    let mut topics = vec![own];
    if twin {
        topics.push(inbox(seed, 9));
    }
    topics
}

fn inbox(seed: u64, who: u8) -> String {
    format!("w{who}-{seed}/in")
}

fn letters(schedule: &Schedule, ask: &Ask) -> Vec<Letter> {
    let Door::Mqtt { who, expiry, .. } = ask.door else { return Vec::new() };
    let mut object = json!({"id": ask.task.id, "prompt": ask.task.text()});
    if let Some(seed) = ask.seed {
        object["seed"] = json!(seed);
    }
    let mut seconds = None;
    match ask.timeout {
        // A message's expiry has whole seconds.
        Some(ms) if expiry => seconds = u32::try_from(ms.div_ceil(1000)).ok(),
        Some(ms) => object["timeout_ms"] = json!(ms),
        None => {}
    }
    let topic = format!("promptd/n{}/ask", schedule.seed);
    let letter = |back: Option<String>| Letter {
        topic: topic.clone(),
        payload: object.to_string(),
        correlation: back.is_some().then(|| format!("c-{}", ask.task.id)),
        back,
        expiry: seconds,
    };
    let own = letter(who.map(|who| inbox(schedule.seed, who)));
    let twin = (topics(schedule, ask).len() > 1).then(|| letter(Some(inbox(schedule.seed, 9))));
    std::iter::once(own).chain(twin).collect()
}

fn body(ask: &Ask) -> serde_json::Value {
    let mut body =
        json!({"prompt": ask.task.text(), "seed": ask.seed.unwrap_or(7), "stream": true});
    if let Some(ms) = ask.timeout {
        body["timeout_ms"] = json!(ms);
    }
    body
}

/// A fault that is due, and who waits for the verdict on the message that is just passing.
type Due = (What, Option<oneshot::Sender<Verdict>>);

/// The history while it is played.
struct Play<'a> {
    schedule: &'a Schedule,
    broker: &'a mut Broker,
    relay: Relay,
    service: Service,
    plan: Plan,
    client: Client,
    begun: Instant,
    sockets: Vec<Option<JoinHandle<Seen>>>,
    seen: Vec<Option<Seen>>,
    copies: Vec<usize>,
    sent: Vec<bool>,
    cancelled: Vec<bool>,
    ends: usize,
    breaks: usize,
    kills: usize,
    wrong: Vec<String>,
}

/// Plays a schedule; every prompt has `patience` to end after the last fault.
pub(crate) async fn play(schedule: &Schedule, broker: &mut Broker, patience: Duration) -> Story {
    play_with(schedule, broker, patience, Plan::default()).await
}

/// The same with something of its own in the service's plan.
pub(crate) async fn play_with(
    schedule: &Schedule,
    broker: &mut Broker,
    patience: Duration,
    plan: Plan,
) -> Story {
    let seed = schedule.seed;
    let relay = Relay::to(broker.port).await;
    let plan = Plan {
        slots: schedule.slots,
        mqtt: Some((relay.port, format!("n{seed}"))),
        grace: 1,
        ..plan
    };
    let mut service = Service::prepare(&plan);
    service.start();
    let mut inboxes: Vec<String> = [0, 1, 2, 9].map(|who| inbox(seed, who)).into();
    inboxes.push(format!("promptd/n{seed}/answer/#"));
    inboxes.push(format!("promptd/n{seed}/availability"));
    // The board's session must be there: what nobody listens to is nobody's prompt.
    let count = schedule.asks.len();
    let client = Client::connect(broker.port, &format!("client-{seed}"), inboxes).await;
    let mut play = Play {
        schedule,
        broker,
        relay,
        service,
        plan,
        client,
        begun: Instant::now(),
        sockets: (0..count).map(|_| None).collect(),
        seen: vec![None; count],
        copies: vec![0; count],
        sent: vec![false; count],
        cancelled: vec![false; count],
        ends: 0,
        breaks: 0,
        kills: 0,
        wrong: Vec::new(),
    };
    play.wait_for_doors(patience).await;
    play.begun = Instant::now();
    play.through_the_faults(patience).await;
    play.until_all_have_ended(patience).await;
    let Play { relay, service, client, seen, copies, ends, breaks, kills, wrong, .. } = play;
    Story {
        schedule: schedule.clone(),
        finals: client.finals(),
        seen,
        copies,
        tape: relay.tape.clone(),
        service,
        ends,
        breaks,
        kills,
        wrong,
    }
}

impl Play<'_> {
    async fn wait_for_doors(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            let (online, ready) = self.doors();
            if online && (ready || self.schedule.early) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.wrong.push("promptd did not become ready".to_owned());
    }

    /// Whether the board listens at the broker, and whether its model answers.
    fn doors(&self) -> (bool, bool) {
        let online = self.client.finals().iter().any(|f| f.object["not_json"] == "online");
        let ready = self.service.health().is_some_and(|health| health["state"] == "ready");
        (online, ready)
    }

    async fn through_the_faults(&mut self, patience: Duration) {
        let (tell, mut due) = mpsc::channel::<Due>(64);
        let mut waits = Vec::new();
        for fault in self.schedule.faults.clone() {
            let tell = tell.clone();
            let trap = match fault.when {
                When::At(_) => None,
                When::Passing(pass, n) => Some(self.relay.tape.trap(pass, n)),
            };
            waits.push(tokio::spawn(async move {
                match (fault.when, trap) {
                    (When::At(ms), _) => {
                        tokio::time::sleep(Duration::from_millis(ms)).await;
                        let _ = tell.send((fault.what, None)).await;
                    }
                    (When::Passing(..), Some(trap)) => {
                        if let Ok(decide) = trap.await {
                            let _ = tell.send((fault.what, Some(decide))).await;
                        }
                    }
                    (When::Passing(..), None) => {}
                }
            }));
        }
        let deadline = Instant::now() + patience;
        loop {
            tokio::select! {
                Some((what, decide)) = due.recv() => self.suffer(what, decide).await,
                () = tokio::time::sleep(Duration::from_millis(5)) => {}
            }
            self.ask_what_is_due();
            let timed = |(fault, wait): (&crate::schedule::Fault, &JoinHandle<()>)| {
                matches!(fault.when, When::Passing(..)) || wait.is_finished()
            };
            let past = self.schedule.faults.iter().zip(&waits).all(timed);
            if (past && due.is_empty() && self.all_asked() && self.is_settled())
                || Instant::now() > deadline
            {
                break;
            }
        }
        waits.iter().for_each(JoinHandle::abort);
        for wait in waits {
            let _ = wait.await;
        }
        // A fault that came in the last moment still holds a message.
        while let Ok((_, decide)) = due.try_recv() {
            decide.map(|decide| decide.send(Verdict::Deliver));
        }
    }

    fn all_asked(&self) -> bool {
        self.sent.iter().all(|sent| *sent)
            && (self.schedule.asks.iter().zip(&self.cancelled))
                .all(|(ask, cancelled)| *cancelled || ask.cancel.is_none())
    }

    fn ask_what_is_due(&mut self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap();
        for n in 0..self.schedule.asks.len() {
            let ask = self.schedule.asks[n].clone();
            if !self.sent[n] && ask.at <= now {
                self.sent[n] = true;
                match ask.door {
                    Door::Mqtt { copies, .. } => (0..copies).for_each(|_| self.publish(n)),
                    Door::Http => {
                        let asking = over_http(self.service.http(), body(&ask), ask.name());
                        self.sockets[n] = Some(tokio::spawn(asking));
                    }
                    Door::Lines => {
                        let asking = over_lines(self.service.lines(), body(&ask), ask.name());
                        self.sockets[n] = Some(tokio::spawn(asking));
                    }
                }
            }
            let cancel = ask.cancel.is_some_and(|after| ask.at + after <= now);
            if cancel && self.sent[n] && !std::mem::replace(&mut self.cancelled[n], true) {
                match self.sockets[n].take() {
                    Some(socket) => {
                        socket.abort();
                        self.seen[n] = Some(Seen::default());
                    }
                    None => self.client.publish(&Letter {
                        topic: format!("promptd/n{}/cancel", self.schedule.seed),
                        payload: json!({"id": ask.task.id}).to_string(),
                        back: None,
                        correlation: None,
                        expiry: None,
                    }),
                }
            }
        }
    }

    fn publish(&mut self, n: usize) {
        self.copies[n] += 1;
        for letter in letters(self.schedule, &self.schedule.asks[n]) {
            self.client.publish(&letter);
        }
    }

    async fn suffer(&mut self, what: What, decide: Option<oneshot::Sender<Verdict>>) {
        let ms = |ms| tokio::time::sleep(Duration::from_millis(ms));
        let mut verdict = Verdict::Deliver;
        match what {
            What::KillService => self.end_service(),
            What::KillEngine => self.kill_engine(),
            What::KillBoth => {
                self.kill_engine();
                self.end_service();
            }
            What::Cut => {
                self.breaks += 1;
                verdict = Verdict::Lose;
                self.relay.cut();
            }
            What::KillBroker(pause) => {
                self.breaks += 1;
                verdict = Verdict::Lose;
                self.broker.kill();
                ms(pause).await;
                self.broker.run();
            }
            What::RestartBroker(pause) => {
                self.breaks += 1;
                verdict = Verdict::Lose;
                self.broker.end("-TERM");
                ms(pause).await;
                self.broker.run();
            }
            What::PauseService(pause) => self.pause(self.service.pid(), pause).await,
            What::PauseEngine(pause) => self.pause(self.service.engine(), pause).await,
            What::PauseBroker(pause) => {
                self.broker.freeze();
                ms(pause).await;
                self.broker.thaw();
            }
            What::Reload => {
                let plan = Plan { more: "[queue]\nlimit = 200\n".to_owned(), ..self.plan.clone() };
                self.service.configure(&plan);
                self.until_it_hears().await;
                self.service.pid().iter().for_each(|pid| signal(*pid, "HUP"));
            }
            What::Drain => {
                // A message that was held would hold the goodbye as well.
                if let Some(decide) = decide {
                    let _ = decide.send(verdict);
                }
                return self.drain().await;
            }
        }
        if let Some(decide) = decide {
            let _ = decide.send(verdict);
        }
    }

    /// A signal that comes before the service listens to signals would just kill it.
    async fn until_it_hears(&self) {
        let begun = Instant::now();
        while self.service.health().is_none() && begun.elapsed() < Duration::from_secs(20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn end_service(&mut self) {
        self.ends += 1;
        self.service.kill();
        self.service.start();
    }

    fn kill_engine(&mut self) {
        if let Some(engine) = self.service.engine() {
            self.kills += 1;
            signal(engine, "KILL");
        }
    }

    async fn drain(&mut self) {
        self.ends += 1;
        self.until_it_hears().await;
        let status = self.service.stop(Duration::from_secs(30)).await;
        if status.and_then(|status| status.code()) != Some(0) {
            self.wrong.push(format!("SIGTERM ended with {status:?}"));
        }
        self.service.start();
    }

    async fn pause(&self, pid: Option<u32>, ms: u64) {
        let Some(pid) = pid else { return };
        signal(pid, "STOP");
        tokio::time::sleep(Duration::from_millis(ms)).await;
        signal(pid, "CONT");
    }

    /// Whether everybody has what it asked for.
    fn is_settled(&mut self) -> bool {
        for n in 0..self.sockets.len() {
            if self.sockets[n].as_ref().is_some_and(JoinHandle::is_finished)
                && let Some(socket) = self.sockets[n].take()
            {
                let seen = futures_now(socket);
                self.seen[n] = Some(seen.unwrap_or_default());
            }
        }
        self.sockets.iter().all(Option::is_none) && self.unanswered().is_empty()
    }

    /// Asks over MQTT that lack an answer.
    fn unanswered(&self) -> Vec<usize> {
        let finals = self.client.finals();
        let has = |topic: &String, id: &str| {
            finals.iter().any(|f| f.topic == *topic && f.object["id"] == id)
        };
        let lacks = |ask: &Ask| {
            let may_lack = matches!(ask.door, Door::Mqtt { expiry: true, .. })
                && ask.timeout.is_some_and(|ms| {
                    self.begun.elapsed() > Duration::from_millis(ask.at + ms + 1500)
                });
            !may_lack && topics(self.schedule, ask).iter().any(|topic| !has(topic, &ask.task.id))
        };
        (0..self.schedule.asks.len()).filter(|n| lacks(&self.schedule.asks[*n])).collect()
    }

    async fn until_all_have_ended(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut asked = Instant::now();
        while Instant::now() < deadline {
            self.ask_what_is_due();
            let settled = self.is_settled();
            let idle = settled
                && self.service.health().is_some_and(|health| {
                    health["slots"]["running"] == 0 && health["queue"]["waiting"] == 0
                });
            if idle {
                return;
            }
            if self.schedule.is_lossy() && asked.elapsed() > ASK_AGAIN {
                asked = Instant::now();
                for n in self.unanswered() {
                    let id = &self.schedule.asks[n].task.id;
                    // What was acknowledged without an answer is promptd's to answer, without being asked.
                    let owed = self.relay.tape.count(Pass::Acked, id) > 0
                        && self.relay.tape.count(Pass::Taken, id) == 0;
                    if !owed {
                        self.publish(n);
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if let Some(health) = self.service.health().filter(|h| h["slots"]["running"] != 0) {
            self.wrong.push(format!("a slot is not free at the end: {health}"));
        }
    }
}

/// The result of a task that has ended.
fn futures_now(task: JoinHandle<Seen>) -> Option<Seen> {
    use std::future::Future as _;
    let mut task = std::pin::pin!(task);
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match task.as_mut().poll(&mut context) {
        std::task::Poll::Ready(Ok(seen)) => Some(seen),
        _ => None,
    }
}
