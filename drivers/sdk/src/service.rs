//! The kernel's services: the symbols that a module leaves undefined, and safe functions over them.

use crate::Result;
use core::fmt::Write;
use log::{Log, Metadata, Record};
use ringfence_abi::for_each_service;
use ringfence_abi::service::Refusal;

/// An argument of a service as a driver has it, by the kind that the ABI's table names.
mod argument {
    pub type Number = u64;
    pub type Length = u64;
    pub type Address = u64;
    pub use crate::dma::GivenBack;
    pub use log::Level;
    /// UTF-8, which the kernel makes of it what it can.
    pub type Text<'a> = &'a [u8];
    pub type Bytes<'a> = &'a [u8];
}

/// A service as it is: parameters are collected, two for what is passed in two registers.
macro_rules! declare {
    ($what:literal $symbol:ident [$($parameter:ident)*]) => {
        #[cfg(feature = "fake")]
        #[doc = $what]
        ///
        /// # Safety
        /// What the arguments point to must be there.
        pub unsafe fn $symbol($($parameter: u64),*) -> i64 {
            crate::fake::serve(stringify!($symbol), &[$($parameter),*])
        }

        #[cfg(not(feature = "fake"))]
        unsafe extern "C" {
            #[doc = $what]
            ///
            /// # Safety
            /// The kernel checks all arguments and believes none, so a call cannot hurt it. It may
            /// change what the arguments point to.
            pub fn $symbol($($parameter: u64),*) -> i64;
        }
    };
    ($what:literal $symbol:ident [$($parameter:ident)*] $argument:ident: Text, $($rest:tt)*) => {
        declare!($what $symbol [$($parameter)* $argument len_bytes] $($rest)*);
    };
    ($what:literal $symbol:ident [$($parameter:ident)*] $argument:ident: Bytes, $($rest:tt)*) => {
        declare!($what $symbol [$($parameter)* $argument len_bytes] $($rest)*);
    };
    ($what:literal $symbol:ident [$($parameter:ident)*] $argument:ident: $kind:ident, $($rest:tt)*) => {
        declare!($what $symbol [$($parameter)* $argument] $($rest)*);
    };
}

/// A call of a service: what goes into registers is collected.
macro_rules! call {
    ($symbol:ident [$($word:expr,)*]) => {
        // SAFETY: what is pointed to lives until the call returns, and a service writes to nothing
        // of it. What is given back is not used any more ([`GivenBack`]).
        answer(unsafe { raw::$symbol($($word),*) })
    };
    ($symbol:ident [$($word:expr,)*] $argument:ident: Text, $($rest:tt)*) => {
        call!($symbol [$($word,)* $argument.as_ptr() as u64, $argument.len() as u64,] $($rest)*)
    };
    ($symbol:ident [$($word:expr,)*] $argument:ident: Bytes, $($rest:tt)*) => {
        call!($symbol [$($word,)* $argument.as_ptr() as u64, $argument.len() as u64,] $($rest)*)
    };
    ($symbol:ident [$($word:expr,)*] $argument:ident: Level, $($rest:tt)*) => {
        call!($symbol [$($word,)* $argument as u64,] $($rest)*)
    };
    ($symbol:ident [$($word:expr,)*] $argument:ident: GivenBack, $($rest:tt)*) => {
        call!($symbol [$($word,)* $argument.address(),] $($rest)*)
    };
    ($symbol:ident [$($word:expr,)*] $argument:ident: $kind:ident, $($rest:tt)*) => {
        call!($symbol [$($word,)* $argument,] $($rest)*)
    };
}

macro_rules! declare_services {
    ($($number:literal $symbol:ident($($argument:ident: $kind:ident),*) $what:literal => $value:literal, $refuses:literal;)*) => {
        /// The services as they are: the loader answers each one that is used with a stub.
        pub mod raw {
            $(declare!($what $symbol [] $($argument: $kind,)*);)*
        }

        /// The services as safe functions.
        pub mod safe {
            use super::{answer, argument, raw};
            use crate::Result;

            $(
                #[doc = $what]
                #[doc = concat!(". Returns: ", $value, ".")]
                ///
                /// # Errors
                #[doc = concat!("Refused: ", $refuses, ".")]
                #[inline]
                pub fn $symbol($($argument: argument::$kind),*) -> Result<u64> {
                    call!($symbol [] $($argument: $kind,)*)
                }
            )*
        }
    };
}
for_each_service!(declare_services);

/// The value of a service's result, or its refusal.
fn answer(result: i64) -> Result<u64> {
    u64::try_from(result).map_err(|_| Refusal::from_result(result).unwrap_or(Refusal::Invalid))
}

/// Nanoseconds since boot.
pub fn time_ns() -> u64 {
    // It is never refused.
    safe::rf_time_ns().unwrap_or(0)
}

/// Does nothing, in the kernel: the cost of a crossing.
pub fn null() {
    // It is never refused.
    let _ = safe::rf_null();
}

/// A reading of the time stamp counter.
pub fn tsc() -> u64 {
    #[cfg(feature = "fake")]
    return time_ns();
    #[cfg(not(feature = "fake"))]
    // SAFETY: every x86-64 CPU has it.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
}

/// Longest line in bytes: what it needs of a driver's stack is little.
const LINE_BYTES: usize = 256;

/// A line in the making; what does not fit is cut off.
pub(crate) struct LineBuffer {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl LineBuffer {
    pub(crate) fn new() -> LineBuffer {
        LineBuffer { bytes: [0; LINE_BYTES], len: 0 }
    }

    /// Bytes that fit yet.
    pub(crate) fn room(&self) -> usize {
        LINE_BYTES - self.len
    }

    /// What is there.
    pub(crate) fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Write for LineBuffer {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        for byte in text.bytes() {
            let Some(place) = self.bytes.get_mut(self.len) else { break };
            *place = byte;
            self.len += 1;
        }
        Ok(())
    }
}

struct Logger;

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        let mut line = LineBuffer::new();
        // A line that is too long is cut off, not refused.
        let _ = line.write_fmt(*record.args());
        // One that is refused is one of too many, and there is nobody to be told.
        let _ = safe::rf_log(record.level(), line.text());
    }

    fn flush(&self) {}
}

/// Connects `log`'s macros to the kernel's log.
pub(crate) fn start_logging() {
    static LOGGER: Logger = Logger;
    // It fails if there is a logger already, which is this one.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
