//! Why drivers are ended, and why an upcall has no value.

use hw::arch::Caller;
use hw::arch::frame::TrapFrame;
use ringfence_abi::queue::Lie;
use ringfence_abi::service::Refusal;

/// What a driver did that ended it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The CPU refused an instruction; `address` is the one that a page fault names.
    Exception {
        /// CR2, for a page fault.
        address: Option<u64>,
    },
    /// An upcall took longer than its budget.
    Overrun,
    /// A person asked for it.
    Killed,
    /// The driver gave up: it has logged why.
    Panic,
    /// It passed a pointer that is not its own memory.
    BadPointer {
        /// The pointer.
        address: u64,
        /// The length that went with it, in bytes.
        len_bytes: u64,
    },
    /// It did not finish what it had been given in time.
    Stuck {
        /// What.
        what: &'static str,
        /// The time, in milliseconds.
        limit_ms: u64,
    },
    /// Its position in a queue cannot be true.
    QueueLie {
        /// Which queue.
        queue: &'static str,
        /// What it claims.
        claimed: u64,
        /// What the kernel has counted.
        counted: u64,
    },
    /// Its device wanted to reach memory that the driver was not given for it.
    Dma {
        /// Where, as the device sees it.
        address: u64,
        /// Whether it wanted to write.
        writes: bool,
        /// The fence's reason ([`hw::iommu::reason`]).
        reason: u8,
    },
    /// It put something into a queue that does not exist or is not its to give.
    QueueEntry {
        /// Which queue.
        queue: &'static str,
        /// The entry.
        entry: u64,
    },
}

impl Cause {
    /// What a lie about the position in `queue` is.
    pub fn lie(queue: &'static str) -> impl Fn(Lie) -> Cause {
        move |lie| Cause::QueueLie { queue, claimed: lie.claimed, counted: lie.own }
    }
}

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

/// Why an upcall has no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UpcallError {
    /// The driver refused.
    Refused(Refusal),
    /// The driver returned a negative value that is no refusal.
    Nonsense(i64),
    /// The driver was ended: its [`Domain::fault`] says why.
    Ended,
}

impl core::fmt::Display for UpcallError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            UpcallError::Refused(refusal) => write!(f, "refused: {refusal}"),
            UpcallError::Nonsense(value) => write!(f, "returned nonsense: {value}"),
            UpcallError::Ended => write!(f, "the driver was ended"),
        }
    }
}
