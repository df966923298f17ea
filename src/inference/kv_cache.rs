//! Keys and values of every running prompt, in memory of our own. Two ways, as the graph was made: one buffer that is
//! past and present at once, or a past that each step copies into a longer present.

use std::ffi::CStr;

use super::binding::{Element, Step};
use super::interface::{CacheElement, Interface, TensorName};

/// The shape of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) kv_heads: usize,
    pub(super) head_size: usize,
    /// Tokens each slot has room for.
    pub(super) context: usize,
    pub(super) slots: usize,
}

impl Shape {
    /// Elements of one slot in one layer's keys (or values).
    fn slot(&self) -> usize {
        self.kv_heads * self.context * self.head_size
    }
}

impl TensorName {
    fn pair(&self) -> (&CStr, &CStr) {
        (&self.past, &self.present)
    }
}

/// The cache, by element type.
#[derive(Debug)]
pub(super) enum KvCache {
    /// 32-bit floats.
    F32(Cache<f32>),
    /// 16-bit floats.
    F16(Cache<u16>),
    /// Quantised to 8 bits.
    I8(Cache<i8>),
    /// Quantised to 4 bits, two in a byte.
    U8(Cache<u8>),
}

/// The cache of one element type: a key and a value tensor for each layer, in the order of `names`.
#[derive(Debug)]
pub(super) struct Cache<T> {
    shape: Shape,
    names: Vec<TensorName>,
    /// Shared: one slab `[slots, kv_heads, context, head_size]` for each name. Zeroed pages cost nothing until they
    /// are written, so idle slots take no memory.
    slabs: Vec<Vec<T>>,
    /// Grown: for each slot a past and a present for each name, `[1, kv_heads, tokens, head_size]` at their beginning,
    /// which change places after each step.
    grown: Vec<PastAndPresent<T>>,
}

/// One slot's past and present, a tensor for each name.
type PastAndPresent<T> = (Vec<Vec<T>>, Vec<Vec<T>>);

/// Which slots a step works on: `count` of them from `first`, `tokens` new tokens each behind `past`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    pub(super) first: usize,
    pub(super) count: usize,
    /// Tokens already in the cache; only looked at where the past is grown, one slot at a time.
    pub(super) past: usize,
    pub(super) tokens: usize,
}

/// The same for a cache of any element.
macro_rules! each {
    ($cache:expr, $name:ident => $body:expr) => {
        match $cache {
            KvCache::F32($name) => $body,
            KvCache::F16($name) => $body,
            KvCache::I8($name) => $body,
            KvCache::U8($name) => $body,
        }
    };
}

impl KvCache {
    /// An empty cache for a graph.
    pub(super) fn new(interface: &Interface, context: usize, slots: usize) -> Self {
        fn of<T: Element + Default>(interface: &Interface, shape: Shape) -> Cache<T>
        where
            Vec<T>: Zeroed,
        {
            let names = interface.cache_names.clone();
            if interface.shares_buffer {
                Cache::shared(shape, names)
            } else {
                Cache::grown(shape, names)
            }
        }
        let Interface { kv_heads, head_size, .. } = *interface;
        let shape = Shape { kv_heads, head_size, context, slots };
        match interface.cache {
            CacheElement::F32 => KvCache::F32(of(interface, shape)),
            CacheElement::F16 => KvCache::F16(of(interface, shape)),
            CacheElement::I8 => KvCache::I8(of(interface, shape)),
            CacheElement::U8 => KvCache::U8(of(interface, shape)),
        }
    }

    /// Binds the cache to a step.
    pub(super) fn bind<'a>(&'a mut self, step: &mut Step<'a>, window: Window) -> ort::Result<()> {
        each!(self, cache => cache.bind(step, window))
    }

    /// To be called after a step succeeded.
    pub(super) fn stepped(&mut self, window: Window) {
        each!(self, cache => cache.stepped(window));
    }

    /// Gives slot `to` the first `tokens` tokens of slot `from`, which is free afterwards.
    pub(super) fn move_slot(&mut self, from: usize, to: usize, tokens: usize) {
        each!(self, cache => cache.move_slot(from, to, tokens));
    }

    /// Whether several slots can take part in one step.
    pub(super) fn batches(&self) -> bool {
        each!(self, cache => cache.grown.is_empty())
    }
}

