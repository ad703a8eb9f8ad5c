//! Registers by name: each has a width and an offset, which the compiler checks against the length
//! of the BAR, and a name by which traces know it.
//!
//! The BAR's real length is checked once, when it is mapped; an access is nothing but the access.
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
//! One that does not lie in the BAR does not compile:
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

/// Registers that a device has in one BAR; of some devices in one of memory or one of ports, with
/// the same offsets.
pub trait Bank: 'static {
    /// The BAR of memory, if there is one.
    const MEMORY: Option<u8>;
    /// The BAR of ports, if there is one; of a device at fixed ports their run.
    const PORTS: Option<u8>;
    /// Length of what the driver uses, in bytes.
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
    /// The one at `offset`. Panics, which in a constant is an error of the compiler's, if it is not
    /// inside the bank and at a multiple of its length.
    pub const fn new(offset: usize) -> Register<B, T> {
        assert!(offset.is_multiple_of(size_of::<T>()), "a register is at a multiple of its length");
        assert!(offset <= B::LEN_BYTES && size_of::<T>() <= B::LEN_BYTES - offset, "a register is inside its bank");
        assert!(B::PORTS.is_none() || size_of::<T>() <= 4, "a port has at most 32 bits");
        Register { offset, of: PhantomData }
    }

    /// Its offset in bytes, as the recipe of a reset has it.
    pub const fn offset(self) -> u32 {
        self.offset as u32
    }

    /// Its name for traces.
    pub const fn named(self, name: &str) -> RegisterName {
        named::<B>(name, self.offset, size_of::<T>(), 1)
    }
}

/// So many registers of bank `B` that hold a `T` each, one behind the other.
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
    /// Those from `offset` on, as [`Register::new`].
    pub const fn new(offset: usize) -> RegisterArray<B, T, N> {
        let _last: Register<B, T> = Register::new(offset + (N - 1) * size_of::<T>());
        RegisterArray { first: Register::new(offset) }
    }

    /// The one of this number. Panics if there is none.
    #[inline]
    #[track_caller]
    pub const fn at(self, number: usize) -> Register<B, T> {
        assert!(number < N, "there is no register of this number");
        Register { offset: self.first.offset + number * size_of::<T>(), of: PhantomData }
    }

    /// All of them.
    pub fn all(self) -> impl Iterator<Item = Register<B, T>> {
        (0..N).map(move |number| self.at(number))
    }

    /// Their name for traces.
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

/// What a register holds: 8, 16, 32 or 64 bits.
pub trait Width: Copy + sealed::Width {}

mod sealed {
    use super::*;

    pub trait Width: Sized {
        /// # Safety
        /// It must lie inside, at a multiple of its length.
        unsafe fn read_memory(from: &Mmio, offset: usize) -> Self;
        /// # Safety
        /// The same.
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
                // SAFETY: the caller's.
                unsafe { from.$read(offset) }
            }

            #[inline(always)]
            unsafe fn write_memory(self, to: &Mmio, offset: usize) {
                // SAFETY: the caller's.
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
// No bank with ports has one ([`Register::new`]).
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
    /// Maps them: the BAR of memory, or if that is not to be had (another device has registers on
    /// its page, say), opens the ports.
    ///
    /// # Errors
    /// Those of [`Mmio::map`] and [`Ports::open`]; [`Refusal::Invalid`] if the BAR is shorter than
    /// the bank, with a line in the log.
    pub fn map() -> Result<Registers<B>> {
        // The linker keeps what is asked for.
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
            // SAFETY: every register is inside the bank, and the BAR is at least as long. A bank
            // without a BAR of memory is of ports.
            Space::Memory(memory) => unsafe { T::read_memory(memory, register.offset) },
            // SAFETY: `map` opens the ports of banks that have some.
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
            // SAFETY: `map` opens the ports of banks that have some.
            Space::Ports(_) => unsafe { core::hint::unreachable_unchecked() },
        }
    }

    /// Sets the bits `mask` of a register, and leaves the others.
    pub fn set<T: Width + core::ops::BitOr<Output = T>>(&self, register: Register<B, T>, mask: T) {
        self.write(register, self.read(register) | mask);
    }
}

/// Declares the registers of a BAR: `NAME: WIDTH = OFFSET;` each, or `NAME: [WIDTH; COUNT] =
/// OFFSET;`. See [`register`](crate::register).
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
