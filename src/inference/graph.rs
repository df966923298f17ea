//! The graph in ONNX Runtime: runs steps over the KV cache.

use std::path::PathBuf;
use std::sync::Arc;

use ort::session::Session;

use super::binding::Step;
use super::cuda::Gpu;
use super::error::LoadError;
use super::folder::Folder;
use super::interface::{CacheElement, InputNames, Interface};
use super::interrupt::Interrupt;
use super::kv_cache::{self, KvCache, Padding, Shape, Window, dim};
use super::kv_gpu::{ElementKind, GpuCache};
use super::placement;

/// How much there is room for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Settings {
    pub(super) slots: usize,
    pub(super) context: usize,
}

/// A loaded graph with its cache.
#[expect(clippy::struct_excessive_bools, reason = "independent facts of a graph")]
pub(super) struct Graph {
    session: Session,
    pub(super) cache: KvCache,
    /// Whether keys and values lie in a GPU's memory.
    pub(super) on_gpu: bool,
    names: InputNames,
    vocab: usize,
    /// The graph computes logits for the last token of a step only.
    pub(super) pruned: bool,
    /// Nothing that the graph states forbids several slots in one step.
    pub(super) may_batch: bool,
    /// Several slots can take part in one step, as was tried.
    pub(super) batches: bool,
    half_logits: bool,
    /// See [`super::interface::Interface::single_steps`].
    single_steps: bool,
    /// Logits of the last step, one row for each of its slots.
    logits: Vec<f32>,
    /// Where the graph writes the logits of all tokens of a step, as it computes them. Kept: a step of a whole chunk needs
    /// megabytes, and an allocator that gets them back time and again holds more of them than are ever in use.
    single: Vec<f32>,
    half: Vec<u16>,
    interrupt: Arc<Interrupt>,
    pub(super) file: PathBuf,
}

/// One slot's part in a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'a> {
    pub(super) slot: usize,
    /// Tokens of this prompt that are already in the cache.
    pub(super) past: usize,
    /// Tokens to read.
    pub(super) tokens: &'a [u32],
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Graph")
            .field("file", &self.file)
            .field("vocab", &self.vocab)
            .field("pruned", &self.pruned)
            .finish_non_exhaustive()
    }
}

impl Graph {
    /// The graph that a session holds, with an empty cache.
    pub(super) fn new(
        session: Session,
        folder: &Folder,
        settings: Settings,
    ) -> Result<Self, LoadError> {
        let file = &folder.graph;
        let interface = &folder.interface;
        let interrupt = Interrupt::new().map_err(|source| LoadError::Runtime {
            path: file.clone(),
            doing: "cannot be run",
            source,
        })?;
        let (cache, on_gpu) = cache(&session, folder, settings)?;
        Ok(Graph {
            session,
            cache,
            on_gpu,
            names: interface.names.clone(),
            vocab: interface.vocab,
            pruned: interface.pruned,
            half_logits: interface.half_logits,
            may_batch: interface.batches && !interface.single_steps,
            batches: false,
            single_steps: interface.single_steps,
            logits: Vec::new(),
            single: Vec::new(),
            half: Vec::new(),
            interrupt: Arc::new(interrupt),
            file: file.clone(),
        })
    }

    /// Logits for each token of the vocabulary.
    pub(super) fn vocab(&self) -> usize {
        self.vocab
    }

    /// Whether a prompt may start behind rows that another one left. Behind a past, a graph of single steps would read
    /// what it can read at once without one token by token, and through its other branch.
    pub(super) fn reuses(&self) -> bool {
        !self.single_steps
    }

    /// What ends its runs from other threads.
    pub(super) fn interrupt(&self) -> &Arc<Interrupt> {
        &self.interrupt
    }

