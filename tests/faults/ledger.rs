//! The ledger test: seeded histories with faults, several at a time, until so many were good or one was not.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::judge::{Tally, try_seed};
use crate::mosquitto::Broker;
use crate::options::Options;

/// What the brokers are started with: sessions survive an orderly end, and nothing is dropped for want of room.
pub(crate) const BROKER: &str = "persistence true\nmax_queued_messages 0\n";

/// Plays `options.runs` seeds from `options.seed` on.
pub(crate) fn run(options: &Options) -> Result<String, String> {
    if crate::mosquitto::program("mosquitto").is_none() {
        return Ok(
            "SKIPPED: no history was played, because mosquitto is not installed (`make broker`)"
                .to_owned(),
        );
    }
    let begun = Instant::now();
    let (next, failed) = (AtomicU64::new(options.seed), AtomicBool::new(false));
    let last = options.seed + options.runs;
    let (sum, wrong) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let patience = Duration::from_secs(options.patience);
    let work = || {
        let Some(mut broker) = Broker::start(BROKER) else { return };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        while !failed.load(Ordering::Relaxed) {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= last {
                return;
            }
            match runtime.block_on(try_seed(seed, &mut broker, patience)) {
                Ok(tally) => {
                    let mut sum = sum.lock().unwrap();
                    *sum = add(*sum, tally);
                }
                Err(why) => {
                    failed.store(!options.keep_going, Ordering::Relaxed);
                    wrong.lock().unwrap().push(why);
                }
            }
            let done = seed + 1 - options.seed;
            if done.is_multiple_of(500) && options.runs > 500 {
                println!(
                    "{done} of {} seeds are played; go on with SEED={}",
                    options.runs,
                    seed + 1
                );
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs {
            std::thread::Builder::new().spawn_scoped(scope, work).unwrap();
        }
    });
    let Tally { prompts, acknowledged, answers, errors, repeated, ends, breaks, engines } =
        sum.into_inner().unwrap();
    let wrong = wrong.into_inner().unwrap();
    let seconds = begun.elapsed().as_secs();
    let summary = format!(
        "{} histories in {seconds} s: {prompts} prompts, {acknowledged} acknowledged over MQTT, {answers} answers, {errors} \
         errors, {repeated} repeated; {ends} deaths or ends of the service, {breaks} of the connection or the broker, \
         {engines} of engines",
        options.runs
    );
    if wrong.is_empty() {
        return Ok(summary);
    }
    Err(format!(
        "{}\n{} of these histories were not as promised; one of them again: make faults SEED=… N=1\n{summary}",
        wrong.join("\n\n"),
        wrong.len()
    ))
}

fn add(a: Tally, b: Tally) -> Tally {
    Tally {
        prompts: a.prompts + b.prompts,
        acknowledged: a.acknowledged + b.acknowledged,
        answers: a.answers + b.answers,
        errors: a.errors + b.errors,
        repeated: a.repeated + b.repeated,
        ends: a.ends + b.ends,
        breaks: a.breaks + b.breaks,
        engines: a.engines + b.engines,
    }
}
