//! Measures how long interrupts are off. Work that takes long for a driver in ring 1 is done in
//! pieces, and interrupts are let in between them.

use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::interrupts::{self, without_interrupts};

/// Reads the time stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// TSC when interrupts were turned off, or last let in; and the longest time between two such
/// moments, in TSC ticks.
static OFF_SINCE: AtomicU64 = AtomicU64::new(0);
static LONGEST_OFF: AtomicU64 = AtomicU64::new(0);

/// Lets pending interrupts in, if interrupts are off. The caller must not hold a lock that an
/// interrupt handler takes.
pub fn breathe() {
    if interrupts::are_enabled() {
        return;
    }
    note_off();
    interrupts::enable();
    // Interrupts are let in only after the instruction that follows STI.
    x86_64::instructions::nop();
    interrupts::disable();
    OFF_SINCE.store(tsc(), Ordering::Relaxed);
}

fn note_off() {
    LONGEST_OFF.fetch_max(tsc().saturating_sub(OFF_SINCE.load(Ordering::Relaxed)), Ordering::Relaxed);
}

/// Does `work` with interrupts off, as they are in a gate. Returns the longest time without an
/// interrupt let in, in TSC ticks.
pub fn longest_off(work: impl FnOnce()) -> u64 {
    without_interrupts(|| {
        LONGEST_OFF.store(0, Ordering::Relaxed);
        OFF_SINCE.store(tsc(), Ordering::Relaxed);
        work();
        note_off();
    });
    LONGEST_OFF.load(Ordering::Relaxed)
}
