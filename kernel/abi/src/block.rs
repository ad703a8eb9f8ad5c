//! What a driver of a block device and the kernel share: two rings of request numbers, and the
//! requests themselves.
//!
//! The kernel fills in request `n` and puts `n` into `submit`; the driver carries it out, writes
//! the status into the same request and puts `n` into `complete`. The data goes to or from the
//! request's own part of DMA memory, whose address for the device the request names.

use crate::queue::{Place, Words, read_value, write_value};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Requests that can be under way at once.
pub const BLOCK_REQUESTS: usize = 32;
/// Most data that one request can move, in bytes.
pub const BLOCK_MAX_DATA: usize = 65536;

/// Requests to carry out: kernel to driver.
pub const SUBMIT: Place = Place::new(0, BLOCK_REQUESTS);
/// Requests carried out: driver to kernel.
pub const COMPLETE: Place = Place::new(SUBMIT.end(), BLOCK_REQUESTS);
/// Word where request 0 begins.
pub const FIRST_REQUEST: usize = COMPLETE.end();
/// Words of a request.
const WORDS: usize = size_of::<BlockRequest>() / 8;
/// Words from one request to the next: the status is behind it.
pub const REQUEST_WORDS: usize = 8;
/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (FIRST_REQUEST + BLOCK_REQUESTS * REQUEST_WORDS) * 8;
const _: () = assert!(WORDS < REQUEST_WORDS);

/// Blocks go from the device into memory.
pub const BLOCK_READ: u32 = 0;
/// Blocks go from memory to the device.
pub const BLOCK_WRITE: u32 = 1;
/// What was written is to be on the medium when this is done. There is no data.
pub const BLOCK_FLUSH: u32 = 2;

/// It was done.
pub const BLOCK_OK: u32 = 0;
/// The device failed.
pub const BLOCK_ERROR: u32 = 1;
/// The device cannot do that.
pub const BLOCK_UNSUPPORTED: u32 = 2;

/// What the kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockRequest {
    /// Address of the data for the device; 0 for one that reaches no memory.
    pub data_address: u64,
    /// Address of the data for the driver.
    pub data: u64,
    /// Length of the data in bytes, a multiple of a block's.
    pub data_len: u32,
    /// [`BLOCK_READ`], [`BLOCK_WRITE`] or [`BLOCK_FLUSH`].
    pub operation: u32,
    /// The first block.
    pub lba: u64,
}

/// Flag of a device: it cannot be written.
pub const BLOCK_READ_ONLY: u32 = 1;

/// What a driver says of its device with `rf_offer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockInfo {
    /// How many blocks it has.
    pub blocks: u64,
    /// Length of a block in bytes: a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// Requests that it can have under way, at most [`BLOCK_REQUESTS`].
    pub queue_depth: u32,
    /// `BLOCK_READ_ONLY`, or 0.
    pub flags: u32,
    /// Must be zero.
    pub reserved: u32,
    /// What it is called, in ASCII, with zeros behind.
    pub model: [u8; 24],
}

/// Where request `number` begins, in words. Panics if there is no such request: callers check
/// numbers they are given.
const fn request_at(number: usize) -> usize {
    assert!(number < BLOCK_REQUESTS);
    FIRST_REQUEST + number * REQUEST_WORDS
}

/// Writes request `number` (below [`BLOCK_REQUESTS`]) into shared memory.
pub fn write_request(words: &impl Words, number: usize, request: &BlockRequest) {
    write_value(words, request_at(number), request, WORDS);
}

/// Where it is said to a driver that uses a disk what that is like, as a [`BlockInfo`]: the word
/// behind all requests.
const USED_INFO: usize = QUEUE_BYTES / 8;
/// Where data begins for a driver that uses a disk, in bytes: [`BLOCK_MAX_DATA`] bytes for each
/// request.
pub const USED_DATA: usize = (QUEUE_BYTES + size_of::<BlockInfo>()).next_multiple_of(crate::layout::PAGE_SIZE as usize);
/// Bytes that a driver that uses a disk shares with the kernel.
pub const USED_BYTES: usize = USED_DATA + BLOCK_REQUESTS * BLOCK_MAX_DATA;

/// Writes what a disk is like into shared memory.
pub fn write_used(words: &impl Words, info: &BlockInfo) {
    write_value(words, USED_INFO, info, size_of::<BlockInfo>() / 8);
}

/// Reads it.
pub fn read_used(words: &impl Words) -> Option<BlockInfo> {
    read_value::<{ size_of::<BlockInfo>() / 8 }, BlockInfo>(words, USED_INFO)
}

/// Copies request `number` (below [`BLOCK_REQUESTS`]) out of shared memory.
pub fn read_request(words: &impl Words, number: usize) -> Option<BlockRequest> {
    read_value::<WORDS, BlockRequest>(words, request_at(number))
}

/// Writes the status of request `number` (below [`BLOCK_REQUESTS`]) into shared memory.
pub fn write_status(words: &impl Words, number: usize, status: u32) {
    words.store(request_at(number) + WORDS, status.into());
}

/// Reads it.
pub fn read_status(words: &impl Words, number: usize) -> u64 {
    words.load(request_at(number) + WORDS)
}
