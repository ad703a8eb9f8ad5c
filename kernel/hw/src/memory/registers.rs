//! Registers of devices, which are in memory.

use super::{at_physical, is_device};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Registers that are mapped, and no memory.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// Where the kernel sees them.
    start: u64,
    len_bytes: u64,
}

impl Registers {
    /// `len_bytes` bytes of registers from physical address `pa`; `None` if those are memory, or not mapped.
    pub fn at(pa: u64, len_bytes: u64) -> Option<Registers> {
        let is_there = pa.is_multiple_of(8) && is_device(pa, len_bytes);
        is_there.then(|| Registers { start: at_physical(pa) as u64, len_bytes })
    }

    /// `len_bytes` bytes of registers that are mapped at `start`, a multiple of 8.
    ///
    /// # Safety
    /// They must be registers, and mapped there as long as this is used.
    pub unsafe fn mapped(start: u64, len_bytes: u64) -> Registers {
        Registers { start, len_bytes }
    }

    /// Where a register is, if it is one of these.
    #[inline]
    fn place<T>(&self, offset: u64) -> Option<*mut T> {
        let size = size_of::<T>() as u64;
        let inside = offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len_bytes);
        inside.then_some((self.start + offset) as *mut T)
    }

    /// Reads the register at `offset`; 0 where none is.
    #[inline]
    fn read<T: Width>(&self, offset: u64) -> T {
        // SAFETY: mapped registers, aligned.
        self.place::<T>(offset).map_or(T::default(), |place| unsafe { place.read_volatile() })
    }

    /// Writes the register at `offset`; nothing where none is.
    #[inline]
    fn write<T: Width>(&self, offset: u64, value: T) {
        if let Some(place) = self.place::<T>(offset) {
            // SAFETY: as above.
            unsafe { place.write_volatile(value) };
        }
    }

    /// Reads 8 bits at `offset`; 0 where no register is.
    pub fn read8(&self, offset: u64) -> u8 {
        self.read(offset)
    }

    /// Reads 16 bits at `offset`; 0 where no register is.
    pub fn read16(&self, offset: u64) -> u16 {
        self.read(offset)
    }

    /// Reads 32 bits at `offset`; 0 where no register is.
    #[inline]
    pub fn read32(&self, offset: u64) -> u32 {
        self.read(offset)
    }

    /// Reads 64 bits at `offset`; 0 where no register is.
    pub fn read64(&self, offset: u64) -> u64 {
        self.read(offset)
    }

    /// Writes 8 bits at `offset`; nothing where no register is.
    pub fn write8(&self, offset: u64, value: u8) {
        self.write(offset, value);
    }

    /// Writes 16 bits at `offset`; nothing where no register is.
    pub fn write16(&self, offset: u64, value: u16) {
        self.write(offset, value);
    }

    /// Writes 32 bits at `offset`; nothing where no register is.
    #[inline]
    pub fn write32(&self, offset: u64, value: u32) {
        self.write(offset, value);
    }

    /// Writes 64 bits at `offset`; nothing where no register is.
    pub fn write64(&self, offset: u64, value: u64) {
        self.write(offset, value);
    }
}

/// What is read or written at once: numbers of 1, 2, 4 or 8 bytes.
trait Width: Copy + Default {}
impl Width for u8 {}
impl Width for u16 {}
impl Width for u32 {}
impl Width for u64 {}

/// A register of 32 bits that is read often, or none.
pub struct OneRegister(AtomicPtr<u32>);

impl OneRegister {
    /// None.
    pub const fn none() -> OneRegister {
        OneRegister(AtomicPtr::new(null_mut()))
    }

    /// Makes it another one.
    pub fn set(&self, other: OneRegister) {
        self.0.store(other.0.into_inner(), Ordering::Relaxed);
    }

    /// Reads it; 0 if there is none.
    #[inline(always)]
    pub fn read(&self) -> u32 {
        let place = self.0.load(Ordering::Relaxed);
        // SAFETY: a mapped register, aligned, or null.
        if place.is_null() { 0 } else { unsafe { place.read_volatile() } }
    }
}

impl Registers {
    /// The one of 32 bits at `offset`.
    pub fn one(&self, offset: u64) -> OneRegister {
        OneRegister(AtomicPtr::new(self.place(offset).unwrap_or(null_mut())))
    }
}

/// Writes `len_bytes` bytes from physical address `pa`, which are mapped, back from the CPU's caches to memory: for who reads past
/// them.
pub fn write_back(pa: u64, len_bytes: u64) {
    const LINE: u64 = 64;
    let first = pa & !(LINE - 1);
    let (mut line, end) = (at_physical(first), at_physical(pa + len_bytes));
    // SAFETY: writing lines back changes nothing that a program sees.
    unsafe {
        while line < end {
            core::arch::asm!("clflush [{}]", in(reg) line, options(nostack, preserves_flags));
            line = line.wrapping_add(LINE as usize);
        }
        core::arch::asm!("mfence", options(nostack, preserves_flags));
    }
}
