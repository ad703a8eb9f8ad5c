//! Registers by name. Each register has a width, an offset, and a name for traces. The compiler
//! checks the offset against the declared length of the BAR.
//!
//! The BAR's real length is checked once, when the BAR is mapped. After that an access needs no
//! check.
//!
//! ```rust,no_run
//! use ringfence_sdk::register::Registers;
//! use ringfence_sdk::registers;
//!
//! registers! {
//!     /// A card's registers.
//!     pub Card: memory 0, 0x100 bytes;
//!     /// What it is to do.
//!     COMMAND: u32 = 0x00;
//!     /// Its Ethernet address.
//!     ADDRESS: [u8; 6] = 0x10;
//! }
//!
//! fn reset() -> ringfence_sdk::Result<u8> {
//!     let registers = Registers::<Card>::map()?;
//!     registers.write(COMMAND, 1);
//!     Ok(registers.read(ADDRESS.at(5)))
//! }
//! ```
//!
//! A register outside the BAR does not compile:
//!
//! ```compile_fail
//! ringfence_sdk::registers! {
//!     Card: memory 0, 0x100 bytes;
//!     BEYOND: u32 = 0xfe;
//! }
//! ```

use crate::Result;
use crate::device::{Mmio, Ports};
use core::marker::PhantomData;
use ringfence_abi::manifest::field;
pub use ringfence_abi::register::RegisterName;
use ringfence_abi::service::Refusal;

/// A device's registers in one BAR. Some devices have the same registers at the same offsets in a
/// memory BAR and in an I/O BAR.
pub trait Bank: 'static {
    /// The memory BAR, if the device has one.
    const MEMORY: Option<u8>;
    /// The I/O BAR, if the device has one; for a device at fixed ports, the number of the run.
    const PORTS: Option<u8>;
    /// Length of the part of the BAR that the driver uses, in bytes.
    const LEN_BYTES: usize;
    /// Names for traces.
    const NAMES: &'static [RegisterName];
}

/// A register of bank `B` that holds a `T`.
pub struct Register<B, T> {
    offset: usize,
    of: PhantomData<(B, T)>,
}

impl<B, T> Clone for Register<B, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B, T> Copy for Register<B, T> {}

impl<B: Bank, T: Width> Register<B, T> {
    /// Returns the register at `offset`. Panics if the register is not inside the bank, or its
    /// offset is not a multiple of its length. In a constant, the panic is a compile error.
    pub const fn new(offset: usize) -> Register<B, T> {
        assert!(offset.is_multiple_of(size_of::<T>()), "a register is at a multiple of its length");
        assert!(offset <= B::LEN_BYTES && size_of::<T>() <= B::LEN_BYTES - offset, "a register is inside its bank");
        assert!(B::PORTS.is_none() || size_of::<T>() <= 4, "a port has at most 32 bits");
        Register { offset, of: PhantomData }
    }

    /// Returns the register's offset in bytes, for the recipe of a reset.
    pub const fn offset(self) -> u32 {
        self.offset as u32
    }

    /// Returns the register's name for traces.
    pub const fn named(self, name: &str) -> RegisterName {
        named::<B>(name, self.offset, size_of::<T>(), 1)
    }
}

/// `N` consecutive registers of bank `B` that hold a `T` each.
pub struct RegisterArray<B, T, const N: usize> {
    first: Register<B, T>,
}

impl<B, T, const N: usize> Clone for RegisterArray<B, T, N> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B, T, const N: usize> Copy for RegisterArray<B, T, N> {}

impl<B: Bank, T: Width, const N: usize> RegisterArray<B, T, N> {
    /// Returns the registers from `offset` on. Panics as [`Register::new`] does.
    pub const fn new(offset: usize) -> RegisterArray<B, T, N> {
        let _last: Register<B, T> = Register::new(offset + (N - 1) * size_of::<T>());
        RegisterArray { first: Register::new(offset) }
    }

    /// Returns the register with this number. Panics if `number` is not below `N`.
    #[inline]
    #[track_caller]
    pub const fn at(self, number: usize) -> Register<B, T> {
        assert!(number < N, "there is no register of this number");
        Register { offset: self.first.offset + number * size_of::<T>(), of: PhantomData }
    }

    /// Returns all registers of the array.
    pub fn all(self) -> impl Iterator<Item = Register<B, T>> {
        (0..N).map(move |number| self.at(number))
    }

    /// Returns the array's name for traces.
    pub const fn named(self, name: &str) -> RegisterName {
        named::<B>(name, self.first.offset, size_of::<T>(), N)
    }
}