    /// One step: several tokens of one slot, or one token of each of the slots 0, 1, 2, … in order.
    pub(super) fn forward(&mut self, rows: &[Row<'_>]) -> ort::Result<()> {
        self.logits.clear();
        if self.batches {
            return self.run(rows);
        }
        rows.iter().try_for_each(|row| self.run_alone(row))
    }

    /// One slot's part, token by token where the graph is right only so.
    fn run_alone(&mut self, row: &Row<'_>) -> ort::Result<()> {
        let has_branches = self.names.use_cache_branch.is_some();
        if !self.single_steps || row.tokens.len() < 2 || (has_branches && row.past == 0) {
            return self.run(std::slice::from_ref(row));
        }
        let before = self.logits.len();
        for (index, token) in row.tokens.iter().enumerate() {
            self.logits.truncate(before);
            let (slot, past) = (row.slot, row.past + index);
            self.run(&[Row { slot, past, tokens: std::slice::from_ref(token) }])?;
        }
        Ok(())
    }

    /// The logits behind the last token of the step's row `index`.
    pub(super) fn logits(&self, index: usize) -> &[f32] {
        self.logits.get(index * self.vocab..(index + 1) * self.vocab).unwrap_or_default()
    }

    fn run(&mut self, rows: &[Row<'_>]) -> ort::Result<()> {
        let Some(first) = rows.first() else { return Ok(()) };
        let (count, tokens) = (rows.len(), first.tokens.len());
        let pasts: Vec<usize> = rows.iter().map(|row| row.past).collect();
        let window = Window { first: first.slot, pasts: &pasts, tokens };
        let total = window.longest() + tokens;
        let ids: Vec<i64> =
            rows.iter().flat_map(|row| row.tokens).map(|id| i64::from(*id)).collect();
        let left = self.cache.padding() == Padding::Left;
        let mask: Vec<i64> = rows
            .iter()
            .flat_map(|row| {
                let ones = row.past + tokens;
                (0..total)
                    .map(move |at| i64::from(if left { at >= total - ones } else { at < ones }))
            })
            .collect();
        let positions: Vec<i64> =
            rows.iter().flat_map(|row| row.past..row.past + tokens).map(dim).collect();
        let logit_rows = if self.pruned { 1 } else { tokens };
        let elements = count * logit_rows * self.vocab;
        let (singles, halves) = if self.half_logits { (0, elements) } else { (elements, 0) };
        let single = at_least(&mut self.single, singles);
        let half = at_least(&mut self.half, halves);

        let (branch, keep) = ([first.past > 0], [1_i64]);
        let mut step = Step::new(&self.session)?;
        self.cache.bind(&mut step, window)?;
        step.input(&self.names.input_ids, &ids, &[dim(count), dim(tokens)])?;
        step.input(&self.names.attention_mask, &mask, &[dim(count), dim(total)])?;
        if let Some(name) = &self.names.position_ids {
            step.input(name, &positions, &[dim(count), dim(tokens)])?;
        }
        let shape = [count, logit_rows, self.vocab].map(dim);
        if let Some(name) = &self.names.use_cache_branch {
            step.input(name, &branch, &[1])?;
        }
        if let Some((name, is_scalar)) = &self.names.logits_to_keep {
            step.input(name, &keep, if *is_scalar { &[] } else { &[1] })?;
        }
        if self.half_logits {
            step.output(&self.names.logits, half, &shape)?;
        } else {
            step.output(&self.names.logits, single, &shape)?;
        }
        step.run(&mut self.session, self.interrupt.options())?;
        self.cache.stepped(window);

        for row in 0..count {
            let start = (row * logit_rows + logit_rows - 1) * self.vocab;
            let range = start..start + self.vocab;
            if self.half_logits {
                let bits = self.half.get(range).unwrap_or_default();
                self.logits.extend(bits.iter().map(|bits| half::f16::from_bits(*bits).to_f32()));
            } else {
                self.logits.extend_from_slice(self.single.get(range).unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// The first elements of a buffer, which grows where it has fewer.
fn at_least<T: Clone + Default>(buffer: &mut Vec<T>, elements: usize) -> &mut [T] {
    if buffer.len() < elements {
        buffer.resize(elements, T::default());
    }
    buffer.get_mut(..elements).unwrap_or_default()
}

/// An empty cache for a graph: in the memory of the GPU where its attention runs there, else in the processor's.
fn cache(
    session: &Session,
    folder: &Folder,
    settings: Settings,
) -> Result<(KvCache, bool), LoadError> {
    let Interface { kv_heads, head_size, shares_buffer, .. } = folder.interface;
    let shape = Shape { kv_heads, head_size, context: settings.context, slots: settings.slots };
    let names = folder.interface.cache_names.clone();
    let path = || folder.graph.clone();
    let fail = |source| LoadError::Runtime { path: path(), doing: "cannot be asked", source };
    let on_gpu = match names.first() {
        Some(name) => placement::is_taken_on_gpu(session, &name.past).map_err(fail)?,
        None => false,
    };
    if on_gpu && shares_buffer {
        let no_room = |reason| LoadError::Gpu { path: path(), reason };
        let gpu = Gpu::open().map_err(no_room)?;
        let element = match folder.interface.cache {
            CacheElement::F32 => ElementKind::of::<f32>(),
            CacheElement::F16 => ElementKind::of::<u16>(),
            CacheElement::I8 => ElementKind::of::<i8>(),
            CacheElement::U8 => ElementKind::of::<u8>(),
        };
        let cache = GpuCache::new(gpu, shape, names, element).map_err(no_room)?;
        return Ok((Box::new(cache), true));
    }
    let cache = match folder.interface.cache {
        CacheElement::F32 => kv_cache::new::<f32>(shape, names, shares_buffer),
        CacheElement::F16 => kv_cache::new::<u16>(shape, names, shares_buffer),
        CacheElement::I8 => kv_cache::new::<i8>(shape, names, shares_buffer),
        CacheElement::U8 => kv_cache::new::<u8>(shape, names, shares_buffer),
    };
    Ok((cache, false))
}
