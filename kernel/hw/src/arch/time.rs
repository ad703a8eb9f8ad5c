//! Time: the TSC, whose rate is measured once, and the tick.

use super::clock::{self, Clocks, PIT, PIT_HZ, Reference};
pub use crate::latency::tsc;

use super::{handlers, line, local_apic};
use core::sync::atomic::{AtomicU64, Ordering};

/// Ticks a second.
pub const TICK_HZ: u32 = 250;

static TSC_PER_SECOND: AtomicU64 = AtomicU64::new(1_000_000_000);
static TSC_PER_TICK: AtomicU64 = AtomicU64::new(u64::MAX);
static TSC_AT_START: AtomicU64 = AtomicU64::new(0);

/// Ticks a second of a TSC slower than that of any CPU, and of any model of one.
const SLOWEST_TSC: u64 = 1_000_000;

/// Measures the TSC and starts the tick: the 8254's, or where that is missing the local APIC's. The
/// error says what the machine lacks: **the rate of the TSC is never guessed**, as all limits and
/// waits go by it.
pub fn init(clocks: &Clocks) -> Result<(), &'static str> {
    TSC_AT_START.store(tsc(), Ordering::Relaxed);
    let mut measured = clocks.references().filter_map(|clock| Some((clock.name(), clock::tsc_rate(&clock)?)));
    let by_clock = measured.find(|(_, rate)| *rate >= SLOWEST_TSC);
    let (measure, per_second) = by_clock.or_else(|| Some(("CPUID", clock::rate_by_cpuid()?))).ok_or(
        "nothing says how fast the TSC is: there is no 8254 timer (PIT), no HPET and no ACPI PM timer that counts, and CPUID has no \
         leaf 15h, 16h or 40000010h",
    )?;
    TSC_PER_SECOND.store(per_second, Ordering::Relaxed);
    TSC_PER_TICK.store(per_second / u64::from(TICK_HZ), Ordering::Relaxed);
    if measure == PIT {
        clock::start_pit_channel_0((PIT_HZ / TICK_HZ) as u16);
        return Ok(());
    }
    local_apic::start_tick(line::OWN_TIMER, TICK_HZ, Reference::tsc(per_second))
        .ok_or("nothing ticks: there is no 8254 timer (PIT), and no local APIC whose timer counts")?;
    log::info!(
        "no 8254 timer (PIT): the TSC counts at {} MHz by the {measure}, and the local APIC ticks",
        (per_second + 500_000) / 1_000_000
    );
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

/// Does something long for the driver whose upcall is under way: something with `len_bytes` bytes
/// of memory, in pieces, between which interrupts are let in. What counts against the upcall is how
/// much that is, and not how long a host takes for it.
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

/// 512 bytes at 115,200 baud take 44 ms. What takes longer is a host that stalls, for which no
/// driver is to blame.
const MOST_CHARGED: u64 = TICK_HZ as u64 / 20;

/// TSC at the last tick that was due.
static LAST_TICK: AtomicU64 = AtomicU64::new(0);

/// Whether it is so long since the last tick that this may be one: half of the time between two. To
/// be asked once a tick.
pub fn is_tick_due() -> bool {
    let (now, last) = (tsc(), LAST_TICK.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(last) >= tsc_per_tick() / 2;
    if is_due {
        LAST_TICK.store(now, Ordering::Relaxed);
    }
    is_due
}

/// The timer interrupt: counts against the upcall under way, and wakes who waited for a time.
pub fn tick() {
    take_ticks(1);
    if let Some(handlers) = handlers::installed() {
        (handlers.timer_tick)();
    }
}

/// Takes so many ticks from what the upcall under way may still see.
fn take_ticks(count: u32) {
    let less = |left: u32| Some(left.saturating_sub(count));
    // It always has a value for it.
    let _ = super::cpu::this().ticks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}
