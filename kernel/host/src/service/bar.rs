//! `rf_bar_*`: the registers of the domain's own device.

use super::Answer;
use crate::domain::Domain;

/// Maps memory BAR `bar` and returns where, or opens the ports of I/O BAR `bar` and returns the first.
pub fn rf_bar_map(domain: &mut Domain, bar: u64) -> Answer {
    Ok(domain.map_bar(bar)?)
}

/// Length of BAR `bar` in bytes.
pub fn rf_bar_len(domain: &mut Domain, bar: u64) -> Answer {
    Ok(domain.bar_len(bar)?)
}
