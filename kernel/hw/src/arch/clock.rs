//! Counters of the machine with a known rate, by which the rates of other counters are measured.

use super::port::IoPort;
use crate::latency::tsc;
use crate::memory::registers::Registers;
use core::iter::once_with;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_core::acpi::{Place, PmTimer};

/// The places of the clocks, as firmware gives them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Clocks {
    /// Physical address of the high precision event timer's registers.
    pub hpet: Option<u64>,
    /// The power management timer.
    pub pm_timer: Option<PmTimer>,
}

impl Clocks {
    /// Returns all counters with a known rate; each is started when the iterator reaches it.
    pub fn references(&self) -> impl Iterator<Item = Reference> {
        let pit = once_with(start_pit);
        let hpet = once_with(|| self.hpet.and_then(start_hpet));
        let pm_timer = once_with(|| self.pm_timer.and_then(Reference::pm_timer));
        pit.chain(hpet).chain(pm_timer).flatten()
    }
}

/// A counter with a known rate.
#[derive(Debug, Clone, Copy)]
pub struct Reference {
    counter: Counter,
    /// Counts per second.
    hz: u64,
    /// The bits that count.
    mask: u32,
}

#[derive(Debug, Clone, Copy)]
enum Counter {
    Pit,
    Hpet(Registers),
    /// A timer with its counter in a page of memory.
    PmTimerInMemory {
        page: Registers,
        offset: u64,
    },
    PmTimer(u16),
    Tsc,
}

/// Name of the 8254, which also ticks by itself.
pub const PIT: &str = "PIT";

/// How long a rate is measured.
const MILLISECONDS: u64 = 5;
/// Number of reads within which each counter changes at least once: a read takes a tenth of a
/// microsecond or more.
const MOST_READS: u32 = 20_000;

impl Reference {
    fn pm_timer(timer: PmTimer) -> Option<Reference> {
        let mask = if timer.has_32_bits { u32::MAX } else { 0xff_ffff };
        let counter = match timer.place {
            Place::Port(port) => Counter::PmTimer(port),
            Place::Memory(address) => {
                let offset = address % PAGE_SIZE;
                Counter::PmTimerInMemory { page: Registers::at(address - offset, PAGE_SIZE)?, offset }
            }
        };
        Some(Reference { counter, hz: 3_579_545, mask })
    }

    /// Makes a reference from the TSC, once its rate in Hz is known.
    pub fn tsc(hz: u64) -> Reference {
        Reference { counter: Counter::Tsc, hz, mask: u32::MAX }
    }

    /// Returns the counter's name; [`PIT`] is the 8254.
    pub fn name(&self) -> &'static str {
        match self.counter {
            Counter::Pit => PIT,
            Counter::Hpet(_) => "HPET",
            Counter::PmTimerInMemory { .. } | Counter::PmTimer(_) => "ACPI PM timer",
            Counter::Tsc => "TSC",
        }
    }

    /// Measures how much `counter`, which counts up, counts in a second. `None` if the reference
    /// stands still.
    pub fn rate(&self, counter: impl Fn() -> u64) -> Option<u64> {
        // The reference may stay at a count for a while, so the measurement begins when the count
        // changes.
        let is_another = |from: u32| (0..MOST_READS).map(|_| self.read()).find(|count| *count != from);
        let first = is_another(self.read())?;
        let began = counter();
        let mut last = first;
        while u64::from(last.wrapping_sub(first) & self.mask) < self.hz * MILLISECONDS / 1000 {
            last = is_another(last)?;
        }
        let counted = counter().wrapping_sub(began);
        let passed = u64::from(last.wrapping_sub(first) & self.mask);
        u64::try_from(u128::from(counted) * u128::from(self.hz) / u128::from(passed)).ok()
    }

    fn read(&self) -> u32 {
        match self.counter {
            // The PIT counts down.
            Counter::Pit => u32::from(pit_channel_0()).wrapping_neg() & self.mask,
            Counter::Tsc => tsc() as u32,
            Counter::Hpet(registers) => registers.read32(HPET_COUNTER) & self.mask,
            Counter::PmTimerInMemory { page, offset } => page.read32(offset) & self.mask,
            Counter::PmTimer(port) => IoPort::<u32>::new(port).read() & self.mask,
        }
    }
}

