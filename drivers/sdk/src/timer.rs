//! The driver's timer: it is polled with [`Events::TIMER`](crate::Events::TIMER) when time has gone
//! by. Or it sleeps until then, in the middle of what it does.
//!
//! The kernel's clock ticks 250 times a second, and a poll comes at a tick. There is one timer: who
//! waits for several things keeps what each waits for, and sets it for the nearest.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../../watchman/src/lib.rs")]
#![doc = "```"]

use crate::Result;
use crate::service::safe::{rf_sleep, rf_timer};
use core::time::Duration;

/// Has the driver polled once, when `delay` has gone by. What the timer was set to before is
/// forgotten.
pub fn once(delay: Duration) {
    // No delay is one of a nanosecond: 0 would turn it off. It is never refused without a period.
    let _ = rf_timer(nanoseconds(delay).max(1), 0);
}

/// Has the driver polled each time that `period` has gone by.
///
/// # Errors
/// [`crate::Refusal::Invalid`] if `period` is shorter than 100 us.
pub fn every(period: Duration) -> Result<()> {
    rf_timer(0, nanoseconds(period).max(1)).map(|_| ())
}

/// Has the driver not polled for that any more.
pub fn off() {
    // It is never refused without a period.
    let _ = rf_timer(0, 0);
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Leaves the upcall for so long, and goes on here: others run meanwhile, and the time counts
/// against no budget. The driver is not entered while it sleeps; what it is to be polled for waits.
///
/// Who asked for the upcall waits as well, so a driver that sleeps for more than five seconds in
/// one (`limits sleep-ms`) is ended.
pub fn sleep(time: Duration) {
    // It is never refused.
    let _ = rf_sleep(nanoseconds(time));
}
