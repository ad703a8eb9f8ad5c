//! Time: the TSC, calibrated once against the PIT, and the PIT's tick.

use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::instructions::port::Port;

/// Ticks a second.
pub const TICK_HZ: u32 = 250;
/// Input clock of the PIT in Hz (8254 data sheet, as wired in the PC).
const PIT_HZ: u32 = 1_193_182;

static TSC_PER_SECOND: AtomicU64 = AtomicU64::new(1_000_000_000);
static TSC_PER_TICK: AtomicU64 = AtomicU64::new(u64::MAX);
static TSC_AT_START: AtomicU64 = AtomicU64::new(0);

/// A reading of the time stamp counter.
#[inline]
pub fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Ticks a second of a TSC slower than that of any 64-bit CPU.
const SLOWEST_TSC: u64 = 100_000_000;
/// Reads of port 0x61 within which the PIT's channel 2 must come to its end.
const MOST_READS: u32 = 10_000_000;

/// Calibrates the TSC and starts the tick. The error says what the machine lacks: **the rate of the TSC is never guessed**, as all
/// limits and waits go by it.
pub fn init() -> Result<(), &'static str> {
    let start = tsc();
    TSC_AT_START.store(start, Ordering::Relaxed);
    const MILLISECONDS: u32 = 10;
    let count = (PIT_HZ / 1000 * MILLISECONDS) as u16;
    // Channel 2 counts down once (mode 0); its output is bit 5 of port 0x61, its gate bit 0.
    let (mut command, mut channel2, mut gate) = (Port::<u8>::new(0x43), Port::<u8>::new(0x42), Port::<u8>::new(0x61));
    // SAFETY: the PIT and its gate are the kernel's.
    let elapsed = unsafe {
        let before = gate.read() & !0b11;
        gate.write(before | 1);
        command.write(0b1011_0000);
        channel2.write(count as u8);
        channel2.write((count >> 8) as u8);
        let start = tsc();
        // A read of a port takes a tenth of a microsecond at least.
        let came = (0..MOST_READS).any(|_| gate.read() & 1 << 5 != 0);
        let elapsed = tsc() - start;
        gate.write(before);
        if !came {
            return Err("there is no 8254 timer (PIT): its channel 2 never comes to its end");
        }
        elapsed
    };
    let per_second = elapsed * 1000 / u64::from(MILLISECONDS);
    if per_second < SLOWEST_TSC {
        return Err("there is no 8254 timer (PIT), or no port 0x61: its channel 2 is at its end at once");
    }
    TSC_PER_SECOND.store(per_second, Ordering::Relaxed);
    TSC_PER_TICK.store(per_second / u64::from(TICK_HZ), Ordering::Relaxed);

    // Channel 0: rate generator (mode 2).
    let divisor = (PIT_HZ / TICK_HZ) as u16;
    let mut channel0 = Port::<u8>::new(0x40);
    // SAFETY: as above.
    unsafe {
        command.write(0b0011_0100);
        channel0.write(divisor as u8);
        channel0.write((divisor >> 8) as u8);
    }
    Ok(())
}

/// TSC ticks a second.
pub fn tsc_per_second() -> u64 {
    TSC_PER_SECOND.load(Ordering::Relaxed)
}

/// TSC ticks in one of the timer's.
#[inline]
pub fn tsc_per_tick() -> u64 {
    TSC_PER_TICK.load(Ordering::Relaxed)
}

/// Nanoseconds that `ticks` TSC ticks take.
pub fn nanoseconds(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(tsc_per_second())) as u64
}

/// Nanoseconds since [`init`].
pub fn uptime_ns() -> u64 {
    nanoseconds(tsc().saturating_sub(TSC_AT_START.load(Ordering::Relaxed)))
}

/// Does something long for the driver whose upcall is under way: something with `len_bytes` bytes of memory, in pieces, between which
/// interrupts are let in. What counts against the upcall is how much that is, and not how long a host takes for it.
pub fn charged<T>(len_bytes: u64, work: impl FnOnce() -> T) -> T {
    let left = &super::cpu::this().ticks_left;
    let before = left.load(Ordering::Relaxed);
    let done = work();
    let ticks = len_bytes.div_ceil(CHARGED_BYTES).saturating_sub(1).min(u32::MAX.into());
    left.store(before.saturating_sub(ticks as u32), Ordering::Relaxed);
    done
}

/// Bytes of memory that a tick of the timer pays for.
const CHARGED_BYTES: u64 = 4 << 20;

/// The same for words that go out through the serial port, at its speed, with interrupts off.
pub fn charged_for_words<T>(work: impl FnOnce() -> T) -> T {
    let began = tsc();
    let done = work();
    let missed = nanoseconds(tsc().saturating_sub(began)) / (1_000_000_000 / u64::from(TICK_HZ));
    take_ticks(missed.min(MOST_CHARGED) as u32);
    done
}

/// 512 bytes at 115,200 baud take 44 ms. What takes longer is a host that stalls, for which no driver is to blame.
const MOST_CHARGED: u64 = TICK_HZ as u64 / 20;

/// The timer interrupt: counts against the upcall under way, and wakes who waited for a time.
pub fn tick() {
    take_ticks(1);
    crate::task::tick();
}

/// Takes so many ticks from what the upcall under way may still see.
fn take_ticks(count: u32) {
    let less = |left: u32| Some(left.saturating_sub(count));
    // It always has a value for it.
    let _ = super::cpu::this().ticks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}
