//! The kernel's end of a SCSI driver's queues ([`ringfence_abi::scsi`]).

use super::repeat::Repeats;
use alloc::sync::Arc;
use core::task::Waker;
use host::domain::Domain;
use host::domain::cause::Cause;
use host::domain::offer::{self, Offer};
use hw::memory::frames::Lent;
use ringfence_abi::queue::{Consumer, Producer};
use ringfence_abi::scsi::{
    COMPLETE, MAX_DATA, Outcome, QUEUE_BYTES, REQUESTS, Request, SUBMIT, ScsiInfo, read_outcome, write_request,
};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;
use ringfence_core::cdb::Cdb;

/// The kernel's end of a SCSI driver's queues.
pub struct Queues {
    /// What the driver says of its adapter, checked.
    pub info: ScsiInfo,
    memory: Lent,
    data: Lent,
    /// Where the device sees that.
    data_address: u64,
    submit: Producer,
    complete: Consumer,
    requests: [State; REQUESTS],
    /// How many of them the driver has, and nobody waits for.
    abandoned: usize,
    /// The host's commands that are to be sent again.
    repeats: Arc<Repeats>,
    /// Woken when a request becomes free.
    on_free: Option<Waker>,
    /// Whether the driver has said that units have come, gone or changed.
    pub units_changed: bool,
}

enum State {
    Free,
    /// The driver has it; the command's number, if it is to be sent again when the driver is ended, and who waits for it, if someone still does.
    Sent {
        command: Option<u64>,
        waker: Option<Waker>,
        abandoned: bool,
        /// Where it is in the queue: the driver has it once that was taken there.
        position: u64,
        /// The unit that it writes to, if it does.
        writes: Option<(u32, u32)>,
    },
    Done(Outcome),
    /// The driver was ended.
    Lost,
}

/// Why a request has no outcome: its driver was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

/// Where a request's data goes.
pub enum Data<'a> {
    /// There is none.
    None,
    /// The device returns up to so many bytes.
    In(usize),
    /// To the device.
    Out(&'a [u8]),
}

/// Number of a request that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

impl Offer for Queues {
    fn after_upcall(&mut self) -> Result<(), Cause> {
        self.collect()
    }

    fn take_news(&mut self, news: Reply) {
        if news.contains(Reply::UNITS_CHANGED) {
            self.units_changed = true;
            super::scan::note_change();
        }
    }

    fn driver_ended(&mut self) {
        self.fail_all();
    }

    fn in_hand(&self) -> (usize, &'static str) {
        (self.requests.iter().filter(|state| matches!(state, State::Sent { .. })).count(), "SCSI requests")
    }
}

impl Queues {
    /// Maps queues and data memory into `domain`.
    pub fn new(domain: &mut Domain, info: ScsiInfo) -> Result<Queues, Refusal> {
        let memory = offer::map_queues(domain, QUEUE_BYTES)?;
        let Ok(data) = domain.map_dma((REQUESTS * MAX_DATA) as u64, true) else {
            offer::unmap_queues(domain, &memory);
            return Err(Refusal::NoMemory);
        };
        Ok(Queues {
            info,
            memory,
            data_address: domain.device_address(&data),
            data: data.memory,
            submit: Producer::new(SUBMIT),
            complete: Consumer::new(COMPLETE),
            requests: [const { State::Free }; REQUESTS],
            abandoned: 0,
            repeats: Arc::default(),
            on_free: None,
            units_changed: false,
        })
    }

    /// The host's commands that are to be sent again.
    pub fn repeats(&self) -> &Arc<Repeats> {
        &self.repeats
    }

    /// Makes this a part of another driver's host.
    pub fn set_repeats(&mut self, repeats: &Arc<Repeats>) {
        self.repeats = repeats.clone();
    }

