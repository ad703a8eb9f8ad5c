//! What drivers have had of the CPU, and what they owe for it: [`crate::poll`] has them pay.

use core::sync::atomic::{AtomicU64, Ordering};
use hw::arch::time;
use ringfence_abi::upcall::Events;
use ringfence_core::debt::{self, Debt};
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
    /// What it owes for that: by [`poll_clock`] for polls, by [`free_clock`] for what is done for
    /// it.
    debt: Debt,
    /// Since when, by the TSC, it is to be polled, and for what.
    waits: Option<(u64, Events)>,
}

impl Turn {
    /// Whether it is to be polled, when it has rested.
    pub fn is_due(&self) -> bool {
        self.waits.is_some()
    }

    /// Counts an upcall that took `tsc_ticks` and met `timer_ticks` of the timer. When the host
    /// stalls, the first go on, and the second do not; the driver is not to blame.
    #[inline]
    pub fn count(&mut self, tsc_ticks: u64, timer_ticks: impl FnOnce() -> u32) {
        self.last_ticks = debt::counted(tsc_ticks, time::tsc_per_tick(), timer_ticks);
        self.all_ticks = self.all_ticks.wrapping_add(self.last_ticks);
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
        self.debt.is_beyond(most())
    }

    /// Takes over what `dead` owes and has not rested for.
    pub fn take_over(&mut self, dead: &Turn) {
        self.debt.take_over(&dead.debt);
    }

    /// Charges an upcall that took `tsc_ticks` and began when [`poll_clock`] was `began`; returns
    /// for how long it is to rest.
    #[inline(always)]
    pub fn charge(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        IN_POLLS.fetch_add(tsc_ticks, Ordering::Relaxed);
        self.debt.add_poll(tsc_ticks, began, most())
    }

    /// Charges what was done for it, which took `tsc_ticks` and began when [`free_clock`] was
    /// `began`; returns for how long it is to rest.
    pub fn charge_work(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        IN_WORK.fetch_add(tsc_ticks, Ordering::Relaxed);
        self.all_ticks = self.all_ticks.wrapping_add(tsc_ticks);
        self.debt.add_work(tsc_ticks, began, poll_clock(), most())
    }
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

/// A driver that owes more TSC ticks than these is to rest.
fn most() -> u64 {
    TURN_MS.get() * (time::tsc_per_second() / 1000)
}
