//! How much memory a model will take, from what its file says: before it is loaded, so that one that does not fit is refused
//! with numbers and not by the kernel. Counts what cannot be given back; pages of the model's files can.
//!
//! The constants were measured with libonnxruntime 1.32 on x86-64 (docs/models.md has the table).

use std::collections::BTreeSet;

use super::interface::Interface;
use super::onnx_file::{Node, OnnxFile, element};

/// libonnxruntime, the program's own heap, thread stacks: what a model of no size takes.
const BASE_BYTES: u64 = 11 << 20;
/// What ONNX Runtime keeps of a node: its kernel, names, shapes.
const PER_NODE: u64 = 10 << 10;
/// The tokenizer with its tables, and the tables for forms of answers, for each byte of tokenizer.json.
const PER_TOKENIZER_BYTE: u64 = 14;
/// Tokens of a prompt that are read in one step.
const CHUNK: u64 = super::DEFAULT_PREFILL_CHUNK as u64;
/// A step keeps about this many tensors of the widest kind at once: a gate, its activation, their product.
const WIDE_TENSORS: u64 = 4;

/// A model as far as its memory depends on it.
#[derive(Debug)]
pub(super) struct Model<'a> {
    pub(super) file: &'a OnnxFile,
    pub(super) interface: &'a Interface,
    pub(super) tokenizer_bytes: u64,
    /// Tokens of context it was made for.
    pub(super) own_context: u32,
    /// Weights in the kernels' order lie in a file beside the others.
    pub(super) prepared: bool,
}

/// What a model will take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Weights as they are in the files.
    pub weights: u64,
    /// Weights that ONNX Runtime copies in another order, which the files cannot back.
    pub packed: u64,
    /// Weights that stay in the files and whose pages can be given back.
    pub mapped: u64,
    /// Keys and values of one token.
    pub cache_per_token: u64,
    /// Keys and values of all slots with full contexts.
    pub cache: u64,
    /// Everything else: program, tokenizer, the tensors of one step.
    pub other: u64,
    /// What cannot be given back, at most: `packed`, `cache` and `other`.
    pub peak: u64,
    /// Prompts that run at once.
    pub slots: u16,
    /// Tokens of context of each.
    pub context: u32,
    /// What the board has left, the process's own limit considered. `None` where the system does not say.
    pub available: Option<u64>,
    /// The largest context of each slot with which it fits; 0 where none does.
    pub largest_context: u32,
}

impl Plan {
    /// Whether it fits.
    pub fn fits(&self) -> bool {
        self.available.is_none_or(|available| self.peak <= available)
    }
}

/// Plans.
pub(super) fn plan(model: &Model<'_>, slots: u16, context: u32, available: Option<u64>) -> Plan {
    let all = model.file.tensors.iter().map(|tensor| tensor.bytes).sum();
    let (packed, taken) = packed(model.file);
    let inline: u64 = (model.file.tensors.iter())
        .filter(|tensor| !tensor.is_external && !taken.contains(tensor.name.as_str()))
        .map(|tensor| tensor.bytes)
        .sum();
    let packed = packed.saturating_add(inline);
    let mapped: u64 = (model.file.tensors.iter())
        .filter(|tensor| tensor.is_external && !taken.contains(tensor.name.as_str()))
        .map(|tensor| tensor.bytes)
        .sum();
    let (packed, mapped) =
        if model.prepared { (0, packed.saturating_add(mapped)) } else { (packed, mapped) };
    // A past that is copied into a longer present takes both, and the rows themselves.
    let shares = model.interface.shares_buffer;
    let contexts =
        if shares { u64::from(slots) } else { super::kv_groups::contexts(u64::from(slots)) };
    let cache_per_token = model.interface.cache_bytes_per_token();
    let other = BASE_BYTES
        .saturating_add(PER_NODE.saturating_mul(model.file.nodes.len() as u64))
        .saturating_add(model.tokenizer_bytes.saturating_mul(PER_TOKENIZER_BYTE))
        .saturating_add(step(model, context));
    let cache_of =
        |context: u32| cache_per_token.saturating_mul(u64::from(context)).saturating_mul(contexts);
    let cache = cache_of(context);
    let fixed = packed.saturating_add(other);
    let room = available.map(|available| available.saturating_sub(fixed));
    let per_token = cache_per_token.saturating_mul(contexts).max(1);
    let largest = room.map_or(u64::from(model.own_context), |room| room / per_token);
    let largest = u32::try_from(largest).unwrap_or(u32::MAX).min(model.own_context);
    Plan {
        weights: all,
        packed,
        mapped,
        cache_per_token,
        cache,
        other,
        peak: fixed.saturating_add(cache),
        slots,
        context,
        available,
        largest_context: largest,
    }
}

