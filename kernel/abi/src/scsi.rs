//! The memory that a SCSI driver shares with the kernel: two rings of request numbers, and the
//! requests themselves.
//!
//! The kernel fills in request `n` and puts `n` into `submit`. The driver carries the request out,
//! writes its outcome into the same request and puts `n` into `complete`. Each request has its own
//! part of DMA memory for its data; the request names the address at which the device sees it.
//!
//! A command that is not done in time can be aborted, and its logical unit reset, if the driver
//! has said in [`ScsiInfo::functions`] that it can. These task management functions (SAM-5, 7) are
//! requests like commands, under numbers of their own, from [`TASK_MANAGEMENT`] on: they get
//! through when all [`REQUESTS`] are under way. One of each can be under way at a time, so that a
//! device that does not abort a command can be reset.

use crate::queue::{Place, Words, read_value, write_value};
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Commands that can be under way at once.
pub const REQUESTS: usize = 32;
/// Number of a request that is the first task management function, [`FUNCTION_ABORT_TASK`]; the
/// next one is that of [`FUNCTION_LOGICAL_UNIT_RESET`].
pub const TASK_MANAGEMENT: usize = REQUESTS;
/// Task management functions.
pub const FUNCTIONS: usize = 2;
/// Numbers of requests: those of commands, and from [`TASK_MANAGEMENT`] on.
pub const NUMBERS: usize = TASK_MANAGEMENT + FUNCTIONS;
/// Entries of a ring: all requests have room.
const RING: usize = NUMBERS.next_power_of_two();
/// Most data that one request can move, in bytes.
pub const MAX_DATA: usize = 65536;
/// Longest command descriptor block, in bytes.
pub const MAX_CDB: usize = 32;
/// Most bytes of sense data that are kept.
pub const MAX_SENSE: usize = 48;

/// Requests to carry out: kernel to driver.
pub const SUBMIT: Place = Place::new(0, RING);
/// Requests carried out: driver to kernel.
pub const COMPLETE: Place = Place::new(SUBMIT.end(), RING);
/// Word where request 0 begins.
pub const FIRST_REQUEST: usize = COMPLETE.end();
/// Words from one request to the next.
pub const REQUEST_WORDS: usize = size_of::<Request>() / 8 + size_of::<Outcome>() / 8;
/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (FIRST_REQUEST + NUMBERS * REQUEST_WORDS) * 8;

/// No data moves.
pub const DIRECTION_NONE: u16 = 0;
/// Data moves from the device into memory.
pub const DIRECTION_IN: u16 = 1;
/// Data moves from memory to the device.
pub const DIRECTION_OUT: u16 = 2;

/// A command is to be carried out.
pub const FUNCTION_COMMAND: u16 = 0;
/// ABORT TASK (SAM-5, 7.2): request [`Request::managed`] is to be completed soon, with
/// [`HOST_ABORTED`] if the device has not done it.
pub const FUNCTION_ABORT_TASK: u16 = 1;
/// LOGICAL UNIT RESET (SAM-5, 7.7): all commands of the unit are to be completed soon, with
/// [`HOST_RESET`] if the device has not done them. An adapter that can only reset more, its bus
/// say, does that.
pub const FUNCTION_LOGICAL_UNIT_RESET: u16 = 2;

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// Address of the data as the device sees it; 0 for a device that reaches no memory.
    pub data_address: u64,
    /// Address of the data as the driver sees it.
    pub data: u64,
    /// Length of the data in bytes.
    pub data_len: u32,
    /// One of `DIRECTION_*`.
    pub direction: u16,
    /// Number of the request that is to be aborted, below [`REQUESTS`], if that is the function.
    pub managed: u16,
    /// SCSI target, below 256.
    pub target: u16,
    /// Logical unit, below 256.
    pub lun: u16,
    /// Length of the command descriptor block in bytes.
    pub cdb_len: u16,
    /// One of `FUNCTION_*`. The command descriptor block and the data are a command's only.
    pub function: u16,
    /// Command descriptor block.
    pub cdb: [u8; MAX_CDB],
}

/// The driver's answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Outcome {
    /// A `HOST_*` code: whether the command reached the device at all.
    pub host: u32,
    /// SCSI status byte (SAM-5 5.3.1), if the command reached the device.
    pub status: u32,
    /// Bytes of `data_len` that were not moved.
    pub residual: u32,
    /// Length of the sense data in bytes.
    pub sense_len: u32,
    /// Sense data (SPC-4 4.5). It is ignored if `sense_len` is 0.
    pub sense: [u8; MAX_SENSE],
}

/// The class of an error in sense data (SPC-4, 4.5.6, table 28).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum SenseKey {
    /// NOT READY: the unit cannot be accessed.
    NotReady = 2,
    /// MEDIUM ERROR: the medium, or the data on it, is bad.
    MediumError = 3,
    /// HARDWARE ERROR: the device failed.
    HardwareError = 4,
    /// ILLEGAL REQUEST: the unit does not know the command, or not like this.
    IllegalRequest = 5,
    /// UNIT ATTENTION: something has changed, and the command was not done.
    UnitAttention = 6,
    /// DATA PROTECT: the blocks may not be read or written.
    DataProtect = 7,
    /// ABORTED COMMAND: the device gave the command up.
    AbortedCommand = 11,
}

