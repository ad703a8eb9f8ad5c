//! Adapters of a parallel SCSI bus that carry out one command at a time and leave it to the driver
//! to fetch sense data, as adapters of the 1990s do.

use crate::class::Device;
use crate::dma::Dma;
use crate::scsi::{
    CAN_ABORT_TASK, CAN_RESET_LOGICAL_UNIT, DIRECTION_IN, DIRECTION_OUT, FUNCTION_ABORT_TASK, FUNCTION_COMMAND,
    HOST_ABORTED, HOST_OK, HOST_RESET, MAX_SENSE, Outcome, Queues, Request, Scsi, ScsiDriver, ScsiInfo, Ticket,
};
use crate::{Events, Reply, Result};
use ringfence_abi::scsi::{MAX_CDB, REQUESTS};

/// The adapter's own number on the bus.
pub const OWN_ID: u8 = 7;
/// Number of targets and of logical units that can be addressed. Target 7 is the adapter itself.
const TARGETS: u32 = 7;
const UNITS: u32 = 8;
/// SCSI status (SAM-5, 5.3.1).
const CHECK_CONDITION: u8 = 0x02;

/// The direction of a data transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// There is no data.
    None,
    /// From the target.
    In,
    /// To the target.
    Out,
}

/// A command for a target.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    /// The target, below [`OWN_ID`].
    pub target: u8,
    /// The message that names the logical unit, with the right to disconnect (SPI-5, 16.4.7).
    pub identify: u8,
    cdb: [u8; MAX_CDB],
    cdb_len: usize,
    /// The address of the command's data for the device.
    pub data: u32,
    /// The length of the data in bytes.
    pub data_len: u32,
    /// The direction of the data.
    pub direction: Direction,
}

impl Command {
    /// Translates `request`; `None` if this kind of bus cannot carry it out.
    fn new(request: &Request) -> Option<Command> {
        let direction = match (request.direction, request.data_len) {
            (_, 0) => Direction::None,
            (DIRECTION_IN, _) => Direction::In,
            (DIRECTION_OUT, _) => Direction::Out,
            _ => Direction::None,
        };
        let is_there = u32::from(request.target) < TARGETS && u32::from(request.lun) < UNITS;
        let command = Command {
            target: request.target as u8,
            identify: identify(request.lun as u8),
            cdb: request.cdb,
            cdb_len: (request.cdb_len as usize).min(MAX_CDB),
            data: u32::try_from(request.data_address).ok()?,
            data_len: if direction == Direction::None { 0 } else { request.data_len },
            direction,
        };
        is_there.then_some(command)
    }

    /// Returns REQUEST SENSE (SPC-4, 6.39) for the target and unit of another command, which reads
    /// [`MAX_SENSE`] bytes to the device's address `data`.
    fn sense(of: &Command, data: u32) -> Command {
        let mut cdb = [0; MAX_CDB];
        cdb[0] = 0x03;
        cdb[4] = MAX_SENSE as u8;
        Command { cdb, cdb_len: 6, data, data_len: MAX_SENSE as u32, direction: Direction::In, ..*of }
    }

    /// Returns the command descriptor block.
    pub fn cdb(&self) -> &[u8] {
        &self.cdb[..self.cdb_len]
    }
}

/// Returns the message IDENTIFY for a logical unit, with the right to disconnect.
fn identify(lun: u8) -> u8 {
    0xc0 | lun
}

/// The result of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// A `HOST_*` code.
    pub host: u32,
    /// The SCSI status, if the target gave one.
    pub status: u8,
    /// Number of bytes of data that were not transferred.
    pub residual: u32,
}

impl Ending {
    /// Returns the result of a command that failed before the target gave a status.
    pub fn failed(host: u32) -> Ending {
        Ending { host, status: 0, residual: 0 }
    }
}

/// An adapter with at most one command in progress.
pub trait BusAdapter: Sized + 'static {
    /// Takes the adapter into service, and resets the bus.
    fn init() -> Result<Self>;

    /// Begins a command. The caller makes sure that no other command is in progress.
    fn start(&mut self, command: &Command);

    /// Returns the result of the command in progress, if it has ended. `interrupted` says whether
    /// the device has interrupted.
    fn poll(&mut self, interrupted: bool) -> Option<Ending>;

    /// Resets the bus, and gives up the current command, if there is one.
    fn reset_bus(&mut self);

    /// Stops the adapter.
    fn exit(&mut self);
}

/// The command in progress.
struct Current {
    ticket: Ticket,
    command: Command,
    /// The result of the original command, while its sense data is being fetched.
    ended: Option<Ending>,
}

/// The driver of a [`BusAdapter`].
pub type BusDriver<A> = ScsiDriver<BusHost<A>>;

