//! Rings of descriptors that the driver and the device share.

use crate::dma::Dma;

/// A ring of descriptors. The driver fills the descriptors in order, and the device finishes them
/// in the same order.
pub struct Ring {
    /// The descriptors.
    pub memory: Dma,
    /// Number of descriptors.
    pub len: usize,
    /// The descriptor that the driver fills next.
    pub next: usize,
    /// The descriptor that the device finishes next.
    pub done: usize,
}

impl Ring {
    /// Creates an empty ring of `len` descriptors, at least 1. `memory` must have room for all of
    /// them.
    pub fn new(memory: Dma, len: usize) -> Ring {
        Ring { memory, len, next: 0, done: 0 }
    }

    /// Returns the descriptor after `index`; the first one follows the last one.
    #[inline]
    pub fn after(&self, index: usize) -> usize {
        (index + 1) % self.len
    }
}
