//! How many threads one step of the model gets, and which cores they keep to. One for each physical core, because two on
//! one core share its arithmetic units and are slower than one.

use std::collections::BTreeSet;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Physical cores this process may use, at least one.
pub(super) fn physical() -> usize {
    let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    // A container may have fewer than the machine.
    count(&cpuinfo).map_or(available, |cores| cores.clamp(1, available))
}

/// Distinct pairs of package and core in /proc/cpuinfo. ARM kernels list none: there every processor is a core.
fn count(cpuinfo: &str) -> Option<usize> {
    let mut cores = BTreeSet::new();
    let mut package = "";
    for line in cpuinfo.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        match key.trim() {
            "physical id" => package = value.trim(),
            "core id" => {
                cores.insert((package, value.trim()));
            }
            _ => {}
        }
    }
    (!cores.is_empty()).then_some(cores.len())
}

/// Processors this process may use, as the kernel counts them.
pub(super) fn allowed() -> Vec<u16> {
    let set = sched_getaffinity(None).unwrap_or_default();
    let most = u16::try_from(CpuSet::MAX_CPU).unwrap_or(u16::MAX);
    (0..most).filter(|cpu| set.is_set(usize::from(*cpu))).collect()
}

/// Binds the calling thread, and those that it starts from now on, to these processors. Empty: changes nothing.
///
/// # Errors
/// In words: a processor that is not there, or that this process may not use.
pub(super) fn bind(cores: &[u16]) -> Result<(), String> {
    if cores.is_empty() {
        return Ok(());
    }
    let may = allowed();
    if let Some(other) = cores.iter().find(|core| !may.contains(core)) {
        let may: Vec<String> = may.iter().map(u16::to_string).collect();
        return Err(format!(
            "names the processor {other}; this process may use {}",
            may.join(", ")
        ));
    }
    let mut set = CpuSet::new();
    for core in cores {
        set.set(usize::from(*core));
    }
    sched_setaffinity(None, &set).map_err(|error| format!("is refused by the system: {error}"))
}

/// The cores of a step's threads as ONNX Runtime takes them: counted from 1, and without the first thread, which is the
/// caller's own. `None` where the threads cannot have one core each.
pub(super) fn affinities(cores: &[u16], threads: u16) -> Option<String> {
    let fits = cores.len() == usize::from(threads) && threads > 1;
    let others = cores.get(1..).filter(|_| fits)?;
    let each: Vec<String> = others.iter().map(|core| (u32::from(*core) + 1).to_string()).collect();
    Some(each.join(";"))
}

/// The cores of the machine as far as this process may use them: the first processor of each, the quickest kind first, and
/// how many there are of that kind.
pub(super) fn kinds() -> (Vec<u16>, usize) {
    let read = |cpu: u16, file: &str| {
        let path = format!("/sys/devices/system/cpu/cpu{cpu}/{file}");
        std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
    };
    sort(allowed().into_iter().map(|cpu| {
        let place = (read(cpu, "topology/physical_package_id"), read(cpu, "topology/core_id"));
        // ARM kernels state a capacity where cores differ; elsewhere the highest frequency tells.
        let speed = read(cpu, "cpu_capacity").or_else(|| read(cpu, "cpufreq/cpuinfo_max_freq"));
        (cpu, place, speed.and_then(|speed| speed.parse().ok()).unwrap_or(0))
    }))
}

/// A processor, the core it is on, where that is known, and how quick it is.
type Processor = (u16, (Option<String>, Option<String>), u64);

fn sort(processors: impl Iterator<Item = Processor>) -> (Vec<u16>, usize) {
    let mut seen = BTreeSet::new();
    let mut cores: Vec<(u64, u16)> = processors
        .filter(|(_, place, _)| place.1.is_none() || seen.insert(place.clone()))
        .map(|(cpu, _, speed)| (speed, cpu))
        .collect();
    cores.sort_by_key(|(speed, cpu)| (std::cmp::Reverse(*speed), *cpu));
    let best = cores.first().map_or(0, |(speed, _)| *speed);
    // Boards state slightly different frequencies for cores of one kind.
    let quick = cores.iter().filter(|(speed, _)| speed * 10 >= best * 9).count();
    (cores.into_iter().map(|(_, cpu)| cpu).collect(), quick)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_cores_come_first_and_each_core_once() {
        let cpu = |cpu: u16, core: &str, speed| {
            let place = (Some("0".to_owned()), Some(core.to_owned()));
            (cpu, place, speed)
        };
        // Two quick cores with two processors each, and two slow ones.
        let mixed = [
            cpu(0, "8", 400),
            cpu(1, "9", 400),
            cpu(2, "0", 1024),
            cpu(3, "0", 1024),
            cpu(4, "1", 1000),
            cpu(5, "1", 1000),
        ];
        assert_eq!(sort(mixed.into_iter()), (vec![2, 4, 0, 1], 2));
        // A container that hides what its cores are.
        let hidden = (0..3).map(|cpu| (cpu, (None, None), 0));
        assert_eq!(sort(hidden), (vec![0, 1, 2], 3));
        assert!(!kinds().0.is_empty());
    }

    #[test]
    fn threads_are_told_their_cores() {
        assert_eq!(affinities(&[0, 1, 4], 3).as_deref(), Some("2;5"));
        assert_eq!(affinities(&[], 3), None);
        assert_eq!(affinities(&[2, 3], 4), None);
        assert_eq!(affinities(&[0], 1), None);
        let may = allowed();
        assert!(!may.is_empty());
        // In a thread of its own, which ends with the binding.
        let last = *may.last().unwrap();
        let bound = std::thread::Builder::new().name("bound".into()).spawn(move || {
            bind(&[last]).unwrap();
            allowed()
        });
        assert_eq!(bound.unwrap().join().unwrap(), [last]);
        let refused = bind(&[u16::MAX]).unwrap_err();
        assert!(refused.contains("65535"), "{refused}");
    }

    #[test]
    fn threads_of_one_core_count_once() {
        let cpu = |package: u8, core: u8| {
            format!("processor\t: 0\nphysical id\t: {package}\ncore id\t\t: {core}\n\n")
        };
        let text = [cpu(0, 0), cpu(0, 1), cpu(0, 0), cpu(0, 1), cpu(1, 0)].concat();
        assert_eq!(count(&text), Some(3));
        assert_eq!(count("processor\t: 0\nBogoMIPS\t: 108.00\n"), None);
        assert!(physical() >= 1);
    }
}
