//! Finds out how the steps of a model are executed most quickly on this machine: number of threads, spinning, cores. By
//! measurement only; what to try is known here, how to measure is given.

use super::cores;
use super::session::Execution;

/// A setting that is more trouble than another one has to be this much quicker: less is what two runs of the same differ by.
const WORTH: f64 = 0.97;

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Trial {
    /// How steps were executed.
    pub execution: Execution,
    /// Seconds, one for each time it was tried.
    pub seconds: Vec<f64>,
}

impl Trial {
    /// The quickest of all times: what disturbs a machine only ever makes it slower.
    pub fn best(&self) -> f64 {
        self.seconds.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// The cores of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// One processor of each core, the quickest kind first.
    pub cores: Vec<u16>,
    /// Cores of the quickest kind.
    pub quick: usize,
    /// Processors, of which a core may have several.
    pub processors: usize,
}

impl Machine {
    /// This one, as far as this process may use it.
    pub fn here() -> Self {
        let (cores, quick) = cores::kinds();
        Machine { cores, quick, processors: cores::allowed().len() }
    }

    /// Numbers of threads worth trying, the fewest first.
    fn threads(&self) -> Vec<u16> {
        let all = self.cores.len();
        let mut counts = vec![1, all / 2, self.quick, all.saturating_sub(1), all, self.processors];
        if all <= 4 {
            counts.extend(1..=all);
        }
        counts.retain(|count| *count > 0);
        counts.sort_unstable();
        counts.dedup();
        counts.into_iter().filter_map(|count| u16::try_from(count).ok()).collect()
    }
}

/// Tries, first numbers of threads, then spinning, then binding threads to the quickest cores, and gives what was best and
/// everything that was tried. `measure` gives seconds of the same work; it is called `rounds` times for each trial, all
/// trials of a stage in turn.
///
/// # Errors
/// The first that `measure` gives.
pub fn tune<E>(
    start: &Execution,
    machine: &Machine,
    rounds: u32,
    measure: &mut dyn FnMut(&Execution) -> Result<f64, E>,
) -> Result<(Execution, Vec<Trial>), E> {
    let plain = Execution { cores: Vec::new(), spinning: false, ..start.clone() };
    let threads =
        machine.threads().into_iter().map(|threads| Execution { threads, ..plain.clone() });
    let mut tried = Vec::new();
    let best = stage(threads.collect(), rounds, measure, &mut tried)?;
    let spinning = Execution { spinning: true, ..best.clone() };
    let best = stage(vec![best, spinning], rounds, measure, &mut tried)?;
    let bound: Vec<u16> = machine.cores.iter().copied().take(usize::from(best.threads)).collect();
    // With one thread on a machine of equal cores the kernel does as well; more threads than cores cannot have one each.
    if bound.len() != usize::from(best.threads) || machine.cores.len() < 2 {
        return Ok((best, tried));
    }
    let bound = Execution { cores: bound, ..best.clone() };
    let best = stage(vec![best, bound], rounds, measure, &mut tried)?;
    Ok((best, tried))
}

/// Tries all of these in turn, several times over, and gives the best one; of those that are nearly equal, the first.
fn stage<E>(
    candidates: Vec<Execution>,
    rounds: u32,
    measure: &mut dyn FnMut(&Execution) -> Result<f64, E>,
    tried: &mut Vec<Trial>,
) -> Result<Execution, E> {
    let mut trials: Vec<Trial> = (candidates.into_iter())
        .map(|execution| Trial { execution, seconds: Vec::new() })
        .collect();
    for _ in 0..rounds.max(1) {
        for trial in &mut trials {
            trial.seconds.push(measure(&trial.execution)?);
        }
    }
    let best = trials.iter().map(Trial::best).fold(f64::INFINITY, f64::min);
    let chosen = trials.iter().find(|trial| trial.best() * WORTH <= best).or(trials.first());
    let chosen = chosen.map(|trial| trial.execution.clone()).unwrap_or_default();
    tried.extend(trials);
    Ok(chosen)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn machine(cores: u16, quick: usize, processors: usize) -> Machine {
        Machine { cores: (0..cores).collect(), quick, processors }
    }

    fn run(machine: &Machine, time: impl Fn(&Execution) -> f64) -> (Execution, Vec<Trial>) {
        let mut measure = |execution: &Execution| Ok::<_, Infallible>(time(execution));
        let Ok(found) = tune(&Execution::default(), machine, 2, &mut measure);
        found
    }

    #[test]
    fn threads_worth_trying() {
        assert_eq!(machine(2, 2, 2).threads(), [1, 2]);
        assert_eq!(machine(4, 4, 8).threads(), [1, 2, 3, 4, 8]);
        assert_eq!(machine(8, 4, 8).threads(), [1, 4, 7, 8]);
        assert_eq!(machine(1, 1, 1).threads(), [1]);
    }

    #[test]
    fn the_quickest_is_found() {
        // Four quick cores and four slow ones that only hold the others up; spinning helps.
        let time = |execution: &Execution| {
            let threads = f64::from(execution.threads);
            let slow = if execution.threads > 4 { 2.0 } else { 1.0 };
            let spinning = if execution.spinning { 0.8 } else { 1.0 };
            let bound = if execution.cores == [0, 1, 2, 3] { 0.5 } else { 1.0 };
            8.0 / threads * slow * spinning * bound
        };
        let (best, tried) = run(&machine(8, 4, 8), time);
        assert_eq!((best.threads, best.spinning), (4, true));
        assert_eq!(best.cores, [0, 1, 2, 3]);
        assert!(tried.iter().all(|trial| trial.seconds.len() == 2));
    }

    #[test]
    fn what_is_no_quicker_is_not_taken() {
        // Nothing but noise: one percent.
        let time = |execution: &Execution| {
            let noise = if execution.spinning || !execution.cores.is_empty() { 0.99 } else { 1.0 };
            noise * if execution.threads == 1 { 2.0 } else { 1.0 }
        };
        let (best, _) = run(&machine(2, 2, 2), time);
        assert_eq!(best, Execution { threads: 2, ..Execution::default() });
    }
}
