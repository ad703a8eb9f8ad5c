//! Limits the output that a driver may print on the console without being asked: to as much as a
//! person can read. The log keeps the last lines of it.

use crate::arch::time;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use ringfence_core::limits::CONSOLE_ROWS;
use spin::Mutex;

/// The account of a driver that prints lines.
struct Speaker {
    driver: String,
    /// Rows that the driver may still print, in thousandths, at the time `at_ns`.
    left: u64,
    at_ns: u64,
    /// Rows that were not shown.
    withheld: usize,
}

static SPEAKERS: Mutex<Vec<Speaker>> = Mutex::new(Vec::new());
/// Drivers that are remembered; the driver that has been silent for longest is forgotten first.
const REMEMBERED: usize = 64;
/// Seconds' worth of rows that a driver can save up.
const SAVED_S: u64 = 20;

/// Whether a line is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowed {
    /// The line is shown.
    Yes,
    /// The line is shown, after this many rows that were not.
    AfterSilence(usize),
    /// The line is not shown, the first one in a while.
    Last,
    /// The line is not shown, like the ones before it.
    No,
}

/// Charges `rows` rows to `driver`, and returns whether they are shown.
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
    // A driver that has printed too much is silent until there is room for a few lines.
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
