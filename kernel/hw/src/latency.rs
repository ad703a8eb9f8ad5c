//! How long interrupts are off. What takes long for a driver in ring 1 does it in pieces, and lets
//! interrupts in between them.

use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::interrupts::{self, without_interrupts};

/// A reading of the time stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// TSC when interrupts were turned off, or let in last; and the longest time between two such
/// moments, in TSC ticks.
static OFF_SINCE: AtomicU64 = AtomicU64::new(0);
static LONGEST_OFF: AtomicU64 = AtomicU64::new(0);

/// Lets interrupts in that have come meanwhile, if they are off. No lock may be held that an
/// interrupt's handler takes.
pub fn breathe() {
    if interrupts::are_enabled() {
        return;
    }
    note_off();
    interrupts::enable();
    // They are let in behind the instruction that follows.
    x86_64::instructions::nop();
    interrupts::disable();
    OFF_SINCE.store(tsc(), Ordering::Relaxed);
}

fn note_off() {
    LONGEST_OFF.fetch_max(tsc().saturating_sub(OFF_SINCE.load(Ordering::Relaxed)), Ordering::Relaxed);
}

/// Does `work` with interrupts off, as they are in a gate, and returns the longest time in TSC
/// ticks in which none was let in.
pub fn longest_off(work: impl FnOnce()) -> u64 {
    without_interrupts(|| {
        LONGEST_OFF.store(0, Ordering::Relaxed);
        OFF_SINCE.store(tsc(), Ordering::Relaxed);
        work();
        note_off();
    });
    LONGEST_OFF.load(Ordering::Relaxed)
}
