//! Temperature, clocks, and what holds a board back: the kernel's cooling devices
//! (<https://docs.kernel.org/driver-api/thermal/sysfs-api.html>) and the firmware of a Raspberry Pi.

use std::path::Path;

use super::{Clock, folders, number, text};

/// The hottest zone in degrees Celsius. The kernel tells thousandths.
pub(super) fn temperature(root: &Path) -> Option<f64> {
    let zones = folders(&root.join("sys/class/thermal"), "thermal_zone");
    let read = |zone: &std::path::PathBuf| number::<f64>(&zone.join("temp"));
    // Zones whose sensor is off answer nothing, 0 or absurd numbers.
    let real = zones.iter().filter_map(read).map(|milli| milli / 1000.0);
    real.filter(|degrees| (-60.0..=200.0).contains(degrees)).max_by(f64::total_cmp)
}

/// The clock of the group of processors that is furthest below its fastest.
pub(super) fn clock(root: &Path) -> Option<Clock> {
    let groups = folders(&root.join("sys/devices/system/cpu/cpufreq"), "policy");
    let read = |group: &std::path::PathBuf| {
        let now: u64 = number(&group.join("scaling_cur_freq"))?;
        let most: u64 = number(&group.join("cpuinfo_max_freq"))?;
        Some(Clock { now: now / 1000, most: most / 1000 })
    };
    let share = |clock: &Clock| clock.now * 1000 / clock.most.max(1);
    groups.iter().filter_map(read).min_by_key(share)
}

/// What holds the board back at present.
pub(super) fn throttled(root: &Path) -> Vec<String> {
    cooling(root).into_iter().chain(firmware(root)).collect()
}

/// Cooling devices that slow something down. A fan that turns slows nothing.
fn cooling(root: &Path) -> Vec<String> {
    let devices = folders(&root.join("sys/class/thermal"), "cooling_device");
    let mut holding: Vec<String> = devices
        .iter()
        .filter_map(|device| {
            let state: u64 = number(&device.join("cur_state")).filter(|state| *state > 0)?;
            let kind = text(&device.join("type"))?;
            let most: u64 = number(&device.join("max_state")).unwrap_or(state);
            slows(&kind).then(|| format!("the kernel slows {kind} down, step {state} of {most}"))
        })
        .collect();
    holding.dedup();
    holding
}

/// Whether a cooling device of this type cools by slowing down: `thermal-cpufreq-0`, `cpufreq-cpu4`, `Processor`,
/// `devfreq-17000000.gpu` and Jetson's `cpu-throttle-alert` do; `pwm-fan`, `Fan` and `intel_powerclamp` in its idle state
/// (-1) do not.
fn slows(kind: &str) -> bool {
    let kind = kind.to_ascii_lowercase();
    ["cpufreq", "devfreq", "processor", "throttle", "cpuidle", "powerclamp", "idle-inject"]
        .iter()
        .any(|word| kind.contains(word))
}

/// What the firmware of a Raspberry Pi does on its own: bits 0 to 3 of `get_throttled` are of the present, the others of
/// the past (<https://www.raspberrypi.com/documentation/computers/os.html#get_throttled>).
fn firmware(root: &Path) -> Vec<String> {
    const BITS: [(u32, &str); 4] = [
        (0, "the firmware reports under-voltage: the power supply is too weak"),
        (1, "the firmware caps the clock"),
        (2, "the firmware throttles"),
        (3, "the firmware's soft temperature limit is reached"),
    ];
    let platform = root.join("sys/devices/platform");
    let nodes = folders(&platform, "soc").into_iter().flat_map(|soc| folders(&soc, "soc"));
    let bits = nodes
        .filter_map(|node| text(&node.join("get_throttled")))
        .find_map(|text| u32::from_str_radix(text.trim_start_matches("0x"), 16).ok());
    let Some(bits) = bits else { return Vec::new() };
    BITS.iter()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, what)| (*what).to_owned())
        .collect()
}
