//! Keys and values in a GPU's memory, where the graph's attention runs: they are past and present at once, and never cross to
//! the processor. Rows are laid out as in `kv_cache.rs`.

use ort::sys::ONNXTensorElementDataType as ElementType;

use super::binding::{Element, Step};
use super::cuda::OnGpu;
use super::interface::TensorName;
use super::kv_cache::{Padding, Rows, Shape, Window, dim};

/// Memory in which blocks of rows can be copied.
pub(super) trait Memory: std::fmt::Debug {
    /// A piece of it, given back when it is dropped.
    type Buffer: std::fmt::Debug;

    /// So many bytes, all zero.
    ///
    /// # Errors
    /// In words, where there is no room.
    fn zeroed(&self, bytes: usize) -> Result<Self::Buffer, String>;

    /// Copies a block; both places have room for it.
    ///
    /// # Errors
    /// In words.
    fn copy(
        &self,
        from: Place<'_, Self::Buffer>,
        to: Place<'_, Self::Buffer>,
        block: Block,
    ) -> Result<(), String>;

    /// Returns when everything that was begun is done, and kernels of others see it.
    ///
    /// # Errors
    /// In words, where something that was begun failed.
    fn wait(&self) -> Result<(), String>;

    /// So many bytes of a buffer for a step to work on; nothing where the buffer has them not.
    fn view(buffer: &mut Self::Buffer, at: usize, bytes: usize) -> Option<OnGpu<'_>>;
}

/// Where a block begins: at byte `at` of a buffer, its lines `pitch` bytes apart.
#[derive(Debug)]
pub(super) struct Place<'a, B> {
    pub(super) buffer: &'a B,
    pub(super) at: usize,
    pub(super) pitch: usize,
}

// Not derived: the buffer need not be copied for that.
impl<B> Clone for Place<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Place<'_, B> {}

/// How large a block is: `height` lines of `width` bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) width: usize,
    pub(super) height: usize,
}

/// What an element of the cache is to ONNX Runtime, and its bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ElementKind {
    pub(super) kind: ElementType,
    pub(super) bytes: usize,
}

impl ElementKind {
    /// Of the numbers that promptd calls `T`.
    pub(super) fn of<T: Element>() -> Self {
        ElementKind { kind: T::TYPE, bytes: size_of::<T>() }
    }
}

/// The cache. Everything that has one entry for each tensor is in the order of `names`.
#[derive(Debug)]
pub(super) struct GpuCache<M: Memory> {
    memory: M,
    shape: Shape,
    element: ElementKind,
    names: Vec<TensorName>,
    /// `[slots, kv_heads, context, head_size]` for each name.
    slabs: Vec<M::Buffer>,
    /// One slot of one tensor, for slots that change places; nothing where there is one slot.
    spare: Option<M::Buffer>,
    /// `[kv_heads, rows, head_size]` for each name, and the rows.
    saved: Vec<(usize, Vec<M::Buffer>)>,
    /// Why rows could not be copied: the next step tells it.
    fault: Option<String>,
}

impl<M: Memory> GpuCache<M> {
    /// An empty cache.
    ///
    /// # Errors
    /// In words, where there is no room for it.
    pub(super) fn new(
        memory: M,
        shape: Shape,
        names: Vec<TensorName>,
        element: ElementKind,
    ) -> Result<Self, String> {
        let slot = shape.slot() * element.bytes;
        let slabs = names.iter().map(|_| memory.zeroed(shape.slots * slot));
        let slabs = slabs.collect::<Result<_, _>>()?;
        let spare = (shape.slots > 1).then(|| memory.zeroed(slot)).transpose()?;
        Ok(GpuCache { memory, shape, element, names, slabs, spare, saved: Vec::new(), fault: None })
    }

    /// The bytes from line to line of a buffer that has so many rows for each head.
    fn pitch(&self, rows: usize) -> usize {
        rows * self.shape.head_size * self.element.bytes
    }

    /// The first `rows` rows of all heads.
    fn block(&self, rows: usize) -> Block {
        Block { width: self.pitch(rows.min(self.shape.context)), height: self.shape.kv_heads }
    }

