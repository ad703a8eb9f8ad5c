//! Where a driver was when it was ended, and why an upcall has no value. [`ringfence_core::fault`]
//! has the causes.

use hw::arch::Caller;
use hw::arch::frame::TrapFrame;
use ringfence_abi::service::Refusal;
pub use ringfence_core::fault::Cause;
use ringfence_core::fault::Exception;

/// Where a driver was when it was ended.
#[derive(Debug, Clone, Copy)]
pub enum Site<'a> {
    /// It ran, and these were its registers.
    Trap(&'a TrapFrame),
    /// It had called a service, with these in its registers.
    Gate(Caller),
    /// It did not run.
    Nowhere,
}

impl Site<'_> {
    /// What the CPU says, if it was ended by a trap.
    pub fn exception(&self) -> Option<Exception> {
        match self {
            Site::Trap(frame) => Some(frame.exception()),
            Site::Gate(_) | Site::Nowhere => None,
        }
    }
}

/// Why an upcall has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpcallError {
    /// The driver refused.
    Refused(Refusal),
    /// The driver returned a negative value that is no refusal.
    Nonsense(i64),
    /// The driver sleeps: in this upcall, or in one that is under way.
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
