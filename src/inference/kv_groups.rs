//! Copies of the cache for graphs that take a past and give a longer present: the rows of the slots of one step lie side
//! by side, filled up to the longest. What a step adds goes back to the slabs, so that these are always whole.

use super::binding::{Element, Step};
use super::interface::TensorName;
use super::kv_cache::{Padding, Shape, Window, Zeroed, dim};

/// Contexts of tokens that slots and copies take at most, for so many slots: the prompts that are being answered and the one
/// that is being read take turns, and each has copies of its own; one slot takes turns with none. A copy is a past and a
/// present.
pub(super) fn contexts(slots: u64) -> u64 {
    slots + 2 * slots + if slots > 1 { 2 } else { 0 }
}

/// The copies.
#[derive(Debug)]
pub(super) struct Groups<T> {
    shape: Shape,
    padding: Padding,
    /// The first for steps of answers, the last for those that read a prompt; with one slot they are the same.
    held: Vec<Group<T>>,
    /// Which group the step that is bound works on.
    bound: usize,
}

/// Copies of the slots from `first`.
#[derive(Debug)]
struct Group<T> {
    first: usize,
    /// Rows of each slot; empty where there is nothing.
    lengths: Vec<usize>,
    /// Rows that each slot has room for: the longest had so many when they were copied, and all grow by as many.
    width: usize,
    /// `[slots, kv_heads, width, head_size]` at the beginning, for each name. Past and present change places after each
    /// step, which saves copying.
    past: Vec<Vec<T>>,
    present: Vec<Vec<T>>,
}

impl<T: Element + Default> Groups<T>
where
    Vec<T>: Zeroed,
{
    /// No copies yet; `tensors` for each slot.
    pub(super) fn new(shape: Shape, tensors: usize) -> Self {
        let none = || (0..tensors).map(|_| Vec::new()).collect::<Vec<Vec<T>>>();
        let group =
            || Group { first: 0, lengths: Vec::new(), width: 0, past: none(), present: none() };
        let held = (0..shape.slots.clamp(1, 2)).map(|_| group()).collect();
        Groups { shape, padding: Padding::Left, held, bound: 0 }
    }

    pub(super) fn padding(&self) -> Padding {
        self.padding
    }

    pub(super) fn pad(&mut self, padding: Padding) {
        self.padding = padding;
        self.drop_copies();
    }

    /// The slabs were changed.
    pub(super) fn drop_copies(&mut self) {
        self.held.iter_mut().for_each(|group| group.lengths.clear());
    }

    /// Binds copies of the window's slots to a step.
    pub(super) fn bind<'a>(
        &'a mut self,
        step: &mut Step<'a>,
        window: Window<'_>,
        names: &[TensorName],
        slabs: &[Vec<T>],
    ) -> ort::Result<()> {
        self.choose(window, slabs);
        let Shape { kv_heads, head_size, .. } = self.shape;
        let Some(group) = self.held.get_mut(self.bound) else { return Ok(()) };
        let (count, width) = (window.pasts.len(), group.width);
        let dims = |rows: usize| [count, kv_heads, rows, head_size].map(dim);
        let elements = |rows: usize| count * kv_heads * rows * head_size;
        let none = || ort::Error::new("a step has no room for its past");
        for (name, (past, present)) in names.iter().zip(group.past.iter().zip(&mut group.present)) {
            make_room(present, elements(width + window.tokens));
            let old = past.get(..elements(width)).ok_or_else(none)?;
            let new = present.get_mut(..elements(width + window.tokens)).ok_or_else(none)?;
            step.input(&name.past, old, &dims(width))?;
            step.output(&name.present, new, &dims(width + window.tokens))?;
        }
        Ok(())
    }

    /// The step of this window succeeded: what it added goes to the slabs.
    pub(super) fn stepped(&mut self, window: Window<'_>, slabs: &mut [Vec<T>]) {
        let (shape, padding) = (self.shape, self.padding);
        for (index, group) in self.held.iter_mut().enumerate() {
            if index == self.bound {
                std::mem::swap(&mut group.past, &mut group.present);
                let old = group.width;
                group.width += window.tokens;
                let elements = window.tokens * shape.head_size;
                for (slab, tensor) in slabs.iter_mut().zip(&group.past) {
                    for (row, past) in window.pasts.iter().enumerate() {
                        let new = if padding == Padding::Left { old } else { *past };
                        for head in 0..shape.kv_heads {
                            let from = ((row * shape.kv_heads + head) * group.width + new)
                                * shape.head_size;
                            let to = shape.head(window.first + row, head) + past * shape.head_size;
                            let target = slab.get_mut(to..to + elements);
                            if let (Some(target), Some(source)) =
                                (target, tensor.get(from..from + elements))
                            {
                                target.copy_from_slice(source);
                            }
                        }
                    }
                }
                group.lengths.iter_mut().for_each(|length| *length += window.tokens);
            } else if group.first < window.first + window.pasts.len()
                && window.first < group.first + group.lengths.len()
            {
                group.lengths.clear();
            }
        }
    }

    /// Takes the group for such a step, and copies the window's slots into it unless it holds them as they are.
    fn choose(&mut self, window: Window<'_>, slabs: &[Vec<T>]) {
        let reads = window.pasts.len() == 1 && window.tokens > 1;
        self.bound = if reads { self.held.len() - 1 } else { 0 };
        let same = |group: &Group<T>| group.first == window.first && group.lengths == window.pasts;
        if self.held.get(self.bound).is_some_and(same) {
            return;
        }
        let (shape, padding) = (self.shape, self.padding);
        let Some(group) = self.held.get_mut(self.bound) else { return };
        group.first = window.first;
        group.lengths = window.pasts.to_vec();
        group.width = window.longest();
        let total = window.pasts.len() * shape.kv_heads * group.width * shape.head_size;
        for (slab, tensor) in slabs.iter().zip(&mut group.past) {
            make_room(tensor, total);
            // Masked rows count nothing, but they must be numbers.
            tensor.iter_mut().take(total).for_each(|element| *element = T::default());
            for (row, past) in window.pasts.iter().enumerate() {
                let pad = if padding == Padding::Left { group.width - past } else { 0 };
                let elements = past * shape.head_size;
                for head in 0..shape.kv_heads {
                    let from = shape.head(window.first + row, head);
                    let to = ((row * shape.kv_heads + head) * group.width + pad) * shape.head_size;
                    let target = tensor.get_mut(to..to + elements);
                    if let (Some(target), Some(source)) = (target, slab.get(from..from + elements))
                    {
                        target.copy_from_slice(source);
                    }
                }
            }
        }
    }
}

/// Makes a buffer that is too small new, with room for a while: its contents are not needed.
fn make_room<T>(buffer: &mut Vec<T>, elements: usize)
where
    Vec<T>: Zeroed,
{
    if buffer.len() < elements {
        *buffer = Vec::<T>::zeroed(elements + elements / 4);
    }
}
