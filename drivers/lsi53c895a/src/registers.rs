//! Registers of the LSI53C895A and their bits (*LSI53C895A Technical Manual*, chapter 4).

ringfence_sdk::registers! {
    /// The adapter's registers.
    pub Adapter: memory 1, 0x60 bytes;
    /// SCSI control 0.
    SCNTL0: u8 = 0x00;
    /// SCSI control 1.
    SCNTL1: u8 = 0x01;
    /// The adapter's number, and whether it may be reselected.
    SCID: u8 = 0x04;
    /// The causes for which SCRIPTS stopped; reading clears them.
    DSTAT: u8 = 0x0c;
    /// The address of the table.
    DSA: u32 = 0x10;
    /// Interrupt status, and software reset.
    ISTAT: u8 = 0x14;
    /// Bytes that the last move has left, and above them the last instruction's first byte.
    DBC: u32 = 0x24;
    /// The address of the next instruction: writing starts SCRIPTS.
    DSP: u32 = 0x2c;
    /// The argument of the last INT.
    DSPS: u32 = 0x30;
    /// The DMA interrupts that are enabled.
    DIEN: u8 = 0x39;
    /// DMA control.
    DCNTL: u8 = 0x3b;
    /// The SCSI interrupts that are enabled.
    SIEN0: u8 = 0x40;
    SIEN1: u8 = 0x41;
    /// The causes of SCSI interrupts; reading clears them.
    SIST0: u8 = 0x42;
    SIST1: u8 = 0x43;
    /// How long a target may take to answer to its selection.
    STIME0: u8 = 0x48;
    /// The numbers that the adapter answers to.
    RESPID0: u8 = 0x4a;
}

/// SCNTL0: full arbitration.
pub const SCNTL0_ARBITRATION: u8 = 0xc0;
/// SCNTL1: resets the bus.
pub const SCNTL1_RST: u8 = 1 << 3;
/// SCID: the adapter may be reselected.
pub const SCID_RRE: u8 = 1 << 6;
/// DSTAT: an INT instruction.
pub const DSTAT_SIR: u8 = 1 << 2;
/// DSTAT: the interrupts; the bit that is left out says that the FIFO is empty.
pub const DSTAT_CAUSES: u8 = 0x7f;
/// ISTAT: software reset, a SCSI interrupt, a DMA interrupt.
pub const ISTAT_SRST: u8 = 1 << 6;
pub const ISTAT_SIP: u8 = 1 << 1;
pub const ISTAT_DIP: u8 = 1 << 0;
/// DCNTL: not as the 53C700 did.
pub const DCNTL_COM: u8 = 1 << 0;
/// STIME0: 250 ms.
pub const STIME0_250_MS: u8 = 0x0c;
/// SIST0: phase mismatch; unexpected disconnection, gross error, bus reset, parity error.
pub const SIST0_MA: u8 = 1 << 7;
pub const SIST0_ERRORS: u8 = 0b1111;
/// SIST1: no target answers to a selection.
pub const SIST1_STO: u8 = 1 << 2;
