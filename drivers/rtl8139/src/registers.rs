//! Registers of the RTL8139 and their bits (*RTL8139C(L) Data Sheet*, 1.4, section 5). The same
//! registers are in a memory BAR and in an I/O BAR.

ringfence_sdk::registers! {
    /// The card's registers.
    pub Card: memory 1 or ports 0, 0x100 bytes;
    /// The Ethernet address, and the multicast filter.
    ADDRESS: [u8; 6] = 0x00;
    MULTICAST: [u32; 2] = 0x08;
    /// Status and address of each frame to send.
    TX_STATUS: [u32; 4] = 0x10;
    TX_ADDRESS: [u32; 4] = 0x20;
    /// The address of the receive ring.
    RING: u32 = 0x30;
    COMMAND: u8 = 0x37;
    /// The driver's read position in the ring, minus 16.
    READ: u16 = 0x38;
    MASK: u16 = 0x3c;
    /// Causes of interrupts; writing a 1 clears a cause.
    CAUSES: u16 = 0x3e;
    TX_CONFIGURATION: u32 = 0x40;
    RX_CONFIGURATION: u32 = 0x44;
    /// Number of frames lost for lack of room; a write clears it.
    MISSED: u32 = 0x4c;
    /// Writing 0 wakes the chip up.
    CONFIGURATION_1: u8 = 0x52;
    MEDIA_STATUS: u8 = 0x58;
}

/// MEDIA_STATUS: the link is down.
pub const NO_LINK: u8 = 1 << 2;

pub mod command {
    /// The ring is empty.
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

/// Bits of the status of a frame to send. The lower 13 bits are the length.
pub mod tx {
    /// The card has read the whole frame.
    pub const OWN: u32 = 1 << 13;
    pub const SENT: u32 = 1 << 15;
    pub const UNDERRUN: u32 = 1 << 14;
    pub const GIVEN_UP: u32 = 1 << 30;
}

/// Bursts of up to 1 KiB, the standard gap between frames.
pub const TX_NORMAL: u32 = 6 << 8 | 3 << 24;
/// Receive frames to the card's own address and to all; bursts of any length; a ring of 32 KiB; no
/// threshold. A frame at the end of the ring continues at its beginning. With bit 7 set, the frame
/// would continue behind the ring. In QEMU's model, the sender of the frame would determine how
/// far.
pub const RX_NORMAL: u32 = 1 << 1 | 1 << 3 | 7 << 8 | 2 << 11 | 7 << 13;
/// In addition: frames to any host (`RX_ALL`), and frames to groups (`RX_GROUPS`).
pub const RX_ALL: u32 = 1 << 0;
pub const RX_GROUPS: u32 = 1 << 2;
/// The length of the ring that [`RX_NORMAL`] selects.
pub const RING_BYTES: usize = 32 << 10;

/// Status of a received frame: the frame is intact.
pub const RECEIVED_WELL: u16 = 1 << 0;
/// The length of a received frame while the card is still writing it.
pub const UNFINISHED: u16 = 0xfff0;
