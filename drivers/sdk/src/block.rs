//! Drivers of block devices.

use crate::service::{answer, raw};
use crate::shared::QueueMemory;
use crate::{Driver, Events, Refusal, Reply, Result};
pub use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ, BLOCK_READ_ONLY, BLOCK_UNSUPPORTED, BLOCK_WRITE, BlockInfo,
    BlockRequest,
};
use ringfence_abi::block::{BLOCK_REQUESTS, COMPLETE, QUEUE_BYTES, SUBMIT, read_request, write_status};
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

    /// The next request to carry out, and its number.
    pub fn take(&mut self) -> Option<(usize, BlockRequest)> {
        let number = usize::try_from(self.submit.take(&self.memory).ok()??).ok()?;
        (number < BLOCK_REQUESTS).then(|| read_request(&self.memory, number).map(|request| (number, request)))?
    }

    /// Completes request `number`, which came from [`Queues::take`], with one of `BLOCK_OK`, `BLOCK_ERROR` and `BLOCK_UNSUPPORTED`.
    pub fn complete(&mut self, number: usize, status: u32) {
        write_status(&self.memory, number, status);
        // There is room: the ring holds all requests.
        let _ = self.complete.put(&self.memory, number as u64);
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
