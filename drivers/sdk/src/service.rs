//! The kernel's services: the symbols that a module leaves undefined, and safe functions over them.

use crate::Result;
use core::fmt::Write;
use log::{Log, Metadata, Record};
use ringfence_abi::for_each_service;
use ringfence_abi::service::Refusal;

/// The types of a service's arguments in the SDK, named after the kinds in the ABI's table.
mod argument {
    pub type Number = u64;
    pub type Length = u64;
    pub type Address = u64;
    pub use crate::dma::GivenBack;
    pub use log::Level;
    /// Text; the kernel replaces bytes that are not valid UTF-8.
    pub type Text<'a> = &'a [u8];
    pub type Bytes<'a> = &'a [u8];
}

/// Declares one service with its raw arguments: a text or bytes take two parameters.
macro_rules! declare {
    ($what:literal $symbol:ident [$($parameter:ident)*]) => {
        #[cfg(feature = "fake")]
        #[doc = $what]
        ///
        /// # Safety
        /// The memory that the arguments point to must be valid.
        pub unsafe fn $symbol($($parameter: u64),*) -> i64 {
            crate::fake::serve(stringify!($symbol), &[$($parameter),*])
        }

        #[cfg(not(feature = "fake"))]
        unsafe extern "C" {
            #[doc = $what]
            ///
            /// # Safety
            /// The kernel checks all arguments and trusts none, so a call cannot harm it. The call
            /// may change the memory that the arguments point to.
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

/// Calls one service, with each argument spread over its registers.
macro_rules! call {
    ($symbol:ident [$($word:expr,)*]) => {
        // SAFETY: the memory that the arguments point to lives until the call returns, and no
        // service writes to it, but `rf_wait`: there, blocks come to the addresses in requests.
        // Memory that is given back is no longer used ([`GivenBack`]).
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
        /// The raw services: the loader links each service that the module uses to a stub.
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

/// Returns the value of a service's result, or its refusal.
fn answer(result: i64) -> Result<u64> {
    u64::try_from(result).map_err(|_| Refusal::from_result(result).unwrap_or(Refusal::Invalid))
}

/// Returns the nanoseconds since boot.
pub fn time_ns() -> u64 {
    // The kernel never refuses this service.
    safe::rf_time_ns().unwrap_or(0)
}

/// Calls the kernel's empty service, to measure the cost of a crossing.
pub fn null() {
    // The kernel never refuses this service.
    let _ = safe::rf_null();
}

/// Reads the time stamp counter.
pub fn tsc() -> u64 {
    #[cfg(feature = "fake")]
    return time_ns();
    #[cfg(not(feature = "fake"))]
    // SAFETY: every x86-64 CPU has the instruction RDTSC.
    unsafe {
        #[cfg(target_arch = "x86")]
        use core::arch::x86::_rdtsc;
        #[cfg(target_arch = "x86_64")]
        use core::arch::x86_64::_rdtsc;
        _rdtsc()
    }
}

/// The longest line in bytes; it is short, to use little of the driver's stack.
const LINE_BYTES: usize = 256;

/// A buffer in which a line is put together; text that does not fit is cut off.
pub(crate) struct LineBuffer {
    bytes: [u8; LINE_BYTES],
    len: usize,
}

impl LineBuffer {
    pub(crate) fn new() -> LineBuffer {
        LineBuffer { bytes: [0; LINE_BYTES], len: 0 }
    }

    /// Returns how many more bytes fit.
    pub(crate) fn room(&self) -> usize {
        LINE_BYTES - self.len
    }

    /// Returns the text written so far.
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
        // The kernel refuses a line when there are too many; no caller could be told.
        let _ = safe::rf_log(record.level(), line.text());
    }

    fn flush(&self) {}
}

/// Connects `log`'s macros to the kernel's log.
pub(crate) fn start_logging() {
    static LOGGER: Logger = Logger;
    // This fails only if a logger is set already, and that is this logger.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}
