//! Physical memory that somebody else (a driver, a device, the CPU's page walk) may write at any
//! moment.
//!
//! **No Rust reference to it is ever formed, but to atomic words.** Words of queues are read and
//! written one at a time, bulk data is copied in and out; what was copied in is checked, and the
//! copy is used.

use super::{at_physical, physical_start};
use core::sync::atomic::{AtomicU64, Ordering};
use ringfence_abi::queue::Words;

/// Physically contiguous memory, as the kernel sees it. It is there as long as this is: who makes
/// one answers for that.
#[derive(Debug)]
pub struct SharedMemory {
    /// Where the kernel sees it, a multiple of 8.
    start: *mut u8,
    len_bytes: usize,
}

// SAFETY: the memory is the same wherever it is looked at, and nobody has a reference to it.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; there are only volatile accesses and copies.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// `len_bytes` bytes from physical address `pa`, a multiple of 8.
    ///
    /// # Safety
    /// They must be memory that stays allocated, to whoever calls this, as long as the value is
    /// used, and no reference may lead there.
    pub(super) unsafe fn new(pa: u64, len_bytes: usize) -> SharedMemory {
        SharedMemory { start: at_physical(pa & !7), len_bytes }
    }

    /// Its physical address.
    pub fn physical(&self) -> u64 {
        self.start as u64 - physical_start()
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
        unsafe { core::ptr::copy_nonoverlapping(self.start.add(offset), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies `from` to `offset`; `false`, and nothing, if that is not all inside.
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        if !self.has(offset, from.len()) {
            return false;
        }
        // SAFETY: inside the memory, and `from` is the kernel's own.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), self.start.add(offset), from.len()) };
        true
    }

    /// Fills the words from `first` on, as far as there are `count`, with `value`, one at a time:
    /// emulators take string instructions byte by byte, which a memset would be.
    pub fn fill(&self, first: usize, count: usize, value: u64) {
        let words = self.words();
        let end = first.saturating_add(count).min(words.len());
        // Eight in a turn of the loop, which the compiler leaves as it is for atomic ones.
        let (eights, rest) = words.get(first..end).unwrap_or_default().as_chunks::<8>();
        eights.iter().flatten().chain(rest).for_each(|word| word.store(value, Ordering::Relaxed));
    }

    /// Its words: whoever else writes there, a word is one of those that were written.
    #[inline(always)]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: memory that is there as long as this is, aligned, in which any bits are a number.
        unsafe { core::slice::from_raw_parts(self.start.cast(), self.len_bytes / size_of::<u64>()) }
    }

    /// Writes what the CPU's caches have of the `len_bytes` bytes from `offset` back to memory, for
    /// a unit that reads past them.
    pub fn write_back(&self, offset: usize, len_bytes: usize) {
        const LINE: usize = 64;
        if self.has(offset, len_bytes) {
            let (first, end) =
                (self.start.wrapping_add(offset) as usize & !(LINE - 1), self.start as usize + offset + len_bytes);
            // SAFETY: writing lines back changes nothing that a program sees.
            unsafe {
                for line in (first..end).step_by(LINE) {
                    core::arch::asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
                }
                core::arch::asm!("mfence", options(nostack, preserves_flags));
            }
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
        self.words().get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    #[inline(always)]
    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.words().get(index) {
            word.store(value, Ordering::Relaxed);
        }
    }
}
