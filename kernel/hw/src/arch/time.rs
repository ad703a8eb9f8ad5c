//! Time: the TSC, whose rate is measured once, and the tick.

use super::clock::{self, Clocks, PIT, PIT_HZ, Reference};
pub use crate::latency::tsc;

use super::{handlers, line, local_apic};
use core::sync::atomic::{AtomicU64, Ordering};

/// Ticks per second.
pub const TICK_HZ: u32 = 250;

static TSC_PER_SECOND: AtomicU64 = AtomicU64::new(1_000_000_000);
static TSC_PER_TICK: AtomicU64 = AtomicU64::new(u64::MAX);
static TSC_PER_MS: AtomicU64 = AtomicU64::new(1_000_000);
/// Nanoseconds that a TSC tick takes, times 2 to the power of [`NS_SHIFT`]: a multiplication by it
/// takes a tenth of the instructions of a division by the rate.
static NS_PER_TSC: AtomicU64 = AtomicU64::new(1 << NS_SHIFT);
/// A tick takes at most 1,000 ns ([`SLOWEST_TSC`]), so the product fits into 64 bits. It is exact
/// to 2 parts in 10^15, which is a nanosecond in six days.
const NS_SHIFT: u32 = 52;
static TSC_AT_START: AtomicU64 = AtomicU64::new(0);

/// A TSC rate in Hz below that of any CPU, real or emulated. A slower measurement is not believed.
const SLOWEST_TSC: u64 = 1_000_000;

/// Measures the TSC and starts the tick: by the 8254, or where it is missing by the local APIC. The
/// error names the part that the machine lacks. **The rate of the TSC is never guessed**, as all
/// limits and waits depend on it.
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
    TSC_PER_MS.store(per_second / 1000, Ordering::Relaxed);
    // Rounded up, so that a second's ticks take a second.
    NS_PER_TSC.store((1_000_000_000_u128 << NS_SHIFT).div_ceil(u128::from(per_second)) as u64, Ordering::Relaxed);
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

/// Returns the TSC ticks per second.
pub fn tsc_per_second() -> u64 {
    TSC_PER_SECOND.load(Ordering::Relaxed)
}

/// Returns the TSC ticks per millisecond.
#[inline]
pub fn tsc_per_ms() -> u64 {
    TSC_PER_MS.load(Ordering::Relaxed)
}

/// Returns the TSC ticks per timer tick.
#[inline]
pub fn tsc_per_tick() -> u64 {
    TSC_PER_TICK.load(Ordering::Relaxed)
}

/// Returns the nanoseconds that `ticks` TSC ticks take.
pub fn nanoseconds(ticks: u64) -> u64 {
    ((u128::from(ticks) * u128::from(NS_PER_TSC.load(Ordering::Relaxed))) >> NS_SHIFT) as u64
}

/// Returns the nanoseconds since [`init`].
pub fn uptime_ns() -> u64 {
    uptime_ns_at(tsc())
}

/// Returns the nanoseconds from [`init`] until the TSC had this reading.
pub fn uptime_ns_at(tsc: u64) -> u64 {
    nanoseconds(tsc.saturating_sub(TSC_AT_START.load(Ordering::Relaxed)))
}

/// Does long work for the driver whose upcall is under way: on `len_bytes` bytes of memory, in
/// pieces, between which interrupts are let in. The upcall is charged for the number of bytes, and
/// not for the time, which depends on the host.
pub fn charged<T>(len_bytes: u64, work: impl FnOnce() -> T) -> T {
    let left = &super::cpu::this().ticks_left;
    let before = left.load(Ordering::Relaxed);
    let done = work();
    let ticks = len_bytes.div_ceil(CHARGED_BYTES).saturating_sub(1).min(u32::MAX.into());
    left.store(before.saturating_sub(ticks as u32), Ordering::Relaxed);
    done
}

/// Bytes of memory that one timer tick pays for.
const CHARGED_BYTES: u64 = 4 << 20;

/// Does work for the driver that prints through the serial port, at the port's speed and with
/// interrupts off. The upcall is charged for the time, up to [`MOST_CHARGED`].
pub fn charged_for_words<T>(work: impl FnOnce() -> T) -> T {
    let began = tsc();
    let done = work();
    let missed = nanoseconds(tsc().saturating_sub(began)) / (1_000_000_000 / u64::from(TICK_HZ));
    take_ticks(missed.min(MOST_CHARGED) as u32);
    done
}

/// Most ticks charged: 512 bytes at 115,200 baud take 44 ms. If it takes longer, the host has
/// stalled, for which no driver is to blame.
const MOST_CHARGED: u64 = TICK_HZ as u64 / 20;

/// TSC at the last tick that was due.
static LAST_TICK: AtomicU64 = AtomicU64::new(0);

/// Returns whether this may be a tick: at least half of the time between two ticks has passed since
/// the last one. Must be called once a tick.
pub fn is_tick_due() -> bool {
    let (now, last) = (tsc(), LAST_TICK.load(Ordering::Relaxed));
    let is_due = now.saturating_sub(last) >= tsc_per_tick() / 2;
    if is_due {
        LAST_TICK.store(now, Ordering::Relaxed);
    }
    is_due
}

/// Handles the timer interrupt: charges the upcall under way, and wakes the tasks whose time has
/// come.
pub fn tick() {
    take_ticks(1);
    if let Some(handlers) = handlers::installed() {
        (handlers.timer_tick)();
    }
}

/// Takes `count` ticks from the ticks that the upcall under way may still use.
fn take_ticks(count: u32) {
    let less = |left: u32| Some(left.saturating_sub(count));
    // The closure always returns a value, so the update cannot fail.
    let _ = super::cpu::this().ticks_left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
}
