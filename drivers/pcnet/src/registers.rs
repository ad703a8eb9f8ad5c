//! Ports, registers and descriptor bits of the Am79C970A (*PCnet-PCI II Data Sheet*, 19436). The
//! ports are those of the 32-bit mode.

ringfence_sdk::registers! {
    /// The card's ports.
    pub Card: ports 0, 0x20 bytes;
    /// The Ethernet address, 6 bytes.
    APROM: [u32; 2] = 0x00;
    /// Data of the CSR whose number is in RAP.
    RDP: u32 = 0x10;
    /// Number of the CSR or BCR to access.
    RAP: u32 = 0x14;
    /// Reading this port resets the card; RESET_16 is its place in the 16-bit mode.
    RESET: u32 = 0x18;
    RESET_16: u16 = 0x14;
    /// Data of the BCR whose number is in RAP.
    BDP: u32 = 0x1c;
}

/// Controller status. Its bits are in [`csr0`].
pub const CSR0: u32 = 0;
pub mod csr0 {
    pub const INIT: u32 = 1 << 0;
    pub const START: u32 = 1 << 1;
    pub const STOP: u32 = 1 << 2;
    /// Look for frames to send at once, without waiting for the next polling interval.
    pub const TRANSMIT_DEMAND: u32 = 1 << 3;
    pub const RECEIVER_ON: u32 = 1 << 5;
    /// Let interrupts through.
    pub const INTERRUPTS: u32 = 1 << 6;
    pub const INIT_DONE: u32 = 1 << 8;
    pub const TRANSMITTED: u32 = 1 << 9;
    /// Causes of interrupts; writing a 1 clears a cause.
    pub const CAUSES: u32 = 0x7f00;
}
/// Address of the initialization block, low half and high half.
pub const CSR1: u32 = 1;
pub const CSR2: u32 = 2;
/// Causes that raise no interrupt; the bits are those of CSR0.
pub const CSR3: u32 = 3;
/// Further features: pad short frames, and mask the interrupts whose causes are in this register.
pub const CSR4: u32 = 4;
pub const CSR4_PAD: u32 = 1 << 11 | 0x0115;
/// Software style: style 2 has 32-bit structures.
pub const BCR20: u32 = 20;
pub const STYLE_32_BITS: u32 = 2;

/// Status of a descriptor, from bit 16 of its second word on.
pub const OWN: u32 = 1 << 31;
pub const ERROR: u32 = 1 << 30;
pub const START_OF_PACKET: u32 = 1 << 25;
pub const END_OF_PACKET: u32 = 1 << 24;
/// Length of the check sequence at the end of a received frame, in bytes.
pub const CHECK_BYTES: u32 = 4;

/// Returns the length of a buffer as a descriptor holds it: its two's complement, with ones above.
pub const fn length(len_bytes: u32) -> u32 {
    0xf000 | (0x1000 - len_bytes) & 0xfff
}
