//! The arguments of services, taken from a driver's registers. There is one type for each kind in
//! the ABI's table, with the same name ([`ringfence_abi::service::Kind`]).

use crate::domain::memory::Allegation;
use hw::space::lifted;
use log::Level as LogLevel;
use ringfence_abi::service::{REGISTERS, Refusal};

/// The registers from which arguments are taken, the index of the next one, and the offset that is
/// added to addresses ([`hw::space::Space::lift`]).
pub struct Registers(pub [u64; REGISTERS], pub usize, pub u64);

impl Registers {
    #[inline(always)]
    fn next(&mut self) -> u64 {
        // No service in the ABI's table takes more registers.
        let value = self.0.get(self.1).copied().unwrap_or(0);
        self.1 += 1;
        value
    }

    #[inline(always)]
    fn next_address(&mut self) -> u64 {
        lifted(self.next(), self.2)
    }
}

/// A kind of arguments.
pub trait Argument {
    /// The type that a service gets.
    type Value;

    /// Takes one argument. Impossible values are refused.
    fn take(registers: &mut Registers) -> Result<Self::Value, Refusal>;
}

macro_rules! words {
    ($next:ident: $($kind:ident)*) => {
        $(
            pub struct $kind;

            impl Argument for $kind {
                type Value = u64;

                #[inline(always)]
                fn take(registers: &mut Registers) -> Result<u64, Refusal> {
                    Ok(registers.$next())
                }
            }
        )*
    };
}
words!(next: Number Length);
words!(next_address: Address GivenBack);

pub struct Level;

impl Argument for Level {
    type Value = LogLevel;

    fn take(registers: &mut Registers) -> Result<LogLevel, Refusal> {
        match registers.next() {
            1 => Ok(LogLevel::Error),
            2 => Ok(LogLevel::Warn),
            3 => Ok(LogLevel::Info),
            4 => Ok(LogLevel::Debug),
            5 => Ok(LogLevel::Trace),
            _ => Err(Refusal::Invalid),
        }
    }
}

/// Arguments that are ranges of memory. The range is not checked and not copied yet.
macro_rules! memory {
    ($($kind:ident)*) => {
        $(
            pub struct $kind;

            impl Argument for $kind {
                type Value = Allegation;

                #[inline(always)]
                fn take(registers: &mut Registers) -> Result<Allegation, Refusal> {
                    Ok(Allegation::new(registers.next_address(), registers.next()))
                }
            }
        )*
    };
}
memory!(Text Bytes);
