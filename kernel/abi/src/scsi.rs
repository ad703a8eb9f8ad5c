//! What a SCSI driver and the kernel share: two rings of request numbers, and the requests
//! themselves.
//!
//! The kernel fills in request `n` and puts `n` into `submit`; the driver carries it out, writes
//! the outcome into the same request and puts `n` into `complete`. The data goes to or from the
//! request's own part of DMA memory, whose address for the device the request names.

use crate::queue::{Place, Words, read_value, write_value};
use core::mem::offset_of;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Requests that can be under way at once.
pub const REQUESTS: usize = 32;
/// Most data that one request can move, in bytes.
pub const MAX_DATA: usize = 65536;
/// Longest command descriptor block, in bytes.
pub const MAX_CDB: usize = 32;
/// Most sense data kept, in bytes.
pub const MAX_SENSE: usize = 48;

/// Requests to carry out: kernel to driver.
pub const SUBMIT: Place = Place::new(0, REQUESTS);
/// Requests carried out: driver to kernel.
pub const COMPLETE: Place = Place::new(SUBMIT.end(), REQUESTS);
/// Word where request 0 begins.
pub const FIRST_REQUEST: usize = COMPLETE.end();
/// Words from one request to the next.
pub const REQUEST_WORDS: usize = size_of::<Request>() / 8 + size_of::<Outcome>() / 8;
/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (FIRST_REQUEST + REQUESTS * REQUEST_WORDS) * 8;

/// Data moves neither way.
pub const DIRECTION_NONE: u32 = 0;
/// From the device into memory.
pub const DIRECTION_IN: u32 = 1;
/// From memory to the device.
pub const DIRECTION_OUT: u32 = 2;

/// What the kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Request {
    /// Address of the data for the device; 0 for one that reaches no memory.
    pub data_address: u64,
    /// Address of the data for the driver.
    pub data: u64,
    /// Length of the data in bytes.
    pub data_len: u32,
    /// One of `DIRECTION_*`.
    pub direction: u32,
    /// SCSI target, below 256.
    pub target: u16,
    /// Logical unit, below 256.
    pub lun: u16,
    /// Length of the command descriptor block in bytes.
    pub cdb_len: u16,
    /// Must be zero.
    pub reserved: u16,
    /// Command descriptor block.
    pub cdb: [u8; MAX_CDB],
}

/// What the driver answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Outcome {
    /// A `HOST_*` code: whether the command reached the device at all.
    pub host: u32,
    /// SCSI status byte (SAM-5 5.3.1), if it did.
    pub status: u32,
    /// Bytes of `data_len` that were not moved.
    pub residual: u32,
    /// Length of the sense data in bytes.
    pub sense_len: u32,
    /// Sense data (SPC-4 4.5). It is not looked at if `sense_len` is 0.
    pub sense: [u8; MAX_SENSE],
}

/// The device answered: `status` and sense data say what.
pub const HOST_OK: u32 = 0;
/// There is no such target or logical unit.
pub const HOST_NO_DEVICE: u32 = 1;
/// The adapter failed.
pub const HOST_ERROR: u32 = 2;
/// The command was given up because of a reset.
pub const HOST_RESET: u32 = 3;

const _: () = assert!(size_of::<Request>() == 64 && size_of::<Outcome>() == 64);

/// What a driver says of its adapter with `rf_offer`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ScsiInfo {
    /// Targets that can exist, at most 256: numbers from 0.
    pub max_targets: u32,
    /// Logical units that a target can have, at most 256: numbers from 0.
    pub max_luns: u32,
    /// Requests that the adapter can have under way, at most [`REQUESTS`].
    pub queue_depth: u32,
    /// Must be zero.
    pub reserved: u32,
}

const OUTCOME_OFFSET: usize = size_of::<Request>() / 8;

/// Where request `number` begins, in words. Panics if there is no such request: callers check
/// numbers they are given.
const fn request_at(number: usize) -> usize {
    assert!(number < REQUESTS);
    FIRST_REQUEST + number * REQUEST_WORDS
}

/// Writes request `number` (below [`REQUESTS`]) into shared memory.
pub fn write_request(words: &impl Words, number: usize, request: &Request) {
    write_value(words, request_at(number), request, size_of::<Request>() / 8);
}

/// Copies request `number` (below [`REQUESTS`]) out of shared memory.
pub fn read_request(words: &impl Words, number: usize) -> Option<Request> {
    read_value::<{ size_of::<Request>() / 8 }, Request>(words, request_at(number))
}

/// Words of an outcome, and those before its sense data, which few have.
const OUTCOME_WORDS: usize = size_of::<Outcome>() / 8;
const HEAD_WORDS: usize = offset_of!(Outcome, sense) / 8;

/// Writes the outcome of request `number` (below [`REQUESTS`]) into shared memory.
pub fn write_outcome(words: &impl Words, number: usize, outcome: &Outcome) {
    let count = if outcome.sense_len == 0 { HEAD_WORDS } else { OUTCOME_WORDS };
    write_value(words, request_at(number) + OUTCOME_OFFSET, outcome, count);
}

/// Copies the outcome of request `number` (below [`REQUESTS`]) out of shared memory.
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
