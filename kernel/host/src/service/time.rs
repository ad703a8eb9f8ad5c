//! `rf_time_ns`, `rf_timer`: what time it is, and a poll when some has gone by.

use super::Answer;
use crate::domain::Domain;
use hw::arch::time;

/// Nanoseconds since boot.
pub fn rf_time_ns(_domain: &mut Domain) -> Answer {
    Ok(time::uptime_ns() & i64::MAX as u64)
}

/// Has the driver polled in `delay_ns` nanoseconds, and from then on every `period_ns`.
pub fn rf_timer(domain: &mut Domain, delay_ns: u64, period_ns: u64) -> Answer {
    domain.set_timer(delay_ns, period_ns)?;
    Ok(0)
}
