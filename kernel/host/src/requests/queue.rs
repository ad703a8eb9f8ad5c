//! The kernel's end of a driver's queues: two rings of numbers, and the requests and their data beside them.
//!
//! **The kernel believes only its own account of what the driver has.** A number that was not lent, or not taken yet, is a lie, and ends it.

use super::repeat::Repeats;
use super::{Direction, Lost, Protocol, Transfer};
use crate::domain::Domain;
use crate::domain::cause::Cause;
use crate::domain::offer::{self, Offer};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::task::Waker;
use hw::memory::frames::Lent;
use ringfence_abi::queue::{Consumer, Producer};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::Reply;

/// The kernel's end of a driver's queues.
pub struct Queues<P: Protocol> {
    /// What the driver says of itself, checked.
    pub info: P::Info,
    memory: Lent,
    data: Lent,
    /// Where the device sees that.
    data_address: u64,
    submit: Producer,
    complete: Consumer,
    requests: Vec<State<P>>,
    /// How many of them the driver has, and nobody waits for.
    abandoned: usize,
    /// The server's requests that are to be sent again.
    repeats: Arc<Repeats>,
    /// Woken when a request becomes free.
    on_free: Option<Waker>,
    /// What the driver has told.
    news: Reply,
}

enum State<P: Protocol> {
    Free,
    /// The driver has it; its number, if it is to be sent again when the driver is ended, and who waits for it, if someone still does.
    Sent {
        number: Option<u64>,
        waker: Option<Waker>,
        abandoned: bool,
        /// Where it is in the queue: the driver has it once that was taken there.
        position: u64,
        /// What it writes to, if it does.
        writes: Option<P::Unit>,
    },
    Done(P::Outcome),
    /// The driver was ended.
    Lost,
}

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

impl<P: Protocol> Offer for Queues<P> {
    fn after_upcall(&mut self) -> Result<(), Cause> {
        self.collect()
    }

    fn take_news(&mut self, news: Reply) {
        if news.intersects(P::NEWS) {
            self.news |= news & P::NEWS;
            P::news_came();
        }
    }

    fn driver_ended(&mut self) {
        self.fail_all();
    }

    fn in_hand(&self) -> (usize, &'static str) {
        let [_, several] = P::NAMES;
        (self.requests.iter().filter(|state| matches!(state, State::Sent { .. })).count(), several)
    }
}

impl<P: Protocol> Queues<P> {
    /// Maps queues and data memory into `domain`.
    pub fn new(domain: &mut Domain, info: P::Info) -> Result<Queues<P>, Refusal> {
        let memory = offer::map_queues(domain, P::QUEUE_BYTES)?;
        let Ok(data) = domain.map_dma((P::REQUESTS * P::MAX_DATA) as u64, true) else {
            offer::unmap_queues(domain, &memory);
            return Err(Refusal::NoMemory);
        };
        let [submit, complete] = P::RINGS;
        Ok(Queues {
            info,
            memory,
            data_address: domain.device_address(&data),
            data: data.memory,
            submit: Producer::new(submit),
            complete: Consumer::new(complete),
            requests: (0..P::REQUESTS).map(|_| State::Free).collect(),
            abandoned: 0,
            repeats: Arc::default(),
            on_free: None,
            news: Reply::empty(),
        })
    }

    /// What the driver has told since this was asked last.
    pub fn take_news(&mut self) -> Reply {
        core::mem::replace(&mut self.news, Reply::empty())
    }

    /// The server's requests that are to be sent again.
    pub fn repeats(&self) -> &Arc<Repeats> {
        &self.repeats
    }

    /// Makes this a part of another driver's server.
    pub fn set_repeats(&mut self, repeats: &Arc<Repeats>) {
        self.repeats = repeats.clone();
    }

    /// Puts a request into the driver's hands, which looks at it when it is polled; `None` if all are under way.
    /// Data longer than [`Protocol::MAX_DATA`] is cut off. `number` is that of a request that has a place among [`Repeats`].
    pub fn begin(&mut self, number: Option<u64>, request: &P::Request, data: Data) -> Result<Option<Ticket>, Cause> {
        let is_free = |state: &State<P>| matches!(state, State::Free);
        let Some(slot) = self.requests.iter().take(P::depth(&self.info)).position(is_free) else { return Ok(None) };
        // A write that nobody waits for any more is still with the device. Nothing may overtake it.
        let unit = P::unit(request);
        let pending =
            |state: &State<P>| matches!(state, State::Sent { abandoned: true, writes: Some(of), .. } if *of == unit);
        if self.abandoned > 0 && self.requests.iter().any(pending) {
            return Ok(None);
        }
        let writes = matches!(data, Data::Out(_)).then_some(unit);
        let (direction, len_bytes) = match data {
            Data::None => (Direction::None, 0),
            Data::In(len_bytes) => (Direction::In, len_bytes.min(P::MAX_DATA)),
            Data::Out(bytes) => {
                let bytes = bytes.get(..P::MAX_DATA).unwrap_or(bytes);
                self.data.write(slot * P::MAX_DATA, bytes);
                (Direction::Out, bytes.len())
            }
        };
        let address = self.data_address + (slot * P::MAX_DATA) as u64;
        P::write(&self.memory, slot, request, Transfer { address, len_bytes: len_bytes as u32, direction });
        let position = self.submit.position();
        if !self.submit.put(&self.memory, slot as u64).map_err(Cause::lie("submit"))? {
            return Ok(None);
        }
        if let Some(state) = self.requests.get_mut(slot) {
            *state = State::Sent { number, waker: None, abandoned: false, position, writes };
        }
        Ok(Some(Ticket(slot)))
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
            let outcome =
                P::read(&self.memory, number).map_err(|entry| Cause::QueueEntry { queue: "complete", entry })?;
            self.settle(number, State::Done(outcome));
        }
        Ok(())
    }

    /// Ends all requests under way: the driver is gone. Those that somebody waits for are to be sent again.
    fn fail_all(&mut self) {
        for slot in 0..self.requests.len() {
            if let Some(State::Sent { number, abandoned, .. }) = self.requests.get(slot) {
                if let Some(number) = number.filter(|_| !abandoned) {
                    self.repeats.add(number);
                }
                self.settle(slot, State::Lost);
            }
        }
        if let Some(waker) = self.on_free.take() {
            waker.wake();
        }
    }

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
    pub fn finish(
        &mut self,
        ticket: Ticket,
        data: &mut [u8],
        waker: Option<&Waker>,
    ) -> Option<Result<P::Outcome, Lost>> {
        match self.requests.get_mut(ticket.0)? {
            State::Done(outcome) => {
                let outcome = *outcome;
                let len = data.len().min(P::MAX_DATA);
                if let Some(data) = data.get_mut(..len) {
                    self.data.read(ticket.0 * P::MAX_DATA, data);
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
