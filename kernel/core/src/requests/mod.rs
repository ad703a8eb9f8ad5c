//! Requests that one side submits and the other side carries out: two rings of request numbers in
//! shared memory, and the requests and their data beside them.
//!
//! * [`Account`]: the requests to a driver, by this side's own count
//! * [`repeat`]: the order in which requests are sent again
//! * [`client`]: the requests of a driver, which this side carries out
//!
//! **This side believes only its own account.** A number that was not lent, or that the driver has
//! not taken yet, is [`Wrong`].

use crate::passed::{self, Detail, Moved, Notes, Seen, Side};
use alloc::vec::Vec;
use core::task::Waker;
use ringfence_abi::queue::{Complete, Consumer, Lie, Place, Producer, Rings, Submit, Words};
use ringfence_abi::upcall::Reply;

pub mod client;
pub mod repeat;

/// Something in a queue that cannot be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// The other side's position in this queue.
    Position(&'static str, Lie),
    /// The other side's entry in this queue.
    Entry(&'static str, u64),
}

impl Wrong {
    /// Turns a lie about the position in `queue` into a [`Wrong`].
    pub fn position(queue: &'static str) -> impl Fn(Lie) -> Wrong {
        move |lie| Wrong::Position(queue, lie)
    }
}

/// Memory for data that both sides see. Bytes outside it are not copied.
pub trait Data {
    /// Copies bytes from `offset` on; `false` if they do not all lie inside.
    fn read(&self, offset: usize, to: &mut [u8]) -> bool;
    /// Copies bytes to `offset`; `false` if they do not all lie inside.
    fn write(&self, offset: usize, from: &[u8]) -> bool;
}

/// The place of a request's data, and its direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Address for the device.
    pub address: u64,
    /// Address for the driver.
    pub start: u64,
    /// Length in bytes, at most [`Protocol::MAX_DATA`].
    pub len_bytes: u32,
    /// Its direction.
    pub direction: Direction,
}

/// The direction of data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// There is no data.
    None,
    /// From the device.
    In,
    /// To the device.
    Out,
}

