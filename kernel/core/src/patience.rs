//! How long an interrupt waits for its driver to be polled for something else. A device often
//! answers while its driver is in an upcall for a request. The tasks that can go on then make use
//! of the answer, and the next request's upcall serves the interrupt as well: one upcall in place
//! of two.

/// The most turns of the tasks that an interrupt waits for.
const MOST: u32 = 4;
/// The most turns until a line is unmasked for which a driver was polled meanwhile.
const MOST_HEARD: u32 = 16;

/// Returns how many turns of the tasks the lines that have fired have waited, now that one more has
/// ended after `turns`; `None` if they wait no longer, and are to be served. No driver was polled
/// for the lines in `unheard` meanwhile. They can wait if some task can go on at once, and not for
/// long.
pub fn waited(turns: u32, unheard: u64, can_wait: bool) -> Option<u32> {
    let most = if unheard == 0 { MOST_HEARD } else { MOST };
    let turns = turns.saturating_add(1);
    (can_wait && turns < most).then_some(turns)
}

/// Returns the lines among `fired` that a driver is to be polled for. It was polled for those in
/// `heard` already; those in `unheard` have fired after that.
pub fn left(fired: u64, unheard: u64, heard: u64) -> u64 {
    fired & !(heard & !unheard)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns after how many turns of a busy CPU the lines are served.
    fn served_after(unheard: u64) -> u32 {
        let mut turns = 0;
        while let Some(more) = waited(turns, unheard, true) {
            turns = more;
        }
        turns + 1
    }

    #[test]
    fn a_line_that_was_heard_and_fires_again_is_served() {
        assert_eq!(left(0b111, 0b100, 0b011), 0b100);
        assert_eq!(left(0b111, 0b110, 0b011), 0b110);
        assert_eq!(left(0b001, 0b001, 0b000), 0b001);
    }

    #[test]
    fn nothing_waits_that_cannot() {
        assert_eq!([waited(0, 1, false), waited(0, 0, false)], [None, None]);
    }

    #[test]
    fn lines_wait_longer_if_their_drivers_were_polled() {
        assert_eq!([served_after(0b10), served_after(0)], [4, 16]);
    }

    #[test]
    fn a_fresh_line_does_not_wait_for_those_that_were_heard() {
        assert_eq!(waited(9, 0, true), Some(10));
        assert_eq!(waited(9, 0b10, true), None);
        assert_eq!(waited(u32::MAX, 0, true), None);
    }
}
