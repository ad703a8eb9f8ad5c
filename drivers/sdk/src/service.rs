//! The kernel's services: the symbols that a module leaves undefined, and safe functions over them.

use crate::Result;
use core::fmt::Write;
use log::{Level, Log, Metadata, Record};
use ringfence_abi::for_each_service;
use ringfence_abi::service::Refusal;

macro_rules! declare_services {
    ($($number:literal $symbol:ident($($argument:ident: $type:ty),*) $what:literal;)*) => {
        /// The services as they are: the loader answers each one that is used with a stub.
        pub mod raw {
            unsafe extern "C" {
                $(
                    #[doc = $what]
                    ///
                    /// # Safety
                    /// The kernel checks all arguments and believes none, so a call cannot hurt it. It may change what
                    /// the arguments point to.
                    pub fn $symbol($($argument: $type),*) -> i64;
                )*
            }
        }
    };
}
for_each_service!(declare_services);

/// The value of a service's result, or its refusal.
pub(crate) fn answer(result: i64) -> Result<u64> {
    u64::try_from(result).map_err(|_| Refusal::from_result(result).unwrap_or(Refusal::Invalid))
}

/// Nanoseconds since boot.
pub fn time_ns() -> u64 {
    // SAFETY: takes no arguments.
    unsafe { raw::rf_time_ns() as u64 }
}

/// Does nothing, in the kernel: the cost of a crossing.
pub fn null() {
    // SAFETY: takes no arguments.
    unsafe { raw::rf_null() };
}

/// A reading of the time stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
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

    /// Address and length for the kernel.
    pub(crate) fn parts(&self) -> (u64, u64) {
        (self.bytes.as_ptr() as u64, self.len as u64)
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
        let level = match record.level() {
            Level::Error => 1,
            Level::Warn => 2,
            Level::Info => 3,
            Level::Debug => 4,
            Level::Trace => 5,
        };
        let (text, len_bytes) = line.parts();
        // SAFETY: the line lives until the call returns.
        unsafe { raw::rf_log(level, text, len_bytes) };
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
