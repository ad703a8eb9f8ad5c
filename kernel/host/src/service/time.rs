//! `rf_time_ns`, `rf_timer`, `rf_sleep`: the time, polls by a timer, and sleep.

use super::{Answer, No};
use crate::domain::Domain;
use hw::arch::time;

/// Returns the nanoseconds since boot.
pub fn rf_time_ns(_domain: &mut Domain) -> Answer {
    Ok(time::uptime_ns() & i64::MAX as u64)
}

/// Sets the driver's timer: the driver is polled in `delay_ns` nanoseconds, and then every
/// `period_ns`.
pub fn rf_timer(domain: &mut Domain, delay_ns: u64, period_ns: u64) -> Answer {
    domain.set_timer(delay_ns, period_ns)?;
    Ok(0)
}

/// Leaves the driver's upcall for `delay_ns` nanoseconds.
pub fn rf_sleep(domain: &mut Domain, delay_ns: u64) -> Answer {
    if delay_ns == 0 {
        return Ok(0);
    }
    domain.begin_sleep(delay_ns)?;
    Err(No::Sleeps)
}
