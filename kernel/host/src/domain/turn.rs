//! What drivers have had of the CPU, and what they owe for it: [`crate::poll`] has them pay.

use core::sync::atomic::{AtomicU64, Ordering};
use hw::arch::time;
use ringfence_abi::upcall::Events;
use ringfence_core::limits::TURN_MS;

/// What all polls have taken, and all work that is charged, in TSC ticks.
static IN_POLLS: AtomicU64 = AtomicU64::new(0);
static IN_WORK: AtomicU64 = AtomicU64::new(0);

/// What a driver has had of the CPU, and what it waits for.
#[derive(Debug, Default)]
pub struct Turn {
    /// TSC ticks in all its upcalls.
    pub all_ticks: u64,
    /// TSC ticks in the last one.
    pub last_ticks: u64,
    /// TSC ticks that its polls have taken and that were not paid off until, by [`poll_clock`], this: what is done for drivers between
    /// polls pays for those, as all does that is no poll.
    owes: (u64, u64),
    /// TSC ticks that it owed after its last poll, or after what was done for it since.
    owed: u64,
    /// The same for what was done for it, by [`free_clock`].
    owes_for_work: (u64, u64),
    /// Since when, by the TSC, it is to be polled, and for what.
    waits: Option<(u64, Events)>,
}

impl Turn {
    /// Whether it is to be polled, when it has rested.
    pub fn is_due(&self) -> bool {
        self.waits.is_some()
    }

    /// Counts an upcall that took `tsc_ticks` and met `timer_ticks` of the timer. When the host stalls, the first go on, and
    /// the second do not; the driver is not to blame.
    #[inline]
    pub fn count(&mut self, mut tsc_ticks: u64, timer_ticks: impl FnOnce() -> u32) {
        let in_one = time::tsc_per_tick();
        if tsc_ticks > in_one {
            tsc_ticks = tsc_ticks.min((u64::from(timer_ticks()) + 1) * in_one);
        }
        self.last_ticks = tsc_ticks;
        self.all_ticks = self.all_ticks.wrapping_add(tsc_ticks);
    }

    /// Since when, by the TSC, it is to be polled, and for what.
    pub fn waits(&self) -> Option<(u64, Events)> {
        self.waits
    }

    /// Has it be polled for `events` as well, when it has rested.
    pub fn wait_for(&mut self, events: Events) {
        let (since, before) = self.waits.unwrap_or((time::tsc(), Events::empty()));
        self.waits = Some((since, before | events));
    }

    /// What it waited to be polled for: that is to be done now.
    #[inline(always)]
    pub fn take_waits(&mut self) -> Option<Events> {
        self.waits.take().map(|(_, events)| events)
    }

    /// Whether it owes so much that it is to rest.
    #[inline(always)]
    pub fn owes_too_much(&self) -> bool {
        is_too_much(self.owed)
    }

    /// Takes over what `dead` owes and has not rested for.
    pub fn take_over(&mut self, dead: &Turn) {
        self.owes = dead.owes;
    }

    /// Charges an upcall that took `tsc_ticks` and began when [`poll_clock`] was `began`; returns for how long it is to rest.
    #[inline(always)]
    pub fn charge(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        IN_POLLS.fetch_add(tsc_ticks, Ordering::Relaxed);
        let owes = left(self.owes, began) + tsc_ticks;
        self.owed = owes;
        // Its rest pays for all.
        let rest = if is_too_much(owes) { owes } else { 0 };
        self.owes = (owes - rest, began);
        rest
    }

    /// Charges what was done for it, which took `tsc_ticks` and began when [`free_clock`] was `began`; returns for how long it is to
    /// rest.
    pub fn charge_work(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        IN_WORK.fetch_add(tsc_ticks, Ordering::Relaxed);
        let for_work = left(self.owes_for_work, began) + tsc_ticks;
        let owes = left(self.owes, poll_clock()) + for_work;
        self.all_ticks = self.all_ticks.wrapping_add(tsc_ticks);
        if !is_too_much(owes) {
            self.owes_for_work = (for_work, began);
            return 0;
        }
        // Its rest pays for all.
        (self.owes, self.owes_for_work, self.owed) = ((0, 0), (0, 0), owes);
        owes
    }
}

/// What is left of a debt, and of when it was noted, when the clock that it is paid off by is at `now`.
fn left((owed, at): (u64, u64), now: u64) -> u64 {
    owed.saturating_sub(now.saturating_sub(at))
}

/// TSC ticks in which no driver was polled and nothing was done for one, since some time or other.
pub fn free_clock() -> u64 {
    poll_clock().saturating_sub(IN_WORK.load(Ordering::Relaxed))
}

/// TSC ticks in which no driver was polled, since some time or other.
#[inline(always)]
pub fn poll_clock() -> u64 {
    time::tsc().saturating_sub(IN_POLLS.load(Ordering::Relaxed))
}

/// Whether a driver that owes so many TSC ticks is to rest.
fn is_too_much(owes: u64) -> bool {
    owes > TURN_MS.get() * (time::tsc_per_second() / 1000)
}