const fn named<B: Bank>(name: &str, offset: usize, width_bytes: usize, count: usize) -> RegisterName {
    let bar = match (B::MEMORY, B::PORTS) {
        (Some(bar), _) | (None, Some(bar)) => bar,
        (None, None) => panic!("a bank has a BAR"),
    };
    let width_bytes = width_bytes as u8;
    let name = RegisterName { name: field(name), offset: offset as u32, bar, width_bytes, count: count as u16 };
    assert!(name.name().is_some(), "a register's name is of capital letters, digits and _");
    name
}

/// The type of a register's value: 8, 16, 32 or 64 bits.
pub trait Width: Copy + sealed::Width {}

mod sealed {
    use super::*;

    pub trait Width: Sized {
        /// # Safety
        /// The register must be inside `from`, at a multiple of its length.
        unsafe fn read_memory(from: &Mmio, offset: usize) -> Self;
        /// # Safety
        /// The register must be inside `to`, at a multiple of its length.
        unsafe fn write_memory(self, to: &Mmio, offset: usize);
        fn read_port(from: &Ports, offset: u16) -> Self;
        fn write_port(self, to: &Ports, offset: u16);
    }
}

macro_rules! width {
    ($type:ty, $read:ident, $write:ident, |$ports:ident, $offset:ident| $in:expr, |$value:ident| $out:expr) => {
        impl Width for $type {}

        impl sealed::Width for $type {
            #[inline(always)]
            unsafe fn read_memory(from: &Mmio, offset: usize) -> $type {
                // SAFETY: the caller keeps the contract.
                unsafe { from.$read(offset) }
            }

            #[inline(always)]
            unsafe fn write_memory(self, to: &Mmio, offset: usize) {
                // SAFETY: the caller keeps the contract.
                unsafe { to.$write(offset, self) }
            }

            fn read_port($ports: &Ports, $offset: u16) -> $type {
                $in
            }

            fn write_port(self, $ports: &Ports, $offset: u16) {
                let $value = self;
                $out
            }
        }
    };
}
width!(u8, read8_inside, write8_inside, |ports, offset| ports.read8(offset), |value| ports.write8(offset, value));
width!(u16, read16_inside, write16_inside, |ports, offset| ports.read16(offset), |value| ports.write16(offset, value));
width!(u32, read32_inside, write32_inside, |ports, offset| ports.read32(offset), |value| ports.write32(offset, value));
// No bank with ports has a 64-bit register ([`Register::new`] checks that).
width!(u64, read64_inside, write64_inside, |_ports, _offset| 0, |_value| ());

/// The registers of bank `B`, mapped.
pub struct Registers<B> {
    space: Space,
    of: PhantomData<B>,
}

impl<B> Clone for Registers<B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Registers<B> {}

#[derive(Clone, Copy)]
enum Space {
    Memory(Mmio),
    Ports(Ports),
}

impl<B: Bank> Registers<B> {
    /// Maps the registers. If the memory BAR cannot be mapped (for example because another device
    /// has registers on the same page), opens the ports.
    ///
    /// # Errors
    /// The refusals of [`Mmio::map`] and [`Ports::open`]; [`Refusal::Invalid`] if the BAR is
    /// shorter than the bank, with a line in the log.
    pub fn map() -> Result<Registers<B>> {
        // This use makes the linker keep the names.
        core::hint::black_box(B::NAMES);
        let memory =
            B::MEMORY.map(|bar| Mmio::map(bar.into()).map(|memory| (Space::Memory(memory), memory.len_bytes())));
        let ports = || B::PORTS.map(|bar| Ports::open(bar.into()).map(|ports| (Space::Ports(ports), ports.count())));
        let found = match memory {
            Some(Err(error)) => ports().unwrap_or(Err(error)),
            Some(found) => found,
            None => ports().unwrap_or(Err(Refusal::NotFound)),
        };
        let (space, len_bytes) = found?;
        if len_bytes < B::LEN_BYTES {
            log::error!("the BAR has {len_bytes:#x} bytes in place of {:#x}", B::LEN_BYTES);
            return Err(Refusal::Invalid);
        }
        Ok(Registers { space, of: PhantomData })
    }

    /// Reads a register.
    #[inline(always)]
    pub fn read<T: Width>(&self, register: Register<B, T>) -> T {
        match &self.space {
            Space::Ports(ports) if B::PORTS.is_some() => T::read_port(ports, register.offset as u16),
            // SAFETY: every register is inside the bank, and the BAR is at least as long as the
            // bank. Only a bank with a memory BAR is mapped as memory.
            Space::Memory(memory) => unsafe { T::read_memory(memory, register.offset) },
            // SAFETY: `map` opens ports only for a bank that has some.
            Space::Ports(_) => unsafe { core::hint::unreachable_unchecked() },
        }
    }

