//! What a shared library says of itself in its ELF header, read before the system's loader maps it: a library that
//! was cut short kills the process that opens it, so it must not come that far. Does not open libraries.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The ELF header of a 64-bit file (gabi, "ELF Header"): 64 bytes.
const HEADER_BYTES: usize = 64;
/// One program header of a 64-bit file.
const PROGRAM_HEADER_BYTES: u64 = 56;
/// `p_type` of a segment that is mapped from the file.
const PT_LOAD: u32 = 1;

/// Why `path` is no shared library for this machine; `None` where nothing speaks against it.
pub(super) fn fault(path: &Path) -> Option<String> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some("there is no such file".into());
        }
        Err(error) => return Some(format!("it cannot be looked at ({error})")),
    };
    if metadata.is_dir() {
        return Some("it is a directory; name the library file in it".into());
    }
    if !metadata.is_file() {
        return Some("it is not a plain file".into());
    }
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) => return Some(format!("it cannot be opened ({error})")),
    };
    let mut header = [0; HEADER_BYTES];
    if metadata.len() == 0 {
        return Some("it is empty".into());
    }
    if file.read_exact(&mut header).is_err() {
        return Some(format!("it is no shared library: it has only {} bytes", metadata.len()));
    }
    header_fault(&header, std::env::consts::ARCH).or_else(|| {
        truncation(&header, metadata.len(), |bytes, at| file.read_exact_at(bytes, at).is_ok())
    })
}

/// What the header itself shows: another format, word size, byte order or machine.
fn header_fault(header: &[u8; HEADER_BYTES], this_machine: &str) -> Option<String> {
    if !header.starts_with(b"\x7fELF") {
        return Some("it is no shared library: it does not begin with the ELF mark".into());
    }
    let machine = machine_name(half(header, 18));
    let wanted = arch_name(this_machine);
    if header[4] != 2 || header[5] != 1 || machine != wanted {
        let bits = if header[4] == 1 { " (32 bit)" } else { "" };
        return Some(format!("it is for {machine}{bits}, this machine is {wanted}"));
    }
    // ET_DYN
    (half(header, 16) != 3).then(|| "it is an ELF file, but no shared library".into())
}

/// Whether the headers point behind the end of the file.
fn truncation(
    header: &[u8; HEADER_BYTES],
    size: u64,
    read_at: impl Fn(&mut [u8], u64) -> bool,
) -> Option<String> {
    let cut = |needed: u64| {
        Some(format!("it is cut short: its headers need {needed} bytes, it has {size}"))
    };
    let (segments, sections) = (word(header, 32), word(header, 40));
    let (segment_count, section_bytes, section_count) =
        (half(header, 56), half(header, 58), half(header, 60));
    let end = |start: u64, each: u64, count: u16| {
        start.saturating_add(each.saturating_mul(u64::from(count)))
    };
    let sections_end = end(sections, u64::from(section_bytes), section_count);
    if sections_end > size {
        return cut(sections_end);
    }
    let segments_end = end(segments, PROGRAM_HEADER_BYTES, segment_count);
    if segments_end > size {
        return cut(segments_end);
    }
    for index in 0..segment_count {
        let mut segment = [0; 56];
        let at = segments + u64::from(index) * PROGRAM_HEADER_BYTES;
        if !read_at(&mut segment, at) {
            return cut(at + PROGRAM_HEADER_BYTES);
        }
        let mapped_end = word(&segment, 8).saturating_add(word(&segment, 32));
        let kind = u32::from_le_bytes([segment[0], segment[1], segment[2], segment[3]]);
        if kind == PT_LOAD && mapped_end > size {
            return cut(mapped_end);
        }
    }
    None
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..at + 2).map_or(0, |b| u16::from_le_bytes([b[0], b[1]]))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(slice) = bytes.get(at..at + 8) {
        word.copy_from_slice(slice);
    }
    u64::from_le_bytes(word)
}

/// `e_machine` in words; the numbers are from the ELF machine register.
fn machine_name(machine: u16) -> String {
    match machine {
        3 => "x86 (32 bit)".into(),
        40 => "arm (32 bit)".into(),
        62 => "x86-64".into(),
        183 => "aarch64".into(),
        243 => "riscv64".into(),
        other => format!("machine type {other}"),
    }
}

fn arch_name(arch: &str) -> String {
    if arch == "x86_64" { "x86-64".into() } else { arch.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with one mapped segment that ends at byte 200 and no sections.
    fn library(machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 200];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[16] = 3;
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[56] = 1;
        bytes[64] = 1;
        bytes[64 + 32] = 200;
        bytes
    }

    fn judge(bytes: &[u8]) -> Option<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        fault(file.path())
    }

    fn here() -> u16 {
        if cfg!(target_arch = "aarch64") { 183 } else { 62 }
    }

    #[test]
    fn each_fault_has_its_own_words() {
        assert_eq!(judge(&library(here())), None);
        let elsewhere = if here() == 62 { 183 } else { 62 };
        let cases: [(&str, Vec<u8>); 6] = [
            ("it is empty", vec![]),
            ("does not begin with the ELF mark", vec![b'x'; 100]),
            ("only 10 bytes", b"\x7fELF\x02\x01\0\0\0\0".to_vec()),
            ("this machine is", library(elsewhere)),
            (
                "it is cut short: its headers need 200 bytes, it has 150",
                library(here())[..150].to_vec(),
            ),
            ("no shared library", {
                let mut b = library(here());
                b[16] = 2;
                b
            }),
        ];
        for (words, bytes) in cases {
            let fault = judge(&bytes).unwrap();
            assert!(fault.contains(words), "{fault:?} should contain {words:?}");
        }
        assert!(fault(Path::new("/nowhere/lib.so")).unwrap().contains("no such file"));
        assert!(fault(Path::new("/")).unwrap().contains("directory"));
    }
}
