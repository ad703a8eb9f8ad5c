//! The I/O APIC, which sends lines as messages (82093AA data sheet). This kernel always routes them
//! through the IOMMU's table of interrupts, which knows the I/O APIC by its source id (VT-d,
//! 5.1.5.1). The I/O APIC then takes the place of the 8259s.

use super::line::WIRES;
use crate::memory::registers::Registers;
use spin::Once;

/// Register select, and the register's window (3.1).
const SELECT: u64 = 0;
const WINDOW: u64 = 0x10;
const BYTES: u64 = 0x20;
/// Registers: the version, and two for each pin.
const VERSION: u32 = 1;
const FIRST_PIN: u32 = 0x10;

/// Bits of a pin's lower register (3.2.4).
const MASKED: u32 = 1 << 16;
const LEVEL: u32 = 1 << 15;
const ACTIVE_LOW: u32 = 1 << 13;
/// Bit of a pin's upper register: the bits above it name an entry of the IOMMU's table.
const NAMES_ENTRY: u32 = 1 << 16;

/// The wiring of a line.
#[derive(Debug, Clone, Copy)]
pub struct Pin {
    /// The pin's number.
    pub number: u8,
    /// Whether the pin is level-triggered.
    pub is_level: bool,
    /// Whether the pin is active low.
    pub is_low: bool,
    /// The pin's vector.
    pub vector: u8,
    /// The pin's entry of the IOMMU's table.
    pub entry: u8,
}

/// The I/O APIC that is used.
pub struct IoApic {
    registers: Registers,
    /// By line: the pin, and the value of its lower register when it is not masked.
    pins: [Option<(u8, u32)>; WIRES as usize],
}

static IO_APIC: Once<IoApic> = Once::new();

/// Sets up the I/O APIC with registers at physical address `registers`, with a pin for each line.
/// Returns `false` if it is not there, or has fewer pins.
pub(super) fn init(registers: u64, pins: [Option<Pin>; WIRES as usize]) -> bool {
    let Some(registers) = Registers::at(registers, BYTES) else { return false };
    let read = |register| {
        registers.write32(SELECT, register);
        registers.read32(WINDOW)
    };
    let write = |register, value| {
        registers.write32(SELECT, register);
        registers.write32(WINDOW, value);
    };
    let last = read(VERSION) >> 16 & 0xff;
    if last == 0xff || pins.iter().flatten().any(|pin| u32::from(pin.number) > last) {
        return false;
    }
    // Mask all pins: firmware may have set them up.
    for pin in 0..=last {
        write(FIRST_PIN + 2 * pin, MASKED);
    }
    let pins = pins.map(|pin| {
        let pin = pin?;
        let level = if pin.is_level { LEVEL } else { 0 };
        let low = u32::from(pin.vector) | level | if pin.is_low { ACTIVE_LOW } else { 0 };
        let register = FIRST_PIN + 2 * u32::from(pin.number);
        write(register + 1, NAMES_ENTRY | u32::from(pin.entry) << 17);
        write(register, low | MASKED);
        Some((pin.number, low))
    });
    IO_APIC.call_once(|| IoApic { registers, pins });
    true
}

/// Masks or unmasks a line; `false` if the 8259s have it. Interrupts must be off, as selecting a
/// register and writing it are two steps.
pub fn set_masked(line: u8, masked: bool) -> bool {
    let Some(IoApic { registers, pins }) = IO_APIC.get() else { return false };
    if let Some((pin, low)) = pins.get(usize::from(line)).copied().flatten() {
        registers.write32(SELECT, FIRST_PIN + 2 * u32::from(pin));
        registers.write32(WINDOW, if masked { low | MASKED } else { low });
    }
    true
}
