//! Physical memory that a driver, a device or the CPU's page walk may write at any moment.
//!
//! **No Rust reference to this memory is ever formed, except to atomic words.** Words of queues are
//! read and written one at a time; bulk data is copied in and out. Data is checked after it was
//! copied in, and only the copy is used.

use super::{at_physical, physical_start};
use core::sync::atomic::{AtomicU64, Ordering};
use ringfence_abi::queue::Words;

/// Physically contiguous memory, as the kernel sees it. The code that makes a value must ensure
/// that the memory stays allocated as long as the value exists.
#[derive(Debug)]
pub struct SharedMemory {
    /// Address at which the kernel sees the memory, a multiple of 8.
    start: *mut u8,
    len_bytes: usize,
}

// SAFETY: the memory is the same for every user, and no reference leads to it.
unsafe impl Send for SharedMemory {}
// SAFETY: as above; there are only volatile accesses and copies.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Makes a value of `len_bytes` bytes from physical address `pa`, a multiple of 8.
    ///
    /// # Safety
    /// The bytes must be memory that stays allocated to the caller as long as the value is used,
    /// and no reference may lead there.
    pub(super) unsafe fn new(pa: u64, len_bytes: usize) -> SharedMemory {
        SharedMemory { start: at_physical(pa & !7), len_bytes }
    }

    /// Returns the physical address of the memory.
    pub fn physical(&self) -> u64 {
        // No memory that the kernel sees lies below physical address 0.
        (self.start as u64).wrapping_sub(physical_start())
    }

    /// Returns the address at which the kernel sees the memory.
    pub(crate) fn seen_at(&self) -> u64 {
        self.start as u64
    }

    /// Returns the length of the memory in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }

    /// Copies `to.len()` bytes from `offset`. If not all of them are inside, copies nothing and
    /// returns `false`.
    pub fn read(&self, offset: usize, to: &mut [u8]) -> bool {
        if !self.has(offset, to.len()) {
            return false;
        }
        // SAFETY: the bytes are inside the memory, and `to` is the kernel's own.
        unsafe { copy(self.start.add(offset), to.as_mut_ptr(), to.len()) };
        true
    }

    /// Copies `from` to `offset`. If not all of it fits inside, copies nothing and returns `false`.
    pub fn write(&self, offset: usize, from: &[u8]) -> bool {
        if !self.has(offset, from.len()) {
            return false;
        }
        // SAFETY: the bytes are inside the memory, and `from` is the kernel's own.
        unsafe { copy(from.as_ptr(), self.start.add(offset), from.len()) };
        true
    }

    /// Fills up to `count` words from `first` on with `value`, one at a time. A memset would be a
    /// string instruction, which emulators carry out byte by byte.
    pub fn fill(&self, first: usize, count: usize, value: u64) {
        let words = self.words();
        let end = first.saturating_add(count).min(words.len());
        // The loop is unrolled by eight, as the compiler does not unroll loops of atomic stores.
        let (eights, rest) = words.get(first..end).unwrap_or_default().as_chunks::<8>();
        eights.iter().flatten().chain(rest).for_each(|word| word.store(value, Ordering::Relaxed));
    }

    /// Returns the memory as words. A driver or a device may write to them at any moment, but a
    /// word is always read as it was written, never in parts.
    #[inline(always)]
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the memory exists as long as this value and is aligned, and any bits are a
        // number.
        unsafe { core::slice::from_raw_parts(self.start.cast(), self.len_bytes / size_of::<u64>()) }
    }

    /// Writes the cached lines of the `len_bytes` bytes from `offset` back to memory, for a unit
    /// that reads past the CPU's caches.
    pub fn write_back(&self, offset: usize, len_bytes: usize) {
        const LINE: usize = 64;
        if self.has(offset, len_bytes) {
            let (first, end) =
                (self.start.wrapping_add(offset) as usize & !(LINE - 1), self.start as usize + offset + len_bytes);
            // SAFETY: writing lines back changes no value that a program reads.
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

/// Copies `len_bytes` bytes: the words by a string instruction, the rest as a last word, which
/// overlaps the one before.
///
/// The `memcpy` for this target moves single bytes up to a multiple of 8, and after the last one.
/// It is a call, and takes two string instructions more. A string instruction starts slowly on
/// hardware, and emulators carry it out unit by unit.
///
/// # Safety
/// The bytes must be readable and writable, and must not overlap.
#[inline]
unsafe fn copy(from: *const u8, to: *mut u8, len_bytes: usize) {
    const WORD: usize = size_of::<u64>();
    // SAFETY: all of these bytes are among the caller's.
    unsafe {
        if len_bytes < WORD {
            for index in 0..len_bytes {
                to.add(index).write_volatile(from.add(index).read_volatile());
            }
            return;
        }
        core::arch::asm!(
            "rep movsq",
            inout("rcx") len_bytes / WORD => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
        let last = len_bytes - WORD;
        to.add(last).cast::<u64>().write_unaligned(from.add(last).cast::<u64>().read_unaligned());
    }
}

impl Words for SharedMemory {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        load(self.words(), index)
    }

    #[inline(always)]
    fn store(&self, index: usize, value: u64) {
        store(self.words(), index, value);
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, first: usize) -> [u64; N] {
        load_words(self.words(), first)
    }

    #[inline(always)]
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        store_bytes(self.words(), first, bytes);
    }
}

// The access to words, as [`Words`] has it.

#[inline(always)]
pub(super) fn load(words: &[AtomicU64], index: usize) -> u64 {
    words.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
}

#[inline(always)]
pub(super) fn store(words: &[AtomicU64], index: usize, value: u64) {
    if let Some(word) = words.get(index) {
        word.store(value, Ordering::Relaxed);
    }
}

#[inline(always)]
pub(super) fn load_words<const N: usize>(words: &[AtomicU64], first: usize) -> [u64; N] {
    let words = words.get(first..).and_then(|words| words.first_chunk::<N>());
    words.map_or([0; N], |words| core::array::from_fn(|index| words[index].load(Ordering::Relaxed)))
}

#[inline(always)]
pub(super) fn store_bytes(words: &[AtomicU64], first: usize, bytes: &[u8]) {
    let values = bytes.as_chunks().0;
    let words = words.get(first..).and_then(|words| words.get(..values.len()));
    for (word, value) in words.unwrap_or(&[]).iter().zip(values) {
        word.store(u64::from_le_bytes(*value), Ordering::Relaxed);
    }
}
