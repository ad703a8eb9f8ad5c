//! Registers of the RTL8139, as offsets in its BARs, of which one has them as ports and one in
//! memory (*RTL8139C(L) Data Sheet*, 1.4, section 5), and how they are reached.

use ringfence_sdk::Result;
use ringfence_sdk::device::{Mmio, Ports};

/// The Ethernet address, 6 bytes, and the multicast filter, 8 bytes.
pub const ADDRESS: u16 = 0x00;
pub const MULTICAST: u16 = 0x08;
/// Status of a frame to send, and where it lies: four of each, 4 bytes apart.
pub const TX_STATUS: u16 = 0x10;
pub const TX_ADDRESS: u16 = 0x20;
/// Where the receive ring lies.
pub const RING: u16 = 0x30;
pub const COMMAND: u16 = 0x37;
/// Where the driver reads in the ring, less 16.
pub const READ: u16 = 0x38;
pub const MASK: u16 = 0x3c;
/// Causes of interrupts, which writing a 1 clears.
pub const CAUSES: u16 = 0x3e;
pub const TX_CONFIGURATION: u16 = 0x40;
pub const RX_CONFIGURATION: u16 = 0x44;
/// Frames that were lost for want of room; writing clears it.
pub const MISSED: u16 = 0x4c;
/// 0 wakes the chip up.
pub const CONFIGURATION_1: u16 = 0x52;
pub const MEDIA_STATUS: u16 = 0x58;
/// Bit of that: there is no link.
pub const NO_LINK: u8 = 1 << 2;

pub mod command {
    /// Nothing is in the ring.
    pub const EMPTY: u8 = 1 << 0;
    pub const TRANSMIT: u8 = 1 << 2;
    pub const RECEIVE: u8 = 1 << 3;
    pub const RESET: u8 = 1 << 4;
}

pub mod cause {
    pub const RECEIVED: u16 = 1 << 0;
    pub const RECEIVE_ERROR: u16 = 1 << 1;
    pub const TRANSMITTED: u16 = 1 << 2;
    pub const TRANSMIT_ERROR: u16 = 1 << 3;
    pub const RING_FULL: u16 = 1 << 4;
    pub const LINK: u16 = 1 << 5;
    pub const FIFO_FULL: u16 = 1 << 6;
}

/// Bits of a frame's status: the length is in the lower 13.
pub mod tx {
    /// The card has read all of it.
    pub const OWN: u32 = 1 << 13;
    pub const SENT: u32 = 1 << 15;
    pub const UNDERRUN: u32 = 1 << 14;
    pub const GIVEN_UP: u32 = 1 << 30;
}

/// Up to 1 KiB in a burst, the gap between frames of the standard.
pub const TX_NORMAL: u32 = 6 << 8 | 3 << 24;
/// Frames to its own address and to all; bursts of any length; a ring of 32 KiB, at whose end a
/// frame goes on at the beginning; no threshold. With bit 7 it would go on behind the ring, as far
/// as whoever sends it likes, with QEMU's model.
pub const RX_NORMAL: u32 = 1 << 1 | 1 << 3 | 7 << 8 | 2 << 11 | 7 << 13;
/// The ring's length, as that says.
pub const RING_BYTES: usize = 32 << 10;

/// Status of a received frame: it is whole.
pub const RECEIVED_WELL: u16 = 1 << 0;
/// Its length while the card is still writing it.
pub const UNFINISHED: u16 = 0xfff0;

/// The registers, by either of the card's BARs.
#[derive(Clone, Copy)]
pub enum Registers {
    Memory(Mmio),
    Ports(Ports),
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        #[track_caller]
        pub fn $read(&self, offset: u16) -> $type {
            match self {
                Registers::Memory(memory) => memory.$read(offset.into()),
                Registers::Ports(ports) => ports.$read(offset),
            }
        }

        #[track_caller]
        pub fn $write(&self, offset: u16, value: $type) {
            match self {
                Registers::Memory(memory) => memory.$write(offset.into(), value),
                Registers::Ports(ports) => ports.$write(offset, value),
            }
        }
    };
}

impl Registers {
    pub fn in_memory() -> Result<Registers> {
        Mmio::map(1).map(Registers::Memory)
    }

    pub fn as_ports() -> Result<Registers> {
        Ports::open(0).map(Registers::Ports)
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}