    /// Writes a register.
    #[inline(always)]
    pub fn write<T: Width>(&self, register: Register<B, T>, value: T) {
        match &self.space {
            Space::Ports(ports) if B::PORTS.is_some() => value.write_port(ports, register.offset as u16),
            // SAFETY: as for `read`.
            Space::Memory(memory) => unsafe { value.write_memory(memory, register.offset) },
            // SAFETY: `map` opens ports only for a bank that has some.
            Space::Ports(_) => unsafe { core::hint::unreachable_unchecked() },
        }
    }

    /// Fills `to` with 16-bit reads of one register, the low byte first. If the length of `to` is
    /// odd, its last byte is left unchanged.
    pub fn read_words(&self, register: Register<B, u16>, to: &mut [u8]) {
        match &self.space {
            Space::Ports(ports) => ports.read_words(register.offset as u16, to),
            Space::Memory(_) => {
                to.chunks_exact_mut(2).for_each(|pair| pair.copy_from_slice(&self.read(register).to_le_bytes()));
            }
        }
    }

    /// Writes `from` to one register with 16-bit writes, the low byte first. If the length of
    /// `from` is odd, its last byte is not written.
    pub fn write_words(&self, register: Register<B, u16>, from: &[u8]) {
        match &self.space {
            Space::Ports(ports) => ports.write_words(register.offset as u16, from),
            Space::Memory(_) => {
                let words = from.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
                words.for_each(|word| self.write(register, word));
            }
        }
    }

    /// Sets the bits `mask` of a register, and leaves the other bits unchanged.
    pub fn set<T: Width + core::ops::BitOr<Output = T>>(&self, register: Register<B, T>, mask: T) {
        self.write(register, self.read(register) | mask);
    }
}

/// Declares the registers of a BAR, each as `NAME: WIDTH = OFFSET;` or as
/// `NAME: [WIDTH; COUNT] = OFFSET;`. See [`register`](crate::register).
#[macro_export]
macro_rules! registers {
    ($(#[$bank_attribute:meta])* $vis:vis $bank:ident: memory $memory:literal or ports $ports:literal, $len:literal bytes;
        $($rest:tt)*) => {
        $crate::registers!(@bank [$(#[$bank_attribute])* $vis] $bank, Some($memory), Some($ports), $len, [$($rest)*]);
    };
    ($(#[$bank_attribute:meta])* $vis:vis $bank:ident: memory $memory:literal, $len:literal bytes; $($rest:tt)*) => {
        $crate::registers!(@bank [$(#[$bank_attribute])* $vis] $bank, Some($memory), None, $len, [$($rest)*]);
    };
    ($(#[$bank_attribute:meta])* $vis:vis $bank:ident: ports $ports:literal, $len:literal bytes; $($rest:tt)*) => {
        $crate::registers!(@bank [$(#[$bank_attribute])* $vis] $bank, None, Some($ports), $len, [$($rest)*]);
    };
    (@bank [$(#[$bank_attribute:meta])* $vis:vis] $bank:ident, $memory:expr, $ports:expr, $len:literal,
        [$($(#[$attribute:meta])* $name:ident: $type:tt = $offset:expr;)*]) => {
        $(#[$bank_attribute])*
        $vis struct $bank;

        impl $crate::register::Bank for $bank {
            const MEMORY: Option<u8> = $memory;
            const PORTS: Option<u8> = $ports;
            const LEN_BYTES: usize = $len;
            const NAMES: &'static [$crate::register::RegisterName] = {
                #[unsafe(link_section = ".ringfence.registers")]
                static NAMES: [$crate::register::RegisterName; [$(stringify!($name)),*].len()] =
                    [$($name.named(stringify!($name))),*];
                &NAMES
            };
        }

        $($crate::registers!(@one [$(#[$attribute])* $vis] $bank, $name, $type, $offset);)*
    };
    (@one [$(#[$attribute:meta])* $vis:vis] $bank:ident, $name:ident, [$type:ty; $count:expr], $offset:expr) => {
        $(#[$attribute])*
        $vis const $name: $crate::register::RegisterArray<$bank, $type, { $count }> =
            $crate::register::RegisterArray::new($offset);
    };
    (@one [$(#[$attribute:meta])* $vis:vis] $bank:ident, $name:ident, $type:ty, $offset:expr) => {
        $(#[$attribute])*
        $vis const $name: $crate::register::Register<$bank, $type> = $crate::register::Register::new($offset);
    };
}
