//! The CPU's own interrupt controller (SDM vol. 3A, 11). It lets the 8259s' interrupts through,
//! takes the interrupts that devices send as messages, and ticks where there is no 8254.
//!
//! **No device raises a vector below 48.** These are the vectors of exceptions, some of which push
//! an error code, and of the 8259s' interrupts. Where a device could send any message, the priority
//! threshold keeps these vectors back.

use super::clock::Reference;
use super::msr;
use crate::memory::registers::Registers;
use core::sync::atomic::{AtomicBool, Ordering};
use ringfence_abi::layout::PAGE_SIZE;
use spin::Once;

const ENABLED: u64 = 1 << 11;
const X2APIC: u64 = 1 << 10;

/// Registers ("Local APIC Register Address Map").
const ID: u32 = 0x20;
const TASK_PRIORITY: u32 = 0x80;
const END_OF_INTERRUPT: u32 = 0xb0;
const SPURIOUS: u32 = 0xf0;
const IN_SERVICE: u32 = 0x100;
const TIMER: u32 = 0x320;
const LINT0: u32 = 0x350;
const INITIAL_COUNT: u32 = 0x380;
const CURRENT_COUNT: u32 = 0x390;
const DIVIDE: u32 = 0x3e0;

/// Vectors up to this one are kept back (SDM vol. 3A, 11.8.3.1): bits 7 to 4 count.
const THRESHOLD: u32 = 0x2f;

/// Turns the local APIC off, unless it provides the tick. Nothing else needs it, and while it is
/// on, a device can raise vectors by writing to its address. When it is off, the controllers'
/// interrupts reach the CPU past it (SDM vol. 3A, 11.4.3).
pub fn turn_off() {
    if is_there() && !TICKS.load(Ordering::Relaxed) {
        let base = base();
        msr::APIC_BASE.write(base & !(ENABLED | X2APIC));
    }
}

/// Bit of a local vector table entry: no interrupt.
const MASKED: u32 = 1 << 16;

/// Whether the tick comes from the local APIC.
static TICKS: AtomicBool = AtomicBool::new(false);

/// Returns whether the CPU has a local APIC, and firmware has left it on.
pub fn is_there() -> bool {
    const HAS_APIC: u32 = 1 << 9;
    core::arch::x86_64::__cpuid(1).edx & HAS_APIC != 0 && base() & ENABLED != 0
}

fn base() -> u64 {
    msr::APIC_BASE.read()
}

/// Makes the local APIC let the external controllers' interrupts through, after any setup by
/// firmware (virtual wire mode: MultiProcessor Specification 1.4, 3.6.2.2).
pub fn let_external_through() {
    /// The APIC is enabled; vector 255 is for spurious interrupts, which an external controller
    /// does not cause.
    const ON: u32 = 1 << 8 | 0xff;
    const EXTERNAL: u32 = 0b111 << 8;
    if is_there() {
        write(TASK_PRIORITY, THRESHOLD);
        write(SPURIOUS, ON);
        write(LINT0, EXTERNAL);
    }
}

/// Lets the 8259s' interrupts through no more.
pub fn keep_external_out() {
    write(LINT0, MASKED);
}

/// Returns the number by which devices address the local APIC. `None` if there is none that is on,
/// or its number takes more than 8 bits.
pub fn number() -> Option<u8> {
    if !is_there() {
        return None;
    }
    // In x2APIC mode the whole register is the number.
    let id = if base() & X2APIC != 0 { read(ID) } else { read(ID) >> 24 };
    u8::try_from(id).ok()
}

/// Makes the timer raise `vector` `hz` times a second. `None` if there is no timer, or it does not
/// count.
pub fn start_tick(vector: u8, hz: u32, reference: Reference) -> Option<()> {
    const BY_16: u32 = 0b0011;
    const PERIODIC: u32 = 1 << 17;
    if !is_there() {
        return None;
    }
    write(DIVIDE, BY_16);
    write(TIMER, MASKED);
    write(INITIAL_COUNT, u32::MAX);
    // The timer counts down.
    let counts = reference.rate(|| u64::from(u32::MAX - read(CURRENT_COUNT)))? / u64::from(hz);
    write(TIMER, PERIODIC | u32::from(vector));
    write(INITIAL_COUNT, u32::try_from(counts).ok().filter(|counts| *counts != 0)?);
    TICKS.store(true, Ordering::Relaxed);
    Some(())
}

/// Returns whether the tick comes from the local APIC.
pub fn ticks() -> bool {
    TICKS.load(Ordering::Relaxed)
}

/// Returns whether the interrupt `vector` has come and has not been ended.
pub fn is_in_service(vector: u8) -> bool {
    let (word, bit) = (u32::from(vector) / 32, u32::from(vector) % 32);
    read(IN_SERVICE + word * 0x10) & 1 << bit != 0
}

/// Ends an interrupt that came from the local APIC.
pub fn end() {
    write(END_OF_INTERRUPT, 0);
}

/// Where the registers are, as firmware has left it.
enum Way {
    /// In memory, if that is mapped.
    Memory(Option<Registers>),
    /// Among the CPU's own registers (x2APIC mode).
    Msrs,
}

/// Returns where the registers are. This is not looked up for each interrupt.
fn way() -> &'static Way {
    static WAY: Once<Way> = Once::new();
    WAY.call_once(|| match base() {
        base if base & X2APIC != 0 => Way::Msrs,
        base => Way::Memory(Registers::at(base & 0xffff_f000, PAGE_SIZE)),
    })
}

fn write(register: u32, value: u32) {
    match way() {
        Way::Msrs => msr::x2apic(register).write(value.into()),
        Way::Memory(Some(registers)) => registers.write32(register.into(), value),
        Way::Memory(None) => {}
    }
}

fn read(register: u32) -> u32 {
    match way() {
        Way::Msrs => msr::x2apic(register).read() as u32,
        Way::Memory(registers) => registers.as_ref().map_or(0, |registers| registers.read32(register.into())),
    }
}
