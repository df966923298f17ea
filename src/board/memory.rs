//! Memory: what is left, what processes have, and whether programs wait for it
//! (<https://docs.kernel.org/accounting/psi.html>).

use std::path::Path;

use super::text;

/// Bytes that programs can still have without swapping.
pub(super) fn available(root: &Path) -> Option<u64> {
    kilobytes(&text(&root.join("proc/meminfo"))?, "MemAvailable:")
}

/// Bytes of memory that a process has, file pages included.
pub(super) fn resident(root: &Path, pid: Option<u32>) -> Option<u64> {
    let pid = pid.map_or_else(|| "self".to_owned(), |pid| pid.to_string());
    kilobytes(&text(&root.join("proc").join(pid).join("status"))?, "VmRSS:")
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// `full avg10` of the whole system. Kernels without pressure information, and those that were started without it
/// (Raspberry Pi OS, without `psi=1`), tell nothing.
pub(super) fn pressure(root: &Path) -> Option<f64> {
    let text = text(&root.join("proc/pressure/memory"))?;
    let full = text.lines().find_map(|line| line.strip_prefix("full "))?;
    full.split_whitespace().find_map(|word| word.strip_prefix("avg10="))?.parse().ok()
}
