//! `rf_panic`: a driver gives up.

use super::{Answer, No};
use crate::domain::Domain;
use crate::domain::cause::Cause;
use crate::domain::memory::Allegation;
use hw::console;
use log::Level;

/// The maximum length of the message in bytes; the rest is cut off.
const MAX_MESSAGE: u64 = 512;

/// The maximum length of the message in a report.
const MAX_LAST_WORDS: usize = 160;

/// Logs the message and ends the driver.
pub fn rf_panic(domain: &mut Domain, text: Allegation) -> Answer {
    let message = super::log::read_text(domain, text.first(MAX_MESSAGE))?;
    console::quote(|| domain.source(), Level::Error, &message);
    domain.last_words = console::printable(message.get(..message.floor_char_boundary(MAX_LAST_WORDS)).unwrap_or(""));
    Err(No::Fault(Cause::Panic))
}