impl<T: Element + Default> Cache<T> {
    /// One buffer for past and present.
    pub(super) fn shared(shape: Shape, names: Vec<TensorName>) -> Self
    where
        Vec<T>: Zeroed,
    {
        let slabs = names.iter().map(|_| Vec::<T>::zeroed(shape.slots * shape.slot())).collect();
        Cache { shape, names, slabs, grown: Vec::new() }
    }

    /// A past that is copied.
    pub(super) fn grown(shape: Shape, names: Vec<TensorName>) -> Self
    where
        Vec<T>: Zeroed,
    {
        let one = || names.iter().map(|_| Vec::<T>::zeroed(shape.slot())).collect::<Vec<_>>();
        let grown = (0..shape.slots).map(|_| (one(), one())).collect();
        Cache { shape, names, slabs: Vec::new(), grown }
    }

    fn bind<'a>(&'a mut self, step: &mut Step<'a>, window: Window) -> ort::Result<()> {
        let dims =
            [window.count, self.shape.kv_heads, self.shape.context, self.shape.head_size].map(dim);
        let slot = self.shape.slot();
        for (name, slab) in self.names.iter().zip(&mut self.slabs) {
            let range = window.first * slot..(window.first + window.count) * slot;
            let view = slab
                .get_mut(range)
                .ok_or_else(|| ort::Error::new("a step names a slot that does not exist"))?;
            step.in_place(name.pair(), view, &dims)?;
        }
        let Some((past, present)) = self.grown.get_mut(window.first) else { return Ok(()) };
        let row = self.shape.kv_heads * self.shape.head_size;
        let full = || ort::Error::new("a step goes beyond the context");
        for (name, (past, present)) in self.names.iter().zip(past.iter_mut().zip(present)) {
            let old = past.get(..window.past * row).ok_or_else(full)?;
            let total = window.past + window.tokens;
            let new = present.get_mut(..total * row).ok_or_else(full)?;
            let dims =
                |tokens: usize| [1, self.shape.kv_heads, tokens, self.shape.head_size].map(dim);
            step.input(&name.past, old, &dims(window.past))?;
            step.output(&name.present, new, &dims(total))?;
        }
        Ok(())
    }

    fn stepped(&mut self, window: Window) {
        if let Some((past, present)) = self.grown.get_mut(window.first) {
            std::mem::swap(past, present);
        }
    }

    fn move_slot(&mut self, from: usize, to: usize, tokens: usize) {
        if from == to {
            return;
        }
        if !self.grown.is_empty() {
            self.grown.swap(from, to);
        }
        let (slot, head) = (self.shape.slot(), self.shape.context * self.shape.head_size);
        for slab in &mut self.slabs {
            for index in 0..self.shape.kv_heads {
                let start = from * slot + index * head;
                slab.copy_within(
                    start..start + tokens * self.shape.head_size,
                    to * slot + index * head,
                );
            }
        }
    }
}

/// Memory that the system hands out zeroed, page by page as it is touched. A trait because `vec![T::default(); n]`
/// writes every element for a `T` that is not known.
pub(super) trait Zeroed {
    fn zeroed(length: usize) -> Self;
}

impl Zeroed for Vec<f32> {
    fn zeroed(length: usize) -> Self {
        vec![0.0; length]
    }
}

impl Zeroed for Vec<u16> {
    fn zeroed(length: usize) -> Self {
        vec![0; length]
    }
}

impl Zeroed for Vec<i8> {
    fn zeroed(length: usize) -> Self {
        vec![0; length]
    }
}

impl Zeroed for Vec<u8> {
    fn zeroed(length: usize) -> Self {
        vec![0; length]
    }
}

fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moving_a_slot_takes_its_tokens_along() {
        let shape = Shape { kv_heads: 2, head_size: 2, context: 3, slots: 2 };
        let name = TensorName { past: c"p".into(), present: c"q".into() };
        let mut cache = Cache::<f32>::shared(shape, vec![name]);
        for (value, element) in (0_u8..).zip(&mut cache.slabs[0]) {
            *element = f32::from(value);
        }
        cache.move_slot(1, 0, 2);
        assert_eq!(
            cache.slabs[0][..12],
            [12., 13., 14., 15., 4., 5., 18., 19., 20., 21., 10., 11.]
        );
    }
}
