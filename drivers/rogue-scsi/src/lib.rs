//! A hostile SCSI driver without a device. It offers an invented disk of zeros, and lies to the
//! kernel. `tell rogue-scsi VERB` selects the lie in its answer to the next command that reads
//! blocks; a few verbs concern commands that write blocks.
//!
//! Like `rogue`, this driver has unsafe code of its own.
#![no_std]
#![allow(clippy::undocumented_unsafe_blocks, reason = "the services believe nothing, and the rest is what is tested")]

use ringfence_sdk::abi::layout::{DMA, SLOT_SIZE};
use ringfence_sdk::abi::queue::{ENTRIES, PUT, Place, TAKEN, Words};
use ringfence_sdk::abi::scsi::{
    CAN_ALL, COMPLETE, FUNCTION_ABORT_TASK, FUNCTION_COMMAND, FUNCTION_LOGICAL_UNIT_RESET, HOST_ABORTED, HOST_ERROR,
    HOST_OK, HOST_RESET, MAX_DATA, Outcome, REQUESTS, Request, SUBMIT, ScsiInfo, TASK_MANAGEMENT, read_request,
    write_outcome,
};
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Events, Kind, Manifest, Refusal, Reply, Result, driver};

driver!(RogueScsi, Manifest::new("rogue-scsi", env!("CARGO_PKG_VERSION")).kind(Kind::Scsi));

/// The lie in the next answer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    /// The command is never answered.
    Lose,
    /// The next command that writes is never answered.
    LoseWrite,
    /// No command is answered any more.
    LoseAll,
    /// The command is answered twice.
    Twice,
    /// Another command, which is not in flight, is answered.
    Another,
    /// A command with an impossible number is answered.
    Beyond,
    /// The driver announces more answers than the ring holds.
    Ahead,
    /// The residual is larger than the data that was requested.
    Residual,
    /// The driver announces more sense data than there is room for.
    Sense,
    Status,
    /// The host code is a value that no driver gives.
    Host,
    /// The host code is the largest possible value.
    Gone,
    /// The queue of answers claims to hold one entry less than before.
    Backwards,
    /// The command, even a write, is answered, and then the driver panics.
    Die,
    /// The driver claims to have read more commands than the kernel has written.
    ReadAhead,
    /// The command is answered when the driver is asked to abort it: no lie.
    Hold,
    /// The command is answered when the driver is asked to reset the unit: no lie.
    HoldOn,
    /// The command is never answered, but the driver says that it has aborted it and reset the
    /// unit.
    Pretend,
    /// Neither the command nor a task management function for it is ever answered.
    Deaf,
    /// The command is aborted, and the function is answered twice.
    AbortTwice,
}

/// The disk: the number of its blocks, and the length of a block in bytes.
const BLOCKS: u32 = 1024;
const BLOCK_BYTES: u32 = 512;

/// For tests, which change the module's file: if the second number is not 0, the driver never
/// answers a command.
#[used]
static IS_MUTE: [u64; 2] = [u64::from_le_bytes(*b"is-mute:"), 0];

/// For tests too: the driver claims 256 targets, and its disks have blocks of an unusual length.
#[used]
static IS_ODD: [u64; 2] = [u64::from_le_bytes(*b"is-odd:_"), 0];

/// Returns the value of a flag in the file, which the compiler does not know.
fn flag(place: *const [u64; 2]) -> bool {
    let [_, value] = unsafe { place.read_volatile() };
    value != 0
}

struct RogueScsi {
    queues: *mut u64,
    taken: u64,
    put: u64,
    lie: Lie,
    /// The state of the random numbers.
    random: u64,
    /// The number of the command that is not answered yet, and the lie about it.
    held: Option<(u64, Lie)>,
    /// Whether the driver claims to have read ahead, from now on. The kernel looks at the position
    /// only when its queue looks full.
    read_ahead: bool,
}

struct Memory(*mut u64);

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        unsafe { self.0.add(index).read_volatile() }
    }
    fn store(&self, index: usize, value: u64) {
        unsafe { self.0.add(index).write_volatile(value) }
    }
}

impl RogueScsi {
    fn memory(&self) -> Memory {
        Memory(self.queues)
    }

    fn set(&self, place: Place, word: usize, value: u64) {
        self.memory().store(place.base + word, value);
    }

    fn answer(&mut self, number: u64) {
        let at = ENTRIES + self.put as usize % COMPLETE.capacity;
        self.set(COMPLETE, at, number);
        self.put += 1;
        self.set(COMPLETE, PUT, self.put);
    }

