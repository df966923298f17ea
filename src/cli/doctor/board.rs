//! What the board says of itself: processor, memory, temperature, accelerators, C library.

use std::path::Path;

use super::{Board, Finding, Grade};

/// libonnxruntime as the packages bring it was built against this C library.
const OLDEST_GLIBC: (u32, u32) = (2, 28);

/// Millidegrees above which every board that we know slows down soon (Raspberry Pi: 80 °C; Jetson: 97 °C).
const HOT: i64 = 78_000;

/// Looks at all of it.
pub(super) fn look(board: &Board) -> Vec<Finding> {
    let mut findings = vec![processor(board)];
    findings.extend(governor(board));
    findings.push(memory(board));
    findings.extend(pressure(board));
    findings.extend(controller(board));
    findings.extend(heat(board));
    findings.extend(raspberry(board));
    findings.extend(accelerators(board));
    findings.extend(glibc(board));
    findings
}

/// The instructions that integer weights are multiplied with.
fn processor(board: &Board) -> Finding {
    let about = "processor";
    let text = board.read("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line =
            text.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim().to_owned())
    };
    let cores = text.lines().filter(|line| line.starts_with("processor")).count();
    let arm = field("Features");
    let Some(flags) = arm.clone().or_else(|| field("flags")) else {
        let fix = "mount /proc; promptd chooses its threads by it";
        return Finding::bad(about, Grade::Warning, "/proc/cpuinfo tells no features", fix);
    };
    let has = |flag: &str| flags.split_whitespace().any(|has| has == flag);
    let name = field("model name").or_else(|| board.read("/proc/device-tree/model"));
    let name = name.map(|name| format!("{}, ", name.trim_end_matches('\0'))).unwrap_or_default();
    let words: &[(&str, &str)] = if arm.is_some() {
        &[("asimddp", "dot product"), ("i8mm", "i8mm"), ("sve", "SVE"), ("bf16", "bf16")]
    } else {
        &[
            ("avx2", "AVX2"),
            ("avx512f", "AVX-512"),
            ("avx512_vnni", "AVX-512 VNNI"),
            ("avx_vnni", "AVX VNNI"),
        ]
    };
    let known: Vec<&str> =
        words.iter().filter(|(flag, _)| has(flag)).map(|(_, word)| *word).collect();
    let with = if known.is_empty() {
        "none of the quick instructions".to_owned()
    } else {
        known.join(", ")
    };
    let says = format!("{name}{cores} processors, {with}");
    match (arm.is_some(), has("asimddp"), has("avx2")) {
        (true, false, _) => Finding {
            about,
            grade: Grade::Note,
            says: format!("{says}: int4 models run without 8-bit products, exactly but slower"),
            fix: Some(
                "a Raspberry Pi 5 or newer has them; on this one take a smaller model".into(),
            ),
        },
        (false, _, false) => Finding::bad(
            about,
            Grade::Warning,
            format!("{says}: models will be very slow"),
            "take a processor with AVX2 (any since 2015), or a smaller model",
        ),
        _ => Finding::ok(about, says),
    }
}

