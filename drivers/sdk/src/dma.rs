//! Memory that driver and device share. [`crate::device`] has an example.

use crate::Result;
use crate::service::safe::{rf_dma_address, rf_dma_alloc, rf_dma_free};
use core::ptr::NonNull;
use ringfence_abi::layout::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Physically contiguous memory that the device can reach. Dropping it gives it back: stop the
/// device first.
///
/// The device may write it at any moment, so values are copied in and out; no reference to it
/// exists.
pub struct Dma {
    bytes: Bytes,
    address: u64,
    /// What the kernel gave, which may begin before it.
    given: u64,
}

impl Dma {
    /// `len_bytes` bytes, zeroed, rounded up to pages.
    pub fn new(len_bytes: usize) -> Result<Dma> {
        Dma::aligned(len_bytes, 1)
    }

    /// The same, beginning for the device at a multiple of `align_bytes`, a power of two. What is
    /// left out for that counts against the budget; pages are aligned anyway.
    ///
    /// # Errors
    /// [`crate::Refusal::Invalid`] if it is none.
    pub fn aligned(len_bytes: usize, align_bytes: usize) -> Result<Dma> {
        if !align_bytes.is_power_of_two() {
            return Err(crate::Refusal::Invalid);
        }
        let more = align_bytes.saturating_sub(PAGE_SIZE as usize);
        let given = rf_dma_alloc(len_bytes.saturating_add(more) as u64)?;
        let first = rf_dma_address(given)?;
        let address = first.next_multiple_of(align_bytes as u64);
        let start = NonNull::new((given + (address - first)) as *mut u8).ok_or(crate::Refusal::NoMemory)?;
        // SAFETY: the kernel has just mapped it, and it is unmapped when this is dropped.
        Ok(Dma { bytes: unsafe { Bytes::new(start, len_bytes) }, address, given })
    }

    /// The same for a device whose addresses have 32 bits. The kernel takes memory below 4 GiB for
    /// all devices, as long as there is any.
    ///
    /// # Errors
    /// [`crate::Refusal::NoMemory`] if there is none, with a line in the log.
    pub fn within_4_gib(len_bytes: usize) -> Result<Dma> {
        let memory = Dma::new(len_bytes)?;
        if u32::try_from(memory.address(len_bytes)).is_err() {
            log::error!("the device does not reach memory above 4 GiB");
            return Err(crate::Refusal::NoMemory);
        }
        Ok(memory)
    }

    /// Where the device sees the byte at `offset`.
    pub fn address(&self, offset: usize) -> u64 {
        self.address + offset as u64
    }

    /// Copies a value out. Panics if it is not all inside.
    #[track_caller]
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        let place = self.bytes.place(offset, size_of::<T>()).cast::<T>();
        // SAFETY: inside the memory; any bytes are a `T`.
        unsafe { if place.is_aligned() { place.read_volatile() } else { place.read_unaligned() } }
    }

    /// Copies a value in. Panics if it does not fit.
    #[track_caller]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: T) {
        let place = self.bytes.place(offset, size_of::<T>()).cast::<T>();
        // SAFETY: inside the memory.
        unsafe { if place.is_aligned() { place.write_volatile(value) } else { place.write_unaligned(value) } }
    }

    /// Copies bytes out. Panics if they are not all inside.
    #[track_caller]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        self.bytes.read(offset, to);
    }

    /// Copies bytes in. Panics if they do not fit.
    #[track_caller]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.bytes.write(offset, from);
    }
}

impl Drop for Dma {
    fn drop(&mut self) {
        // It can only be refused if the kernel never gave it.
        let _ = rf_dma_free(GivenBack(self.given));
    }
}

/// The address of memory that nobody uses any more: only [`Dma`] makes one, when it is dropped.
pub struct GivenBack(u64);

impl GivenBack {
    pub(crate) fn address(&self) -> u64 {
        self.0
    }
}

/// Memory that others write as well: bytes are copied in and out.
#[doc(hidden)]
pub struct Bytes {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Bytes {
    /// # Safety
    /// The kernel must have mapped `len_bytes` bytes at `start`, which stay mapped as long as this
    /// is used, and to which there is no reference.
    pub(crate) unsafe fn new(start: NonNull<u8>, len_bytes: usize) -> Bytes {
        Bytes { start, len_bytes }
    }

    #[track_caller]
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        let place = self.place(offset, to.len());
        // SAFETY: inside the memory, and `to` is elsewhere.
        unsafe { core::ptr::copy_nonoverlapping(place.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    #[track_caller]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let place = self.place(offset, from.len());
        // SAFETY: inside the memory, and `from` is elsewhere.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), place.as_ptr(), from.len()) };
    }

    #[track_caller]
    fn place(&self, offset: usize, len_bytes: usize) -> NonNull<u8> {
        let inside = offset.checked_add(len_bytes).is_some_and(|end| end <= self.len_bytes);
        let all = self.len_bytes;
        assert!(inside, "{len_bytes} bytes at {offset:#x} outside DMA memory ({all:#x} bytes)");
        // SAFETY: inside the memory.
        unsafe { self.start.add(offset) }
    }
}

/// Makes what was written to memory before visible to the device before what is written after.
pub fn write_barrier() {
    // x86 stores are seen in order; it is the compiler that must not move them.
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}

/// Keeps reads of memory after it from being done before it.
pub fn read_barrier() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
}
