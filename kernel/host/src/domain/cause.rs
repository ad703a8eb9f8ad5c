//! The place at which a driver was ended, and the reasons why an upcall returns no value.
//! [`ringfence_core::fault`] has the causes.

use hw::arch::Caller;
use hw::arch::frame::TrapFrame;
use ringfence_abi::service::Refusal;
pub use ringfence_core::fault::Cause;
use ringfence_core::fault::Exception;

/// The place at which a driver was ended.
#[derive(Debug, Clone, Copy)]
pub enum Site<'a> {
    /// The driver was running, and these were its registers.
    Trap(&'a TrapFrame),
    /// The driver had called a service, with these values in its registers.
    Gate(Caller),
    /// The driver was not running.
    Nowhere,
}

impl Site<'_> {
    /// Returns the CPU's exception, if a trap ended the driver.
    pub fn exception(&self) -> Option<Exception> {
        match self {
            Site::Trap(frame) => Some(frame.exception()),
            Site::Gate(_) | Site::Nowhere => None,
        }
    }
}

/// The reason why an upcall returns no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpcallError {
    /// The driver refused.
    Refused(Refusal),
    /// The driver returned a negative value that is no refusal.
    Nonsense(i64),
    /// The driver sleeps, in this upcall or in an earlier upcall that is still under way.
    Asleep,
    /// The driver was ended: its [`Domain::fault`] says why.
    Ended,
}

impl core::fmt::Display for UpcallError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            UpcallError::Refused(refusal) => write!(f, "refused: {refusal}"),
            UpcallError::Nonsense(value) => write!(f, "returned nonsense: {value}"),
            UpcallError::Asleep => write!(f, "the driver sleeps"),
            UpcallError::Ended => write!(f, "the driver was ended"),
        }
    }
}
