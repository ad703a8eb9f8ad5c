//! Memory that driver and device share. [`crate::device`] has an example.

use crate::Result;
use crate::service::safe::{rf_dma_address, rf_dma_alloc, rf_dma_free};
use core::ptr::NonNull;
use ringfence_abi::layout::PAGE_SIZE;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Physically contiguous memory that the device can reach. Dropping it gives the memory back to the
/// kernel: stop the device first.
///
/// The device may write the memory at any moment. Values are therefore copied in and out, and no
/// reference to the memory ever exists.
pub struct Dma {
    bytes: Bytes,
    address: u64,
    /// The address that the kernel returned; with a large alignment it may be below the start.
    given: u64,
}

impl Dma {
    /// Allocates `len_bytes` bytes, zeroed, rounded up to pages.
    pub fn new(len_bytes: usize) -> Result<Dma> {
        Dma::aligned(len_bytes, 1)
    }

    /// Allocates `len_bytes` bytes whose address for the device is a multiple of `align_bytes`, a
    /// power of two. The bytes skipped for the alignment count against the budget. An alignment of
    /// up to a page costs nothing, because the kernel allocates pages.
    ///
    /// # Errors
    /// [`crate::Refusal::Invalid`] if `align_bytes` is not a power of two.
    pub fn aligned(len_bytes: usize, align_bytes: usize) -> Result<Dma> {
        if !align_bytes.is_power_of_two() {
            return Err(crate::Refusal::Invalid);
        }
        let more = align_bytes.saturating_sub(PAGE_SIZE as usize);
        let given = rf_dma_alloc(len_bytes.saturating_add(more) as u64)?;
        let first = rf_dma_address(given)?;
        let address = first.next_multiple_of(align_bytes as u64);
        let start = NonNull::new((given + (address - first)) as *mut u8).ok_or(crate::Refusal::NoMemory)?;
        // SAFETY: the kernel has just mapped the memory, and it stays mapped until this `Dma` is
        // dropped.
        Ok(Dma { bytes: unsafe { Bytes::new(start, len_bytes) }, address, given })
    }

    /// Allocates as [`Dma::new`] does, for a device whose addresses have 32 bits. The kernel takes
    /// memory below 4 GiB for all devices, as long as there is any.
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

    /// Returns the address of the byte at `offset` for the device.
    pub fn address(&self, offset: usize) -> u64 {
        self.address + offset as u64
    }

    /// Returns the device's address of a place.
    pub(crate) fn address_of(&self, place: Place) -> u64 {
        self.address(place.start.addr().get().wrapping_sub(self.bytes.start.addr().get()))
    }

    /// Copies a value out. Panics if the value is not inside the memory.
    #[track_caller]
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        self.bytes.place(offset, size_of::<T>());
        // SAFETY: `place` has checked that the value is inside the memory.
        unsafe { self.at(offset).read(0, false) }
    }

    /// Copies a value in. Panics if the value does not fit.
    #[track_caller]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: T) {
        self.bytes.place(offset, size_of::<T>());
        // SAFETY: `place` has checked that the value is inside the memory.
        unsafe { self.at(offset).write(0, value, false) }
    }

    /// Returns the place at `offset`.
    ///
    /// # Safety
    /// The offset must be inside the memory.
    #[inline(always)]
    pub(crate) unsafe fn at(&self, offset: usize) -> Place {
        // SAFETY: the place is inside the memory.
        Place { start: unsafe { self.bytes.start.add(offset) }, address: self.address.wrapping_add(offset as u64) }
    }

    /// Copies bytes out. Panics if they are not inside the memory.
    #[track_caller]
    pub fn read_bytes(&self, offset: usize, to: &mut [u8]) {
        #[cfg(feature = "fake")]
        crate::fake::before_read(self.address(offset), to.len());
        self.bytes.read(offset, to);
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("m {:x} ", self.address(offset)), to);
    }

    /// Copies bytes in. Panics if they do not fit.
    #[track_caller]
    pub fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.bytes.write(offset, from);
    }
}

/// A place in the memory. It is a value, not a reference to a [`Dma`]: the compiler would read that
/// again after each write to shared memory.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    start: NonNull<u8>,
    #[cfg_attr(not(any(feature = "fake", feature = "record")), expect(dead_code, reason = "for tests and records"))]
    address: u64,
}

impl Place {
    /// Copies out the value `offset` bytes from here.
    ///
    /// # Safety
    /// The value must be inside the memory. If `is_aligned`, its address must be a multiple of its
    /// alignment.
    #[inline(always)]
    pub(crate) unsafe fn read<T: FromBytes>(self, offset: usize, is_aligned: bool) -> T {
        #[cfg(feature = "fake")]
        crate::fake::before_read(self.address + offset as u64, size_of::<T>());
        // SAFETY: the value is inside the memory.
        let place = unsafe { self.start.add(offset) }.cast::<T>();
        #[cfg(feature = "record")]
        {
            // SAFETY: the bytes of the value are inside the memory.
            let copy = unsafe { copy_of(place.cast(), size_of::<T>()) };
            crate::record::bytes(format_args!("m {:x} ", self.address + offset as u64), &copy);
            // There are as many bytes as the value needs.
            if let Ok(value) = T::read_from_bytes(&copy) {
                return value;
            }
        }
        // SAFETY: as above, and any bytes are a valid `T`.
        unsafe { if is_aligned || place.is_aligned() { place.read_volatile() } else { place.read_unaligned() } }
    }

