//! `rf_log`: writes a line to the kernel's log, under the driver's name.

use super::Answer;
use crate::domain::Domain;
use crate::domain::memory::Allegation;
use alloc::string::String;
use hw::arch::time;
use hw::{console, link};
use log::Level;
use ringfence_abi::service::Refusal;
use ringfence_link::event::Event;

/// The maximum length of a line in bytes.
const MAX_LINE: u64 = 512;

/// Logs text at a level; levels above info are not kept. Refuses lines that are too long.
pub fn rf_log(domain: &mut Domain, level: Level, text: Allegation) -> Answer {
    if text.len_bytes() > MAX_LINE {
        return Err(Refusal::Invalid.into());
    }
    // Count the line instead of printing it: a driver must not push all other lines out of the log.
    let Some(left) = domain.log_left.checked_sub(1) else {
        domain.log_dropped = domain.log_dropped.saturating_add(1);
        return Err(Refusal::Busy.into());
    };
    domain.log_left = left;
    // Copy the text even if it is not shown: a bad pointer is a fault at any level.
    let text = read_text(domain, text)?;
    // The time of a slow serial port is charged to the driver.
    time::charged_for_words(|| {
        let shown = console::quote(|| domain.source(), level, &text);
        if let Some(text) = shown.filter(|_| link::is_there()) {
            let (driver, module) = (domain.name.as_str().into(), domain.file.name.as_str().into());
            let level = level.as_str().to_ascii_lowercase().into();
            link::tell(&Event::Log { driver, module, level, text: text.into() });
        }
    });
    Ok(0)
}

/// Copies in text that a driver passed.
pub fn read_text(domain: &Domain, text: Allegation) -> Result<String, super::No> {
    let bytes = text.copy_in(domain)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
