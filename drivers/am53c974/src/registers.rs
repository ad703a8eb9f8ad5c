//! Registers of the Am53C974 and their bits (*Am53C974A PCscsi II Technical Manual*, chapters on
//! the SCSI and the DMA block).

ringfence_sdk::registers! {
    /// The adapter's registers.
    pub Adapter: ports 0, 0x50 bytes;
    /// The transfer count: its lowest, its middle, and its highest byte.
    COUNT_LOW: u8 = 0x00;
    COUNT_MIDDLE: u8 = 0x04;
    COUNT_HIGH: u8 = 0x38;
    /// The SCSI core's FIFO.
    FIFO: u8 = 0x08;
    /// The SCSI core's command.
    COMMAND: u8 = 0x0c;
    /// Read: the phase of the bus, and whether the core interrupts. Written: the target.
    STATUS: u8 = 0x10;
    /// Read: why the core interrupts, which clears it. Written: how long a target may take to
    /// answer to its selection.
    INTERRUPT: u8 = 0x14;
    /// The adapter's own number, and the events that interrupt.
    CONTROL1: u8 = 0x20;
    /// The length of the transfer count.
    CONTROL2: u8 = 0x2c;
    /// The DMA engine: command, count, address, and the rest of the count.
    DMA_COMMAND: u32 = 0x40;
    DMA_COUNT: u32 = 0x44;
    DMA_ADDRESS: u32 = 0x48;
    DMA_LEFT: u32 = 0x4c;
}

/// [`STATUS`]: the core interrupts.
pub const STATUS_INT: u8 = 1 << 7;
/// [`INTERRUPT`], written: 250 ms at 40 MHz.
pub const TIMEOUT_250_MS: u8 = 0x99;
/// [`CONTROL1`]: a reset of the bus is no interrupt.
pub const CONTROL1_NO_RESET_INTERRUPT: u8 = 1 << 6;
/// [`CONTROL2`]: the transfer count has 24 bits.
pub const CONTROL2_24_BITS: u8 = 1 << 6;

/// Commands of the SCSI core.
pub mod command {
    pub const NOP: u8 = 0x00;
    pub const CLEAR_FIFO: u8 = 0x01;
    pub const RESET_CHIP: u8 = 0x02;
    pub const RESET_BUS: u8 = 0x03;
    /// Move data.
    pub const TRANSFER: u8 = 0x10;
    /// Read the status and the message into the FIFO.
    pub const COMPLETE: u8 = 0x11;
    pub const ACCEPT_MESSAGE: u8 = 0x12;
    pub const SELECT_WITH_ATN: u8 = 0x42;
    /// A flag in addition to the command: transfer through the DMA engine.
    pub const DMA: u8 = 0x80;
}

/// Commands of the DMA engine.
pub mod dma {
    pub const IDLE: u32 = 0;
    pub const ABORT: u32 = 2;
    pub const START: u32 = 3;
    /// A flag in addition to the command: transfer from the bus to memory.
    pub const TO_MEMORY: u32 = 1 << 7;
}

/// Causes of the SCSI core's interrupts.
pub mod int {
    /// The command is done.
    pub const DONE: u8 = 1 << 3;
    pub const DISCONNECTED: u8 = 1 << 5;
    pub const ILLEGAL_COMMAND: u8 = 1 << 6;
    pub const RESET: u8 = 1 << 7;
}

/// Phases of the bus, in STATUS.
pub mod phase {
    pub const MASK: u8 = 7;
    pub const DATA_OUT: u8 = 0;
    pub const DATA_IN: u8 = 1;
    pub const STATUS: u8 = 3;
}
