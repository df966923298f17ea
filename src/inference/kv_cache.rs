//! Keys and values of every prompt, in memory of our own: one slab for each tensor, in which each slot has its rows. Two
//! kinds, as the graph was made: the slab itself is past and present at once, or a step gets copies (`kv_groups.rs`).

use std::ffi::CStr;

use super::binding::{Element, Step};
use super::interface::TensorName;
use super::kv_groups::Groups;

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
    pub(super) fn slot(&self) -> usize {
        self.kv_heads * self.context * self.head_size
    }

    /// Where the rows of a slot's head begin in a slab.
    pub(super) fn head(&self, slot: usize, head: usize) -> usize {
        slot * self.slot() + head * self.context * self.head_size
    }
}

impl TensorName {
    pub(super) fn pair(&self) -> (&CStr, &CStr) {
        (&self.past, &self.present)
    }
}

/// On which side the shorter rows of a step are filled up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Padding {
    /// Behind: an attention that counts the ones of the mask puts a row's new token behind its own past.
    Right,
    /// In front: an attention that concatenates puts every row's new token at the end of the longest past.
    Left,
}

/// Which slots a step works on: one for each past, from `first`, with `tokens` new tokens each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window<'a> {
    pub(super) first: usize,
    /// Tokens of each slot that are in the cache.
    pub(super) pasts: &'a [usize],
    pub(super) tokens: usize,
}

impl Window<'_> {
    /// The longest past.
    pub(super) fn longest(&self) -> usize {
        self.pasts.iter().copied().max().unwrap_or(0)
    }
}

/// The cache, whatever its elements are.
pub(super) type KvCache = Box<dyn Rows + Send>;

/// What is done with the cache. A row is the keys and values of one token in all layers.
pub(super) trait Rows: std::fmt::Debug {
    /// Binds the cache to a step.
    fn bind<'a>(&'a mut self, step: &mut Step<'a>, window: Window<'_>) -> ort::Result<()>;

    /// To be called after a step succeeded.
    fn stepped(&mut self, window: Window<'_>);

    /// Whether each step gets copies, in which case [`Rows::pad`] says how those of several slots are laid out.
    fn is_copied(&self) -> bool;

    /// Says how the rows of several slots lie in one step; only for copies.
    fn pad(&mut self, padding: Padding);

    /// How the rows of several slots lie in one step.
    fn padding(&self) -> Padding;

    /// Two slots change places, as far as their first `rows` rows.
    fn exchange(&mut self, one: usize, other: usize, rows: usize);

    /// Gives slot `to` the first `rows` rows of slot `from`.
    fn copy(&mut self, from: usize, to: usize, rows: usize);

    /// Keeps the first `rows` rows of a slot outside of all slots, under the next free number.
    fn save(&mut self, slot: usize, rows: usize) -> usize;

    /// Gives a slot the first `rows` rows of what was saved.
    fn restore(&mut self, saved: usize, slot: usize, rows: usize);

    /// Frees everything that was saved.
    fn forget(&mut self);
}

/// The cache of one element type: a key and a value slab for each layer, in the order of `names`.
#[derive(Debug)]
struct Cache<T> {
    shape: Shape,
    names: Vec<TensorName>,
    /// `[slots, kv_heads, context, head_size]` for each name. Zeroed pages cost nothing until they are written, so idle
    /// slots take no memory.
    slabs: Vec<Vec<T>>,
    /// Where steps get copies.
    groups: Option<Groups<T>>,
    /// `[kv_heads, rows, head_size]` for each name, and the rows.
    saved: Vec<(usize, Vec<Vec<T>>)>,
}

/// An empty cache: its slabs are past and present at once where the graph shares its buffer, else each step gets copies.
pub(super) fn new<T>(shape: Shape, names: Vec<TensorName>, shares_buffer: bool) -> KvCache
where
    T: Element + Default + Send + std::fmt::Debug + 'static,
    Vec<T>: Zeroed,
{
    let mut cache = Cache::<T>::new(shape, names);
    cache.groups = (!shares_buffer).then(|| Groups::new(shape, cache.names.len()));
    Box::new(cache)
}

impl<T: Element + Default> Cache<T>
where
    Vec<T>: Zeroed,
{
    fn new(shape: Shape, names: Vec<TensorName>) -> Self {
        let slabs = names.iter().map(|_| Vec::<T>::zeroed(shape.slots * shape.slot())).collect();
        Cache { shape, names, slabs, groups: None, saved: Vec::new() }
    }

    /// Elements of so many rows of one head.
    fn elements(&self, rows: usize) -> usize {
        rows.min(self.shape.context) * self.shape.head_size
    }
}

