//! What a seed means: who asks what by which door, and what goes wrong when.

use crate::relay::{PASSES, Pass};
use crate::words::{Death, Dice, Task};

/// An answer that takes this long, in milliseconds, is not waited for by those who cancel or set a deadline.
pub(crate) const LONG: u64 = 2500;

/// One history.
#[derive(Clone, Debug)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) slots: u16,
    /// Whether the asking begins before the model is loaded.
    pub(crate) early: bool,
    pub(crate) asks: Vec<Ask>,
    pub(crate) faults: Vec<Fault>,
}

/// A prompt.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) task: Task,
    /// When, in milliseconds from the beginning.
    pub(crate) at: u64,
    pub(crate) door: Door,
    /// The seed that the asker wants.
    pub(crate) seed: Option<u64>,
    pub(crate) timeout: Option<u64>,
    /// Cancelled, or left by its client, so many milliseconds later.
    pub(crate) cancel: Option<u64>,
    /// Over a socket: under a name, so that it outlasts its connection and the service, and is asked for until it ends.
    pub(crate) named: bool,
}

impl Ask {
    /// The name under which a client of a socket asks.
    pub(crate) fn name(&self) -> Option<String> {
        self.named.then(|| format!("name-{}", self.task.id))
    }
}

/// By which door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Door {
    Mqtt {
        /// Which of the clients; `None`: the answer goes to promptd's own topic.
        who: Option<u8>,
        /// How often the client publishes the same prompt.
        copies: u32,
        /// Whether another client publishes a prompt that differs in nothing but where its answer goes.
        twin: bool,
        /// The deadline is the message's expiry, not `timeout_ms`.
        expiry: bool,
    },
    Http,
    Lines,
}

/// Something that goes wrong.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) when: When,
    pub(crate) what: What,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum When {
    /// Milliseconds from the beginning.
    At(u64),
    /// As the n-th message of a kind is about to pass.
    Passing(Pass, u32),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    KillService,
    KillEngine,
    KillBoth,
    /// The connection to the broker breaks; a message that is just passing is lost with it.
    Cut,
    /// `kill -9` of the broker, which forgets everything; it is back after so many milliseconds.
    KillBroker(u64),
    /// The broker ends and comes back with all sessions.
    RestartBroker(u64),
    PauseService(u64),
    PauseEngine(u64),
    PauseBroker(u64),
    Reload,
    /// SIGTERM, and the service is started again.
    Drain,
}

impl Schedule {
    pub(crate) fn new(seed: u64) -> Schedule {
        let mut dice = Dice::new(seed);
        let slots = u16::try_from(dice.between(1, 3)).unwrap();
        let early = dice.percent(30);
        let count = dice.between(4, 9);
        let mut asks: Vec<Ask> = (0..count).map(|n| ask(seed, n, &mut dice)).collect();
        // Engines that die cost seconds of pauses: one such prompt is enough.
        let mut deadly = false;
        for ask in &mut asks {
            if ask.task.die.as_ref().is_some_and(|death| death.times > 1)
                && std::mem::replace(&mut deadly, true)
            {
                ask.task.die = None;
            }
        }
        let faults = (0..dice.below(4)).map(|_| fault(&mut dice)).collect();
        Schedule { seed, slots, early, asks, faults }
    }

    /// Whether the broker may lose what it has.
    pub(crate) fn is_lossy(&self) -> bool {
        self.faults.iter().any(|fault| matches!(fault.what, What::KillBroker(_)))
    }
}

fn ask(seed: u64, n: u64, dice: &mut Dice) -> Ask {
    let mut task = Task {
        id: format!("s{seed}-{n}"),
        len: u32::try_from(dice.between(1, 30)).unwrap(),
        step: dice.between(200, 1500),
        die: None,
    };
    let door = match dice.below(100) {
        0..65 => Door::Mqtt {
            who: dice.percent(75).then(|| u8::try_from(dice.below(3)).unwrap()),
            copies: if dice.percent(20) { 2 } else { 1 },
            twin: dice.percent(15),
            expiry: dice.percent(30),
        },
        65..85 => Door::Http,
        _ => Door::Lines,
    };
    let (mut timeout, mut cancel) = (None, None);
    match dice.below(100) {
        0..8 => {
            // Long, and nobody waits for it.
            (task.len, task.step) = (1000, LONG);
            cancel = Some(dice.between(20, 150));
        }
        8..16 => {
            (task.len, task.step) = (1000, LONG);
            timeout = Some(dice.between(30, 200));
        }
        16..20 => cancel = Some(dice.between(0, 40)),
        20..24 => timeout = Some(60_000),
        24..29 => {
            let how = ["panic", "segv", "bus", "abort", "kill", "exit"];
            let how = how[usize::try_from(dice.below(6)).unwrap()].to_owned();
            let at = u32::try_from(dice.below(task.len.into())).unwrap();
            let times = if dice.percent(40) { 99 } else { 1 };
            task.die = Some(Death { how, at, times });
        }
        _ => {}
    }
    let seed = dice.percent(40).then(|| dice.below(1 << 50));
    // What has a name is not given up with its connection.
    let named = !matches!(door, Door::Mqtt { .. }) && cancel.is_none() && dice.percent(60);
    Ask { task, at: dice.below(200), door, seed, timeout, cancel, named }
}

fn fault(dice: &mut Dice) -> Fault {
    let when = if dice.percent(50) {
        When::At(dice.below(300))
    } else {
        let pass = PASSES[usize::try_from(dice.below(4)).unwrap()];
        When::Passing(pass, u32::try_from(dice.between(1, 5)).unwrap())
    };
    let what = match dice.below(100) {
        0..22 => What::KillService,
        22..40 => What::KillEngine,
        40..48 => What::KillBoth,
        48..62 => What::Cut,
        62..68 => What::KillBroker(dice.below(100)),
        68..74 => What::RestartBroker(dice.below(100)),
        74..79 => What::PauseService(dice.between(10, 150)),
        79..84 => What::PauseEngine(dice.between(10, 150)),
        84..88 => What::PauseBroker(dice.between(10, 150)),
        88..93 => What::Reload,
        _ => What::Drain,
    };
    Fault { when, what }
}