impl Outcome {
    /// The command did not come to a status, for the reason `host`, a `HOST_*` code.
    pub const fn failed(host: u32) -> Outcome {
        Outcome { host, status: 0, residual: 0, sense_len: 0, sense: [0; MAX_SENSE] }
    }

    /// The device answered with a status (SAM-5, 5.3.1), and has left `residual` bytes of the data
    /// unmoved.
    pub const fn answered(status: u8, residual: u32) -> Outcome {
        Outcome { status: status as u32, residual, ..Outcome::failed(HOST_OK) }
    }

    /// The same with sense data of the device's. Only [`MAX_SENSE`] bytes of it are kept.
    pub fn with_sense(mut self, bytes: &[u8]) -> Outcome {
        let len = bytes.len().min(MAX_SENSE);
        self.sense[..len].copy_from_slice(&bytes[..len]);
        self.sense_len = len as u32;
        self
    }

    /// CHECK CONDITION, for an error that the driver finds itself: sense data in the fixed format
    ///  (SPC-4, 4.5.3), with an additional sense code and its qualifier (SPC-4, D.2). No data
    /// was moved of `data_len` bytes.
    pub fn check_condition(key: SenseKey, code: u8, qualifier: u8, data_len: u32) -> Outcome {
        const CHECK_CONDITION: u8 = 0x02;
        const CURRENT: u8 = 0x70;
        const ADDITIONAL: u8 = 10;
        let mut sense = [0; 18];
        (sense[0], sense[2], sense[7], sense[12], sense[13]) = (CURRENT, key as u8, ADDITIONAL, code, qualifier);
        Outcome::answered(CHECK_CONDITION, data_len).with_sense(&sense)
    }
}

/// The device answered; `status` and the sense data hold the answer.
pub const HOST_OK: u32 = 0;
/// There is no such target or logical unit.
pub const HOST_NO_DEVICE: u32 = 1;
/// The adapter failed.
pub const HOST_ERROR: u32 = 2;
/// The command was abandoned because of a reset.
pub const HOST_RESET: u32 = 3;
/// The command was aborted.
pub const HOST_ABORTED: u32 = 4;

const _: () = assert!(size_of::<Request>() == 64 && size_of::<Outcome>() == 64);

/// The description of an adapter that its driver passes to `rf_offer`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScsiInfo {
    /// How many targets can exist, at most 256; they are numbered from 0.
    pub max_targets: u32,
    /// How many logical units a target can have, at most 256; they are numbered from 0.
    pub max_luns: u32,
    /// How many requests the adapter can have under way, at most [`REQUESTS`].
    pub queue_depth: u32,
    /// The task management functions that the driver carries out: `CAN_*`.
    pub functions: u32,
}

/// The driver aborts commands.
pub const CAN_ABORT_TASK: u32 = 1 << FUNCTION_ABORT_TASK;
/// The driver resets logical units.
pub const CAN_RESET_LOGICAL_UNIT: u32 = 1 << FUNCTION_LOGICAL_UNIT_RESET;
/// All task management functions that a driver can declare.
pub const CAN_ALL: u32 = CAN_ABORT_TASK | CAN_RESET_LOGICAL_UNIT;

const OUTCOME_OFFSET: usize = size_of::<Request>() / 8;

/// Returns the word where request `number` begins. Panics if there is no such request: callers
/// check the numbers they are given.
const fn request_at(number: usize) -> usize {
    assert!(number < NUMBERS);
    FIRST_REQUEST + number * REQUEST_WORDS
}

/// Writes request `number` (below [`NUMBERS`]) into shared memory.
pub fn write_request(words: &impl Words, number: usize, request: &Request) {
    write_value(words, request_at(number), request, size_of::<Request>() / 8);
}

/// Copies request `number` (below [`NUMBERS`]) out of shared memory.
pub fn read_request(words: &impl Words, number: usize) -> Option<Request> {
    read_value::<{ size_of::<Request>() / 8 }, Request>(words, request_at(number))
}

/// The part of a [`Request`] that has its unit and function, and the length and first bytes of its
/// command descriptor block: all bytes of the commands that disks know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Asked {
    /// See [`Request::target`].
    pub target: u16,
    /// See [`Request::lun`].
    pub lun: u16,
    /// See [`Request::cdb_len`].
    pub cdb_len: u16,
    /// See [`Request::function`].
    pub function: u16,
    /// The beginning of [`Request::cdb`].
    pub cdb: [u8; 16],
}

impl Asked {
    /// Makes the part of a request from its words, which [`read_asked`] has read.
    pub fn of_words(words: [u64; 3]) -> Asked {
        zerocopy::transmute!(words)
    }
}

