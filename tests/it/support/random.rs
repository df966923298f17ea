//! Bytes damaged at random, the same in every run with the same seed: what fuzz targets are made of.

/// Runs of one target: few in a test, and fewer by this factor of one that is slow; `PROMPTD_FUZZ_RUNS` in `make fuzz`.
pub(crate) fn runs(cost: u64) -> u64 {
    let asked = std::env::var("PROMPTD_FUZZ_RUNS").ok().and_then(|runs| runs.parse().ok());
    asked.unwrap_or_else(|| 3000_u64.div_ceil(cost))
}

/// Tells what a target has done, where somebody waits for it.
pub(crate) fn told(target: &str, began: std::time::Instant, runs: u64, what: &str) {
    let seconds = began.elapsed().as_secs_f64();
    println!("fuzz {target}: {runs} runs in {seconds:.0} s; {what}");
}

/// Marsaglia's xorshift: the same numbers every time.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// The numbers of one target: others for every `PROMPTD_FUZZ_SEED`, so that a second hour does not try again what the
    /// first has tried.
    pub(crate) fn of_target(number: u64) -> Random {
        let asked = std::env::var("PROMPTD_FUZZ_SEED").ok().and_then(|seed| seed.parse().ok());
        let mixed = number ^ asked.unwrap_or(0_u64).wrapping_mul(0xd134_2543_de82_ef95);
        // Zero is the one number that xorshift never leaves.
        Random(if mixed == 0 { 1 } else { mixed })
    }

    /// A number below `most`.
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(most.max(1)).unwrap()).unwrap()
    }

    /// One of them.
    pub(crate) fn pick<'a, T: ?Sized>(&mut self, of: &[&'a T]) -> &'a T {
        of[self.below(of.len())]
    }

    /// The bytes with some of them changed, left out, repeated, or replaced by what parsers stumble over.
    pub(crate) fn damage(&mut self, bytes: &mut Vec<u8>, words: &[&str]) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let until = (at + self.below(12)).min(bytes.len());
            match self.below(6) {
                0 => bytes.truncate(at),
                1 => drop(bytes.drain(at..until)),
                2 => {
                    let part = bytes[at..until].to_vec();
                    bytes.splice(at..at, part);
                }
                3 => drop(bytes.splice(at..until, self.pick(NASTY).bytes())),
                4 => {
                    let byte = u8::try_from(self.below(256)).unwrap();
                    bytes.splice(at..until.min(at + 1), [byte]);
                }
                _ if words.is_empty() => {}
                _ => drop(bytes.splice(at..until, self.pick(words).bytes())),
            }
        }
    }
}

/// What parsers stumble over.
const NASTY: &[&str] = &[
    "null",
    "-0",
    "1e999",
    "18446744073709551616",
    "-9223372036854775809",
    "0.1",
    "\\ud800",
    "\\u0000",
    "\u{feff}",
    "\u{202e}",
    "\u{e0ff}",
    "\u{e0fe}",
    "[",
    "{",
    "}",
    "\"",
    "\\",
    "[[[[[[[[",
    "true",
    "{}",
    "[]",
    "\"\"",
    "<tool_call>",
    "\r\n",
    "\n",
    "\0",
    "/",
    "#",
    "+",
    "$",
    "%",
];
