//! Registers of devices, which are in memory.

use super::{at_physical, is_device};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use volatile::VolatilePtr;

/// Registers that are mapped, and no memory.
#[derive(Debug, Clone, Copy)]
pub struct Registers {
    /// Where the kernel sees them.
    start: u64,
    len_bytes: u64,
}

impl Registers {
    /// `len_bytes` bytes of registers from physical address `pa`; `None` if those are memory, or
    /// not mapped.
    pub(crate) fn at(pa: u64, len_bytes: u64) -> Option<Registers> {
        let is_there = pa.is_multiple_of(8) && is_device(pa, len_bytes);
        is_there.then(|| Registers { start: at_physical(pa) as u64, len_bytes })
    }

    /// `len_bytes` bytes of registers that are mapped at `start`, a multiple of 8.
    ///
    /// # Safety
    /// They must be registers, and mapped there as long as this is used.
    pub(crate) unsafe fn mapped(start: u64, len_bytes: u64) -> Registers {
        Registers { start, len_bytes }
    }

    /// A register, if it is one of these.
    #[inline]
    fn register<T>(&self, offset: u64) -> Option<VolatilePtr<'_, T>> {
        let size = size_of::<T>() as u64;
        let inside = offset.is_multiple_of(size) && offset.checked_add(size).is_some_and(|end| end <= self.len_bytes);
        let place = NonNull::new((self.start + offset) as *mut T).filter(|_| inside)?;
        // SAFETY: mapped registers, aligned, of as many bits as a number has.
        Some(unsafe { VolatilePtr::new(place) })
    }

    /// Reads the register at `offset`; 0 where none is.
    #[inline]
    fn read<T: Width>(&self, offset: u64) -> T {
        self.register::<T>(offset).map_or(T::default(), VolatilePtr::read)
    }

    /// Writes the register at `offset`; nothing where none is.
    #[inline]
    fn write<T: Width>(&self, offset: u64, value: T) {
        if let Some(register) = self.register::<T>(offset) {
            register.write(value);
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

/// Registers that are mapped for a while: whoever has lent them takes them back.
pub struct Window(Registers);

impl Window {
    /// The registers, for as long as the window is there.
    pub(crate) fn new(registers: Registers) -> Window {
        Window(registers)
    }

    /// Reads `width_bytes` (1, 2 or 4) bytes at `offset`; 0 where no register is.
    pub fn read(&self, offset: u64, width_bytes: u32) -> u32 {
        match width_bytes {
            1 => self.0.read8(offset).into(),
            2 => self.0.read16(offset).into(),
            _ => self.0.read32(offset),
        }
    }

    /// Writes them; nothing where no register is.
    pub fn write(&self, offset: u64, width_bytes: u32, value: u32) {
        match width_bytes {
            1 => self.0.write8(offset, value as u8),
            2 => self.0.write16(offset, value as u16),
            _ => self.0.write32(offset, value),
        }
    }
}

/// What is read or written at once: numbers of 1, 2, 4 or 8 bytes.
trait Width: Copy + Default {}
impl Width for u8 {}
impl Width for u16 {}
impl Width for u32 {}
impl Width for u64 {}

/// A register of 32 bits that is read often, or none.
pub struct OneRegister(AtomicU64);

impl OneRegister {
    /// None.
    pub const fn none() -> OneRegister {
        OneRegister(AtomicU64::new(0))
    }

    /// Makes it another one.
    pub fn set(&self, other: OneRegister) {
        self.0.store(other.0.into_inner(), Ordering::Relaxed);
    }

    /// Reads it; 0 if there is none.
    #[inline(always)]
    pub fn read(&self) -> u32 {
        let start = self.0.load(Ordering::Relaxed);
        Registers { start, len_bytes: if start == 0 { 0 } else { 4 } }.read(0)
    }
}

impl Registers {
    /// The one of 32 bits at `offset`.
    pub fn one(&self, offset: u64) -> OneRegister {
        let is_there = self.register::<u32>(offset).is_some();
        OneRegister(AtomicU64::new(if is_there { self.start + offset } else { 0 }))
    }
}