    /// Writes the data of a request. The memory that came with the queues is the first DMA memory
    /// in the slot.
    fn write_data<'a>(&self, number: u64, bytes: impl IntoIterator<Item = &'a u8>) {
        let slot = self.queues as u64 & !(SLOT_SIZE - 1);
        let data = (slot + DMA + number * MAX_DATA as u64) as *mut u8;
        for (index, byte) in bytes.into_iter().enumerate() {
            unsafe { data.add(index).write_volatile(*byte) };
        }
    }

    /// A task management function, which is rejected but for a command that is held.
    fn manage(&mut self, number: u64, request: &Request) {
        let (command, lie) = self.held.unwrap_or((u64::MAX, Lie::None));
        let is_meant = request.function == FUNCTION_LOGICAL_UNIT_RESET
            || request.function == FUNCTION_ABORT_TASK && u64::from(request.managed) == command;
        let end = match (lie, request.function) {
            (Lie::Hold | Lie::AbortTwice, FUNCTION_ABORT_TASK) => HOST_ABORTED,
            (Lie::HoldOn, FUNCTION_LOGICAL_UNIT_RESET) => HOST_RESET,
            _ => HOST_OK,
        };
        if is_meant && end != HOST_OK {
            self.held = None;
            write_outcome(&self.memory(), command as usize, &Outcome::failed(end));
            self.answer(command);
        }
        let is_done = is_meant && (end != HOST_OK || lie == Lie::Pretend);
        let outcome = Outcome::failed(if is_done { HOST_OK } else { HOST_ERROR });
        write_outcome(&self.memory(), number as usize, &outcome);
        for _ in 0..(match lie {
            Lie::Deaf => 0,
            Lie::AbortTwice => 2,
            _ => 1,
        }) {
            self.answer(number);
        }
    }

    fn carry_out(&mut self, number: u64, request: &Request) {
        const REPORT_LUNS: u8 = 0xa0;
        const INQUIRY: u8 = 0x12;
        const READ_CAPACITY_10: u8 = 0x25;
        const READ_10: u8 = 0x28;
        const WRITE_10: u8 = 0x2a;
        let mut outcome = Outcome::answered(0, 0);
        match request.cdb[0] {
            REPORT_LUNS => self.write_data(number, &[0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            INQUIRY => self.write_data(number, &[0; 36]),
            READ_CAPACITY_10 => {
                let [a, b, c, d] = (BLOCKS - 1).to_be_bytes();
                let [e, f, g, h] = if flag(&raw const IS_ODD) { 3 } else { BLOCK_BYTES }.to_be_bytes();
                self.write_data(number, &[a, b, c, d, e, f, g, h]);
            }
            // The memory may still hold data of an earlier write, so it is cleared.
            READ_10 => {
                let blocks = usize::from(u16::from_be_bytes([request.cdb[7], request.cdb[8]]));
                self.write_data(number, core::iter::repeat_n(&0, blocks * BLOCK_BYTES as usize));
            }
            _ => {}
        }
        let [_, _, a, b, c, d, ..] = request.cdb;
        let block = u32::from_be_bytes([a, b, c, d]);
        match request.cdb[0] {
            READ_10 => log::info!("reads block {block}"),
            WRITE_10 => log::info!("writes block {block}"),
            _ => {}
        }
        if self.lie == Lie::LoseAll || self.lie == Lie::LoseWrite && request.cdb[0] == WRITE_10 {
            return;
        }
        let concerned = request.cdb[0] == READ_10 && self.lie != Lie::LoseWrite
            || request.cdb[0] == WRITE_10 && self.lie == Lie::Die;
        let lie = if concerned { core::mem::replace(&mut self.lie, Lie::None) } else { Lie::None };
        match lie {
            Lie::Residual => outcome.residual = u32::MAX,
            Lie::Sense => outcome.sense_len = u32::MAX,
            Lie::Status => outcome.status = 0x100,
            Lie::Host => outcome.host = 77,
            Lie::Gone => outcome.host = u32::MAX,
            _ => {}
        }
        if lie == Lie::Sense {
            outcome.status = 2;
        }
        write_outcome(&self.memory(), number as usize, &outcome);
        match lie {
            Lie::Lose => {}
            Lie::Hold | Lie::HoldOn | Lie::Pretend | Lie::Deaf | Lie::AbortTwice => self.held = Some((number, lie)),
            Lie::Twice => {
                self.answer(number);
                self.answer(number);
            }
            Lie::Another => self.answer((number + 7) % REQUESTS as u64),
            Lie::Beyond => self.answer(u64::MAX),
            Lie::Ahead => self.set(COMPLETE, PUT, 1000),
            Lie::Backwards => self.set(COMPLETE, PUT, self.put.wrapping_sub(1)),
            Lie::Die => {
                self.answer(number);
                panic!("with an answer");
            }
            Lie::ReadAhead => {
                self.read_ahead = true;
                self.answer(number);
            }
            _ => self.answer(number),
        }
    }
}

/// Returns a description of a host with four random numbers; `state` is the state of the random
/// numbers.
fn any_registration(state: &mut u64) -> ScsiInfo {
    let [max_targets, max_luns, queue_depth, functions] = core::array::from_fn(|_| {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        // Half of the numbers are small, and so nearly plausible.
        if *state & 1 == 0 { (*state >> 8) as u32 } else { (*state >> 8) as u32 % 300 }
    });
    ScsiInfo { max_targets, max_luns, queue_depth, functions }
}

/// Offers a host whose description the kernel is to read at `info`.
fn offer(info: u64) -> i64 {
    // SAFETY: the kernel trusts no argument.
    unsafe { raw::rf_offer(info, size_of::<ScsiInfo>() as u64) }
}

/// Offers hosts with at least one invalid number in their description. Fails if the kernel does not
/// refuse one of them as invalid.
fn register_wrongly(state: &mut u64) -> Result<()> {
    const CALLS: usize = 1000;
    for number in 0..CALLS {
        let mut info = any_registration(state);
        match number % 4 {
            0 => info.max_targets = 0,
            1 => info.max_luns = 257 + info.max_luns / 2,
            2 => info.queue_depth = 1 + REQUESTS as u32 + info.queue_depth / 2,
            _ => info.functions |= 1,
        }
        if offer(&raw const info as u64) != Refusal::Invalid.to_result() {
            return Err(Refusal::Denied);
        }
    }
    Ok(())
}

impl Driver for RogueScsi {
    fn init() -> Result<RogueScsi> {
        let mut random = 0x1997;
        register_wrongly(&mut random)?;
        let max_targets = if flag(&raw const IS_ODD) { 256 } else { 1 };
        let info = ScsiInfo { max_targets, max_luns: 1, queue_depth: REQUESTS as u32, functions: CAN_ALL };
        let start = offer(&raw const info as u64);
        if start < 0 {
            return Err(Refusal::from_result(start).unwrap_or(Refusal::Invalid));
        }
        let lie = if flag(&raw const IS_MUTE) { Lie::LoseAll } else { Lie::None };
        Ok(RogueScsi { queues: start as *mut u64, taken: 0, put: 0, lie, random, held: None, read_ahead: false })
    }

    fn poll(&mut self, _: Events) -> Reply {
        while self.taken != self.memory().load(SUBMIT.base + PUT) {
            let number = self.memory().load(SUBMIT.base + ENTRIES + self.taken as usize % SUBMIT.capacity);
            self.taken += 1;
            self.set(SUBMIT, TAKEN, if self.read_ahead { u64::MAX } else { self.taken });
            if let Some(request) = read_request(&self.memory(), number as usize) {
                match request.function {
                    FUNCTION_COMMAND => self.carry_out(number, &request),
                    _ => self.manage(number, &request),
                }
            }
        }
        Reply::empty()
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        if let Some(("register-at", address)) = text.split_once(' ') {
            let address = ringfence_sdk::number(address)?;
            return Ok(offer(address) as u64);
        }
        let refusal = |result: i64| if result < 0 { -result as u64 } else { 0 };
        self.lie = match text {
            "lose" => Lie::Lose,
            "lose-write" => Lie::LoseWrite,
            "lose-all" => Lie::LoseAll,
            "twice" => Lie::Twice,
            "another" => Lie::Another,
            "beyond" => Lie::Beyond,
            "ahead" => Lie::Ahead,
            "residual" => Lie::Residual,
            "sense" => Lie::Sense,
            "status" => Lie::Status,
            "host" => Lie::Host,
            "gone" => Lie::Gone,
            "backwards" => Lie::Backwards,
            "die" => Lie::Die,
            "read-ahead" => Lie::ReadAhead,
            "hold" => Lie::Hold,
            "hold-on" => Lie::HoldOn,
            "pretend" => Lie::Pretend,
            "deaf" => Lie::Deaf,
            "abort-twice" => Lie::AbortTwice,
            // This verb acts at once, not with the next answer.
            "unasked" => {
                self.answer(0);
                return Ok(0);
            }
            "unasked-abort" => {
                self.answer(TASK_MANAGEMENT as u64);
                return Ok(0);
            }
            "register-twice" => {
                let info = ScsiInfo { max_targets: 1, max_luns: 1, queue_depth: 1, functions: 0 };
                return Ok(refusal(offer(&raw const info as u64)));
            }
            "register-huge" => {
                let info = ScsiInfo { max_targets: 257, max_luns: 1, queue_depth: 33, functions: 0 };
                return Ok(refusal(offer(&raw const info as u64)));
            }
            // The driver has offered its host already, so each offer is refused.
            "random" => {
                const CALLS: u64 = 4000;
                for _ in 0..CALLS {
                    let info = any_registration(&mut self.random);
                    offer(&raw const info as u64);
                }
                return Ok(CALLS);
            }
            _ => return Err(Refusal::NotFound),
        };
        Ok(0)
    }
}
