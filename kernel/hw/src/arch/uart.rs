//! Serial ports of the PC (PC16550D data sheet, 8).

use super::port::IoPort;

/// Registers, as offsets from the first port.
const DATA: u16 = 0;
const INTERRUPTS: u16 = 1;
const FIFO: u16 = 2;
const LINE: u16 = 3;
const MODEM: u16 = 4;
const LINE_STATUS: u16 = 5;
const SCRATCH: u16 = 7;
/// Bits of the line status.
const DATA_READY: u8 = 1;
const CAN_SEND: u8 = 1 << 5;
const ALL_SENT: u8 = 1 << 6;

/// Bytes that can be sent at once when the port reports that it can send.
pub const FIFO_BYTES: usize = 16;

/// The kind of input that a port expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listens {
    /// A person's keys: none may be lost.
    ForKeys,
    /// Many bytes in a row, with checksums.
    ForMany,
}

/// A serial port.
#[derive(Debug, Clone, Copy)]
pub struct Uart {
    base: u16,
}

impl Uart {
    /// COM1.
    pub const FIRST: Uart = Uart { base: 0x3f8 };
    /// COM2.
    pub const SECOND: Uart = Uart { base: 0x2f8 };

    fn read(self, register: u16) -> u8 {
        IoPort::new(self.base + register).read()
    }

    fn write(self, register: u16, value: u8) {
        IoPort::new(self.base + register).write(value);
    }

    /// Sets the port up: 115,200 baud, 8 bits, no parity, an interrupt for input. **Input that has
    /// come before is not lost**: it is returned. If there is any, more may be on its way, so the
    /// FIFOs are left off unless many bytes are to come: turning them on would empty them. `None`
    /// if there is no port.
    pub fn set_up(self, listens: Listens) -> Option<heapless::Vec<u8, 64>> {
        const EIGHT_BITS: u8 = 3;
        const DIVISOR_LATCH: u8 = 1 << 7;
        const FIFO_ON: u8 = 1;
        /// An interrupt for 14 bytes, or when no more come for the time of four.
        const TRIGGER_14: u8 = 3 << 6;
        const RECEIVE_INTERRUPT: u8 = 1;
        /// DTR, RTS, and OUT2, which lets the interrupt out.
        const READY: u8 = 0b1011;
        // A missing port does not keep both values, whichever byte its reads return.
        let keeps = |value| {
            self.write(SCRATCH, value);
            self.read(SCRATCH) == value
        };
        if !keeps(0x5a) || !keeps(0xa5) {
            return None;
        }
        self.write(INTERRUPTS, 0);
        self.write(LINE, EIGHT_BITS);
        let mut early = heapless::Vec::new();
        while !early.is_full() && self.read(LINE_STATUS) & DATA_READY != 0 {
            // The loop has checked that there is room.
            let _ = early.push(self.read(DATA));
        }
        if listens == Listens::ForMany {
            self.write(FIFO, FIFO_ON | TRIGGER_14);
        } else if early.is_empty() {
            self.write(FIFO, FIFO_ON);
        }
        self.write(LINE, EIGHT_BITS | DIVISOR_LATCH);
        self.write(DATA, 1);
        self.write(INTERRUPTS, 0);
        self.write(LINE, EIGHT_BITS);
        self.write(MODEM, READY);
        self.write(INTERRUPTS, RECEIVE_INTERRUPT);
        Some(early)
    }

    /// Returns whether the port takes bytes to send: [`FIFO_BYTES`] of them if its FIFOs are on,
    /// otherwise one.
    pub fn can_send(self) -> bool {
        self.read(LINE_STATUS) & CAN_SEND != 0
    }

    /// Sends a byte, when the port [can](Uart::can_send).
    pub fn put(self, byte: u8) {
        self.write(DATA, byte);
    }

    /// Waits until the port can send, and sends a byte.
    pub fn send(self, byte: u8) {
        while !self.can_send() {
            core::hint::spin_loop();
        }
        self.put(byte);
    }

    /// Returns the next byte that has come.
    pub fn receive(self) -> Option<u8> {
        (self.read(LINE_STATUS) & DATA_READY != 0).then(|| self.read(DATA))
    }

    /// Waits until all bytes are sent. Gives up if the port never reports it.
    pub fn drain(self) {
        for _ in 0..1_000_000 {
            if self.read(LINE_STATUS) & ALL_SENT != 0 {
                break;
            }
        }
    }
}
