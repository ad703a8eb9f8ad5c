//! Registers of the LSI53C895A (*LSI53C895A Technical Manual*, chapter 4). Offsets in bytes.

/// SCSI control 0: full arbitration.
pub const SCNTL0: usize = 0x00;
pub const SCNTL0_ARBITRATION: u8 = 0xc0;
/// SCSI control 1: resets the bus.
pub const SCNTL1: usize = 0x01;
pub const SCNTL1_RST: u8 = 1 << 3;
/// The adapter's number, and that it may be reselected.
pub const SCID: usize = 0x04;
pub const SCID_RRE: u8 = 1 << 6;
/// Why SCRIPTS stopped; reading clears.
pub const DSTAT: usize = 0x0c;
pub const DSTAT_SIR: u8 = 1 << 2;
/// What of it is an interrupt: all but that the FIFO is empty.
pub const DSTAT_CAUSES: u8 = 0x7f;
/// Where the table is.
pub const DSA: usize = 0x10;
/// Interrupt status: software reset, SCSI and DMA interrupts.
pub const ISTAT: usize = 0x14;
pub const ISTAT_SRST: u8 = 1 << 6;
pub const ISTAT_SIP: u8 = 1 << 1;
pub const ISTAT_DIP: u8 = 1 << 0;
/// Bytes that the last move has left, and above them the last instruction's first byte.
pub const DBC: usize = 0x24;
/// Where SCRIPTS are: writing starts them.
pub const DSP: usize = 0x2c;
/// What the last INT said.
pub const DSPS: usize = 0x30;
/// DMA interrupts that are let through.
pub const DIEN: usize = 0x39;
/// DMA control: not as the 53C700 did.
pub const DCNTL: usize = 0x3b;
pub const DCNTL_COM: u8 = 1 << 0;
/// SCSI interrupts that are let through.
pub const SIEN0: usize = 0x40;
pub const SIEN1: usize = 0x41;
/// SCSI interrupts; reading clears.
pub const SIST0: usize = 0x42;
pub const SIST1: usize = 0x43;
/// How long a target may take to answer to its selection: 250 ms.
pub const STIME0: usize = 0x48;
pub const STIME0_250_MS: u8 = 0x0c;
/// The numbers that it answers to.
pub const RESPID0: usize = 0x4a;

/// Phase mismatch, unexpected disconnection, gross error, bus reset, parity error.
pub const SIST0_MA: u8 = 1 << 7;
pub const SIST0_ERRORS: u8 = 0b1111;
/// Nobody answers to a selection.
pub const SIST1_STO: u8 = 1 << 2;