fn governor(board: &Board) -> Option<Finding> {
    let governor = board.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    (governor == "powersave").then(|| {
        Finding::bad(
            "frequency",
            Grade::Warning,
            "the processor is kept at its lowest frequency (powersave)",
            "echo schedutil | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    })
}

fn memory(board: &Board) -> Finding {
    let text = board.read("/proc/meminfo").unwrap_or_default();
    let mebibytes = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok().map(|kibibytes| kibibytes / 1024)
    };
    let (Some(total), Some(left)) = (mebibytes("MemTotal:"), mebibytes("MemAvailable:")) else {
        let fix = "mount /proc; without it promptd cannot tell whether a model fits";
        return Finding::bad("memory", Grade::Warning, "/proc/meminfo tells no memory", fix);
    };
    let swap = mebibytes("SwapTotal:").unwrap_or(0);
    let says = format!("{left} of {total} MiB are free, {swap} MiB of swap");
    // The demo model with its engine takes 67 MB.
    if left < 128 {
        let fix = "end other programs, or take a smaller model: `promptd model plan DIR` says what it needs";
        return Finding::bad("memory", Grade::Warning, says, fix);
    }
    Finding::ok("memory", says)
}

/// Linux tells how much of the time programs waited for memory.
fn pressure(board: &Board) -> Option<Finding> {
    let text = board.read("/proc/pressure/memory")?;
    let full = text.lines().find(|line| line.starts_with("full"))?;
    let average = full.split_whitespace().find_map(|word| word.strip_prefix("avg60="))?;
    let percent: f64 = average.parse().ok()?;
    (percent > 5.0).then(|| {
        Finding::bad(
            "memory",
            Grade::Warning,
            format!("for {percent} % of the last minute everything waited for memory"),
            "fewer `model.slots`, a smaller `model.context`, or a smaller model",
        )
    })
}

/// Raspberry Pi OS boots without it.
fn controller(board: &Board) -> Option<Finding> {
    let controllers = board.read("/sys/fs/cgroup/cgroup.controllers")?;
    (!controllers.split_whitespace().any(|name| name == "memory")).then(|| Finding {
        about: "memory",
        grade: Grade::Note,
        says: "the kernel limits no service's memory (`MemoryMax=` has no effect)".into(),
        fix: Some(
            "add cgroup_enable=memory to /boot/firmware/cmdline.txt and start the board again"
                .into(),
        ),
    })
}

fn heat(board: &Board) -> Option<Finding> {
    let zones = board.list("/sys/class/thermal");
    let warmest = zones
        .iter()
        .filter(|zone| zone.starts_with("thermal_zone"))
        .filter_map(|zone| {
            let read = |file: &str| board.read(&format!("/sys/class/thermal/{zone}/{file}"));
            Some((read("temp")?.parse::<i64>().ok()?, read("type").unwrap_or_default()))
        })
        .max()?;
    let says =
        format!("{}.{} °C ({})", warmest.0 / 1000, warmest.0.rem_euclid(1000) / 100, warmest.1);
    Some(if warmest.0 < HOT {
        Finding::ok("temperature", says)
    } else {
        let fix = "a heat sink or a fan; until then fewer `runtime.threads`";
        Finding::bad("temperature", Grade::Warning, format!("{says}: it slows down soon"), fix)
    })
}

/// The firmware of a Raspberry Pi remembers since the start of the board what it suffered from: bits 0 to 3 are now, 16 to 19 then.
fn raspberry(board: &Board) -> Option<Finding> {
    let text = board.read("/sys/devices/platform/soc/soc:firmware/get_throttled")?;
    let bits = u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
    let any = |mask: u32| bits & mask != 0;
    if any(0x0001_0001) {
        let when = if any(1) { "is too low now" } else { "was too low since the board started" };
        let fix = "the board's own power supply (Pi 5: 27 W), and a short cable";
        return Some(Finding::bad("power", Grade::Warning, format!("the voltage {when}"), fix));
    }
    any(0x000e_000e).then(|| {
        let fix = "a heat sink or a fan";
        Finding::bad("temperature", Grade::Warning, "the firmware has slowed the board down", fix)
    })
}

/// Device nodes of NVIDIA's drivers. Whether the library can use them is for `runtime.provider` to say.
fn accelerators(board: &Board) -> Option<Finding> {
    let begins = ["nvidia0", "nvidiactl", "nvhost-gpu", "nvhost-ctrl-gpu", "nvmap"];
    let nodes: Vec<String> = board
        .list("/dev")
        .into_iter()
        .filter(|name| begins.iter().any(|begin| name == begin))
        .collect();
    if nodes.is_empty() {
        return None;
    }
    let says = format!("an NVIDIA GPU: /dev/{}", nodes.join(", /dev/"));
    let open = |name: &String| std::fs::File::open(board.path(&format!("/dev/{name}"))).is_ok();
    Some(if nodes.iter().all(open) {
        Finding::ok("accelerator", says)
    } else {
        let fix = "sudo usermod -aG video,render promptd; under systemd examples/jetson.conf too";
        Finding::bad(
            "accelerator",
            Grade::Warning,
            format!("{says}, which this user may not open"),
            fix,
        )
    })
}

fn glibc(board: &Board) -> Option<Finding> {
    let folders =
        ["/lib/aarch64-linux-gnu", "/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib"];
    let file = folders
        .iter()
        .map(|folder| board.path(folder).join("libc.so.6"))
        .find(|file| file.exists())?;
    let version = glibc_version(&file)?;
    let says = format!("glibc {}.{}", version.0, version.1);
    Some(if version >= OLDEST_GLIBC {
        Finding::ok("C library", says)
    } else {
        let needs = format!("{says}; libonnxruntime needs {}.{}", OLDEST_GLIBC.0, OLDEST_GLIBC.1);
        Finding::bad(
            "C library",
            Grade::Problem,
            needs,
            "take a newer system: Debian 11, Ubuntu 20.04, JetPack 5",
        )
    })
}

/// The library carries its own name: `GNU C Library (…) stable release version 2.36.`
fn glibc_version(file: &Path) -> Option<(u32, u32)> {
    let bytes = std::fs::read(file).ok()?;
    let mark = b"release version ";
    let at = bytes.windows(mark.len()).position(|window| window == mark)? + mark.len();
    let text: String = bytes.iter().skip(at).take(8).map(|byte| char::from(*byte)).collect();
    let (major, rest) = text.split_once('.')?;
    let minor: String = rest.chars().take_while(char::is_ascii_digit).collect();
    Some((major.parse().ok()?, minor.parse().ok()?))
}
