//! The requests that the kernel makes of a driver. A module has one entry point, the symbol
//! [`ENTRY`]:
//!
//! ```c
//! int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c);
//! ```
//!
//! It is never entered again before it has returned. A result of 0 or more means success; a
//! negative one is the negated number of a [`Refusal`](crate::service::Refusal).

use bitflags::bitflags;
use core::fmt;

/// The symbol of a module's entry point.
pub const ENTRY: &str = "rf_upcall";

/// Take the device into service. This is the first upcall, and comes once.
pub const INIT: u64 = 0;
/// Serve the queues and the device: `a` holds [`Events`], the result is a [`Reply`].
pub const POLL: u64 = 1;
/// Stop the device. This is the last upcall.
pub const EXIT: u64 = 2;
/// Carry out the command in the mailbox page, a text of `a` bytes; the result is shown to the
/// person who typed it.
pub const COMMAND: u64 = 3;
/// Return at once: measures the cost of a crossing.
pub const NULL: u64 = 4;

/// Write the state that the next build is to have into the mailbox page, before a reload. The
/// result is a [`saved`] state; 0 if there is none. Unless the driver sleeps in it, no upcall
/// follows.
pub const SAVE: u64 = 5;
/// Take over the state that the build before has saved: `a` bytes in the mailbox page, of version
/// `b`. It comes once, after [`INIT`]. A driver that refuses goes on without that state.
pub const RESTORE: u64 = 6;

/// Returns the result of [`SAVE`] for a state of `len_bytes` bytes, at most a page, and of this
/// version.
pub const fn saved(len_bytes: u32, version: u32) -> u64 {
    // A result must not be negative.
    (len_bytes as u64) | (version as u64 & 0x7fff_ffff) << 32
}

/// Returns the length and the version of a saved state.
pub const fn length_and_version(saved: u64) -> (u64, u32) {
    (saved & 0xffff_ffff, (saved >> 32) as u32)
}

/// Returns the name of an operation, for a person.
pub fn name(operation: u64) -> &'static str {
    match operation {
        INIT => "init",
        POLL => "poll",
        EXIT => "exit",
        COMMAND => "command",
        NULL => "null",
        SAVE => "save",
        RESTORE => "restore",
        _ => "unknown upcall",
    }
}

bitflags! {
    /// The reasons why a driver is polled. There are often several: a poll for new requests serves
    /// an interrupt that is due as well.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Events: u64 {
        /// The device has interrupted; it is held back unless the driver acknowledges the
        /// interrupt.
        const INTERRUPT = 1 << 0;
        /// The kernel put something into a queue.
        const QUEUE = 1 << 1;
        /// The driver's timer has gone off (`rf_timer`).
        const TIMER = 1 << 2;
        /// The set of frames that a network card must receive has changed
        /// ([`crate::net::HEARING`]).
        const HEARING = 1 << 3;
        /// For a device with interrupts of its own: the first of them has come. Bit 17 stands for
        /// the second, and so on, up to bit 23.
        const VECTOR_0 = 1 << 16;
        /// See [`Events::VECTOR_0`].
        const VECTORS = 0xff << 16;
    }

    /// A driver's answer to [`POLL`].
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Reply: u64 {
        /// The driver has served the interrupt: the device may raise the next one.
        const ACKNOWLEDGED = 1 << 0;
        /// Units of a SCSI host may have come, gone, or changed: the kernel looks at them again.
        const UNITS_CHANGED = 1 << 1;
        /// The network link came up: it may lead to another network than before.
        const LINK_UP = 1 << 2;
        /// The network link went down.
        const LINK_DOWN = 1 << 3;
    }
}

impl fmt::Display for Events {
    /// Names the events, for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Events, &str); 4] = [
            (Events::INTERRUPT, "interrupt"),
            (Events::QUEUE, "queue"),
            (Events::TIMER, "timer"),
            (Events::HEARING, "hearing"),
        ];
        let names = NAMES.into_iter().filter(|(event, _)| self.contains(*event)).map(|(_, name)| name);
        write_list(f, names)?;
        let mut vectors = (0..MAX_VECTORS as u32).filter(|number| self.has_vector(*number));
        vectors.try_for_each(|number| write!(f, ", vector {number}"))
    }
}

impl fmt::Display for Reply {
    /// Names the flags of the driver's reply, for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Reply, &str); 4] = [
            (Reply::ACKNOWLEDGED, "acknowledged"),
            (Reply::UNITS_CHANGED, "units changed"),
            (Reply::LINK_UP, "link up"),
            (Reply::LINK_DOWN, "link down"),
        ];
        let names = NAMES.into_iter().filter(|(reply, _)| self.contains(*reply)).map(|(_, name)| name);
        write_list(f, names)
    }
}

/// Writes names with commas between them, or that there are none.
fn write_list(f: &mut fmt::Formatter<'_>, mut names: impl Iterator<Item = &'static str>) -> fmt::Result {
    f.write_str(names.next().unwrap_or("nothing"))?;
    names.try_for_each(|name| write!(f, ", {name}"))
}

/// Most interrupts of its own that a device can have.
pub const MAX_VECTORS: u64 = 8;

impl Events {
    /// Returns whether the device's own interrupt `number` has come.
    pub fn has_vector(self, number: u32) -> bool {
        u64::from(number) < MAX_VECTORS && self.bits() & Events::VECTOR_0.bits() << number != 0
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::string::ToString;

    #[test]
    fn events_and_replies_have_names() {
        let events = Events::INTERRUPT | Events::QUEUE | Events::from_bits_retain(1 << 17);
        assert_eq!(events.to_string(), "interrupt, queue, vector 1");
        assert_eq!([Events::empty().to_string(), Reply::empty().to_string()], ["nothing"; 2]);
        assert_eq!((Reply::ACKNOWLEDGED | Reply::LINK_UP).to_string(), "acknowledged, link up");
    }
}