impl<T> Rows for Cache<T>
where
    T: Element + Default + std::fmt::Debug,
    Vec<T>: Zeroed,
{
    fn bind<'a>(&'a mut self, step: &mut Step<'a>, window: Window<'_>) -> ort::Result<()> {
        let past_end = || ort::Error::new("a step goes beyond the context");
        if window.longest() + window.tokens > self.shape.context {
            return Err(past_end());
        }
        if let Some(groups) = &mut self.groups {
            return groups.bind(step, window, &self.names, &self.slabs);
        }
        let count = window.pasts.len();
        let dims = [count, self.shape.kv_heads, self.shape.context, self.shape.head_size].map(dim);
        let slot = self.shape.slot();
        for (name, slab) in self.names.iter().zip(&mut self.slabs) {
            let range = window.first * slot..(window.first + count) * slot;
            let view = slab
                .get_mut(range)
                .ok_or_else(|| ort::Error::new("a step names a slot that does not exist"))?;
            step.in_place(name.pair(), view, &dims)?;
        }
        Ok(())
    }

    fn stepped(&mut self, window: Window<'_>) {
        if let Some(groups) = &mut self.groups {
            groups.stepped(window, &mut self.slabs);
        }
    }

    fn is_copied(&self) -> bool {
        self.groups.is_some()
    }

    fn pad(&mut self, padding: Padding) {
        if let Some(groups) = &mut self.groups {
            groups.pad(padding);
        }
    }

    fn padding(&self) -> Padding {
        self.groups.as_ref().map_or(Padding::Right, Groups::padding)
    }

    fn exchange(&mut self, one: usize, other: usize, rows: usize) {
        if one == other {
            return;
        }
        let (low, high) = (one.min(other), one.max(other));
        let (slot, elements) = (self.shape.slot(), self.elements(rows));
        for slab in &mut self.slabs {
            let Some((front, back)) = slab.split_at_mut_checked(high * slot) else { continue };
            for head in 0..self.shape.kv_heads {
                let at = self.shape.head(low, head);
                let mine = front.get_mut(at..at + elements);
                let at = self.shape.head(0, head);
                if let (Some(mine), Some(theirs)) = (mine, back.get_mut(at..at + elements)) {
                    mine.swap_with_slice(theirs);
                }
            }
        }
        self.groups.iter_mut().for_each(Groups::drop_copies);
    }

    fn copy(&mut self, from: usize, to: usize, rows: usize) {
        if from == to {
            return;
        }
        let elements = self.elements(rows);
        for slab in &mut self.slabs {
            for head in 0..self.shape.kv_heads {
                let at = self.shape.head(from, head);
                slab.copy_within(at..at + elements, self.shape.head(to, head));
            }
        }
        self.groups.iter_mut().for_each(Groups::drop_copies);
    }

    fn save(&mut self, slot: usize, rows: usize) -> usize {
        let elements = self.elements(rows);
        let of = |slab: &Vec<T>| {
            let heads = (0..self.shape.kv_heads).filter_map(|head| {
                let at = self.shape.head(slot, head);
                slab.get(at..at + elements)
            });
            heads.collect::<Vec<_>>().concat()
        };
        let saved = self.slabs.iter().map(of).collect();
        self.saved.push((rows, saved));
        self.saved.len() - 1
    }

    fn restore(&mut self, saved: usize, slot: usize, rows: usize) {
        let elements = self.elements(rows);
        let Some((held, tensors)) = self.saved.get(saved) else { return };
        for (slab, tensor) in self.slabs.iter_mut().zip(tensors) {
            for head in 0..self.shape.kv_heads {
                let (to, from) = (self.shape.head(slot, head), head * held * self.shape.head_size);
                let target = slab.get_mut(to..to + elements);
                if let (Some(target), Some(source)) = (target, tensor.get(from..from + elements)) {
                    target.copy_from_slice(source);
                }
            }
        }
        self.groups.iter_mut().for_each(Groups::drop_copies);
    }

    fn forget(&mut self) {
        self.saved.clear();
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

pub(super) fn dim(size: usize) -> i64 {
    i64::try_from(size).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two heads of three rows of two numbers in each of two slots, counted through.
    fn counted() -> Cache<f32> {
        let shape = Shape { kv_heads: 2, head_size: 2, context: 3, slots: 2 };
        let name = TensorName { past: c"p".into(), present: c"q".into() };
        let mut cache = Cache::<f32>::new(shape, vec![name]);
        for (value, element) in (0_u8..).zip(&mut cache.slabs[0]) {
            *element = f32::from(value);
        }
        cache
    }

    #[test]
    fn rows_are_copied_and_exchanged_head_by_head() {
        let mut cache = counted();
        cache.copy(1, 0, 2);
        assert_eq!(
            cache.slabs[0][..12],
            [12., 13., 14., 15., 4., 5., 18., 19., 20., 21., 10., 11.]
        );
        let mut cache = counted();
        cache.exchange(1, 0, 1);
        assert_eq!(cache.slabs[0][..12], [12., 13., 2., 3., 4., 5., 18., 19., 8., 9., 10., 11.]);
        assert_eq!(cache.slabs[0][12..16], [0., 1., 14., 15.]);
    }

    #[test]
    fn saved_rows_come_back() {
        let mut cache = counted();
        let saved = cache.save(1, 2);
        cache.restore(saved, 0, 1);
        assert_eq!(cache.slabs[0][..12], [12., 13., 2., 3., 4., 5., 18., 19., 8., 9., 10., 11.]);
        cache.forget();
        cache.restore(saved, 0, 2);
        assert_eq!(cache.slabs[0][2..4], [2., 3.]);
    }
}