/// A host bus adapter made from a [`BusAdapter`].
pub struct BusHost<A> {
    adapter: A,
    current: Option<Current>,
    /// Commands that wait for the bus, in their order from `first` on. An aborted command leaves a
    /// gap.
    waiting: [Option<(Ticket, Request)>; REQUESTS],
    first: usize,
    last: usize,
    sense: Dma,
}

impl<A: BusAdapter> BusHost<A> {
    /// Takes all requests: commands are put behind the waiting ones, task management functions are
    /// carried out at once.
    fn take(&mut self, queues: &mut Queues) {
        while let Some((ticket, request)) = queues.take() {
            if request.function == FUNCTION_COMMAND {
                self.waiting[self.last % REQUESTS] = Some((ticket, request));
                self.last += 1;
            } else {
                self.manage(&request, queues);
                queues.complete(ticket, &Outcome::failed(HOST_OK));
            }
        }
    }

    /// Carries out a task management function: gives up the command that the kernel wants aborted,
    /// or for a reset the current command. The only means that this bus has is a reset of the bus.
    fn manage(&mut self, request: &Request, queues: &mut Queues) {
        let mut host = HOST_RESET;
        if request.function == FUNCTION_ABORT_TASK {
            host = HOST_ABORTED;
            let is_it = |ticket: &Ticket| ticket.number() == usize::from(request.managed);
            let waiting = self.waiting.iter_mut().find_map(|place| place.take_if(|(ticket, _)| is_it(ticket)));
            if let Some((ticket, _)) = waiting {
                return queues.complete(ticket, &Outcome::failed(host));
            }
            if !self.current.as_ref().is_some_and(|current| is_it(&current.ticket)) {
                return;
            }
        }
        self.adapter.reset_bus();
        if let Some(current) = self.current.take() {
            queues.complete(current.ticket, &Outcome::failed(host));
        }
    }

    /// Begins the next command that can be begun.
    fn start_next(&mut self, queues: &mut Queues) {
        self.take(queues);
        while self.current.is_none() && self.first != self.last {
            self.first += 1;
            let Some((ticket, request)) = self.waiting[(self.first - 1) % REQUESTS].take() else { continue };
            match Command::new(&request) {
                Some(command) => {
                    self.adapter.start(&command);
                    self.current = Some(Current { ticket, command, ended: None });
                }
                None => queues.complete(ticket, &Outcome::failed(crate::scsi::HOST_NO_DEVICE)),
            }
        }
    }

    /// Continues after a command has ended: fetches sense data, or completes the request.
    fn go_on(&mut self, current: Current, ending: Ending, queues: &mut Queues) {
        let Current { ticket, command, ended } = current;
        match ended {
            None if ending.host == HOST_OK && ending.status == CHECK_CONDITION => {
                let sense = Command::sense(&command, self.sense.address(0) as u32);
                self.adapter.start(&sense);
                self.current = Some(Current { ticket, command: sense, ended: Some(ending) });
            }
            None => queues.complete(ticket, &outcome(ending, &[])),
            Some(first) => {
                let is_good = ending.host == HOST_OK && ending.status == 0;
                let mut bytes = [0; MAX_SENSE];
                self.sense.read_bytes(0, &mut bytes);
                let len = if is_good { MAX_SENSE.saturating_sub(ending.residual as usize) } else { 0 };
                queues.complete(ticket, &outcome(first, &bytes[..len]));
            }
        }
    }
}

fn outcome(ending: Ending, sense: &[u8]) -> Outcome {
    Outcome { host: ending.host, ..Outcome::answered(ending.status, ending.residual) }.with_sense(sense)
}

impl<A: BusAdapter> Device<Scsi> for BusHost<A> {
    fn init() -> Result<Self> {
        Ok(BusHost {
            adapter: A::init()?,
            sense: Dma::within_4_gib(MAX_SENSE)?,
            current: None,
            waiting: [const { None }; REQUESTS],
            first: 0,
            last: 0,
        })
    }

    fn info(&self) -> ScsiInfo {
        let functions = CAN_ABORT_TASK | CAN_RESET_LOGICAL_UNIT;
        ScsiInfo { max_targets: TARGETS, max_luns: UNITS, queue_depth: REQUESTS as u32, functions }
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut interrupted = events.contains(Events::INTERRUPT);
        self.start_next(queues);
        // Some commands end at once.
        while let Some(ending) = self.adapter.poll(interrupted) {
            interrupted = false;
            if let Some(current) = self.current.take() {
                self.go_on(current, ending, queues);
            }
            self.start_next(queues);
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {
        self.adapter.exit();
    }
}
