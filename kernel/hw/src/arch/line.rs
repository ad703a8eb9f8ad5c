//! The numbers of interrupt lines, and the vectors that they have.

/// Vector of line 0; line n has the n-th after it.
pub const FIRST_VECTOR: u8 = super::vector::FIRST_INTERRUPT as u8;
/// Lines of the two controllers.
pub const WIRES: u8 = 16;
/// Lines in all: those from [`WIRES`] on are messages.
pub const LINES: u8 = 64;
/// Vector of line 0 where an I/O APIC has it; line n has the n-th after it.
pub const FIRST_OF_IO_APIC: u8 = FIRST_VECTOR + LINES;
/// Vector of the local APIC's timer, where that ticks.
pub const OWN_TIMER: u8 = 0xef;
/// Vector of the local APIC's for an interrupt that there was not (SDM vol. 3A, 11.9), which is not
/// ended.
pub const SPURIOUS: u8 = 0xff;

/// Line of the timer.
pub const TIMER: u8 = 0;
/// Line of the second controller at the first one.
pub const CASCADE: u8 = 2;
/// Line of the serial port.
pub const SERIAL: u8 = 4;
