//! Ports of an NE2000, and their bits: *DP8390D/NS32490D NIC* data sheet, TL/F/8582, section 10.
//! Ports 0x10 and 0x1f belong to the board (*AN-475*, TL/F/9162).

ringfence_sdk::registers! {
    /// The card's ports.
    pub Card: ports 0, 0x20 bytes;
    /// The command register, which is on all pages.
    COMMAND: u8 = 0x00;

    /// Page 0. The first page of the receive ring, and the page behind its last one.
    RING_START: u8 = 0x01;
    RING_STOP: u8 = 0x02;
    /// The last page of the ring that the driver has read.
    BOUNDARY: u8 = 0x03;
    /// Page and length in bytes of the frame to send.
    TRANSMIT_PAGE: u8 = 0x04;
    TRANSMIT_BYTES: [u8; 2] = 0x05;
    /// Causes of interrupts; writing a 1 clears a cause.
    CAUSES: u8 = 0x07;
    /// Address and length in bytes of a transfer through the data port.
    REMOTE_ADDRESS: [u8; 2] = 0x08;
    REMOTE_BYTES: [u8; 2] = 0x0a;
    RECEIVE_CONFIG: u8 = 0x0c;
    TRANSMIT_CONFIG: u8 = 0x0d;
    DATA_CONFIG: u8 = 0x0e;
    /// The causes that interrupt, when written.
    MASK: u8 = 0x0f;
    /// The number of frames lost for lack of room, when read; reading clears it.
    MISSED: u8 = 0x0f;

    /// Page 1. The Ethernet address.
    ADDRESS: [u8; 6] = 0x01;
    /// The page into which the next frame is received.
    CURRENT: u8 = 0x07;
    /// Multicast filter.
    MULTICAST: [u8; 8] = 0x08;

    /// The data port.
    DATA: u16 = 0x10;
    /// Reading this port resets the card.
    RESET: u8 = 0x1f;
}

/// Bits of the command register. One of the three bits for the remote DMA is always set.
pub mod command {
    pub const STOP: u8 = 1 << 0;
    pub const START: u8 = 1 << 1;
    pub const TRANSMIT: u8 = 1 << 2;
    pub const REMOTE_READ: u8 = 1 << 3;
    pub const REMOTE_WRITE: u8 = 2 << 3;
    /// Ends or aborts the remote DMA.
    pub const NO_REMOTE: u8 = 4 << 3;
    pub const PAGE_1: u8 = 1 << 6;
}

/// Causes of interrupts.
pub mod cause {
    pub const RECEIVED: u8 = 1 << 0;
    pub const TRANSMITTED: u8 = 1 << 1;
    pub const RECEIVE_ERROR: u8 = 1 << 2;
    pub const TRANSMIT_ERROR: u8 = 1 << 3;
    /// The ring is full.
    pub const OVERWRITE: u8 = 1 << 4;
    pub const IN_RESET: u8 = 1 << 7;
}

/// Receive configuration: receive broadcasts, receive frames to groups, receive frames to any host.
/// With `MONITOR`, no frame is stored.
pub const TAKE_BROADCAST: u8 = 1 << 2;
pub const TAKE_GROUPS: u8 = 1 << 3;
pub const TAKE_ALL: u8 = 1 << 4;
pub const MONITOR: u8 = 1 << 5;
/// Transmit configuration: loopback inside the chip.
pub const LOOPBACK: u8 = 1 << 1;
/// Data configuration: 16 bits at a time, no loopback, the FIFO's threshold at 8 bytes.
pub const WORDS: u8 = 1 << 0 | 1 << 3 | 2 << 5;

/// Status of a received frame: the frame is intact.
pub const RECEIVED_WELL: u8 = 1 << 0;

/// Bytes in a page of the card's memory.
pub const PAGE: u16 = 256;
/// The board's memory, as the first page and the page behind the last one. In front of this memory
/// is the Ethernet address, each byte twice.
pub const FIRST_PAGE: u8 = 0x40;
pub const END_PAGE: u8 = 0x80;
