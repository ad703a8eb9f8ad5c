//! Memory-mapped registers of devices.

use super::{at_physical, is_device};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use volatile::VolatilePtr;

/// Mapped registers of a device; none of them is memory.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// Address at which the kernel sees the registers.
    start: u64,
    len_bytes: u64,
}

impl Registers {
    /// Returns `len_bytes` bytes of registers from physical address `pa`; `None` if they are
    /// memory, or not mapped.
    pub(crate) fn at(pa: u64, len_bytes: u64) -> Option<Registers> {
        let is_there = pa.is_multiple_of(8) && is_device(pa, len_bytes);
        is_there.then(|| Registers { start: at_physical(pa) as u64, len_bytes })
    }

    /// Returns `len_bytes` bytes of registers that are mapped at `start`, a multiple of 8.
    ///
    /// # Safety
    /// They must be registers, and must stay mapped there as long as the value is used.
    pub(crate) unsafe fn mapped(start: u64, len_bytes: u64) -> Registers {
        Registers { start, len_bytes }
    }

    /// Returns the register at `offset`, if it lies inside and is aligned.
    #[inline]
    fn register<T>(&self, offset: u64) -> Option<VolatilePtr<'_, T>> {
        let size = size_of::<T>() as u64;
        let inside = offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len_bytes);
        let place = NonNull::new((self.start + offset) as *mut T).filter(|_| inside)?;
        // SAFETY: the registers are mapped and aligned, and any bits are a valid number.
        Some(unsafe { VolatilePtr::new(place) })
    }

    /// Reads the register at `offset`; 0 if there is none.
    #[inline]
    fn read<T: Width>(&self, offset: u64) -> T {
        self.register::<T>(offset).map_or(T::default(), VolatilePtr::read)
    }

    /// Writes the register at `offset`; does nothing if there is none.
    #[inline]
    fn write<T: Width>(&self, offset: u64, value: T) {
        if let Some(register) = self.register::<T>(offset) {
            register.write(value);
        }
    }

    /// Reads 8 bits at `offset`; 0 if there is no register.
    pub fn read8(&self, offset: u64) -> u8 {
        self.read(offset)
    }

    /// Reads 16 bits at `offset`; 0 if there is no register.
    pub fn read16(&self, offset: u64) -> u16 {
        self.read(offset)
    }

    /// Reads 32 bits at `offset`; 0 if there is no register.
    #[inline]
    pub fn read32(&self, offset: u64) -> u32 {
        self.read(offset)
    }

    /// Reads 64 bits at `offset`; 0 if there is no register.
    pub fn read64(&self, offset: u64) -> u64 {
        self.read(offset)
    }

    /// Writes 8 bits at `offset`; does nothing if there is no register.
    pub fn write8(&self, offset: u64, value: u8) {
        self.write(offset, value);
    }

    /// Writes 16 bits at `offset`; does nothing if there is no register.
    pub fn write16(&self, offset: u64, value: u16) {
        self.write(offset, value);
    }

    /// Writes 32 bits at `offset`; does nothing if there is no register.
    #[inline]
    pub fn write32(&self, offset: u64, value: u32) {
        self.write(offset, value);
    }

    /// Writes 64 bits at `offset`; does nothing if there is no register.
    pub fn write64(&self, offset: u64, value: u64) {
        self.write(offset, value);
    }
}

/// Registers that are mapped for a while: the lender takes them back.
pub struct Window(Registers);

impl Window {
    /// Lends the registers for as long as the window exists.
    pub(crate) fn new(registers: Registers) -> Window {
        Window(registers)
    }

    /// Reads `width_bytes` (1, 2 or 4) bytes at `offset`; 0 if there is no register.
    pub fn read(&self, offset: u64, width_bytes: u32) -> u32 {
        match width_bytes {
            1 => self.0.read8(offset).into(),
            2 => self.0.read16(offset).into(),
            _ => self.0.read32(offset),
        }
    }

    /// Writes `width_bytes` (1, 2 or 4) bytes at `offset`; does nothing if there is no register.
    pub fn write(&self, offset: u64, width_bytes: u32, value: u32) {
        match width_bytes {
            1 => self.0.write8(offset, value as u8),
            2 => self.0.write16(offset, value as u16),
            _ => self.0.write32(offset, value),
        }
    }
}

/// A number that is read or written at once: of 1, 2, 4 or 8 bytes.
trait Width: Copy + Default {}
impl Width for u8 {}
impl Width for u16 {}
impl Width for u32 {}
impl Width for u64 {}

/// A 32-bit register that is read often, or none.
pub struct OneRegister(AtomicU64);

impl OneRegister {
    /// Makes a value without a register.
    pub const fn none() -> OneRegister {
        OneRegister(AtomicU64::new(0))
    }

    /// Replaces the register by `other`.
    pub fn set(&self, other: OneRegister) {
        self.0.store(other.0.into_inner(), Ordering::Relaxed);
    }

    /// Reads the register; 0 if there is none.
    #[inline(always)]
    pub fn read(&self) -> u32 {
        let start = self.0.load(Ordering::Relaxed);
        Registers { start, len_bytes: if start == 0 { 0 } else { 4 } }.read(0)
    }
}

impl Registers {
    /// Returns the 32-bit register at `offset`.
    pub fn one(&self, offset: u64) -> OneRegister {
        let is_there = self.register::<u32>(offset).is_some();
        OneRegister(AtomicU64::new(if is_there { self.start + offset } else { 0 }))
    }
}
