//! Registers and descriptor bits of the 82540EM (manual table 13-2 and chapters 3 and 13). Offsets
//! in bytes.

/// Device control (13.4.1).
pub const CTRL: usize = 0x0000;
/// Device status (13.4.2).
pub const STATUS: usize = 0x0008;
/// STATUS: link up.
pub const STATUS_LU: u32 = 1 << 1;
/// EEPROM read (13.4.4).
pub const EERD: usize = 0x0014;
/// A register of the PHY (13.4.8): data, its number, the PHY's, and what is done with it.
pub const MDIC: usize = 0x0020;
/// MDIC: write the control register of PHY 1 (13.4.8, 11.3.1): autonegotiation, full duplex, a
/// gigabit, and no loopback.
pub const MDIC_NORMAL: u32 = 1 << 26 | 1 << 21 | 0x1140;
/// MDIC: it is done.
pub const MDIC_READY: u32 = 1 << 28;
/// Interrupt cause read; reading clears (13.4.17).
pub const ICR: usize = 0x00c0;
/// Which of the interrupts of its own each cause raises; which causes that clears; and what else is
/// up to the card (82574 datasheet, 10.2.4.9, 10.2.4.6 and 10.2.2.5).
pub const IVAR: usize = 0x00e4;
pub const EIAC: usize = 0x00dc;
pub const CTRL_EXT: usize = 0x0018;
/// IVAR: reception raises the first, transmission the second, and all else the third.
pub const IVAR_THREE: u32 = 0b1000 | 0b1001 << 8 | 0b1010 << 16;
/// CTRL_EXT: what is masked when a cause is cleared, IAM says: nothing.
pub const CTRL_EXT_IAME: u32 = 1 << 27;
/// Interrupt mask set (13.4.20).
pub const IMS: usize = 0x00d0;
/// Interrupt mask clear (13.4.21).
pub const IMC: usize = 0x00d8;
/// Receive control (13.4.22).
pub const RCTL: usize = 0x0100;
/// Transmit control (13.4.33).
pub const TCTL: usize = 0x0400;
/// Transmit inter-packet gap (13.4.34).
pub const TIPG: usize = 0x0410;
/// Receive descriptor base (13.4.25); behind it the base's upper half, the length, at 0x10 the
/// head.
pub const RDBAL: usize = 0x2800;
/// Receive and transmit descriptor length (13.4.27, 13.4.38).
pub const RDLEN: usize = RDBAL + 8;
pub const TDLEN: usize = TDBAL + 8;
/// Receive descriptor tail (13.4.29).
pub const RDT: usize = 0x2818;
/// Transmit descriptor base (13.4.36), laid out like the receive side's.
pub const TDBAL: usize = 0x3800;
/// Transmit descriptor tail (13.4.40).
pub const TDT: usize = 0x3818;
/// Multicast table array (13.5.1).
pub const MTA: usize = 0x5200;
/// Registers in the multicast table array.
pub const MTA_ENTRIES: usize = 128;
/// Receive address 0, low half (13.5.2).
pub const RAL0: usize = 0x5400;
/// Receive address 0, high half (13.5.3).
pub const RAH0: usize = 0x5404;
/// RAH0: the address is valid.
pub const RAH_AV: u32 = 1 << 31;
/// Interrupt throttling (13.4.18), and the delays of interrupts for reception (13.4.30, 13.4.31)
/// and transmission (13.4.43, 13.4.45): all off when zero.
pub const DELAYS: [usize; 5] = [0x00c4, 0x2820, 0x282c, 0x3820, 0x382c];
/// Receive checksum control (13.4.32).
pub const RXCSUM: usize = 0x5000;
/// VLAN filters and flow control types (13.4.12 ff.): not used when zero.
pub const UNUSED: [usize; 4] = [0x0028, 0x002c, 0x0030, 0x0170];

/// Bits of [`EERD`].
pub mod eerd {
    /// Read the word whose address begins at bit 8.
    pub const START: u32 = 1 << 0;
    /// The word is there, from bit 16 on.
    pub const DONE: u32 = 1 << 4;
    /// The same of an 82574, whose address begins at bit 2 (82574 datasheet, 10.2.2.4).
    pub const DONE_82574: u32 = 1 << 1;
}

/// Bits of [`CTRL`].
pub mod ctrl {
    /// Auto-speed detection.
    pub const ASDE: u32 = 1 << 5;
    /// Set link up.
    pub const SLU: u32 = 1 << 6;
    /// Reset.
    pub const RST: u32 = 1 << 26;
}

/// Interrupt causes.
pub mod int {
    /// Transmit descriptor written back.
    pub const TXDW: u32 = 1 << 0;
    /// Link status change.
    pub const LSC: u32 = 1 << 2;
    /// Receive descriptors run low.
    pub const RXDMT0: u32 = 1 << 4;
    /// Receiver overrun.
    pub const RXO: u32 = 1 << 6;
    /// Receiver timer: something was received.
    pub const RXT0: u32 = 1 << 7;
    /// With interrupts of its own: queue 0 has received, has sent; something else.
    pub const RXQ0: u32 = 1 << 20;
    pub const TXQ0: u32 = 1 << 22;
    pub const OTHER: u32 = 1 << 24;
}

/// Bits of [`RCTL`]. Buffers are of 2,048 bytes unless told otherwise.
pub mod rctl {
    /// Enable.
    pub const EN: u32 = 1 << 1;
    /// Accept broadcasts.
    pub const BAM: u32 = 1 << 15;
    /// Strip the check sequence.
    pub const SECRC: u32 = 1 << 26;
}

/// Bits of [`TCTL`].
pub mod tctl {
    /// Enable.
    pub const EN: u32 = 1 << 1;
    /// Pad short packets.
    pub const PSP: u32 = 1 << 3;
    /// Collision threshold begins here.
    pub const CT: u32 = 4;
    /// Collision distance begins here.
    pub const COLD: u32 = 12;
}

/// Transmit descriptors (3.3.3).
pub mod txd {
    /// Command: end of packet.
    pub const EOP: u8 = 1 << 0;
    /// Command: insert the check sequence.
    pub const IFCS: u8 = 1 << 1;
    /// Command: report status.
    pub const RS: u8 = 1 << 3;
    /// Status: done.
    pub const DD: u8 = 1 << 0;
}

/// Receive descriptors (3.2.3).
pub mod rxd {
    /// Status: done.
    pub const DD: u8 = 1 << 0;
    /// Status: end of packet.
    pub const EOP: u8 = 1 << 1;
    /// Errors that spoil the frame: CRC or alignment, symbol, sequence, carrier extension, receive
    /// data.
    pub const ERRORS: u8 = 0b1001_0111;
}
