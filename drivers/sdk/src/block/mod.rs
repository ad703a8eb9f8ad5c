//! Drivers of block devices, and the disks that other drivers use.

mod buffered;

pub use buffered::BufferedDisk;
pub(crate) use buffered::Lent;

use crate::class::{self, Class, ClassDriver, Protocol, Requests};
use crate::dma::Bytes;
use crate::service::safe::rf_use;
use crate::shared::QueueMemory;
use crate::{Refusal, Result};
use core::ptr::NonNull;
pub use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_READ_ONLY, BLOCK_REQUESTS, BLOCK_UNSUPPORTED, BLOCK_WRITE,
    BlockInfo, BlockRequest, Order, USED_REQUESTS,
};
use ringfence_abi::block::{
    BLOCK_MAX_DATA, COMPLETE, QUEUE_BYTES, SUBMIT, USED_BYTES, USED_DATA, read_request, read_status, read_used,
    write_request, write_status,
};
use ringfence_abi::queue::{Complete, Consumer, HasQueues, Place, Producer, Rings, Submit, Words};

/// Block devices.
pub struct Block;

/// The driver's end of the queues. A driver completes a request with `BLOCK_OK`, `BLOCK_ERROR` or
/// `BLOCK_UNSUPPORTED`.
pub type Queues = Requests<Block>;
/// The right to complete a request.
pub type Ticket = class::Ticket<Block>;
/// The driver of a block device.
pub type BlockDriver<D> = ClassDriver<D, Block>;

impl Class for Block {
    type Info = BlockInfo;
    type Channel = Queues;

    fn offer(info: BlockInfo) -> Result<Queues> {
        Requests::offer(&info)
    }
}

impl Rings for Block {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Block {
    type Info = BlockInfo;
    type Request = BlockRequest;
    type Outcome = u32;

    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const NUMBERS: usize = BLOCK_REQUESTS;

    fn read(memory: &impl Words, number: usize) -> Option<BlockRequest> {
        read_request(memory, number)
    }

    fn data(request: &BlockRequest) -> (u64, u32) {
        (request.data, request.data_len)
    }

    fn write(memory: &impl Words, number: usize, status: &u32) {
        write_status(memory, number, *status);
    }
}

/// A disk of another driver that this driver uses. A driver that waits for each request has a
/// [`BufferedDisk`].
pub struct Disk {
    memory: QueueMemory<Disk>,
    data: Bytes,
    info: BlockInfo,
    submit: Producer<Submit<Block>>,
    complete: Consumer<Complete<Block>>,
    free: [bool; USED_REQUESTS],
}

impl HasQueues for Disk {
    const WORDS: usize = USED_BYTES / 8;
}

/// A request that this driver has made; [`Disk::finish`] takes it and returns its status.
pub struct Asked {
    number: usize,
    len_bytes: usize,
}

impl Asked {
    /// Returns the request's number, below [`USED_REQUESTS`].
    pub fn number(&self) -> usize {
        self.number
    }
}

// The driver trusts the ring positions that the kernel writes. If they were false, it could do
// nothing about it.
impl Disk {
    /// Opens the disk `name`, a name as `lsblk` shows it. The manifest must declare that the driver
    /// [uses](crate::Manifest::uses) a disk.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] if there is no such disk.
    pub fn open(name: &str) -> Result<Disk> {
        let start = rf_use(name.as_bytes())?;
        // SAFETY: the kernel has mapped `USED_BYTES` bytes at `start`, queues first, then data, and
        // never unmaps them.
        let (memory, data) = unsafe {
            let data = NonNull::new((start + USED_DATA as u64) as *mut u8).ok_or(Refusal::NoMemory)?;
            (QueueMemory::new(start), Bytes::new(data, USED_BYTES - USED_DATA))
        };
        let info = read_used(&memory).ok_or(Refusal::NotFound)?;
        let (submit, complete) = (Producer::new(), Consumer::new());
        Ok(Disk { memory, data, info, submit, complete, free: [true; USED_REQUESTS] })
    }

    /// Returns the description of the disk, with the number and the length of its blocks.
    pub fn info(&self) -> BlockInfo {
        self.info
    }

    /// Returns the memory of the data of all requests, [`BLOCK_MAX_DATA`] bytes for each.
    pub(crate) fn data(&self) -> &Bytes {
        &self.data
    }

    /// Submits request `number`, which must not be under way. `data` is the address of its data, in
    /// a request of the kernel, or 0 for its own part of the shared memory.
    pub(crate) fn submit(&mut self, number: usize, operation: u32, lba: u64, len_bytes: usize, data: u64) {
        let request = BlockRequest { data_address: 0, data, data_len: len_bytes as u32, operation, lba };
        write_request(&self.memory, number, &request);
        // There is room: the ring has an entry for every request.
        let _ = self.submit.put(&self.memory, number as u64);
    }

    /// Returns the status of request `number`, which is done.
    pub(crate) fn status(&self, number: usize) -> u32 {
        read_status(&self.memory, number) as u32
    }

    fn ask(&mut self, operation: u32, lba: u64, len_bytes: usize, write: &[u8]) -> Option<Asked> {
        let number = self.free.iter().position(|is_free| *is_free)?;
        if len_bytes > BLOCK_MAX_DATA {
            return None;
        }
        self.data.write(number * BLOCK_MAX_DATA, write);
        self.submit(number, operation, lba, len_bytes, 0);
        self.free[number] = false;
        Some(Asked { number, len_bytes })
    }

    /// Requests the blocks from `lba` on, `len_bytes` bytes. Returns `None` if all requests are in
    /// flight, or `len_bytes` is more than 64 KiB. The kernel polls the driver with `Events::QUEUE`
    /// when the request is done.
    pub fn read(&mut self, lba: u64, len_bytes: usize) -> Option<Asked> {
        self.ask(BLOCK_READ, lba, len_bytes, &[])
    }

    /// Requests that `bytes` are written to the blocks from `lba` on. Returns `None` as
    /// [`Disk::read`] does.
    pub fn write(&mut self, lba: u64, bytes: &[u8]) -> Option<Asked> {
        self.ask(BLOCK_WRITE, lba, bytes.len(), bytes)
    }

    /// Requests that all written data reaches the medium. Returns `None` as [`Disk::read`] does.
    pub fn flush(&mut self) -> Option<Asked> {
        self.ask(BLOCK_FLUSH, 0, 0, &[])
    }

    /// Returns the number of the next request that is done, for [`Disk::finish`].
    pub fn next_done(&mut self) -> Option<usize> {
        usize::try_from(self.complete.take(&self.memory).ok()??).ok()
    }

    /// Returns the status of a request that is done: `BLOCK_OK`, `BLOCK_ERROR` or
    /// `BLOCK_UNSUPPORTED`. Copies the data that was read to `to`, as much as fits.
    pub fn finish(&mut self, asked: Asked, to: &mut [u8]) -> u32 {
        let len = to.len().min(asked.len_bytes);
        self.data.read(asked.number * BLOCK_MAX_DATA, &mut to[..len]);
        self.free[asked.number] = true;
        self.status(asked.number)
    }
}
