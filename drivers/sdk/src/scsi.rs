//! SCSI host drivers.

use crate::service::{answer, raw};
use crate::shared::QueueMemory;
use crate::{Driver, Events, Refusal, Reply, Result};
use ringfence_abi::queue::{Consumer, Producer};
use ringfence_abi::scsi::{COMPLETE, QUEUE_BYTES, REQUESTS, SUBMIT, read_request, write_outcome};
pub use ringfence_abi::scsi::{
    DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT, HOST_ERROR, HOST_NO_DEVICE, HOST_OK, MAX_SENSE, Outcome, Request,
    ScsiInfo,
};

/// A SCSI host bus adapter.
pub trait ScsiHost: Sized + 'static {
    /// Takes the adapter into service.
    fn init() -> Result<Self>;

    /// What the adapter can do.
    fn info(&self) -> ScsiInfo;

    /// Carries out what was submitted and completes what is done.
    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply;

    /// Does what a person typed behind `tell NAME`.
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// Stops the adapter.
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
    fn register(info: ScsiInfo) -> Result<Queues> {
        // SAFETY: `info` lives until the call returns; the kernel maps the queues for good.
        let memory = unsafe {
            let start = answer(raw::rf_offer(&raw const info as u64, size_of::<ScsiInfo>() as u64))?;
            QueueMemory::new(start, QUEUE_BYTES)
        };
        Ok(Queues { memory, submit: Consumer::new(SUBMIT), complete: Producer::new(COMPLETE) })
    }

    /// The next request to carry out, and its number.
    pub fn take(&mut self) -> Option<(usize, Request)> {
        let number = usize::try_from(self.submit.take(&self.memory).ok()??).ok()?;
        (number < REQUESTS).then(|| read_request(&self.memory, number).map(|request| (number, request)))?
    }

    /// Completes request `number`, which came from [`Queues::take`].
    pub fn complete(&mut self, number: usize, outcome: &Outcome) {
        write_outcome(&self.memory, number, outcome);
        // There is room: the ring holds all requests.
        let _ = self.complete.put(&self.memory, number as u64);
    }
}

/// Makes a [`Driver`] of a [`ScsiHost`].
pub struct ScsiDriver<H> {
    host: H,
    queues: Queues,
}

impl<H: ScsiHost> Driver for ScsiDriver<H> {
    fn init() -> Result<Self> {
        let host = H::init()?;
        let queues = Queues::register(host.info())?;
        Ok(ScsiDriver { host, queues })
    }

    fn poll(&mut self, events: Events) -> Reply {
        self.host.poll(events, &mut self.queues)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        self.host.command(text)
    }

    fn exit(&mut self) {
        self.host.exit();
    }
}