    /// Puts a request into the driver's hands, which looks at it when it is polled; `None` if all are under way.
    /// Data longer than [`MAX_DATA`] is cut off. `command` is the number of a command that has a place among [`Repeats`].
    pub fn begin(
        &mut self,
        command: Option<u64>,
        target: u32,
        lun: u32,
        cdb: &Cdb,
        data: Data,
    ) -> Result<Option<Ticket>, Cause> {
        let depth = self.info.queue_depth as usize;
        let Some(number) = self.requests.iter().take(depth).position(|state| matches!(state, State::Free)) else {
            return Ok(None);
        };
        // A write that nobody waits for any more is still with the device. Nothing may overtake it.
        let pending = |state: &State| matches!(state, State::Sent { abandoned: true, writes: Some(unit), .. } if *unit == (target, lun));
        if self.abandoned > 0 && self.requests.iter().any(pending) {
            return Ok(None);
        }
        let writes = matches!(data, Data::Out(_)).then_some((target, lun));
        let (direction, data_len) = match data {
            Data::None => (ringfence_abi::scsi::DIRECTION_NONE, 0),
            Data::In(len_bytes) => (ringfence_abi::scsi::DIRECTION_IN, len_bytes.min(MAX_DATA)),
            Data::Out(bytes) => {
                let bytes = bytes.get(..MAX_DATA).unwrap_or(bytes);
                self.data.write(number * MAX_DATA, bytes);
                (ringfence_abi::scsi::DIRECTION_OUT, bytes.len())
            }
        };
        let request = Request {
            data_address: self.data_address + (number * MAX_DATA) as u64,
            data_len: data_len as u32,
            direction,
            target,
            lun,
            cdb_len: cdb.len_bytes() as u32,
            reserved: 0,
            cdb: cdb.padded(),
        };
        write_request(&self.memory, number, &request);
        let position = self.submit.position();
        if !self.submit.put(&self.memory, number as u64).map_err(Cause::lie("submit"))? {
            return Ok(None);
        }
        self.requests[number] = State::Sent { command, waker: None, abandoned: false, position, writes };
        Ok(Some(Ticket(number)))
    }

    /// Takes what the driver has completed.
    fn collect(&mut self) -> Result<(), Cause> {
        while let Some(taken) = self.complete.take(&self.memory).map_err(Cause::lie("complete"))? {
            let bad = Cause::QueueEntry { queue: "complete", entry: taken };
            let number = usize::try_from(taken).map_err(|_| bad)?;
            let Some(State::Sent { position, .. }) = self.requests.get(number) else { return Err(bad) };
            if *position >= self.submit.taken(&self.memory).map_err(Cause::lie("submit"))? {
                return Err(bad);
            }
            let outcome = read_outcome(&self.memory, number).ok_or(bad)?;
            // A status is a byte (SAM-5 5.3.1): cut off, another one might read as GOOD.
            if outcome.status > u8::MAX.into() {
                return Err(Cause::QueueEntry { queue: "complete", entry: outcome.status.into() });
            }
            self.settle(number, State::Done(outcome));
        }
        Ok(())
    }

    /// Ends all requests under way: the driver is gone. Those that somebody waits for are to be sent again.
    fn fail_all(&mut self) {
        for number in 0..REQUESTS {
            if let State::Sent { command, abandoned, .. } = self.requests[number] {
                if let Some(command) = command.filter(|_| !abandoned) {
                    self.repeats.add(command);
                }
                self.settle(number, State::Lost);
            }
        }
        if let Some(waker) = self.on_free.take() {
            waker.wake();
        }
    }

    fn settle(&mut self, number: usize, end: State) {
        let Some(state) = self.requests.get_mut(number) else { return };
        if let State::Sent { waker, abandoned, .. } = core::mem::replace(state, end) {
            if abandoned {
                self.abandoned -= 1;
                self.free(number);
            } else if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn free(&mut self, number: usize) {
        if let Some(state) = self.requests.get_mut(number) {
            *state = State::Free;
        }
        if let Some(waker) = self.on_free.take() {
            waker.wake();
        }
    }

    /// Wakes `waker` when a request becomes free.
    pub fn wake_when_free(&mut self, waker: &Waker) {
        // Who was there first looks again, and registers again if there is still none. Several waits of one task share
        // its waker.
        match self.on_free.replace(waker.clone()) {
            Some(other) if !other.will_wake(waker) => other.wake(),
            _ => {}
        }
    }

    /// The outcome of a request, and its data in `data` as far as that reaches, if it is complete. It is over then.
    pub fn finish(&mut self, ticket: Ticket, data: &mut [u8], waker: Option<&Waker>) -> Option<Result<Outcome, Lost>> {
        match self.requests.get_mut(ticket.0)? {
            State::Done(outcome) => {
                let outcome = *outcome;
                let len = data.len().min(MAX_DATA);
                if let Some(data) = data.get_mut(..len) {
                    self.data.read(ticket.0 * MAX_DATA, data);
                }
                self.free(ticket.0);
                Some(Ok(outcome))
            }
            State::Lost => {
                self.free(ticket.0);
                Some(Err(Lost))
            }
            State::Sent { waker: slot, .. } => {
                *slot = waker.cloned();
                None
            }
            State::Free => None,
        }
    }

    /// Nobody waits for this request any more; it becomes free when the driver completes it.
    pub fn abandon(&mut self, ticket: Ticket) {
        match self.requests.get_mut(ticket.0) {
            Some(State::Sent { abandoned, .. }) => {
                self.abandoned += usize::from(!*abandoned);
                *abandoned = true;
            }
            Some(State::Done(_) | State::Lost) => self.free(ticket.0),
            _ => {}
        }
    }
}