/// Reads the words of request `number` (below [`NUMBERS`]) that an [`Asked`] is made of, and the
/// length of its data, from shared memory.
pub fn read_asked(words: &impl Words, number: usize) -> ([u64; 3], u32) {
    const LENGTH: usize = offset_of!(Request, data_len) / 8;
    const FIRST: usize = offset_of!(Request, target) / 8;
    const _: () = assert!(offset_of!(Request, data_len) % 8 == 0 && offset_of!(Request, target) % 8 == 0);
    const _: () = assert!(offset_of!(Request, cdb) - offset_of!(Request, target) == offset_of!(Asked, cdb));
    const _: () = assert!(LENGTH + 1 == FIRST);
    let [length, asked @ ..] = words.load_words::<4>(request_at(number) + LENGTH);
    (asked, length as u32)
}

/// Reads host code and status of the outcome of request `number` (below [`NUMBERS`]) from shared
/// memory.
pub fn read_host_and_status(words: &impl Words, number: usize) -> (u32, u32) {
    const _: () = assert!(offset_of!(Outcome, host) == 0 && offset_of!(Outcome, status) == 4);
    let word = words.load(request_at(number) + OUTCOME_OFFSET);
    (word as u32, (word >> 32) as u32)
}

/// Words of an outcome, and the number of words before its sense data, which few outcomes have.
const OUTCOME_WORDS: usize = size_of::<Outcome>() / 8;
const HEAD_WORDS: usize = offset_of!(Outcome, sense) / 8;

/// Writes the outcome of request `number` (below [`NUMBERS`]) into shared memory.
#[inline]
pub fn write_outcome(words: &impl Words, number: usize, outcome: &Outcome) {
    let count = if outcome.sense_len == 0 { HEAD_WORDS } else { OUTCOME_WORDS };
    write_value(words, request_at(number) + OUTCOME_OFFSET, outcome, count);
}

/// Copies the outcome of request `number` (below [`NUMBERS`]) out of shared memory.
pub fn read_outcome(words: &impl Words, number: usize) -> Option<Outcome> {
    let first = request_at(number) + OUTCOME_OFFSET;
    let mut copy = [0; OUTCOME_WORDS];
    let mut load = |range: core::ops::Range<usize>| {
        copy.get_mut(range.clone())?.iter_mut().zip(range).for_each(|(word, index)| *word = words.load(first + index));
        Outcome::read_from_bytes(copy.as_bytes()).ok()
    };
    let head = load(0..HEAD_WORDS)?;
    if head.sense_len == 0 { Some(head) } else { load(HEAD_WORDS..OUTCOME_WORDS) }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(core::cell::RefCell<[u64; 4096]>);

    impl Words for Memory {
        fn load(&self, index: usize) -> u64 {
            self.0.borrow()[index]
        }

        fn store(&self, index: usize, value: u64) {
            self.0.borrow_mut()[index] = value;
        }
    }

    #[test]
    fn a_trace_reads_what_was_written() {
        let memory = Memory(core::cell::RefCell::new([0; 4096]));
        let mut cdb = [0; MAX_CDB];
        cdb[..3].copy_from_slice(&[0x28, 7, 9]);
        let (target, lun, function) = (3, 5, FUNCTION_COMMAND);
        let request = Request {
            data_address: u64::MAX,
            data: u64::MAX,
            data_len: 4096,
            direction: DIRECTION_IN,
            managed: 0,
            target,
            lun,
            cdb_len: 10,
            function,
            cdb,
        };
        write_request(&memory, 6, &request);
        let (words, len_bytes) = read_asked(&memory, 6);
        let asked = Asked::of_words(words);
        assert_eq!(asked, Asked { target, lun, cdb_len: 10, function, cdb: *cdb.first_chunk().unwrap() });
        assert_eq!(len_bytes, 4096);
        write_outcome(&memory, 6, &Outcome { host: HOST_RESET, ..Outcome::answered(2, 0) });
        assert_eq!(read_host_and_status(&memory, 6), (HOST_RESET, 2));
    }

    #[test]
    fn an_outcome_says_what_it_was_made_of() {
        assert_eq!((Outcome::failed(HOST_RESET).host, Outcome::failed(HOST_RESET).sense_len), (HOST_RESET, 0));
        let answered = Outcome::answered(8, 512);
        assert_eq!((answered.host, answered.status, answered.residual, answered.sense_len), (HOST_OK, 8, 512, 0));
        // More than there is room for is cut off.
        let long = answered.with_sense(&[7; MAX_SENSE + 1]);
        assert_eq!((long.sense_len as usize, long.sense), (MAX_SENSE, [7; MAX_SENSE]));
    }

    /// LOGICAL BLOCK ADDRESS OUT OF RANGE, as SPC-4 has it in the fixed format.
    #[test]
    fn a_check_condition_has_sense_data_in_the_fixed_format() {
        let outcome = Outcome::check_condition(SenseKey::IllegalRequest, 0x21, 0, 4096);
        assert_eq!((outcome.host, outcome.status, outcome.residual), (HOST_OK, 2, 4096));
        let sense = &outcome.sense[..outcome.sense_len as usize];
        assert_eq!(sense, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0]);
    }
}