    /// Copies a value in, `offset` bytes from here.
    ///
    /// # Safety
    /// As for [`Place::read`].
    #[inline(always)]
    pub(crate) unsafe fn write<T: IntoBytes + Immutable>(self, offset: usize, value: T, is_aligned: bool) {
        // SAFETY: the value is inside the memory.
        let place = unsafe { self.start.add(offset) }.cast::<T>();
        // SAFETY: as above.
        unsafe {
            if is_aligned || place.is_aligned() { place.write_volatile(value) } else { place.write_unaligned(value) }
        }
    }
}

/// Copies bytes out of memory that the device may write: aligned values of up to eight bytes as a
/// whole.
///
/// # Safety
/// The bytes must be inside the memory.
#[cfg(feature = "record")]
unsafe fn copy_of(place: NonNull<u8>, len_bytes: usize) -> alloc::vec::Vec<u8> {
    let mut copy = alloc::vec::Vec::with_capacity(len_bytes);
    while copy.len() < len_bytes {
        // SAFETY: the byte is inside the memory.
        let next = unsafe { place.add(copy.len()) };
        let fits = |width: usize| width <= len_bytes - copy.len() && next.addr().get().is_multiple_of(width);
        // SAFETY: the value is inside the memory, and aligned.
        unsafe {
            match () {
                () if fits(8) => copy.extend(next.cast::<u64>().read_volatile().to_ne_bytes()),
                () if fits(4) => copy.extend(next.cast::<u32>().read_volatile().to_ne_bytes()),
                () if fits(2) => copy.extend(next.cast::<u16>().read_volatile().to_ne_bytes()),
                () => copy.push(next.read_volatile()),
            }
        }
    }
    copy
}

impl Drop for Dma {
    fn drop(&mut self) {
        // The kernel refuses only memory that it did not allocate.
        let _ = rf_dma_free(GivenBack(self.given));
    }
}

/// The address of memory that is no longer used. Only [`Dma`] creates this value, when it is
/// dropped.
pub struct GivenBack(u64);

impl GivenBack {
    pub(crate) fn address(&self) -> u64 {
        self.0
    }
}

/// Memory that the kernel or the device writes too: bytes are copied in and out.
#[doc(hidden)]
pub struct Bytes {
    start: NonNull<u8>,
    len_bytes: usize,
}

impl Bytes {
    /// # Safety
    /// The kernel must have mapped `len_bytes` bytes at `start`. They must stay mapped as long as
    /// the `Bytes` are used, and no reference to them may exist.
    pub(crate) unsafe fn new(start: NonNull<u8>, len_bytes: usize) -> Bytes {
        Bytes { start, len_bytes }
    }

    /// # Safety
    /// No device may write the bytes as long as the slice exists, and there may be no other
    /// reference to them. The kernel may write them while the driver waits for a request that
    /// has their address.
    pub(crate) unsafe fn as_mut_slice<'a>(&self) -> &'a mut [u8] {
        // SAFETY: as the caller promises; the bytes are mapped.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len_bytes) }
    }

    #[track_caller]
    pub(crate) fn read(&self, offset: usize, to: &mut [u8]) {
        let place = self.place(offset, to.len());
        // SAFETY: the bytes are inside the memory, and `to` does not overlap them.
        unsafe { core::ptr::copy_nonoverlapping(place.as_ptr(), to.as_mut_ptr(), to.len()) };
    }

    #[track_caller]
    pub(crate) fn write(&self, offset: usize, from: &[u8]) {
        let place = self.place(offset, from.len());
        // SAFETY: the bytes are inside the memory, and `from` does not overlap them.
        unsafe { core::ptr::copy_nonoverlapping(from.as_ptr(), place.as_ptr(), from.len()) };
    }

    #[track_caller]
    fn place(&self, offset: usize, len_bytes: usize) -> NonNull<u8> {
        if offset > self.len_bytes || len_bytes > self.len_bytes - offset {
            outside(offset, len_bytes, self.len_bytes);
        }
        // SAFETY: `offset` is inside the memory.
        unsafe { self.start.add(offset) }
    }
}

/// Panics. It is apart, so that no access prepares for the text.
#[cold]
#[inline(never)]
#[track_caller]
fn outside(offset: usize, len_bytes: usize, all: usize) -> ! {
    panic!("{len_bytes} bytes at {offset:#x} outside DMA memory ({all:#x} bytes)")
}

/// Makes earlier writes to memory visible to the device before later ones.
pub fn write_barrier() {
    // x86 makes stores visible in program order; only the compiler must be kept from reordering
    // them.
    core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
}

/// Keeps later reads of memory from being done before earlier ones.
pub fn read_barrier() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::Acquire);
}