/// The tensors of one step: logits of a chunk, twice where they are converted, and the widest ones between.
fn step(model: &Model<'_>, context: u32) -> u64 {
    let interface = model.interface;
    let chunk = CHUNK.min(u64::from(context));
    let rows = if interface.pruned { 1 } else { chunk };
    // ONNX Runtime writes into memory of ours; in half precision it computes them in its own first.
    let vocab = if interface.names.logits.is_some() { interface.vocab as u64 } else { 0 };
    let logits = rows * vocab * if interface.half_logits { 6 } else { 4 };
    // Hidden states of a chunk: the graph's own, ours, and in half precision another copy of ours.
    let hidden = interface
        .hidden
        .as_ref()
        .map_or(0, |hidden| chunk * hidden.width as u64 * if hidden.half { 8 } else { 12 });
    let logits_layer = |node: &Node| node.outputs.iter().any(|name| name == "logits");
    let widest = (model.file.nodes.iter())
        .filter(|node| !logits_layer(node))
        .filter_map(|node| node.numbers.get("N"))
        .filter_map(|wide| u64::try_from(*wide).ok())
        .filter(|wide| *wide != interface.vocab as u64)
        .max()
        .unwrap_or(0);
    logits.saturating_add(hidden).saturating_add(chunk * widest * 4 * WIDE_TENSORS)
}

/// Bytes that ONNX Runtime's CPU kernels take for weights in an order of their own, and the names of the tensors that are
/// copied so.
fn packed(file: &OnnxFile) -> (u64, BTreeSet<&str>) {
    let (mut bytes, mut taken) = (0_u64, BTreeSet::new());
    let find = |name: &String| file.tensors.iter().find(|tensor| tensor.name == *name);
    for node in &file.nodes {
        let number = |key: &str| node.numbers.get(key).and_then(|n| u64::try_from(*n).ok());
        match node.operator.as_str() {
            "MatMulNBits" => {
                let weight = node.inputs.get(1).and_then(find);
                let scales = node.inputs.get(2).and_then(find);
                let (Some(weight), Some(scales)) = (weight, scales) else { continue };
                let (columns, rows) = (number("N").unwrap_or(0), number("K").unwrap_or(0));
                let block = number("block_size").unwrap_or(32).max(1);
                let scale_bytes = columns * rows.div_ceil(block) * 4;
                // With 8-bit activations a sum of each block is kept beside its scale.
                let sums = u64::from(number("accuracy_level") == Some(4));
                bytes += weight.bytes + scale_bytes * (1 + sums);
                taken.insert(weight.name.as_str());
                taken.insert(scales.name.as_str());
            }
            "MatMul" | "Gemm" => {
                let Some(weight) = node.inputs.get(1).and_then(find) else { continue };
                if weight.dims.len() != 2 || !taken.insert(weight.name.as_str()) {
                    continue;
                }
                // Half precision is computed in single precision on a CPU.
                let widened = if weight.element == element::FLOAT16 { 2 } else { 1 };
                bytes += weight.bytes * widened;
            }
            _ => {}
        }
    }
    (bytes, taken)
}

/// Bytes of memory that are left for this process: of the board, and of the control group it is in.
pub(super) fn available() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let board = field(&meminfo, "MemAvailable:")?;
    let group = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| group_of(&text));
    Some(group.map_or(board, |group| group.min(board)))
}

/// Kibibytes behind a name, in bytes.
pub(super) fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group has left (version 2): `memory.max` less what is used and cannot be given back.
fn group_of(cgroup: &str) -> Option<u64> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = std::path::Path::new("/sys/fs/cgroup").join(path.trim_start_matches('/'));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).ok();
    let most: u64 = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    let stat = read("memory.stat").unwrap_or_default();
    let pages = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let held = used.saturating_sub(pages("inactive_file ") + pages("active_file "));
    Some(most.saturating_sub(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_read() {
        let text = "MemTotal:       2000 kB\nMemAvailable:   1000 kB\n";
        assert_eq!(field(text, "MemAvailable:"), Some(1000 * 1024));
        assert_eq!(field(text, "Nothing:"), None);
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
