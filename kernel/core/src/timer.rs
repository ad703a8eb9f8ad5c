//! A driver's timer: the driver is polled when the timer goes off.

/// Shortest period in nanoseconds. Each expiry costs an upcall; shorter periods would take the
/// whole CPU.
pub const LEAST_PERIOD_NS: u64 = 100_000;

/// A timer, which goes off once or periodically.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timer {
    due_ns: Option<u64>,
    /// Zero if the timer goes off once.
    period_ns: u64,
}

impl Timer {
    /// Sets the timer: it goes off `delay_ns` nanoseconds after `now_ns`, and then every
    /// `period_ns` nanoseconds if the period is not 0. Without a delay, the first expiry comes
    /// after one period; if both are 0, the timer is off. Returns `None`, and changes nothing, if
    /// the period is shorter than [`LEAST_PERIOD_NS`].
    #[must_use]
    pub fn set(&mut self, now_ns: u64, delay_ns: u64, period_ns: u64) -> Option<()> {
        if period_ns != 0 && period_ns < LEAST_PERIOD_NS {
            return None;
        }
        let delay_ns = if delay_ns == 0 { period_ns } else { delay_ns };
        self.due_ns = (delay_ns != 0).then(|| now_ns.saturating_add(delay_ns));
        self.period_ns = period_ns;
        Some(())
    }

    /// Returns when the timer goes off next, in nanoseconds since boot.
    pub fn due_ns(&self) -> Option<u64> {
        self.due_ns
    }

    /// Returns whether the timer has gone off by `now_ns`, and sets it for the next period. Missed
    /// periods are not made up for.
    pub fn take(&mut self, now_ns: u64) -> bool {
        let Some(due_ns) = self.due_ns.filter(|due| *due <= now_ns) else { return false };
        self.due_ns = (now_ns - due_ns)
            .checked_div(self.period_ns)
            .map(|missed| due_ns.saturating_add(self.period_ns.saturating_mul(missed.saturating_add(1))));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn set(delay_ns: u64, period_ns: u64) -> Timer {
        let mut timer = Timer::default();
        timer.set(1_000, delay_ns, period_ns).unwrap();
        timer
    }

    #[test]
    fn one_that_goes_off_once_does_so_when_it_is_due() {
        let mut timer = set(500, 0);
        assert_eq!(timer.due_ns(), Some(1_500));
        assert!(!timer.take(1_499));
        assert!(timer.take(1_500));
        assert!(!timer.take(u64::MAX));
        assert_eq!(timer.due_ns(), None);
    }

    #[test]
    fn one_with_a_period_keeps_its_beat_and_makes_up_for_nothing() {
        let mut timer = set(0, LEAST_PERIOD_NS);
        assert_eq!(timer.due_ns(), Some(1_000 + LEAST_PERIOD_NS));
        assert!(timer.take(1_000 + LEAST_PERIOD_NS));
        // The timer is asked three periods late.
        assert!(timer.take(1_000 + 5 * LEAST_PERIOD_NS + 7));
        assert!(!timer.take(1_000 + 5 * LEAST_PERIOD_NS + 8));
        assert_eq!(timer.due_ns(), Some(1_000 + 6 * LEAST_PERIOD_NS));
        assert_eq!(set(5, LEAST_PERIOD_NS).due_ns(), Some(1_005));
    }

    #[test]
    fn one_is_turned_off_and_a_period_that_is_too_short_changes_nothing() {
        let mut timer = set(500, 0);
        assert_eq!(timer.set(0, 1, LEAST_PERIOD_NS - 1), None);
        assert_eq!(timer.due_ns(), Some(1_500));
        timer.set(0, 0, 0).unwrap();
        assert_eq!(timer.due_ns(), None);
    }

    proptest! {
        #[test]
        fn nothing_overflows_and_what_is_due_next_is_in_the_future(
            set_at: u64, delay_ns: u64, period_ns: u64, now_ns: u64,
        ) {
            let mut timer = Timer::default();
            if timer.set(set_at, delay_ns, period_ns).is_some() && timer.take(now_ns) {
                prop_assert!(timer.due_ns().is_none_or(|due| due > now_ns || due == u64::MAX));
                prop_assert_eq!(timer.due_ns().is_some(), period_ns != 0);
            }
        }
    }
}
