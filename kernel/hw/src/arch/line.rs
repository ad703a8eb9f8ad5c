//! The numbers of interrupt lines, and their vectors.

/// Vector of line 0; line n has the n-th vector after it.
pub const FIRST_VECTOR: u8 = super::vector::FIRST_INTERRUPT as u8;
/// Lines of the two 8259 controllers.
pub const WIRES: u8 = 16;
/// Lines in all: the lines from [`WIRES`] on are messages.
pub const LINES: u8 = 64;
/// Vector of line 0 if an I/O APIC has the lines; line n has the n-th vector after it.
pub const FIRST_OF_IO_APIC: u8 = FIRST_VECTOR + LINES;
/// Vector of the local APIC's timer, where it provides the tick.
pub const OWN_TIMER: u8 = 0xef;
/// Vector of the local APIC's spurious interrupt (SDM vol. 3A, 11.9), which must not be ended.
pub const SPURIOUS: u8 = 0xff;

/// Line of the timer.
pub const TIMER: u8 = 0;
/// Line of the first controller that the second one is connected to.
pub const CASCADE: u8 = 2;
/// Line of the first serial port.
pub const SERIAL: u8 = 4;
/// Line of the second serial port.
pub const LINK: u8 = 3;
