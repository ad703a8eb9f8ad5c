//! The memory that the driver of a block device shares with the kernel: two rings of request
//! numbers, and the requests themselves.
//!
//! The kernel fills in request `n` and puts `n` into `submit`. The driver carries the request out,
//! writes its status into the same request and puts `n` into `complete`. Each request has its own
//! part of DMA memory for its data; the request names the address at which the device sees it.

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
/// Words from one request to the next: the request is followed by its status.
pub const REQUEST_WORDS: usize = 8;
/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (FIRST_REQUEST + BLOCK_REQUESTS * REQUEST_WORDS) * 8;
const _: () = assert!(WORDS < REQUEST_WORDS);

/// Blocks go from the device into memory.
pub const BLOCK_READ: u32 = 0;
/// Blocks go from memory to the device.
pub const BLOCK_WRITE: u32 = 1;
/// Everything written before must be on the medium when this request is done. It has no data.
pub const BLOCK_FLUSH: u32 = 2;
/// As [`BLOCK_WRITE`], by a filesystem to the disk that it uses: it may reach the disk late, behind
/// writes that are [early](BLOCK_WRITE_EARLY) and come after it, but before the next
/// [`BLOCK_WRITE`] or [`BLOCK_FLUSH`].
pub const BLOCK_WRITE_LATE: u32 = 3;
/// As [`BLOCK_WRITE_LATE`], and it ends a group of late writes. Where the disk does not have a late
/// write to the same blocks yet, the one of the group takes its place, if these come in the same
/// order in the group as before. The others of the group come right before the next one that takes
/// a place, or behind all. So newer content of a block may come before older late writes, if those
/// came behind the block's older content: it must not rely on them, and they must make sense
/// behind it.
pub const BLOCK_WRITE_LAST: u32 = 4;
/// As [`BLOCK_WRITE`], by a filesystem to the disk that it uses: it may reach the disk before the
/// [late](BLOCK_WRITE_LATE) writes that came before it. The filesystem must make sense without
/// those. Early writes that follow each other, to different blocks, may reach the disk in any
/// order.
pub const BLOCK_WRITE_EARLY: u32 = 5;

/// When the disk of a filesystem gets a write, if its power may be cut at any moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Behind all writes before it ([`BLOCK_WRITE`]).
    Kept,
    /// Late: a moment later, or before the next write whose order is kept ([`BLOCK_WRITE_LATE`]).
    Late,
    /// Late, and the last of a group of late writes ([`BLOCK_WRITE_LAST`]).
    Last,
    /// Behind the writes before it, except for those that are late, and for early ones right before
    /// it ([`BLOCK_WRITE_EARLY`]).
    Early,
}

impl Order {
    /// Returns the operation of a write.
    pub const fn operation(self) -> u32 {
        match self {
            Order::Kept => BLOCK_WRITE,
            Order::Late => BLOCK_WRITE_LATE,
            Order::Last => BLOCK_WRITE_LAST,
            Order::Early => BLOCK_WRITE_EARLY,
        }
    }

    /// Returns the order of a write, and `None` for another operation.
    pub const fn of(operation: u32) -> Option<Order> {
        match operation {
            BLOCK_WRITE => Some(Order::Kept),
            BLOCK_WRITE_LATE => Some(Order::Late),
            BLOCK_WRITE_LAST => Some(Order::Last),
            BLOCK_WRITE_EARLY => Some(Order::Early),
            _ => None,
        }
    }
}

/// The request was carried out.
pub const BLOCK_OK: u32 = 0;
/// The device failed.
pub const BLOCK_ERROR: u32 = 1;
/// The device cannot carry out this kind of request.
pub const BLOCK_UNSUPPORTED: u32 = 2;

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockRequest {
    /// Address of the data as the device sees it; 0 for a device that reaches no memory.
    pub data_address: u64,
    /// Address of the data as the driver sees it. A driver that uses a disk sets it to 0 for the
    /// request's own part of the memory that it shares ([`USED_DATA`]). Any other address must be
    /// in the data of the requests that the kernel makes of the driver: so blocks get there, or
    /// come from there, without a copy in between.
    pub data: u64,
    /// Length of the data in bytes, a multiple of the block length.
    pub data_len: u32,
    /// [`BLOCK_READ`], [`BLOCK_WRITE`] or [`BLOCK_FLUSH`]; of a filesystem also
    /// [`BLOCK_WRITE_LATE`], [`BLOCK_WRITE_LAST`] or [`BLOCK_WRITE_EARLY`].
    pub operation: u32,
    /// The first block.
    pub lba: u64,
}

/// Flag of a device: it cannot be written.
pub const BLOCK_READ_ONLY: u32 = 1;

/// The description of a block device that its driver passes to `rf_offer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BlockInfo {
    /// How many blocks the device has.
    pub blocks: u64,
    /// Length of a block in bytes: a power of two from 512 to 4096.
    pub block_bytes: u32,
    /// How many requests the device can have under way, at most [`BLOCK_REQUESTS`].
    pub queue_depth: u32,
    /// `BLOCK_READ_ONLY`, or 0.
    pub flags: u32,
    /// Must be zero.
    pub reserved: u32,
    /// Name of the model in ASCII, filled up with zeros.
    pub model: [u8; 24],
}

/// Returns the word where request `number` begins. Panics if there is no such request: callers
/// check the numbers they are given.
const fn request_at(number: usize) -> usize {
    assert!(number < BLOCK_REQUESTS);
    FIRST_REQUEST + number * REQUEST_WORDS
}

/// Writes request `number` (below [`BLOCK_REQUESTS`]) into shared memory.
pub fn write_request(words: &impl Words, number: usize, request: &BlockRequest) {
    write_value(words, request_at(number), request, WORDS);
}

/// Word where the description of a disk begins ([`BlockInfo`]), for a driver that uses the disk:
/// right behind all requests.
const USED_INFO: usize = QUEUE_BYTES / 8;
/// Requests that a driver which uses a disk can have under way at once. With the page before it,
/// their data takes a little less than 512 KiB, a power of two: frames come in such blocks, and the
/// rest that a larger number would leave of the next block is soon in pieces.
pub const USED_REQUESTS: usize = 7;
/// Byte where the data begins, for a driver that uses a disk: [`BLOCK_MAX_DATA`] bytes for each
/// request.
pub const USED_DATA: usize = (QUEUE_BYTES + size_of::<BlockInfo>()).next_multiple_of(crate::layout::PAGE_SIZE as usize);
/// Bytes that a driver shares with the kernel to use a disk.
pub const USED_BYTES: usize = USED_DATA + USED_REQUESTS * BLOCK_MAX_DATA;

/// Writes the description of a disk into shared memory.
pub fn write_used(words: &impl Words, info: &BlockInfo) {
    write_value(words, USED_INFO, info, size_of::<BlockInfo>() / 8);
}

/// Reads the description of a disk from shared memory.
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

/// Reads the status of request `number` (below [`BLOCK_REQUESTS`]) from shared memory.
pub fn read_status(words: &impl Words, number: usize) -> u64 {
    words.load(request_at(number) + WORDS)
}
