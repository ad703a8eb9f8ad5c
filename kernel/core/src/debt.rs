//! The debt of a driver for its CPU time. All times are ticks of one clock.
//!
//! The time of each poll is added to the driver's debt; time in which no driver is polled reduces
//! it. A driver whose debt is beyond the limit rests, and its rest pays for the whole debt. The
//! kernel's work for a driver is a second debt. Only time in which the kernel works for no driver
//! reduces the second debt.
//!
//! Not taken: a limit on the driver's share of each second. A driver that now and then has much
//! work at once would wait for no reason.

/// The debt of a driver.
#[derive(Debug, Clone, Copy, Default)]
pub struct Debt {
    /// Debt for polls, and the time at which it was noted, by the clock that reduces it: the time
    /// in which no driver is polled.
    for_polls: (u64, u64),
    /// Debt for the kernel's work, and the time at which it was noted, by the clock that reduces
    /// it: the time in which the kernel works for no driver.
    for_work: (u64, u64),
    /// The debt after the driver's last poll, or after the kernel's last work for the driver,
    /// whichever was later.
    last: u64,
}

impl Debt {
    /// Returns whether the driver rests: it owed more than `most`.
    #[inline(always)]
    pub fn is_beyond(&self, most: u64) -> bool {
        self.last > most
    }

    /// Takes over the debt of `dead` for polls that it has not rested for.
    pub fn take_over(&mut self, dead: &Debt) {
        self.for_polls = dead.for_polls;
    }

    /// Adds a poll that took `ticks` and began when the clock of polls was at `began`. Returns how
    /// long the driver must rest.
    #[inline(always)]
    pub fn add_poll(&mut self, ticks: u64, began: u64, most: u64) -> u64 {
        let owes = left(self.for_polls, began) + ticks;
        self.last = owes;
        // The rest pays for the whole debt.
        let rest = if owes > most { owes } else { 0 };
        self.for_polls = (owes - rest, began);
        rest
    }

    /// Adds work for the driver that took `ticks` and began when the clock of work was at `began`
    /// and the clock of polls at `polls`. Returns how long the driver must rest.
    pub fn add_work(&mut self, ticks: u64, began: u64, polls: u64, most: u64) -> u64 {
        let for_work = left(self.for_work, began) + ticks;
        let owes = left(self.for_polls, polls) + for_work;
        if owes <= most {
            self.for_work = (for_work, began);
            return 0;
        }
        // The rest pays for the whole debt.
        *self = Debt { last: owes, ..Debt::default() };
        owes
    }
}

/// Returns the remaining part of a debt that was noted at `at`, when the clock that reduces it is
/// at `now`.
fn left((owed, at): (u64, u64), now: u64) -> u64 {
    owed.saturating_sub(now.saturating_sub(at))
}

/// Returns the ticks to charge for an upcall that took `tsc_ticks` by the TSC. The timer fired
/// `timer_ticks` times during it, once every `in_one` ticks. When the host stalls, the TSC goes on
/// and the timer does not; the driver is not to blame.
#[inline]
pub fn counted(tsc_ticks: u64, in_one: u64, timer_ticks: impl FnOnce() -> u32) -> u64 {
    if tsc_ticks <= in_one { tsc_ticks } else { tsc_ticks.min((u64::from(timer_ticks()) + 1) * in_one) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MOST: u64 = 100;

    #[test]
    fn a_driver_that_has_half_of_the_cpu_never_rests() {
        let mut debt = Debt::default();
        for poll in 0..1000 {
            // 50 ticks of polling, and as many in which no driver is polled.
            assert_eq!(debt.add_poll(50, poll * 50, MOST), 0);
            assert!(!debt.is_beyond(MOST));
        }
    }

    #[test]
    fn a_driver_that_has_more_rests_for_all_of_it() {
        let mut debt = Debt::default();
        assert_eq!(debt.add_poll(60, 0, MOST), 0);
        assert_eq!(debt.add_poll(60, 10, MOST), 110);
        assert!(debt.is_beyond(MOST));
        // The rest is over: it owes nothing.
        assert_eq!(debt.add_poll(60, 120, MOST), 0);
        assert!(!debt.is_beyond(MOST));
    }

    #[test]
    fn one_long_poll_is_as_bad_as_many_short_ones() {
        let mut debt = Debt::default();
        assert_eq!(debt.add_poll(1000, 0, MOST), 1000);
        let mut debt = Debt::default();
        let rests: u64 = (0..1000).map(|_| debt.add_poll(1, 0, MOST)).sum();
        assert_eq!(rests, 909, "of nine rests of 101 each");
    }

    #[test]
    fn work_is_paid_by_time_in_which_nothing_is_done() {
        let mut debt = Debt::default();
        assert_eq!(debt.add_work(60, 0, 0, MOST), 0);
        // 30 have been paid in the meantime.
        assert_eq!(debt.add_work(60, 30, 0, MOST), 0);
        assert_eq!(debt.add_work(60, 40, 0, MOST), 140);
        assert!(debt.is_beyond(MOST));
    }

    #[test]
    fn polls_and_work_are_one_debt() {
        let mut debt = Debt::default();
        assert_eq!(debt.add_poll(60, 0, MOST), 0);
        assert_eq!(debt.add_work(60, 0, 10, MOST), 110);
    }

    #[test]
    fn a_successor_owes_what_was_not_paid() {
        let mut dead = Debt::default();
        dead.add_poll(90, 0, MOST);
        let mut fresh = Debt::default();
        fresh.take_over(&dead);
        assert_eq!(fresh.add_poll(20, 0, MOST), 110);
    }

    #[test]
    fn a_stalled_host_is_not_the_drivers_doing() {
        assert_eq!(counted(999, 1000, || unreachable!()), 999);
        assert_eq!(counted(5000, 1000, || 7), 5000);
        assert_eq!(counted(50_000, 1000, || 2), 3000);
    }

    proptest! {
        /// After any sequence of polls, the driver has rested as long as it was polled, except for
        /// polls within the limit and polls that were paid off.
        #[test]
        fn nobody_has_more_than_half(polls in prop::collection::vec((0_u64..500, 0_u64..500), 0..200)) {
            let (mut debt, mut clock, mut polled, mut rested, mut free) = (Debt::default(), 0, 0, 0, 0);
            for (ticks, pause) in polls {
                clock += pause;
                free += pause;
                let rest = debt.add_poll(ticks, clock, MOST);
                polled += ticks;
                rested += rest;
                clock += rest;
            }
            prop_assert!(polled <= rested + free + MOST);
            prop_assert!(rested <= polled);
        }
    }
}