/// Returns the rate of the TSC in Hz as the CPU or its hypervisor gives it (SDM vol. 2A, CPUID,
/// leaves 15h and 16h; leaf 40000010h as VMware defined it and others adopted it).
pub fn rate_by_cpuid() -> Option<u64> {
    const FIRST_OF_HYPERVISOR: u32 = 0x4000_0000;
    const IS_GUEST: u32 = 1 << 31;
    const TIMING: u32 = FIRST_OF_HYPERVISOR + 0x10;
    let leaf = |leaf, last| (leaf <= last).then(|| core::arch::x86_64::__cpuid(leaf));
    let last = core::arch::x86_64::__cpuid(0).eax;
    let by_crystal = leaf(0x15, last)
        .filter(|leaf| leaf.eax != 0)
        .map(|leaf| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax));
    let is_guest = core::arch::x86_64::__cpuid(1).ecx & IS_GUEST != 0;
    let last_of_hypervisor = if is_guest { core::arch::x86_64::__cpuid(FIRST_OF_HYPERVISOR).eax } else { 0 };
    let by_hypervisor = leaf(TIMING, last_of_hypervisor).map(|leaf| u64::from(leaf.eax) * 1000);
    let by_name = leaf(0x16, last).map(|leaf| u64::from(leaf.eax & 0xffff) * 1_000_000);
    [by_crystal, by_hypervisor, by_name].into_iter().flatten().find(|hz| *hz != 0)
}

/// Measures the rate of the TSC in Hz by `reference`; `None` if the reference stands still.
pub fn tsc_rate(reference: &Reference) -> Option<u64> {
    /// If the machine is stopped in between, the TSC looks faster: the slowest of a few results is
    /// the most accurate. Two that differ by less than a part in so many are enough.
    const TRIES: usize = 3;
    const NEAR: u64 = 2000;
    let mut slowest = reference.rate(tsc)?;
    for _ in 1..TRIES {
        let next = reference.rate(tsc)?;
        let are_near = slowest.abs_diff(next) < next / NEAR;
        slowest = slowest.min(next);
        if are_near {
            break;
        }
    }
    Some(slowest)
}

/// Input clock of the PIT in Hz (8254 data sheet, as wired in the PC).
pub const PIT_HZ: u32 = 1_193_182;
const PIT_CHANNEL_0: IoPort<u8> = IoPort::new(0x40);
const PIT_COMMAND: IoPort<u8> = IoPort::new(0x43);

/// Makes the PIT's channel 0 count down from `count` (0 stands for 65536) again and again: rate
/// generator, mode 2. Every PIT has channel 0; not every machine has the gate of channel 2 (port
/// 0x61).
pub fn start_pit_channel_0(count: u16) {
    let [low, high] = count.to_le_bytes();
    PIT_COMMAND.write(0b0011_0100);
    PIT_CHANNEL_0.write(low);
    PIT_CHANNEL_0.write(high);
}

/// Returns the current count of channel 0, latched.
fn pit_channel_0() -> u16 {
    PIT_COMMAND.write(0);
    u16::from_le_bytes([PIT_CHANNEL_0.read(), PIT_CHANNEL_0.read()])
}

/// Starts the PIT's channel 0. `None` if it does not count.
fn start_pit() -> Option<Reference> {
    start_pit_channel_0(0);
    let first = pit_channel_0();
    let counts = (0..MOST_READS).any(|_| pit_channel_0() != first);
    counts.then_some(Reference { counter: Counter::Pit, hz: PIT_HZ.into(), mask: 0xffff })
}

/// Registers of the HPET (IA-PC HPET specification 1.0a, 2.3).
const HPET_PERIOD: u64 = 4;
const HPET_CONFIGURATION: u64 = 0x10;
const HPET_COUNTER: u64 = 0xf0;
const HPET_BYTES: u64 = 0x400;

/// Starts the HPET at this physical address. `None` if its period is not valid.
fn start_hpet(registers: u64) -> Option<Reference> {
    const ENABLE: u32 = 1;
    const FEMTOSECONDS: u64 = 1_000_000_000_000_000;
    /// 100 ns, the longest period that the specification allows.
    const LONGEST_PERIOD: u32 = 100_000_000;
    let registers = Registers::at(registers, HPET_BYTES)?;
    let period = Some(registers.read32(HPET_PERIOD)).filter(|period| (1..=LONGEST_PERIOD).contains(period))?;
    registers.write32(HPET_CONFIGURATION, registers.read32(HPET_CONFIGURATION) | ENABLE);
    Some(Reference { counter: Counter::Hpet(registers), hz: FEMTOSECONDS / u64::from(period), mask: u32::MAX })
}
