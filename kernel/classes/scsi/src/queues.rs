//! What SCSI requests are like ([`ringfence_abi::scsi`]).

use host::requests::{self, Direction, Protocol, Transfer};
use ringfence_abi::queue::{Place, Words};
use ringfence_abi::scsi::{
    COMPLETE, DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT, MAX_DATA, Outcome, QUEUE_BYTES, REQUESTS, Request, SUBMIT,
    ScsiInfo, read_outcome, write_request,
};
use ringfence_abi::upcall::Reply;
use ringfence_core::cdb::Cdb;

/// Requests for logical units.
pub struct Scsi;

/// The kernel's end of a SCSI driver's queues.
pub type Queues = requests::queue::Queues<Scsi>;

/// A command for a logical unit.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// SCSI target.
    pub target: u32,
    /// Logical unit.
    pub lun: u32,
    /// What it is to do.
    pub cdb: Cdb,
}

impl Protocol for Scsi {
    type Info = ScsiInfo;
    type Request = Command;
    type Outcome = Outcome;
    type Unit = (u32, u32);

    const NAMES: [&'static str; 2] = ["SCSI command", "SCSI requests"];
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const REQUESTS: usize = REQUESTS;
    const MAX_DATA: usize = MAX_DATA;
    const NEWS: Reply = Reply::UNITS_CHANGED;

    fn depth(info: &ScsiInfo) -> usize {
        info.queue_depth as usize
    }

    fn unit(command: &Command) -> (u32, u32) {
        (command.target, command.lun)
    }

    fn write(memory: &impl Words, number: usize, command: &Command, data: Transfer) {
        let direction = match data.direction {
            Direction::None => DIRECTION_NONE,
            Direction::In => DIRECTION_IN,
            Direction::Out => DIRECTION_OUT,
        };
        let request = Request {
            data_address: data.address,
            data: data.start,
            data_len: data.len_bytes,
            direction,
            // Both are below 256.
            target: command.target as u16,
            lun: command.lun as u16,
            cdb_len: command.cdb.len_bytes() as u16,
            reserved: 0,
            cdb: command.cdb.padded(),
        };
        write_request(memory, number, &request);
    }

    /// A status is a byte (SAM-5 5.3.1): cut off, another one might read as GOOD.
    fn read(memory: &impl Words, number: usize) -> Result<Outcome, u64> {
        let outcome = read_outcome(memory, number).ok_or(number as u64)?;
        if outcome.status > u8::MAX.into() { Err(outcome.status.into()) } else { Ok(outcome) }
    }

    fn news_came() {
        super::scan::note_change();
    }
}
