//! Drivers of SCSI host bus adapters.
//!
//! [`Queues::take`](crate::class::Requests::take) hands out commands, of which [`REQUESTS`] can be
//! under way. A driver that says in [`ScsiInfo::functions`] that it can abort commands or reset
//! logical units also gets requests whose [`Request::function`] asks for that, under the numbers
//! from [`TASK_MANAGEMENT`] on. The kernel sends one when a command is not done in time, before it
//! ends the driver, and when a person types `blkreset`. The commands that are given up are
//! completed with [`HOST_ABORTED`] or [`HOST_RESET`], before the request that asked for it; the
//! kernel sends them again. Other drivers never see such a request.
//!
//! A driver completes a request with an [`Outcome`]: [`Outcome::answered`] has the SCSI status and
//! the length of the data that was not moved, [`Outcome::with_sense`] adds sense data,
//! [`Outcome::failed`] is for a command without a status, and [`Outcome::check_condition`] for an
//! error that the driver finds itself.

use crate::Result;
use crate::class::{self, Class, ClassDriver, Protocol, Requests};
use ringfence_abi::queue::{Place, Rings, Words};
pub use ringfence_abi::scsi::{
    CAN_ABORT_TASK, CAN_RESET_LOGICAL_UNIT, DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT, FUNCTION_ABORT_TASK,
    FUNCTION_COMMAND, FUNCTION_LOGICAL_UNIT_RESET, HOST_ABORTED, HOST_ERROR, HOST_NO_DEVICE, HOST_OK, HOST_RESET,
    MAX_SENSE, Outcome, REQUESTS, Request, ScsiInfo, SenseKey, TASK_MANAGEMENT,
};
use ringfence_abi::scsi::{COMPLETE, NUMBERS, QUEUE_BYTES, SUBMIT, read_request, write_outcome};

/// SCSI host bus adapters.
pub struct Scsi;

/// The driver's end of the queues.
pub type Queues = Requests<Scsi>;
/// The right to complete a request.
pub type Ticket = class::Ticket<Scsi>;
/// The driver of an adapter.
pub type ScsiDriver<H> = ClassDriver<H, Scsi>;

impl Class for Scsi {
    type Info = ScsiInfo;
    type Channel = Queues;

    fn offer(info: ScsiInfo) -> Result<Queues> {
        Requests::offer(&info)
    }
}

impl Rings for Scsi {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Scsi {
    type Info = ScsiInfo;
    type Request = Request;
    type Outcome = Outcome;

    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const NUMBERS: usize = NUMBERS;

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
