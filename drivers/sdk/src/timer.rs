//! The driver's timer. When the time has passed, the kernel polls the driver with
//! [`Events::TIMER`](crate::Events::TIMER). A driver can also sleep in the middle of an upcall.
//!
//! The kernel's clock ticks 250 times a second, and a poll comes at a tick. Each driver has one
//! timer. A driver that waits for several deadlines keeps them itself, and sets the timer to the
//! nearest one.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../../watchman/src/lib.rs")]
#![doc = "```"]

use crate::Result;
use crate::service::safe::{rf_sleep, rf_timer};
use core::time::Duration;

/// Has the driver polled once, after `delay`. Replaces the timer's previous setting.
pub fn once(delay: Duration) {
    // A delay of 0 would turn the timer off, so at least a nanosecond is passed. The kernel does
    // not refuse a call without a period.
    let _ = rf_timer(nanoseconds(delay).max(1), 0);
}

/// Has the driver polled once each `period`.
///
/// # Errors
/// [`crate::Refusal::Invalid`] if `period` is shorter than 100 us.
pub fn every(period: Duration) -> Result<()> {
    rf_timer(0, nanoseconds(period).max(1)).map(|_| ())
}

/// Turns the timer off.
pub fn off() {
    // The kernel does not refuse a call without a period.
    let _ = rf_timer(0, 0);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Leaves the upcall for `time`, then continues. Other drivers and the kernel run meanwhile, and
/// the time counts against no budget. The kernel does not enter the driver while it sleeps; new
/// events wait.
///
/// The caller of the upcall waits too. A driver that sleeps for more than five seconds in one
/// upcall (`limits sleep-ms`) is therefore ended.
pub fn sleep(time: Duration) {
    // The kernel never refuses this service.
    let _ = rf_sleep(nanoseconds(time));
}
