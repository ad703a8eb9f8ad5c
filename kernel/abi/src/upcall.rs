//! What the kernel asks of a driver. A module has one entry point, the symbol [`ENTRY`]:
//!
//! ```c
//! int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c);
//! ```
//!
//! It is never entered again before it has returned. 0 or more is success, negative is minus a
//! [`Refusal`](crate::service::Refusal).

use bitflags::bitflags;

/// The symbol of a module's entry point.
pub const ENTRY: &str = "rf_upcall";

/// Take the device into service. Called once, first.
pub const INIT: u64 = 0;
/// Look after the queues and the device: `a` holds [`Events`], the result [`Reply`].
pub const POLL: u64 = 1;
/// Stop the device. Called last.
pub const EXIT: u64 = 2;
/// Do what the text of `a` bytes in the mailbox page says; the result is shown to the person who
/// typed it.
pub const COMMAND: u64 = 3;
/// Return at once: the cost of a crossing.
pub const NULL: u64 = 4;

/// An operation in words for a person.
pub fn name(operation: u64) -> &'static str {
    match operation {
        INIT => "init",
        POLL => "poll",
        EXIT => "exit",
        COMMAND => "command",
        NULL => "null",
        _ => "unknown upcall",
    }
}

bitflags! {
    /// Why a driver is polled.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Events: u64 {
        /// The device has interrupted; it is held back unless this is acknowledged.
        const INTERRUPT = 1 << 0;
        /// The kernel put something into a queue.
        const QUEUE = 1 << 1;
        /// The driver's timer has gone off (`rf_timer`).
        const TIMER = 1 << 2;
        /// What a network card is to hear has changed ([`crate::net::HEARING`]).
        const HEARING = 1 << 3;
        /// With interrupts of its own: the first of them has come. Bit 17 stands for the second,
        /// and so on, up to bit 23.
        const VECTOR_0 = 1 << 16;
        /// See [`Events::VECTOR_0`].
        const VECTORS = 0xff << 16;
    }

    /// What a driver answers to [`POLL`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Reply: u64 {
        /// The interrupt is dealt with: the device may raise the next.
        const ACKNOWLEDGED = 1 << 0;
        /// Units of a SCSI host may have come, gone, or changed: the kernel looks at them again.
        const UNITS_CHANGED = 1 << 1;
        /// The network link came up: it may lead to another network than before.
        const LINK_UP = 1 << 2;
        /// The network link went down.
        const LINK_DOWN = 1 << 3;
    }
}

/// Most interrupts of its own that a device has.
pub const MAX_VECTORS: u64 = 8;

impl Events {
    /// Whether interrupt `number` of the device's own has come.
    pub fn has_vector(self, number: u32) -> bool {
        u64::from(number) < MAX_VECTORS && self.bits() & Events::VECTOR_0.bits() << number != 0
    }
}
