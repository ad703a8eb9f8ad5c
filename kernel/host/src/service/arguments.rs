//! What a driver has passed in registers, as each service takes it. A type for each kind of the
//! ABI's table, by the same name ([`ringfence_abi::service::Kind`]).

use crate::domain::memory::Allegation;
use log::Level as LogLevel;
use ringfence_abi::service::{REGISTERS, Refusal};

/// Registers of which arguments are taken, one after the other.
pub struct Registers(pub [u64; REGISTERS], pub usize);

impl Registers {
    #[inline(always)]
    fn next(&mut self) -> u64 {
        // The ABI's table has no service with more.
        let value = self.0.get(self.1).copied().unwrap_or(0);
        self.1 += 1;
        value
    }
}

/// A kind of arguments.
pub trait Argument {
    /// What a service gets.
    type Value;

    /// Takes one. What cannot be is refused.
    fn take(registers: &mut Registers) -> Result<Self::Value, Refusal>;
}

macro_rules! words {
    ($($kind:ident)*) => {
        $(
            pub struct $kind;

            impl Argument for $kind {
                type Value = u64;

                #[inline(always)]
                fn take(registers: &mut Registers) -> Result<u64, Refusal> {
                    Ok(registers.next())
                }
            }
        )*
    };
}
words!(Number Length Address GivenBack);

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

/// Nothing of it is checked yet, and nothing copied.
macro_rules! memory {
    ($($kind:ident)*) => {
        $(
            pub struct $kind;

            impl Argument for $kind {
                type Value = Allegation;

                #[inline(always)]
                fn take(registers: &mut Registers) -> Result<Allegation, Refusal> {
                    Ok(Allegation::new(registers.next(), registers.next()))
                }
            }
        )*
    };
}
memory!(Text Bytes);
