//! Physical memory that somebody else (a driver, a device, the CPU's page walk) may write at any moment.
//!
//! **No Rust reference to it is ever formed.** Words of queues are read and written one at a time, bulk data is copied in and out;
//! what was copied in is checked, and the copy is used.

use super::at_physical;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::queue::Words;

/// Physically contiguous memory, as the kernel sees it.
#[derive(Debug, Clone, Copy)]
pub struct SharedMemory {
    pa: u64,
    len_bytes: usize,
}

impl SharedMemory {
    /// The frame at physical address `pa`, of which the same holds as for [`SharedMemory::new`].
    pub(super) fn frame(pa: u64) -> SharedMemory {
        SharedMemory::new(pa, PAGE_SIZE as usize)
    }

    /// `len_bytes` bytes from physical address `pa`, which must be frames that stay allocated as long as this is used:
    /// a domain drops what refers to its memory before the memory.
    pub fn new(pa: u64, len_bytes: usize) -> SharedMemory {
        SharedMemory { pa, len_bytes }
    }

    /// Its physical address.
    pub fn physical(&self) -> u64 {
        self.pa
    }

    /// Its length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Copies `to.len()` bytes from `offset`; `false`, and nothing, if that is not all inside.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        if !self.has(offset, to.len()) {
            return false;
        }
        // SAFETY: inside the memory, and `to` is the kernel's own.
        unsafe { core::ptr::copy_nonoverlapping(at_physical(self.pa).add(offset), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies `from` to `offset`; `false`, and nothing, if that is not all inside.
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        if !self.has(offset, from.len()) {
            return false;
        }
        // SAFETY: inside the memory, and `from` is the kernel's own.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), at_physical(self.pa).add(offset), from.len()) };
        true
    }

    /// Fills the words from `first` on, as far as there are `count`, with `value`, one at a time: emulators take string instructions byte by
    /// byte, which a memset would be.
    pub fn fill(&self, first: usize, count: usize, value: u64) {
        let (words, len) = (at_physical(self.pa).cast::<u64>(), self.len_bytes / size_of::<u64>());
        for index in first.min(len)..first.saturating_add(count).min(len) {
            // SAFETY: inside the memory, and aligned.
            unsafe { words.add(index).write_volatile(value) };
        }
    }

    #[inline(always)]
    fn has(&self, offset: usize, len_bytes: usize) -> bool {
        offset.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes)
    }
}

impl Words for SharedMemory {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        match index.checked_mul(8) {
            // SAFETY: inside the memory and aligned.
            Some(offset) if self.has(offset, 8) => unsafe {
                at_physical(self.pa).add(offset).cast::<u64>().read_volatile()
            },
            _ => 0,
        }
    }

    #[inline(always)]
    fn store(&self, index: usize, value: u64) {
        if let Some(offset) = index.checked_mul(8)
            && self.has(offset, 8)
        {
            // SAFETY: inside the memory and aligned.
            unsafe { at_physical(self.pa).add(offset).cast::<u64>().write_volatile(value) };
        }
    }
}
