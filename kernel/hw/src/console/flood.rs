//! How much a driver may have on the console that nobody has asked for: as much as a person can
//! read. The log keeps the last of it.

use crate::arch::time;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ringfence_core::limits::CONSOLE_ROWS;
use spin::Mutex;

/// What is known of a driver that says things.
struct Speaker {
    driver: String,
    /// Rows that it may still have, in thousandths, at this time in nanoseconds since boot.
    left: u64,
    at_ns: u64,
    /// Rows that were not shown.
    withheld: usize,
}

static SPEAKERS: Mutex<Vec<Speaker>> = Mutex::new(Vec::new());
/// Drivers that are remembered; who has not spoken for longest is forgotten.
const REMEMBERED: usize = 64;
/// Seconds for which a driver can save what it may say.
const SAVED_S: u64 = 20;

/// Whether a line is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// It is.
    Yes,
    /// It is, behind so many rows that were not.
    AfterSilence(usize),
    /// It is not, the first one in a while.
    Last,
    /// Nor is it.
    No,
}

/// Counts `rows` rows of `driver`'s.
pub fn allow(driver: &str, rows: usize) -> Allowed {
    const THOUSANDTHS: u64 = 1000;
    let (now, rate) = (time::uptime_ns(), CONSOLE_ROWS.get() * THOUSANDTHS);
    let mut speakers = SPEAKERS.lock();
    let mut speaker = match speakers.iter().position(|speaker| speaker.driver == driver) {
        Some(place) => speakers.swap_remove(place),
        None => Speaker { driver: driver.to_string(), left: rate * SAVED_S, at_ns: now, withheld: 0 },
    };
    let saved = now.saturating_sub(speaker.at_ns).saturating_mul(rate) / 1_000_000_000;
    speaker.left = speaker.left.saturating_add(saved).min(rate * SAVED_S);
    speaker.at_ns = now;
    let cost = rows as u64 * THOUSANDTHS;
    // Once it has said too much, it is silent until there is room for a few lines.
    let enough = if speaker.withheld > 0 { (cost + rate).min(rate * SAVED_S) } else { cost.min(rate * SAVED_S) };
    let allowed = match (speaker.left >= enough, speaker.withheld) {
        (true, 0) => Allowed::Yes,
        (true, withheld) => Allowed::AfterSilence(withheld),
        (false, 0) => Allowed::Last,
        (false, _) => Allowed::No,
    };
    if speaker.left >= enough {
        speaker.left = speaker.left.saturating_sub(cost);
        speaker.withheld = 0;
    } else {
        speaker.withheld += rows;
    }
    if speakers.len() == REMEMBERED {
        let oldest = speakers.iter().enumerate().min_by_key(|(_, speaker)| speaker.at_ns).map(|(index, _)| index);
        oldest.map(|index| speakers.swap_remove(index));
    }
    speakers.push(speaker);
    allowed
}
