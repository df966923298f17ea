//! How many threads one step of the model gets: one for each physical core, because two on one core share its
//! arithmetic units and are slower than one.

use std::collections::BTreeSet;

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

#[cfg(test)]
mod tests {
    use super::*;

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
