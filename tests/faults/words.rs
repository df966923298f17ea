//! What both sides of the seam know: how a prompt says what shall happen to it, and the one right answer to it.

use std::fmt::Write as _;

/// A generator of its own (splitmix64), so that a seed means the same history for ever.
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        mix(self.0)
    }

    /// A number below `sides`.
    pub(crate) fn below(&mut self, sides: u64) -> u64 {
        self.next() % sides.max(1)
    }

    /// A number from `low` to `high`.
    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&mut self, often: u64) -> bool {
        self.below(100) < often
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// What a prompt asks of the engine, written as `id len=12 step=500 die=segv@3*1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Task {
    /// The prompt's own name, which decides its answer.
    pub(crate) id: String,
    /// Tokens of the answer.
    pub(crate) len: u32,
    /// Microseconds of each.
    pub(crate) step: u64,
    /// How the engine dies of it.
    pub(crate) die: Option<Death>,
}

/// An engine's death by a prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Death {
    /// `panic`, `segv`, `bus`, `kill`, `abort`, `exit`, `hang` or `oom`.
    pub(crate) how: String,
    /// Before which token.
    pub(crate) at: u32,
    /// Of how many engines.
    pub(crate) times: u32,
}

impl Task {
    /// As the prompt's text.
    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} len={} step={}", self.id, self.len, self.step);
        if let Some(Death { how, at, times }) = &self.die {
            write!(text, " die={how}@{at}*{times}").unwrap();
        }
        text
    }

    /// From a prompt's text; what is not understood is left out.
    pub(crate) fn read(text: &str) -> Task {
        let mut words = text.split_whitespace();
        let id = words.next().unwrap_or_default().to_owned();
        let mut task = Task { id, len: 8, step: 500, die: None };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            match key {
                "len" => task.len = value.parse().unwrap_or(task.len),
                "step" => task.step = value.parse().unwrap_or(task.step),
                "die" => task.die = Death::read(value),
                _ => {}
            }
        }
        task
    }

    /// How long the answer takes alone, in milliseconds.
    pub(crate) fn milliseconds(&self) -> u64 {
        u64::from(self.len) * self.step / 1000
    }
}

impl Death {
    fn read(text: &str) -> Option<Death> {
        let (how, rest) = text.split_once('@')?;
        let (at, times) = rest.split_once('*')?;
        Some(Death { how: how.to_owned(), at: at.parse().ok()?, times: times.parse().ok()? })
    }
}

/// The token at a place of an answer.
pub(crate) fn token(id: &str, seed: u64, place: u32) -> u32 {
    let name = id.bytes().fold(0_u64, |hash, byte| mix(hash ^ u64::from(byte)));
    u32::try_from(mix(name ^ mix(seed ^ (u64::from(place) << 32))) % 900).unwrap()
}

/// The text of a token: a missing or repeated one is seen by its place.
pub(crate) fn word(place: u32, token: u32) -> String {
    const SIGNS: [&str; 4] = ["a", "é", "温", "🌡"];
    format!("{place}{}{token} ", SIGNS[usize::try_from(token).unwrap() % SIGNS.len()])
}

/// The whole answer.
pub(crate) fn answer(id: &str, seed: u64, len: u32) -> String {
    (0..len).map(|place| word(place, token(id, seed, place))).collect()
}

pub(crate) fn check() {
    let die = Some(Death { how: "segv".into(), at: 3, times: 1 });
    let task = Task { id: "s1-2".into(), len: 12, step: 500, die };
    assert_eq!(Task::read(&task.text()), task);
    assert_ne!(answer("a", 1, 5), answer("a", 2, 5));
    assert_ne!(answer("a", 1, 5), answer("b", 1, 5));
}
