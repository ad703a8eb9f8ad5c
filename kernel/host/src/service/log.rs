//! `rf_log`: a line in the kernel's log, under the driver's name.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use alloc::string::String;
use hw::arch::time;
use hw::console;
use log::Level;
use ringfence_abi::service::Refusal;

/// Longest line in bytes.
const MAX_LINE: u64 = 512;

/// Logs text at a level; what is above info is not kept. Refuses lines that are too long.
pub fn rf_log(domain: &mut Domain, level: Level, text: Allegation) -> Answer {
    if text.len_bytes() > MAX_LINE {
        return Err(Refusal::Invalid.into());
    }
    // Counted, not printed: a driver must not push everybody else's lines out of the log.
    let Some(left) = domain.log_left.checked_sub(1) else {
        domain.log_dropped = domain.log_dropped.saturating_add(1);
        return Err(Refusal::Busy.into());
    };
    domain.log_left = left;
    // Whether or not it is shown: a bad pointer is one at any level.
    let text = read_text(domain, text)?;
    // A slow serial port takes the driver's time.
    time::charged_for_words(|| console::quote(|| domain.source(), level, &text));
    Ok(0)
}

/// Copies in text that a driver passed.
pub fn read_text(domain: &Domain, text: Allegation) -> Result<String, super::No> {
    let bytes = text.copy_in(domain)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
