//! SCSI host drivers.

use crate::Result;
use crate::class::{self, Class, ClassDriver, Protocol, Requests};
use ringfence_abi::queue::{Place, Words};
use ringfence_abi::scsi::{COMPLETE, QUEUE_BYTES, SUBMIT, read_request, write_outcome};
pub use ringfence_abi::scsi::{
    DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT, HOST_ERROR, HOST_NO_DEVICE, HOST_OK, MAX_SENSE, Outcome, REQUESTS,
    Request, ScsiInfo,
};

/// SCSI host bus adapters.
pub struct Scsi;

/// The driver's end of the queues.
pub type Queues = Requests<Scsi>;
/// The right to complete a request.
pub type Ticket = class::Ticket<Scsi>;
/// Makes a driver of an adapter.
pub type ScsiDriver<H> = ClassDriver<H, Scsi>;

impl Class for Scsi {
    type Info = ScsiInfo;
    type Channel = Queues;

    fn offer(info: ScsiInfo) -> Result<Queues> {
        Requests::offer(&info)
    }
}

impl Protocol for Scsi {
    type Info = ScsiInfo;
    type Request = Request;
    type Outcome = Outcome;

    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const REQUESTS: usize = REQUESTS;

    #[inline]
    fn read(memory: &impl Words, number: usize) -> Option<Request> {
        read_request(memory, number)
    }

    fn data(request: &Request) -> (u64, u32) {
        (request.data, request.data_len)
    }

    #[inline]
    fn write(memory: &impl Words, number: usize, outcome: &Outcome) {
        write_outcome(memory, number, outcome);
    }
}
