//! Registers and descriptor bits of the 82540EM (manual table 13-2 and chapters 3 and 13).

use ringfence_sdk::register::Register;

ringfence_sdk::registers! {
    /// The card's registers.
    pub Card: memory 0, 0x20000 bytes;
    /// Device control (13.4.1).
    CTRL: u32 = 0x0000;
    /// Device status (13.4.2).
    STATUS: u32 = 0x0008;
    /// EEPROM read (13.4.4).
    EERD: u32 = 0x0014;
    /// Extended device control (82574 datasheet, 10.2.2.5).
    CTRL_EXT: u32 = 0x0018;
    /// Access to a register of the PHY (13.4.8): data, the register's number, the PHY's number, and
    /// the operation.
    MDIC: u32 = 0x0020;
    /// Flow control: address, type and time (13.4.12 ff.); and the Ethernet type of VLANs (13.4.7).
    FCAL: u32 = 0x0028;
    FCAH: u32 = 0x002c;
    FCT: u32 = 0x0030;
    FCTTV: u32 = 0x0170;
    /// Interrupt cause read; reading clears the causes (13.4.17).
    ICR: u32 = 0x00c0;
    /// Interrupt throttling (13.4.18).
    ITR: u32 = 0x00c4;
    /// Interrupt mask set (13.4.20).
    IMS: u32 = 0x00d0;
    /// Interrupt mask clear (13.4.21).
    IMC: u32 = 0x00d8;
    /// Causes that are cleared when their own interrupt is raised (82574 datasheet, 10.2.4.6).
    EIAC: u32 = 0x00dc;
    /// The number of the interrupt that each cause raises (82574 datasheet, 10.2.4.9).
    IVAR: u32 = 0x00e4;
    /// Receive control (13.4.22).
    RCTL: u32 = 0x0100;
    /// Transmit control (13.4.33).
    TCTL: u32 = 0x0400;
    /// Transmit inter-packet gap (13.4.34).
    TIPG: u32 = 0x0410;
    /// Receive descriptors: base, length, head, tail (13.4.25 to 13.4.29).
    RDBAL: u32 = 0x2800;
    RDBAH: u32 = 0x2804;
    RDLEN: u32 = 0x2808;
    RDH: u32 = 0x2810;
    RDT: u32 = 0x2818;
    /// Delays of interrupts for reception (13.4.30, 13.4.31).
    RDTR: u32 = 0x2820;
    RADV: u32 = 0x282c;
    /// Transmit descriptors: base, length, head, tail (13.4.36 to 13.4.40).
    TDBAL: u32 = 0x3800;
    TDBAH: u32 = 0x3804;
    TDLEN: u32 = 0x3808;
    TDH: u32 = 0x3810;
    TDT: u32 = 0x3818;
    /// Delays of interrupts for transmission (13.4.43, 13.4.45).
    TIDV: u32 = 0x3820;
    TADV: u32 = 0x382c;
    /// Receive checksum control (13.4.32).
    RXCSUM: u32 = 0x5000;
    /// Multicast table array (13.5.1).
    MTA: [u32; 128] = 0x5200;
    /// Receive address 0 (13.5.2, 13.5.3).
    RAL0: u32 = 0x5400;
    RAH0: u32 = 0x5404;
}

/// Registers that turn a feature off when they are zero: delays, receive checksums, flow control.
pub const OFF: [Register<Card, u32>; 10] = [ITR, RDTR, RADV, TIDV, TADV, RXCSUM, FCAL, FCAH, FCT, FCTTV];

/// STATUS: link up.
pub const STATUS_LU: u32 = 1 << 1;
/// MDIC: write the control register of PHY 1 (13.4.8, 11.3.1): autonegotiation, full duplex, a
/// gigabit, and no loopback.
pub const MDIC_NORMAL: u32 = 1 << 26 | 1 << 21 | 0x1140;
/// MDIC: the operation is done.
pub const MDIC_READY: u32 = 1 << 28;
/// IVAR: reception raises the first interrupt, transmission the second, and all other causes the
/// third.
pub const IVAR_THREE: u32 = 0b1000 | 0b1001 << 8 | 0b1010 << 16;
/// CTRL_EXT: clearing a cause masks the interrupts that IAM names, which are none.
pub const CTRL_EXT_IAME: u32 = 1 << 27;
/// RAH0: the address is valid.
pub const RAH_AV: u32 = 1 << 31;

/// Bits of [`EERD`].
pub mod eerd {
    /// Read the word whose address begins at bit 8.
    pub const START: u32 = 1 << 0;
    /// The word has been read; it begins at bit 16.
    pub const DONE: u32 = 1 << 4;
    /// `DONE` of an 82574, where the word's address begins at bit 2 (82574 datasheet, 10.2.2.4).
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
    /// Receiver timer: a frame was received.
    pub const RXT0: u32 = 1 << 7;
    /// With the card's own interrupts: queue 0 has received; queue 0 has sent; another cause.
    pub const RXQ0: u32 = 1 << 20;
    pub const TXQ0: u32 = 1 << 22;
    pub const OTHER: u32 = 1 << 24;
}

/// Bits of [`RCTL`]. Buffers have 2,048 bytes by default.
pub mod rctl {
    /// Enable.
    pub const EN: u32 = 1 << 1;
    /// Accept frames to any host, and to any group.
    pub const UPE: u32 = 1 << 3;
    pub const MPE: u32 = 1 << 4;
    /// Accept frames of more than 1522 bytes.
    pub const LPE: u32 = 1 << 5;
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
    /// The first bit of the collision threshold.
    pub const CT: u32 = 4;
    /// The first bit of the collision distance.
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
    /// An extended data descriptor (3.3.6: type 1, DEXT) whose TCP or UDP checksum is completed
    /// (TXSM).
    pub const WITH_SUM: u64 = 1 << 20 | 1 << 29 | 1 << 41;
    /// The upper half of a context descriptor (3.3.5: type 0, DEXT) for TCP, the only protocol that
    /// the kernel asks for, whose status is reported.
    pub const CONTEXT: u64 = 1 << 29 | 1 << 27 | 1 << 24;
}

/// RXCSUM: check TCP and UDP checksums (13.4.32).
pub const RXCSUM_TUOFLD: u32 = 1 << 9;

/// Receive descriptors (3.2.3): the second word, in which length, checksum, status and errors are.
pub mod rxd {
    /// Status: done.
    pub const DD: u64 = 1 << 32;
    /// Status: end of packet.
    pub const EOP: u64 = 1 << 33;
    /// Status: ignore the checksum indications (IXSM); a TCP or UDP checksum was looked at (TCPCS).
    /// Errors: the checksum is wrong (TCPE).
    pub const CHECK: u64 = 1 << 34 | 1 << 37 | 1 << 45;
    /// The value of these bits when the checksum is right.
    pub const CHECKED: u64 = 1 << 37;
    /// Errors that make the frame invalid: CRC or alignment, symbol, sequence, carrier extension,
    /// receive data.
    pub const ERRORS: u64 = 0b1001_0111 << 40;
}
