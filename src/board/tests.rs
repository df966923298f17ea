//! Boards made of files: what is read of a Raspberry Pi, a Jetson and a machine that tells nothing.

use super::*;

/// Writes files below a folder.
fn board(files: &[(&str, &str)]) -> (tempfile::TempDir, Board) {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("{text}\n")).unwrap();
    }
    let board = Board::at(folder.path());
    (folder, board)
}

#[test]
fn a_machine_that_tells_nothing() {
    let (_folder, board) = board(&[]);
    assert_eq!(board.read(), Reading::default());
    assert_eq!(board.resident(None), None);
    assert_eq!(board.system(), System::default());
}

#[test]
fn the_system_that_it_runs() {
    let debian = "NAME=\"Debian GNU/Linux\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"";
    let (_folder, one) = board(&[
        ("etc/os-release", debian),
        ("proc/sys/kernel/osrelease", "6.6.31+rpt-rpi-v8"),
        ("proc/loadavg", "0.42 0.30 0.20 1/234 5678"),
    ]);
    let system = one.system();
    assert_eq!(system.name.as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
    assert_eq!((system.kernel.as_deref(), system.load), (Some("6.6.31+rpt-rpi-v8"), Some(0.42)));
    let (_folder, other) =
        board(&[("usr/lib/os-release", "PRETTY_NAME='x y'"), ("proc/loadavg", "nan?")]);
    assert_eq!((other.system().name.as_deref(), other.system().load), (Some("x y"), None));
}

#[test]
fn a_raspberry_pi_that_is_hot_and_badly_fed() {
    let (_folder, board) = board(&[
        ("sys/class/thermal/thermal_zone0/temp", "84900"),
        ("sys/class/thermal/thermal_zone0/type", "cpu-thermal"),
        ("sys/class/thermal/cooling_device0/type", "pwm-fan"),
        ("sys/class/thermal/cooling_device0/cur_state", "4"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "1500000"),
        ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2400000"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005"),
        ("proc/meminfo", "MemTotal:  8000000 kB\nMemAvailable:  512 kB"),
        (
            "proc/pressure/memory",
            "some avg10=31.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=12.25 avg60=0.00 avg300=0.00 total=0",
        ),
        ("proc/7/status", "Name:\tx\nVmRSS:\t    2048 kB"),
    ]);
    let reading = board.read();
    assert_eq!(reading.temperature, Some(84.9));
    assert_eq!(reading.clock, Some(Clock { now: 1500, most: 2400 }));
    assert_eq!(reading.throttled.len(), 2, "{:?}", reading.throttled);
    assert!(
        reading.throttled[0].contains("under-voltage")
            && reading.throttled[1].contains("throttles")
    );
    assert_eq!((reading.available, reading.pressure), (Some(512 << 10), Some(12.25)));
    assert_eq!(board.resident(Some(7)), Some(2 << 20));
}

#[test]
fn a_jetson_whose_kernel_slows_it_down() {
    let (_folder, board) = board(&[
        ("sys/class/thermal/thermal_zone0/temp", "71250"),
        ("sys/class/thermal/thermal_zone1/temp", "99500"),
        // The sensor of a part without power.
        ("sys/class/thermal/thermal_zone2/temp", "-256000"),
        ("sys/class/thermal/cooling_device0/type", "thermal-cpufreq-0"),
        ("sys/class/thermal/cooling_device0/cur_state", "3"),
        ("sys/class/thermal/cooling_device0/max_state", "18"),
        ("sys/class/thermal/cooling_device1/type", "devfreq-17000000.gpu"),
        ("sys/class/thermal/cooling_device1/cur_state", "0"),
        ("sys/class/thermal/cooling_device2/type", "pwm-fan"),
        ("sys/class/thermal/cooling_device2/cur_state", "9"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "2201600"),
        ("sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq", "2201600"),
        ("sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "729600"),
        ("sys/devices/system/cpu/cpufreq/policy4/cpuinfo_max_freq", "2201600"),
    ]);
    let reading = board.read();
    assert_eq!(reading.temperature, Some(99.5));
    assert_eq!(reading.throttled, ["the kernel slows thermal-cpufreq-0 down, step 3 of 18"]);
    assert_eq!(reading.clock, Some(Clock { now: 729, most: 2201 }));
}

#[test]
fn nonsense_is_not_known() {
    let (_folder, board) = board(&[
        ("sys/class/thermal/thermal_zone0/temp", "hot"),
        ("sys/class/thermal/cooling_device0/cur_state", "-1"),
        ("sys/class/thermal/cooling_device0/type", "intel_powerclamp"),
        ("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", "99"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "?"),
        ("proc/meminfo", "MemAvailable:"),
        ("proc/pressure/memory", "full avg10=x"),
    ]);
    assert_eq!(board.read(), Reading::default());
}
