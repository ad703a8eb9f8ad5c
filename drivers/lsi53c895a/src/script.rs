//! The SCRIPTS program that carries out one command, and the instructions of the program
//! (*LSI53C895A Technical Manual*, chapter 5). An instruction is two words of 32 bits.
//!
//! The program never changes. The values that differ from command to command are in a table, to
//! which the processor's register DSA points.

/// Phases of the bus.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Phase {
    DataOut = 0,
    DataIn = 1,
    Command = 2,
    Status = 3,
    MessageOut = 6,
    MessageIn = 7,
}

/// Values of INT instructions, which the register DSPS returns.
pub mod says {
    /// The command has ended.
    pub const DONE: u32 = 1;
    /// The target wants a phase that the program does not expect.
    pub const BAD_PHASE: u32 = 2;
    /// The target has sent a message that the program does not know.
    pub const BAD_MESSAGE: u32 = 3;
    /// A target has reselected the adapter when none was expected to.
    pub const BAD_RESELECT: u32 = 4;
    /// The target wants to move more data than the command has.
    pub const OVERRUN: u32 = 5;
}

/// Entries of the table: offsets from DSA.
pub mod table {
    /// The target, in the format of the instruction SELECT.
    pub const SELECT: u32 = 0;
    /// The length and the address of each item: the message that names the unit, the command, its
    /// data, its status, a message from the target.
    pub const IDENTIFY: u32 = 8;
    pub const COMMAND: u32 = 16;
    pub const DATA: u32 = 24;
    pub const STATUS: u32 = 32;
    pub const MESSAGE: u32 = 40;
}

/// Moves as many bytes as the table's entry says, to or from the entry's address, when the bus is
/// in that phase (5.3).
const fn mov(phase: Phase, entry: u32) -> [u32; 2] {
    [0x1800_0000 | (phase as u32) << 24, entry]
}

/// Jumps when the bus is in that phase (5.5).
const fn jump_when(phase: Phase, to: Label) -> [u32; 2] {
    [0x800b_0000 | (phase as u32) << 24, to.offset()]
}

/// Jumps if the last byte of a message was `byte`.
const fn jump_if(byte: u8, to: Label) -> [u32; 2] {
    [0x800c_0000 | byte as u32, to.offset()]
}

const fn jump(to: Label) -> [u32; 2] {
    [0x8008_0000, to.offset()]
}

/// Ends the program with an interrupt.
const fn int(says: u32) -> [u32; 2] {
    [0x9808_0000, says]
}

/// Selects the table's target with ATN; jumps if a target has reselected the adapter first (5.4).
const fn select(or: Label) -> [u32; 2] {
    [0x4300_0000 | table::SELECT, or.offset()]
}

const WAIT_DISCONNECT: [u32; 2] = [0x4800_0000, 0];
/// Lowers ACK, which accepts the message.
const CLEAR_ACK: [u32; 2] = [0x6000_0040, 0];
/// Clears the bit SDU of SCNTL2, so that a disconnection is expected.
const EXPECT_DISCONNECT: [u32; 2] = [0x7c02_7f00, 0];

const fn wait_reselect(or: Label) -> [u32; 2] {
    [0x5000_0000, or.offset()]
}

/// Messages from the target (SPI-5, 16.3).
const SAVE_DATA_POINTER: u8 = 0x02;
const DISCONNECT: u8 = 0x04;

/// Places in the program, as numbers of instructions.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Label {
    Dispatch = 3,
    DataIn = 8,
    DataOut = 10,
    AfterData = 12,
    MessageIn = 15,
    Saved = 19,
    Away = 21,
    Status = 28,
    Reselected = 33,
}

impl Label {
    /// Returns the offset of the place from the start of the program, in bytes.
    pub const fn offset(self) -> u32 {
        self as u32 * 8
    }
}

/// The program. The addresses of jumps are offsets, to which `Lsi::load` adds the program's
/// address.
pub const PROGRAM: [[u32; 2]; 34] = [
    select(Label::Reselected),
    mov(Phase::MessageOut, table::IDENTIFY),
    mov(Phase::Command, table::COMMAND),
    // Dispatch: jump to the phase that the target wants.
    jump_when(Phase::DataIn, Label::DataIn),
    jump_when(Phase::DataOut, Label::DataOut),
    jump_when(Phase::MessageIn, Label::MessageIn),
    jump_when(Phase::Status, Label::Status),
    int(says::BAD_PHASE),
    // DataIn
    mov(Phase::DataIn, table::DATA),
    jump(Label::AfterData),
    // DataOut
    mov(Phase::DataOut, table::DATA),
    jump(Label::AfterData),
    // AfterData: all data was moved.
    jump_when(Phase::MessageIn, Label::MessageIn),
    jump_when(Phase::Status, Label::Status),
    int(says::OVERRUN),
    // MessageIn
    mov(Phase::MessageIn, table::MESSAGE),
    jump_if(SAVE_DATA_POINTER, Label::Saved),
    jump_if(DISCONNECT, Label::Away),
    int(says::BAD_MESSAGE),
    // Saved: the target disconnects next, before it has moved any data.
    CLEAR_ACK,
    jump(Label::Dispatch),
    // Away: the bus is free until the target comes back.
    EXPECT_DISCONNECT,
    CLEAR_ACK,
    WAIT_DISCONNECT,
    wait_reselect(Label::Reselected),
    // Back: the target identifies itself. Only one command is in progress, so it is the same
    // target.
    mov(Phase::MessageIn, table::MESSAGE),
    CLEAR_ACK,
    jump(Label::Dispatch),
    // Status
    mov(Phase::Status, table::STATUS),
    mov(Phase::MessageIn, table::MESSAGE),
    CLEAR_ACK,
    WAIT_DISCONNECT,
    int(says::DONE),
    // Reselected
    int(says::BAD_RESELECT),
];

/// The labels match the program.
const _: () = {
    const fn first(at: Label) -> u32 {
        PROGRAM[at as usize][0]
    }
    assert!(first(Label::Dispatch) == jump_when(Phase::DataIn, Label::DataIn)[0]);
    assert!(first(Label::DataIn) == mov(Phase::DataIn, table::DATA)[0]);
    assert!(first(Label::DataOut) == mov(Phase::DataOut, table::DATA)[0]);
    assert!(first(Label::AfterData) == jump_when(Phase::MessageIn, Label::MessageIn)[0]);
    assert!(first(Label::MessageIn) == mov(Phase::MessageIn, table::MESSAGE)[0]);
    assert!(first(Label::Saved) == CLEAR_ACK[0] && first(Label::Away) == EXPECT_DISCONNECT[0]);
    assert!(first(Label::Status) == mov(Phase::Status, table::STATUS)[0]);
    assert!(PROGRAM[Label::Reselected as usize][1] == says::BAD_RESELECT);
};

/// Returns whether an instruction's second word is an offset into the program.
pub const fn has_address(instruction: [u32; 2]) -> bool {
    let [first, _] = instruction;
    let is_jump = first >> 27 == 0b10000;
    let is_select_or_wait = matches!(first >> 27, 0b01000 | 0b01010);
    is_jump || is_select_or_wait
}