    /// Where a slot of a slab begins; nothing for a slot that is not there.
    fn slot<'a>(&self, slab: &'a M::Buffer, slot: usize) -> Option<Place<'a, M::Buffer>> {
        let at = slot * self.shape.slot() * self.element.bytes;
        let pitch = self.pitch(self.shape.context);
        (slot < self.shape.slots).then_some(Place { buffer: slab, at, pitch })
    }

    /// The beginning of a buffer with room for so many rows.
    fn whole<'a>(&self, buffer: &'a M::Buffer, rows: usize) -> Place<'a, M::Buffer> {
        Place { buffer, at: 0, pitch: self.pitch(rows) }
    }

    /// Does something and waits for it; what goes wrong is told by the next step.
    fn attempt(&mut self, done: impl FnOnce(&Self) -> Result<(), String>) {
        if let Err(error) = done(self).and_then(|()| self.memory.wait()) {
            self.fault.get_or_insert(error);
        }
    }
}

impl<M: Memory> Rows for GpuCache<M> {
    fn bind<'a>(&'a mut self, step: &mut Step<'a>, window: Window<'_>) -> ort::Result<()> {
        if let Some(fault) = self.fault.take() {
            return Err(ort::Error::new(fault));
        }
        let count = window.pasts.len();
        if window.longest() + window.tokens > self.shape.context {
            return Err(ort::Error::new("a step goes beyond the context"));
        }
        let dims = [count, self.shape.kv_heads, self.shape.context, self.shape.head_size].map(dim);
        let bytes = self.shape.slot() * self.element.bytes;
        for (name, slab) in self.names.iter().zip(&mut self.slabs) {
            let view = M::view(slab, window.first * bytes, count * bytes)
                .ok_or_else(|| ort::Error::new("a step names a slot that does not exist"))?;
            step.in_place_on_gpu(name.pair(), &view, self.element, &dims)?;
        }
        Ok(())
    }

    fn stepped(&mut self, _: Window<'_>) {}

    fn is_copied(&self) -> bool {
        false
    }

    fn pad(&mut self, _: Padding) {}

    fn padding(&self) -> Padding {
        Padding::Right
    }

    fn exchange(&mut self, one: usize, other: usize, rows: usize) {
        if one == other {
            return;
        }
        self.attempt(|cache| {
            let Some(spare) = &cache.spare else { return Ok(()) };
            let (block, spare) = (cache.block(rows), cache.whole(spare, cache.shape.context));
            for slab in &cache.slabs {
                let slots = (cache.slot(slab, one), cache.slot(slab, other));
                let (Some(one), Some(other)) = slots else { continue };
                cache.memory.copy(one, spare, block)?;
                cache.memory.copy(other, one, block)?;
                cache.memory.copy(spare, other, block)?;
            }
            Ok(())
        });
    }

    fn copy(&mut self, from: usize, to: usize, rows: usize) {
        if from == to {
            return;
        }
        self.attempt(|cache| {
            for slab in &cache.slabs {
                let slots = (cache.slot(slab, from), cache.slot(slab, to));
                let (Some(from), Some(to)) = slots else { continue };
                cache.memory.copy(from, to, cache.block(rows))?;
            }
            Ok(())
        });
    }

    fn save(&mut self, slot: usize, rows: usize) -> usize {
        let rows = rows.min(self.shape.context);
        let mut saved = Vec::new();
        let bytes = self.pitch(rows) * self.shape.kv_heads;
        for _ in &self.slabs {
            match self.memory.zeroed(bytes.max(1)) {
                Ok(buffer) => saved.push(buffer),
                Err(error) => {
                    self.fault.get_or_insert(error);
                    break;
                }
            }
        }
        self.attempt(|cache| {
            for (slab, buffer) in cache.slabs.iter().zip(&saved) {
                let Some(from) = cache.slot(slab, slot) else { continue };
                cache.memory.copy(from, cache.whole(buffer, rows), cache.block(rows))?;
            }
            Ok(())
        });
        self.saved.push((rows, saved));
        self.saved.len() - 1
    }

    fn restore(&mut self, saved: usize, slot: usize, rows: usize) {
        self.attempt(|cache| {
            let Some((held, tensors)) = cache.saved.get(saved) else { return Ok(()) };
            for (slab, tensor) in cache.slabs.iter().zip(tensors) {
                let Some(to) = cache.slot(slab, slot) else { continue };
                let from = cache.whole(tensor, *held);
                cache.memory.copy(from, to, cache.block(rows.min(*held)))?;
            }
            Ok(())
        });
    }

    fn forget(&mut self) {
        self.saved.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// Memory of this process, with as much room as the number says.
    #[derive(Debug)]
    struct Host(usize);

    impl Memory for Host {
        type Buffer = RefCell<Vec<u8>>;

        fn zeroed(&self, bytes: usize) -> Result<Self::Buffer, String> {
            let full = || "the GPU has no room".to_owned();
            (bytes <= self.0).then(|| RefCell::new(vec![0; bytes])).ok_or_else(full)
        }

        fn copy(
            &self,
            from: Place<'_, Self::Buffer>,
            to: Place<'_, Self::Buffer>,
            block: Block,
        ) -> Result<(), String> {
            for line in 0..block.height {
                let at = from.at + line * from.pitch;
                let source = from.buffer.borrow()[at..at + block.width].to_vec();
                let at = to.at + line * to.pitch;
                to.buffer.borrow_mut()[at..at + block.width].copy_from_slice(&source);
            }
            Ok(())
        }

        fn wait(&self) -> Result<(), String> {
            Ok(())
        }

        fn view(_: &mut Self::Buffer, _: usize, _: usize) -> Option<OnGpu<'_>> {
            None
        }
    }

    const SHAPE: Shape = Shape { kv_heads: 2, head_size: 2, context: 3, slots: 2 };

    /// Two heads of three rows of two numbers in each of two slots, counted through.
    fn counted() -> GpuCache<Host> {
        let element = ElementKind::of::<i8>();
        let name = TensorName { past: c"p".into(), present: c"q".into() };
        let cache = GpuCache::new(Host(1000), SHAPE, vec![name], element).unwrap();
        *cache.slabs[0].borrow_mut() = (0..24).collect();
        cache
    }

    fn first(cache: &GpuCache<Host>) -> Vec<u8> {
        cache.slabs[0].borrow().clone()
    }

    #[test]
    fn rows_are_copied_and_exchanged_head_by_head() {
        let mut cache = counted();
        cache.copy(1, 0, 2);
        assert_eq!(first(&cache)[..12], [12, 13, 14, 15, 4, 5, 18, 19, 20, 21, 10, 11]);
        let mut cache = counted();
        cache.exchange(1, 0, 1);
        assert_eq!(first(&cache)[..12], [12, 13, 2, 3, 4, 5, 18, 19, 8, 9, 10, 11]);
        assert_eq!(first(&cache)[12..16], [0, 1, 14, 15]);
        // A slot that is not there changes nothing.
        let mut cache = counted();
        cache.copy(2, 0, 1);
        cache.exchange(0, 2, 1);
        assert_eq!(first(&cache), first(&counted()));
        assert_eq!(cache.fault, None);
    }

    #[test]
    fn saved_rows_come_back() {
        let mut cache = counted();
        let saved = cache.save(1, 2);
        cache.restore(saved, 0, 1);
        assert_eq!(first(&cache)[..12], [12, 13, 2, 3, 4, 5, 18, 19, 8, 9, 10, 11]);
        cache.forget();
        cache.restore(saved, 0, 2);
        assert_eq!(first(&cache)[2..4], [2, 3]);
    }

    #[test]
    fn where_there_is_no_room_it_is_said() {
        let mut cache = counted();
        cache.memory = Host(3);
        cache.save(1, 2);
        assert_eq!(cache.fault.as_deref(), Some("the GPU has no room"));
        let element = ElementKind::of::<i8>();
        let name = TensorName { past: c"p".into(), present: c"q".into() };
        let refused = GpuCache::new(Host(23), SHAPE, vec![name], element).unwrap_err();
        assert_eq!(refused, "the GPU has no room");
    }
}
