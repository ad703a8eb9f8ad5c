//! `rf_time_ns`: what time it is.

use super::Answer;
use crate::domain::Domain;
use hw::arch::time;

/// Nanoseconds since boot.
pub fn rf_time_ns(_domain: &mut Domain) -> Answer {
    Ok(time::uptime_ns() & i64::MAX as u64)
}
