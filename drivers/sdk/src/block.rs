//! Drivers of block devices.

use crate::dma::Bytes;
use crate::service::{answer, raw};
use crate::shared::QueueMemory;
use crate::{Driver, Events, Refusal, Reply, Result};
use core::ptr::NonNull;
pub use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_READ_ONLY, BLOCK_REQUESTS, BLOCK_UNSUPPORTED, BLOCK_WRITE,
    BlockInfo,
};
use ringfence_abi::block::{BlockRequest, COMPLETE, QUEUE_BYTES, SUBMIT, read_request, write_status};
use ringfence_abi::queue::{Consumer, Producer};

/// A block device.
pub trait BlockDevice: Sized + 'static {
    /// Takes the device into service.
    fn init() -> Result<Self>;

    /// What the device is like.
    fn info(&self) -> BlockInfo;

    /// Carries out what was submitted and completes what is done.
    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply;

    /// Does what a person typed behind `tell NAME`.
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// Stops the device.
    fn exit(&mut self);
}

/// The driver's end of the queues.
pub struct Queues {
    memory: QueueMemory,
    submit: Consumer,
    complete: Producer,
}

// The kernel's positions are true. If they were not, there would be nothing to do.
impl Queues {
    fn register(info: BlockInfo) -> Result<Queues> {
        // SAFETY: `info` lives until the call returns; the kernel maps the queues for good.
        let memory = unsafe {
            let start = answer(raw::rf_offer(&raw const info as u64, size_of::<BlockInfo>() as u64))?;
            QueueMemory::new(start, QUEUE_BYTES)
        };
        Ok(Queues { memory, submit: Consumer::new(SUBMIT), complete: Producer::new(COMPLETE) })
    }

    /// The next request to carry out.
    pub fn take(&mut self) -> Option<Request> {
        let number = usize::try_from(self.submit.take(&self.memory).ok()??).ok()?;
        if number >= BLOCK_REQUESTS {
            return None;
        }
        let raw = read_request(&self.memory, number)?;
        let start = NonNull::new(raw.data as *mut u8).unwrap_or(NonNull::dangling());
        // SAFETY: the kernel has mapped as much data for each request, for good.
        let data = unsafe { Bytes::new(start, raw.data_len as usize) };
        Some(Request { number, raw, data })
    }

    /// Completes a request with one of `BLOCK_OK`, `BLOCK_ERROR` and `BLOCK_UNSUPPORTED`.
    pub fn complete(&mut self, request: Request, status: u32) {
        write_status(&self.memory, request.number, status);
        // There is room: the ring holds all requests.
        let _ = self.complete.put(&self.memory, request.number as u64);
    }
}

/// What the kernel asks for, until [`Queues::complete`] takes it back.
pub struct Request {
    number: usize,
    raw: BlockRequest,
    data: Bytes,
}

impl Request {
    /// Its number, below [`BLOCK_REQUESTS`]. No other request that was taken and not completed has it.
    pub fn number(&self) -> usize {
        self.number
    }

    /// `BLOCK_READ`, `BLOCK_WRITE` or `BLOCK_FLUSH`.
    pub fn operation(&self) -> u32 {
        self.raw.operation
    }

    /// The first block.
    pub fn lba(&self) -> u64 {
        self.raw.lba
    }

    /// Where the device sees its data.
    pub fn data_address(&self) -> u64 {
        self.raw.data_address
    }

    /// Length of its data in bytes, a multiple of a block's.
    pub fn data_len(&self) -> usize {
        self.raw.data_len as usize
    }

    /// Copies data out, from the byte at `offset` on: of what is written to the device. Panics if it is not all inside.
    #[track_caller]
    pub fn read_data(&self, offset: usize, to: &mut [u8]) {
        self.data.read(offset, to);
    }

    /// Copies data in, from the byte at `offset` on: of what is read from the device. Panics if it does not fit.
    #[track_caller]
    pub fn write_data(&mut self, offset: usize, from: &[u8]) {
        self.data.write(offset, from);
    }
}

/// Makes a [`Driver`] of a [`BlockDevice`].
pub struct BlockDriver<D> {
    device: D,
    queues: Queues,
}

impl<D: BlockDevice> Driver for BlockDriver<D> {
    fn init() -> Result<Self> {
        let device = D::init()?;
        let queues = Queues::register(device.info())?;
        Ok(BlockDriver { device, queues })
    }

    fn poll(&mut self, events: Events) -> Reply {
        self.device.poll(events, &mut self.queues)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        self.device.command(text)
    }

    fn exit(&mut self) {
        self.device.exit();
    }
}
