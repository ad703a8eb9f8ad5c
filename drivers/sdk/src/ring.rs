//! Rings of descriptors that driver and device share.

use crate::dma::Dma;

/// A ring of descriptors: `next` is the one to fill next, `done` the one that the device finishes
/// next.
pub struct Ring {
    /// The descriptors.
    pub memory: Dma,
    /// How many there are.
    pub len: usize,
    /// The one to fill next.
    pub next: usize,
    /// The one that the device finishes next.
    pub done: usize,
}

impl Ring {
    /// An empty one of `len` descriptors, 1 at least, which are all in `memory`.
    pub fn new(memory: Dma, len: usize) -> Ring {
        Ring { memory, len, next: 0, done: 0 }
    }

    /// The descriptor behind `index`.
    #[inline]
    pub fn after(&self, index: usize) -> usize {
        (index + 1) % self.len
    }
}
