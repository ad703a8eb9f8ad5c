//! The drivers' use of the CPU, and their debts for it. [`crate::poll`] makes the drivers pay.

use core::sync::atomic::{AtomicU64, Ordering};
use hw::arch::time;
use ringfence_abi::upcall::Events;
use ringfence_core::debt::{self, Debt};
use ringfence_core::limits::TURN_MS;

/// The TSC ticks of all polls, and of all work that was charged to drivers.
static IN_POLLS: AtomicU64 = AtomicU64::new(0);
static IN_WORK: AtomicU64 = AtomicU64::new(0);

/// A driver's use of the CPU, and the events that it waits to be polled for.
#[derive(Debug, Default)]
pub struct Turn {
    /// TSC ticks of all its upcalls, and of the work done for it.
    pub all_ticks: u64,
    /// The TSC when the last upcall began, or the last part of one.
    pub last_began: u64,
    /// TSC ticks of the last upcall.
    pub last_ticks: u64,
    /// Its debt: measured by [`poll_clock`] for polls, and by [`free_clock`] for work that is done
    /// for it.
    debt: Debt,
    /// The events that it waits to be polled for, and the TSC reading at which it began to wait.
    waits: Option<(u64, Events)>,
    /// The lines that fired, and for which it was polled before the task that serves interrupts
    /// took them.
    pub heard: u64,
    /// How many interrupts it has acknowledged.
    pub acknowledged: u64,
    /// How often in a row its device's line was still raised then, of the times that were looked
    /// at.
    raised: u8,
}

/// One of so many acknowledged interrupts is looked at.
const LOOK_AT: u64 = 256;
/// After so many times it is said that the line stays raised.
const RAISED_TOO_OFTEN: u8 = 16;

impl Turn {
    /// Counts an acknowledged interrupt. Returns whether [`Turn::note_line`] is to be told of the
    /// device's line now.
    #[inline(always)]
    pub fn acknowledge(&mut self) -> bool {
        self.acknowledged = self.acknowledged.wrapping_add(1);
        self.acknowledged.is_multiple_of(LOOK_AT)
    }

    /// Notes whether the device's line is raised after the driver has acknowledged its interrupt.
    /// Returns `true` once, when that has been so too often in a row.
    pub fn note_line(&mut self, is_raised: bool) -> bool {
        if self.raised == RAISED_TOO_OFTEN {
            return false;
        }
        self.raised = if is_raised { self.raised + 1 } else { 0 };
        self.raised == RAISED_TOO_OFTEN
    }

    /// Returns whether the driver is to be polled as soon as it has rested.
    pub fn is_due(&self) -> bool {
        self.waits.is_some()
    }

    /// Counts an upcall that began when the TSC was `began`, and took `tsc_ticks` of the TSC and
    /// `timer_ticks` of the timer. When the host stalls, the TSC goes on and the timer does not;
    /// the driver is not to blame.
    #[inline]
    pub fn count(&mut self, began: u64, tsc_ticks: u64, timer_ticks: impl FnOnce() -> u32) {
        self.last_began = began;
        self.last_ticks = debt::counted(tsc_ticks, time::tsc_per_tick(), timer_ticks);
        self.all_ticks = self.all_ticks.wrapping_add(self.last_ticks);
    }

    /// Returns the events that the driver waits to be polled for, and the TSC reading at which it
    /// began to wait.
    pub fn waits(&self) -> Option<(u64, Events)> {
        self.waits
    }

    /// Adds `events` to the events that the driver is polled for when it has rested.
    pub fn wait_for(&mut self, events: Events) {
        let (since, before) = self.waits.unwrap_or((time::tsc(), Events::empty()));
        self.waits = Some((since, before | events));
    }

    /// Takes the events that the driver waited to be polled for, since it is polled now.
    #[inline(always)]
    pub fn take_waits(&mut self) -> Option<Events> {
        self.waits.take().map(|(_, events)| events)
    }

    /// Returns whether the driver owes so much that it must rest.
    #[inline(always)]
    pub fn owes_too_much(&self) -> bool {
        self.debt.is_beyond(most())
    }

    /// Takes over the debt of `dead` for which that driver has not rested.
    pub fn take_over(&mut self, dead: &Turn) {
        self.debt.take_over(&dead.debt);
    }

    /// Charges an upcall that took `tsc_ticks` and began when the TSC was `began`. No driver may
    /// have been charged since. Returns the time that the driver must rest.
    #[inline(always)]
    pub fn charge(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        let before = IN_POLLS.load(Ordering::Relaxed);
        IN_POLLS.store(before.wrapping_add(tsc_ticks), Ordering::Relaxed);
        self.debt.add_poll(tsc_ticks, began.saturating_sub(before), most())
    }

    /// Charges work for the driver that took `tsc_ticks` and began when [`free_clock`] was `began`.
    /// Returns the time that the driver must rest.
    pub fn charge_work(&mut self, tsc_ticks: u64, began: u64) -> u64 {
        IN_WORK.fetch_add(tsc_ticks, Ordering::Relaxed);
        self.all_ticks = self.all_ticks.wrapping_add(tsc_ticks);
        self.debt.add_work(tsc_ticks, began, poll_clock(), most())
    }
}

/// Returns the TSC ticks in which no driver was polled and no work was done for one, from an
/// arbitrary start.
pub fn free_clock() -> u64 {
    poll_clock().saturating_sub(IN_WORK.load(Ordering::Relaxed))
}

/// Returns the TSC ticks in which no driver was polled, from an arbitrary start.
#[inline(always)]
fn poll_clock() -> u64 {
    time::tsc().saturating_sub(IN_POLLS.load(Ordering::Relaxed))
}

/// Returns the debt in TSC ticks above which a driver must rest.
#[inline]
fn most() -> u64 {
    TURN_MS.get() * time::tsc_per_ms()
}
