//! Registers of the machine's own devices, which are in memory.

use super::{at_physical, is_device};
use core::ptr::null_mut;
use core::sync::atomic::{AtomicPtr, Ordering};

/// Registers that are mapped, and no memory.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    pa: u64,
    len_bytes: u64,
}

impl Registers {
    /// `len_bytes` bytes of registers from physical address `pa`; `None` if those are memory, or not mapped.
    pub fn at(pa: u64, len_bytes: u64) -> Option<Registers> {
        (pa.is_multiple_of(8) && is_device(pa, len_bytes)).then_some(Registers { pa, len_bytes })
    }

    /// Where a register is, if it is one of these.
    #[inline]
    fn place<T>(&self, offset: u64) -> Option<*mut T> {
        let size = size_of::<T>() as u64;
        let inside = offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len_bytes);
        inside.then(|| at_physical(self.pa + offset).cast())
    }

    /// Reads the 32 bits at `offset`; 0 where no register is.
    #[inline]
    pub fn read32(&self, offset: u64) -> u32 {
        // SAFETY: mapped registers, aligned.
        self.place::<u32>(offset).map_or(0, |place| unsafe { place.read_volatile() })
    }

    /// Writes the 32 bits at `offset`; nothing where no register is.
    #[inline]
    pub fn write32(&self, offset: u64, value: u32) {
        if let Some(place) = self.place::<u32>(offset) {
            // SAFETY: as above.
            unsafe { place.write_volatile(value) };
        }
    }

    /// Reads the 64 bits at `offset`; 0 where no register is.
    pub fn read64(&self, offset: u64) -> u64 {
        // SAFETY: as above.
        self.place::<u64>(offset).map_or(0, |place| unsafe { place.read_volatile() })
    }

    /// Writes the 64 bits at `offset`; nothing where no register is.
    pub fn write64(&self, offset: u64, value: u64) {
        if let Some(place) = self.place::<u64>(offset) {
            // SAFETY: as above.
            unsafe { place.write_volatile(value) };
        }
    }
}

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
    for line in (first..pa + len_bytes).step_by(LINE as usize) {
        // SAFETY: writing a line back changes nothing that a program sees.
        unsafe { core::arch::asm!("clflush [{}]", in(reg) at_physical(line), options(nostack, preserves_flags)) };
    }
    // SAFETY: as above.
    unsafe { core::arch::asm!("mfence", options(nostack, preserves_flags)) };
}