/// The types and formats of a class's requests.
pub trait Protocol: Rings + Send + Sized + 'static {
    /// A driver's description of itself, checked.
    type Info: Copy + Send;
    /// The content of a request.
    type Request: Copy + Send;
    /// A driver's answer, checked.
    type Outcome: Copy + Send;
    /// The unit that a request is for. **No request overtakes an abandoned write to the same
    /// unit.**
    type Unit: PartialEq + Copy + Send;

    /// The name of a request, in the singular and in the plural.
    const NAMES: [&'static str; 2];
    /// Length of the memory with rings and requests, in bytes.
    const QUEUE_BYTES: usize;
    /// Number of requests.
    const REQUESTS: usize;
    /// The count of urgent requests: requests about other requests. They have no data, and numbers
    /// of their own, so that they get through when all other numbers are in use.
    const URGENT: usize = 0;
    /// Longest data of a request, in bytes.
    const MAX_DATA: usize;
    /// The bits of a driver's reply to a poll that are news for the class.
    const NEWS: Reply;

    /// Returns how many requests a driver takes at once.
    fn depth(info: &Self::Info) -> usize;

    /// Returns the unit that a request is for.
    fn unit(request: &Self::Request) -> Self::Unit;

    /// Writes request `number` into shared memory.
    fn write(memory: &impl Words, number: usize, request: &Self::Request, data: Transfer);

    /// Reads the outcome of request `number`. If it cannot be true, the error is the number that
    /// shows it.
    fn read(memory: &impl Words, number: usize) -> Result<Self::Outcome, u64>;

    /// Returns the content of request `number`, for a trace, and the length of its data in bytes.
    fn describe(memory: &impl Words, number: usize) -> (passed::Request, u32);

    /// Returns a number for the outcome of request `number`, for a trace: 0 for success.
    fn result(memory: &impl Words, number: usize) -> u32;

    /// Returns what else the driver says about the outcome of request `number`, which failed, for a
    /// trace.
    fn detail(memory: &impl Words, number: usize) -> Detail {
        let _ = (memory, number);
        Detail::new(&[])
    }

    /// Called when a driver has reported news.
    fn news_came() {}

    /// Returns the urgent requests for a driver that has not done `request`, which has `number`, in
    /// time; each with its name. They are sent one after the other until the request is done. The
    /// index of each decides the number under which it is sent.
    fn remedies(
        info: &Self::Info,
        request: &Self::Request,
        number: usize,
    ) -> [Option<(Self::Request, &'static str)>; 2] {
        let _ = (info, request, number);
        [const { None }; 2]
    }
}

/// The error of a request without an outcome: its driver was ended, and no successor came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lost;

enum State<P: Protocol> {
    Free,
    /// The driver has the request. `number` is its number if it is to be sent again when the driver
    /// is ended. `waker` wakes the task that waits for it, unless it was abandoned.
    Sent {
        number: Option<u64>,
        waker: Option<Waker>,
        abandoned: bool,
        /// The request's position in the queue: the driver has the request once it has taken that
        /// position.
        position: u64,
        /// The unit that the request writes to, if it does.
        writes: Option<P::Unit>,
    },
    Done(P::Outcome),
    /// The driver was ended before it completed the request.
    Lost,
}

/// The data of a request.
pub enum Moves<'a> {
    /// There is no data.
    None,
    /// The device returns up to so many bytes.
    In(usize),
    /// These bytes go to the device.
    Out(&'a [u8]),
}

/// The number of a request that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket(usize);

impl Ticket {
    /// The number, which the driver knows it by.
    pub fn number(self) -> usize {
        self.0
    }
}

/// The memory of a driver's queues and data.
pub struct Memory<Q, M> {
    /// Rings and requests.
    pub queues: Q,
    /// The data of each request, one after the other.
    pub data: M,
    /// The data's address for the device.
    pub data_address: u64,
    /// The data's address for the driver.
    pub data_start: u64,
}

/// The requests that the driver has, and the outcomes of the others.
pub struct Account<P: Protocol, Q, M> {
    memory: Memory<Q, M>,
    submit: Producer<Submit<P>>,
    complete: Consumer<Complete<P>>,
    states: States<P>,
    /// The bytes of the data of all requests.
    bytes: u64,
    /// The requests that a trace has seen.
    seen: Seen,
}

/// The states of all requests.
struct States<P: Protocol> {
    requests: Vec<State<P>>,
    /// The free requests among the requests that the driver takes at once; the last one is used
    /// next.
    free: Vec<usize>,
    /// The number of abandoned requests that the driver still has.
    abandoned: usize,
    /// Wakers of the tasks that wait for a free request.
    on_free: Vec<Waker>,
}

impl<P: Protocol, Q: Words, M: Data> Account<P, Q, M> {
    /// Returns an account with empty queues for a driver that takes `depth` requests at once.
    pub fn new(memory: Memory<Q, M>, depth: usize) -> Account<P, Q, M> {
        Account {
            memory,
            submit: Producer::new(),
            complete: Consumer::new(),
            states: States {
                requests: (0..P::REQUESTS + P::URGENT).map(|_| State::Free).collect(),
                free: (0..depth.min(P::REQUESTS)).rev().collect(),
                abandoned: 0,
                on_free: Vec::new(),
            },
            bytes: 0,
            seen: Seen::default(),
        }
    }

    /// Returns the memory of the data of all requests, and where in it `len_bytes` bytes are that
    /// begin at `address` for the driver. `None` if not all of them are in it.
    pub fn data_at(&self, address: u64, len_bytes: usize) -> Option<(&M, usize)> {
        let offset = usize::try_from(address.checked_sub(self.memory.data_start)?).ok()?;
        let is_within = offset.checked_add(len_bytes)? <= P::REQUESTS * P::MAX_DATA;
        is_within.then_some((&self.memory.data, offset))
    }

    /// Returns how many requests the driver was given, and how many bytes of data they have.
    pub fn moved(&self) -> Moved {
        Moved { count: self.submit.position(), bytes: self.bytes }
    }

    /// Returns how many requests the driver has.
    pub fn count(&self) -> usize {
        self.states.requests.iter().filter(|state| matches!(state, State::Sent { .. })).count()
    }

    /// Returns how many requests are free.
    pub fn free(&self) -> usize {
        self.states.free.len()
    }

    /// Returns the position of the oldest request that the driver has; each request has its own.
    /// `None` if the driver has no request.
    pub fn oldest(&self) -> Option<u64> {
        let positions = self.states.requests.iter().filter_map(|state| match state {
            State::Sent { position, .. } => Some(*position),
            _ => None,
        });
        positions.min()
    }

    /// Submits a request; the driver looks at it when it is polled. Returns `None` if no request is
    /// free, or if an abandoned write to the same unit is still under way. Data longer than
    /// [`Protocol::MAX_DATA`] is cut off. `number` is the request's number if it has a place among
    /// [`repeat::Repeats`].
    pub fn begin(&mut self, number: Option<u64>, request: &P::Request, moves: Moves) -> Result<Option<Ticket>, Wrong> {
        let Some(&slot) = self.states.free.last() else { return Ok(None) };
        // The device may still carry out a write that was abandoned. Nothing may overtake it.
        let unit = P::unit(request);
        let pending =
            |state: &State<P>| matches!(state, State::Sent { abandoned: true, writes: Some(of), .. } if *of == unit);
        if self.states.abandoned > 0 && self.states.requests.iter().any(pending) {
            return Ok(None);
        }
        if !self.put(slot, number, request, moves)? {
            return Ok(None);
        }
        self.states.free.pop();
        Ok(Some(Ticket(slot)))
    }

    /// Submits an urgent request, which nothing holds back. Returns `None` if the one before it
    /// with the same `which` is still under way. `which` is less than [`Protocol::URGENT`], and
    /// decides the request's number.
    #[cold]
    pub fn begin_urgent(&mut self, which: usize, request: &P::Request) -> Result<Option<Ticket>, Wrong> {
        let slot = P::REQUESTS + which;
        if !matches!(self.states.requests.get(slot), Some(State::Free)) {
            return Ok(None);
        }
        Ok(self.put(slot, None, request, Moves::None)?.then_some(Ticket(slot)))
    }

    /// Writes a request, and puts it into the queue; `false` if there is no room.
    #[inline(always)]
    fn put(&mut self, slot: usize, number: Option<u64>, request: &P::Request, moves: Moves) -> Result<bool, Wrong> {
        let writes = matches!(moves, Moves::Out(_)).then_some(P::unit(request));
        let (direction, len_bytes) = match moves {
            Moves::None => (Direction::None, 0),
            Moves::In(len_bytes) => (Direction::In, len_bytes.min(P::MAX_DATA)),
            Moves::Out(bytes) => {
                let bytes = bytes.get(..P::MAX_DATA).unwrap_or(bytes);
                self.memory.data.write(slot * P::MAX_DATA, bytes);
                (Direction::Out, bytes.len())
            }
        };
        let (address, start) = match slot < P::REQUESTS {
            true => {
                let offset = (slot * P::MAX_DATA) as u64;
                (self.memory.data_address + offset, self.memory.data_start + offset)
            }
            false => (0, 0),
        };
        let transfer = Transfer { address, start, len_bytes: len_bytes as u32, direction };
        P::write(&self.memory.queues, slot, request, transfer);
        let position = self.submit.position();
        if !self.submit.put(&self.memory.queues, slot as u64).map_err(Wrong::position("submit"))? {
            return Ok(false);
        }
        if let Some(state) = self.states.requests.get_mut(slot) {
            *state = State::Sent { number, waker: None, abandoned: false, position, writes };
        }
        self.bytes = self.bytes.wrapping_add(len_bytes as u64);
        Ok(true)
    }

    /// Takes the requests that the driver has completed.
    pub fn collect(&mut self) -> Result<(), Wrong> {
        let queues = &self.memory.queues;
        let mut completed = self.complete.taking(queues);
        // The number of requests that the driver has taken.
        let mut known = None;
        while let Some(entry) = completed.take().map_err(Wrong::position("complete"))? {
            let bad = Wrong::Entry("complete", entry);
            let number = usize::try_from(entry).map_err(|_| bad)?;
            let taken = match known {
                Some(taken) => taken,
                None => *known.insert(self.submit.taken(queues).map_err(Wrong::position("submit"))?),
            };
            match self.states.requests.get(number) {
                Some(State::Sent { position, .. }) if *position < taken => {}
                _ => return Err(bad),
            }
            let outcome = P::read(queues, number).map_err(|entry| Wrong::Entry("complete", entry))?;
            self.states.settle(number, State::Done(outcome));
        }
        Ok(())
    }

    /// Tells `notes` of each request that one side has passed to the other since the last call for
    /// that side. Believes nothing: a lie is found by [`Account::collect`].
    pub fn passed(&mut self, side: Side, notes: &mut impl Notes) {
        let queues = &self.memory.queues;
        let sent_at = |place: usize| match self.states.requests.get(place) {
            Some(State::Sent { position, .. }) => Some(*position),
            _ => None,
        };
        match side {
            Side::Kernel => {
                let end = self.submit.position();
                // The queue holds only the last `capacity` entries.
                let [Place { capacity, .. }, _] = P::RINGS;
                let from = core::mem::replace(&mut self.seen.given, end).max(end.saturating_sub(capacity as u64));
                for number in from..end {
                    let place = Producer::<Submit<P>>::entry(queues, number) as usize;
                    if sent_at(place) == Some(number) {
                        let (request, len_bytes) = P::describe(queues, place);
                        notes.request(number, place, len_bytes, &request);
                    }
                }
            }
            Side::Driver => {
                let ahead = self.complete.ahead(queues, self.seen.done);
                // After a lie, the end may lie before the position that the trace has seen.
                self.seen.done = self.seen.done.max(ahead.end);
                for position in ahead {
                    let place = Consumer::<Complete<P>>::entry(queues, position) as usize;
                    if let Some(number) = sent_at(place) {
                        let result = P::result(queues, place);
                        // Room for details is cleared only for a request that has some.
                        let details;
                        let detail = if result == 0 {
                            &[]
                        } else {
                            details = P::detail(queues, place);
                            details.bytes()
                        };
                        notes.done(number, place, result, detail);
                    }
                }
            }
        }
    }

    /// Ends all requests under way, because the driver was ended. Passes the numbers of the
    /// requests that were not abandoned to `repeat`.
    pub fn fail_all(&mut self, mut repeat: impl FnMut(u64)) {
        for slot in 0..self.states.requests.len() {
            if let Some(State::Sent { number, abandoned, .. }) = self.states.requests.get(slot) {
                if let Some(number) = number.filter(|_| !abandoned) {
                    repeat(number);
                }
                self.states.settle(slot, State::Lost);
            }
        }
        self.states.wake_all();
    }

    /// Wakes `waker` when a request becomes free. All waiting tasks are woken then, because the
    /// request of any one of them may be held back.
    pub fn wake_when_free(&mut self, waker: &Waker) {
        repeat::wait_in(&mut self.states.on_free, waker);
    }

    /// If a request is complete, has `look` look at its outcome, copies as much of its data as fits
    /// to `data`, and frees the request. Returns `None` if the request is not complete; `waker` is
    /// woken when it is.
    #[inline]
    pub fn finish<T>(
        &mut self,
        ticket: Ticket,
        data: &mut [u8],
        waker: Option<&Waker>,
        look: impl FnOnce(&P::Outcome) -> T,
    ) -> Option<Result<T, Lost>> {
        match self.states.requests.get_mut(ticket.0)? {
            State::Done(outcome) => {
                let seen = look(outcome);
                let len = if ticket.0 < P::REQUESTS { data.len().min(P::MAX_DATA) } else { 0 };
                if let Some(data) = data.get_mut(..len) {
                    self.memory.data.read(ticket.0 * P::MAX_DATA, data);
                }
                self.states.free(ticket.0);
                Some(Ok(seen))
            }
            State::Lost => {
                self.states.free(ticket.0);
                Some(Err(Lost))
            }
            State::Sent { waker: slot, .. } => {
                *slot = waker.cloned();
                None
            }
            State::Free => None,
        }
    }

    /// Abandons a request: no task waits for it any more. It becomes free when the driver completes
    /// it.
    pub fn abandon(&mut self, ticket: Ticket) {
        match self.states.requests.get_mut(ticket.0) {
            Some(State::Sent { abandoned, .. }) => {
                self.states.abandoned += usize::from(!*abandoned);
                *abandoned = true;
            }
            Some(State::Done(_) | State::Lost) => self.states.free(ticket.0),
            _ => {}
        }
    }
}

impl<P: Protocol> States<P> {
    /// Ends a request that the driver has: its state becomes `end`, unless it was abandoned.
    #[inline]
    fn settle(&mut self, number: usize, end: State<P>) {
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

    #[inline]
    fn free(&mut self, number: usize) {
        if let Some(state) = self.requests.get_mut(number) {
            *state = State::Free;
            if number < P::REQUESTS {
                self.free.push(number);
            }
        }
        if !self.on_free.is_empty() {
            self.wake_all();
        }
    }

    #[cold]
    fn wake_all(&mut self) {
        core::mem::take(&mut self.on_free).into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests;
