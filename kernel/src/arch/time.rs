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

/// Ticks a second of a TSC slower than that of any CPU, and of any model of one.
const SLOWEST_TSC: u64 = 1_000_000;
/// How often its rate is measured.
const TRIES: usize = 3;

/// Calibrates the TSC and starts the tick. The error says what the machine lacks: **the rate of the TSC is never guessed**, as all
/// limits and waits go by it.
pub fn init() -> Result<(), &'static str> {
    TSC_AT_START.store(tsc(), Ordering::Relaxed);
    // What stops the machine in between makes the TSC look faster: the slowest of a few is the truest.
    let slowest = (0..TRIES).try_fold(u64::MAX, |slowest, _| Some(slowest.min(calibrated()?)));
    let per_second = slowest.ok_or("there is no 8254 timer (PIT): its channel 0 does not count")?;
    if per_second < SLOWEST_TSC {
        return Err("the TSC, or the 8254 timer (PIT), is out of order: the one is too slow for the other");
    }
    TSC_PER_SECOND.store(per_second, Ordering::Relaxed);
    TSC_PER_TICK.store(per_second / u64::from(TICK_HZ), Ordering::Relaxed);
    start_channel_0((PIT_HZ / TICK_HZ) as u16);
    Ok(())
}

const CHANNEL_0: u16 = 0x40;
const PIT_COMMAND: u16 = 0x43;

/// Has channel 0 count down from `count` (0 stands for 65536) again and again: rate generator, mode 2.
fn start_channel_0(count: u16) {
    let [low, high] = count.to_le_bytes();
    // SAFETY: the PIT is the kernel's.
    unsafe {
        Port::<u8>::new(PIT_COMMAND).write(0b0011_0100);
        Port::<u8>::new(CHANNEL_0).write(low);
        Port::<u8>::new(CHANNEL_0).write(high);
    }
}

/// What channel 0 has counted down to, latched.
fn channel_0() -> u16 {
    let mut channel = Port::<u8>::new(CHANNEL_0);
    // SAFETY: the PIT is the kernel's.
    unsafe {
        Port::<u8>::new(PIT_COMMAND).write(0);
        u16::from_le_bytes([channel.read(), channel.read()])
    }
}

/// The rate of the TSC, by the PIT's channel 0, which every machine that has one has: not all have the gate of channel 2 (port
/// 0x61). `None` if nothing counts.
fn calibrated() -> Option<u64> {
    const MILLISECONDS: u32 = 5;
    const COUNTS: u16 = (PIT_HZ / 1000 * MILLISECONDS) as u16;
    /// Reads within which it counts down by one at least: each takes a tenth of a microsecond or more.
    const MOST_READS: u32 = 100_000;
    start_channel_0(0);
    // It begins with the next count: what is read before that is of no use.
    let is_another = |from: u16| (0..MOST_READS).map(|_| channel_0()).find(|count| *count != from);
    let began = tsc();
    let first = is_another(channel_0())?;
    let mut last = first;
    while first.wrapping_sub(last) < COUNTS {
        last = is_another(last)?;
    }
    let counted = u64::from(first.wrapping_sub(last));
    Some((tsc() - began) * u64::from(PIT_HZ) / counted)
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
