//! The two 8259A interrupt controllers of a PC (8259A data sheet, "Initialization Command Words").
//! The second controller is connected to line 2 of the first.

use super::line::{CASCADE, FIRST_VECTOR};
use super::port::IoPort;

/// A controller: its command port, and the data port behind it.
struct Controller {
    command: IoPort<u8>,
    data: IoPort<u8>,
}

const CONTROLLERS: [Controller; 2] = [Controller::at(0x20), Controller::at(0xa0)];
/// The edge/level control registers (EISA Specification 3.12, 4.3.4): one bit for each line.
const LEVELS: [IoPort<u8>; 2] = [IoPort::new(0x4d0), IoPort::new(0x4d1)];

impl Controller {
    const fn at(port: u16) -> Controller {
        Controller { command: IoPort::new(port), data: IoPort::new(port + 1) }
    }
}

/// Waits as long as an old controller needs between two words: writes to a port that no device has.
fn pause() {
    const NOBODY: IoPort<u8> = IoPort::new(0x80);
    NOBODY.write(0);
}

/// Initializes both controllers so that line 0 has [`FIRST_VECTOR`], and masks the lines in
/// `masked`. Returns `false` if the controllers are not there.
pub fn init(masked: u16) -> bool {
    /// ICW1: a sequence of four words begins. ICW4: the CPU is an x86.
    const BEGIN: u8 = 0x11;
    const X86: u8 = 1;
    /// ICW3: the first controller is told the cascade line as a bit, the second one as a number.
    const LINES: [u8; 2] = [1 << CASCADE, CASCADE];
    for (index, controller) in CONTROLLERS.iter().enumerate() {
        controller.command.write(BEGIN);
        pause();
        for word in [FIRST_VECTOR + 8 * index as u8, LINES[index], X86] {
            controller.data.write(word);
            pause();
        }
    }
    write_masks(masked);
    // A port without a device reads as ones.
    read_masks() == masked
}

/// Returns the lines that are masked.
pub fn read_masks() -> u16 {
    u16::from_le_bytes(CONTROLLERS.map(|controller| controller.data.read()))
}

/// Masks the lines in `lines`, and no others.
pub fn write_masks(lines: u16) {
    for (controller, mask) in CONTROLLERS.iter().zip(lines.to_le_bytes()) {
        controller.data.write(mask);
    }
}

/// Returns the lines that are in service.
pub fn in_service() -> u16 {
    /// OCW3: the next read of the command port returns the lines in service.
    const READ_IN_SERVICE: u8 = 0x0b;
    u16::from_le_bytes(CONTROLLERS.map(|controller| {
        controller.command.write(READ_IN_SERVICE);
        controller.command.read()
    }))
}

/// Returns the lines that are level-triggered.
pub fn levels() -> u16 {
    u16::from_le_bytes(LEVELS.map(|port| port.read()))
}

/// Ends the interrupt of `line`, which is in service. An interrupt of the second controller is also
/// one of the first controller's cascade line.
pub fn end(line: u8) {
    /// OCW2: ends the interrupt in service with the highest priority.
    const END_OF_INTERRUPT: u8 = 0x20;
    let [first, second] = &CONTROLLERS;
    if line >= 8 {
        second.command.write(END_OF_INTERRUPT);
    }
    first.command.write(END_OF_INTERRUPT);
}
