//! Registers of the RTL8139 and their bits (*RTL8139C(L) Data Sheet*, 1.4, section 5). One BAR has
//! them in memory, another as ports.

ringfence_sdk::registers! {
    /// The card's registers.
    pub Card: memory 1 or ports 0, 0x100 bytes;
    /// The Ethernet address, and the multicast filter.
    ADDRESS: [u8; 6] = 0x00;
    MULTICAST: [u32; 2] = 0x08;
    /// Status of a frame to send, and where it lies.
    TX_STATUS: [u32; 4] = 0x10;
    TX_ADDRESS: [u32; 4] = 0x20;
    /// Where the receive ring lies.
    RING: u32 = 0x30;
    COMMAND: u8 = 0x37;
    /// Where the driver reads in the ring, less 16.
    READ: u16 = 0x38;
    MASK: u16 = 0x3c;
    /// Causes of interrupts, which writing a 1 clears.
    CAUSES: u16 = 0x3e;
    TX_CONFIGURATION: u32 = 0x40;
    RX_CONFIGURATION: u32 = 0x44;
    /// Frames that were lost for want of room; writing clears it.
    MISSED: u32 = 0x4c;
    /// 0 wakes the chip up.
    CONFIGURATION_1: u8 = 0x52;
    MEDIA_STATUS: u8 = 0x58;
}

/// MEDIA_STATUS: there is no link.
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
/// The same with frames to any host, and to groups.
pub const RX_ALL: u32 = 1 << 0;
pub const RX_GROUPS: u32 = 1 << 2;
/// The ring's length, as that says.
pub const RING_BYTES: usize = 32 << 10;

/// Status of a received frame: it is whole.
pub const RECEIVED_WELL: u16 = 1 << 0;
/// Its length while the card is still writing it.
pub const UNFINISHED: u16 = 0xfff0;
