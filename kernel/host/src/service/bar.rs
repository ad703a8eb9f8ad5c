//! `rf_bar_*`: the registers of the domain's own device.

use super::Answer;
use crate::domain::Domain;

/// Maps region `bar` of the device's registers (a PCI function's BAR) and returns its address, or
/// opens the region's ports and returns the first port.
pub fn rf_bar_map(domain: &mut Domain, bar: u64) -> Answer {
    Ok(domain.map_region(bar)?)
}

/// Returns the length of region `bar` in bytes, or in ports.
pub fn rf_bar_len(domain: &mut Domain, bar: u64) -> Answer {
    Ok(domain.region_len(bar)?)
}
