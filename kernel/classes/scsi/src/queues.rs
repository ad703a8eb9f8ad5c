//! Requests to a SCSI driver ([`ringfence_abi::scsi`]).

use alloc::format;
use alloc::string::{String, ToString};
use host::requests::{self, Direction, Protocol, Transfer};
use ringfence_abi::queue::{Place, Rings, Words};
use ringfence_abi::scsi::{
    self, CAN_ABORT_TASK, CAN_RESET_LOGICAL_UNIT, COMPLETE, DIRECTION_IN, DIRECTION_NONE, DIRECTION_OUT,
    FUNCTION_ABORT_TASK, FUNCTION_COMMAND, FUNCTION_LOGICAL_UNIT_RESET, FUNCTIONS, HOST_ABORTED, HOST_NO_DEVICE,
    HOST_OK, HOST_RESET, MAX_DATA, Outcome, QUEUE_BYTES, REQUESTS, Request, SUBMIT, ScsiInfo, read_outcome,
    write_request,
};
use ringfence_abi::upcall::Reply;
use ringfence_core::cdb::{self, Cdb};
use ringfence_core::passed::{self, Content, Detail};
use ringfence_core::sense::Sense;

/// The protocol of requests for logical units.
pub struct Scsi;

/// The index of a reset among the urgent requests, which are in the order of their functions.
pub const RESET: usize = (FUNCTION_LOGICAL_UNIT_RESET - FUNCTION_ABORT_TASK) as usize;

/// The kernel's end of a SCSI driver's queues.
pub type Queues = requests::queue::Queues<Scsi>;

/// A request to a logical unit: a command, or a task management function (SAM-5, 5 and 7).
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// SCSI target.
    pub target: u32,
    /// Logical unit.
    pub lun: u32,
    /// One of `FUNCTION_*`.
    function: u16,
    /// Number of the request that is to be aborted.
    managed: u16,
    /// The command, if it is one.
    cdb: Cdb,
}

impl Asked {
    /// Asks a unit to carry out a command.
    pub fn command(target: u32, lun: u32, cdb: Cdb) -> Asked {
        Asked { target, lun, function: FUNCTION_COMMAND, managed: 0, cdb }
    }

    /// ABORT TASK: asks for the request under `number` to be given up.
    fn abort(of: &Asked, number: usize) -> Asked {
        Asked { function: FUNCTION_ABORT_TASK, managed: number as u16, cdb: Cdb::NONE, ..*of }
    }

    /// LOGICAL UNIT RESET: asks for all commands of a unit to be given up.
    pub fn reset(target: u32, lun: u32) -> Asked {
        Asked { target, lun, function: FUNCTION_LOGICAL_UNIT_RESET, managed: 0, cdb: Cdb::NONE }
    }

    /// The READ of the blocks that this writes; `None` if it is no WRITE.
    pub fn read_back(&self) -> Option<Asked> {
        Some(Asked { cdb: self.cdb.read_back()?, ..*self })
    }

    /// Returns the name of the command.
    pub fn name(&self) -> &'static str {
        self.cdb.name()
    }
}

/// Describes a request for a trace.
pub fn content_words(content: &Content) -> String {
    let Content::Request(request) = content else { return String::new() };
    let asked = scsi::Asked::of_words(*request);
    let what = match asked.function {
        FUNCTION_COMMAND => cdb::words(asked.cdb.get(..asked.cdb_len.into()).unwrap_or(&asked.cdb)),
        FUNCTION_ABORT_TASK => "ABORT TASK".to_string(),
        _ => "LOGICAL UNIT RESET".to_string(),
    };
    format!("{what}, to {}:{}", asked.target, asked.lun)
}

/// Describes the result of a request, and its sense data, for a trace.
pub fn result_words(result: u32, sense: &[u8]) -> String {
    let words = match (result >> 8, result & 0xff) {
        (HOST_OK, 0x00) => "GOOD",
        (HOST_OK, 0x02) => "CHECK CONDITION",
        (HOST_OK, 0x08) => "BUSY",
        (HOST_OK, 0x28) => "TASK SET FULL",
        (HOST_OK, _) => "another status",
        (HOST_NO_DEVICE, _) => "no device",
        (HOST_RESET, _) => "reset",
        (HOST_ABORTED, _) => "aborted",
        _ => "the adapter failed",
    };
    Sense::parse(sense).map_or(words.to_string(), |sense| format!("{words}: {sense}"))
}

impl Rings for Scsi {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Scsi {
    type Info = ScsiInfo;
    type Request = Asked;
    type Outcome = Outcome;
    type Unit = (u32, u32);

    const NAMES: [&'static str; 2] = ["SCSI command", "SCSI requests"];
    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const REQUESTS: usize = REQUESTS;
    const URGENT: usize = FUNCTIONS;
    const MAX_DATA: usize = MAX_DATA;
    const NEWS: Reply = Reply::UNITS_CHANGED;

    fn depth(info: &ScsiInfo) -> usize {
        info.queue_depth as usize
    }

    fn unit(asked: &Asked) -> (u32, u32) {
        (asked.target, asked.lun)
    }

    #[inline]
    fn write(memory: &impl Words, number: usize, asked: &Asked, data: Transfer) {
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
            managed: asked.managed,
            // Both are below 256.
            target: asked.target as u16,
            lun: asked.lun as u16,
            cdb_len: asked.cdb.len_bytes() as u16,
            function: asked.function,
            cdb: asked.cdb.padded(),
        };
        write_request(memory, number, &request);
    }

    /// Refuses a status that is longer than a byte (SAM-5 5.3.1): cut off, it might read as GOOD.
    fn read(memory: &impl Words, number: usize) -> Result<Outcome, u64> {
        let outcome = read_outcome(memory, number).ok_or(number as u64)?;
        if outcome.status > u8::MAX.into() { Err(outcome.status.into()) } else { Ok(outcome) }
    }

    /// The words of a [`scsi::Asked`].
    fn describe(memory: &impl Words, number: usize) -> (passed::Request, u32) {
        scsi::read_asked(memory, number)
    }

    fn result(memory: &impl Words, number: usize) -> u32 {
        let (host, status) = scsi::read_host_and_status(memory, number);
        // A code that is too long stays a wrong code.
        host.min(0xff_ffff) << 8 | status.min(0xff)
    }

    /// The sense data.
    fn detail(memory: &impl Words, number: usize) -> Detail {
        let outcome = read_outcome(memory, number);
        let sense = outcome.as_ref().and_then(|outcome| outcome.sense.get(..outcome.sense_len as usize));
        Detail::new(sense.unwrap_or_default())
    }

    fn news_came() {
        super::scan::note_change();
    }

    fn remedies(info: &ScsiInfo, asked: &Asked, number: usize) -> [Option<(Asked, &'static str)>; 2] {
        let can = |function| info.functions & function != 0;
        let reset = Asked::reset(asked.target, asked.lun);
        [
            can(CAN_ABORT_TASK).then(|| (Asked::abort(asked, number), "abort it")),
            can(CAN_RESET_LOGICAL_UNIT).then_some((reset, "reset the unit")),
        ]
    }
}
