//! What drivers offer: a class of devices has a channel to the kernel, and [`ClassDriver`] makes a
//! [`Driver`] of a [`Device`] of any class.
//!
//! A class whose channel carries requests says what they are like ([`Protocol`]) and has a
//! [`Requests`]; network cards have a channel of their own, which carries frames.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../examples/channel.rs")]
#![doc = "```"]

use crate::dma::Bytes;
use crate::service::safe::rf_offer;
use crate::shared::QueueMemory;
use crate::{Command, Driver, Events, Refusal, Reply, Result};
use core::marker::PhantomData;
use core::num::NonZeroU16;
use core::ptr::NonNull;
use ringfence_abi::queue::{Consumer, Place, Producer, Words};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A class of devices.
pub trait Class {
    /// What a driver says of its device.
    type Info;
    /// The driver's end of what it shares with the kernel.
    type Channel;

    /// Offers a device, and opens the channel.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if no device is like that, [`Refusal::Full`] if the kernel has as many
    /// as it can have.
    fn offer(info: Self::Info) -> Result<Self::Channel>;
}

/// A device of a class.
pub trait Device<C: Class>: Sized + 'static {
    /// What it can be told ([`Driver::COMMANDS`]).
    const COMMANDS: &'static [Command] = &[];

    /// Takes the device into service.
    fn init() -> Result<Self>;

    /// What the device is like.
    fn info(&self) -> C::Info;

    /// The channel is there: what needs it is done.
    fn start(&mut self, channel: &mut C::Channel) -> Result<()> {
        let _ = channel;
        Ok(())
    }

    /// Takes what is to be done from the channel, and puts what is done into it.
    fn poll(&mut self, events: Events, channel: &mut C::Channel) -> Reply;

    /// Does what a person typed behind `tell NAME` ([`Driver::command`]).
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// Stops the device.
    fn exit(&mut self);
}

/// Makes a [`Driver`] of a [`Device`].
pub struct ClassDriver<D, C: Class> {
    device: D,
    channel: C::Channel,
}

impl<C: Class + 'static, D: Device<C>> Driver for ClassDriver<D, C> {
    const COMMANDS: &'static [Command] = D::COMMANDS;

    fn init() -> Result<Self> {
        let mut device = D::init()?;
        let mut channel = C::offer(device.info())?;
        device.start(&mut channel)?;
        Ok(ClassDriver { device, channel })
    }

    fn poll(&mut self, events: Events) -> Reply {
        self.device.poll(events, &mut self.channel)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        self.device.command(text)
    }

    fn exit(&mut self) {
        self.device.exit();
    }
}

/// Says `info` to the kernel, which maps `len_bytes` bytes of queues.
pub(crate) fn open<I: IntoBytes + Immutable>(info: &I, len_bytes: usize) -> Result<QueueMemory> {
    let start = rf_offer(info.as_bytes())?;
    // SAFETY: the kernel has mapped as much there, for good.
    Ok(unsafe { QueueMemory::new(start, len_bytes) })
}

/// What the requests of a class are like.
pub trait Protocol {
    /// What a driver says of its device.
    type Info: IntoBytes + Immutable;
    /// What the kernel asks for.
    type Request: FromBytes;
    /// What the driver answers.
    type Outcome;

    /// The two rings: numbers of requests to carry out, and of those that are.
    const RINGS: [Place; 2];
    /// Length of the memory with rings and requests, in bytes.
    const QUEUE_BYTES: usize;
    /// How many numbers requests have, from 0 on.
    const NUMBERS: usize;

    /// Copies request `number` out of shared memory.
    fn read(memory: &impl Words, number: usize) -> Option<Self::Request>;

    /// Address of a request's data for the driver, and its length in bytes.
    fn data(request: &Self::Request) -> (u64, u32);

    /// Writes the outcome of request `number` into shared memory.
    fn write(memory: &impl Words, number: usize, outcome: &Self::Outcome);
}

/// A channel of requests.
pub struct Requests<P> {
    memory: QueueMemory,
    submit: Consumer,
    complete: Producer,
    protocol: PhantomData<fn() -> P>,
}

// The kernel's positions are true. If they were not, there would be nothing to do.
impl<P: Protocol> Requests<P> {
    pub(crate) fn offer(info: &P::Info) -> Result<Requests<P>> {
        let [submit, complete] = P::RINGS;
        Ok(Requests {
            memory: open(info, P::QUEUE_BYTES)?,
            submit: Consumer::new(submit),
            complete: Producer::new(complete),
            protocol: PhantomData,
        })
    }

    /// The next request to carry out, and the right to complete it.
    #[inline]
    pub fn take(&mut self) -> Option<(Ticket<P>, P::Request)> {
        let number = usize::try_from(self.submit.take(&self.memory).ok()??).ok()?;
        if number >= P::NUMBERS {
            return None;
        }
        let request = P::read(&self.memory, number)?;
        Some((Ticket::new(number)?, request))
    }

    /// Completes a request.
    #[inline]
    pub fn complete(&mut self, ticket: Ticket<P>, outcome: &P::Outcome) {
        P::write(&self.memory, ticket.number(), outcome);
        // There is room: the ring holds all requests.
        let _ = self.complete.put(&self.memory, ticket.number() as u64);
    }

    fn data(&self, ticket: &Ticket<P>) -> Bytes {
        let (start, len_bytes) = P::read(&self.memory, ticket.number()).map_or((0, 0), |request| P::data(&request));
        let start = NonNull::new(start as *mut u8).unwrap_or(NonNull::dangling());
        // SAFETY: the kernel has mapped as much data for each request, for good.
        unsafe { Bytes::new(start, len_bytes as usize) }
    }

    /// Copies data of a request out, from the byte at `offset` on: of what goes to the device.
    /// Panics if it is not all inside.
    #[track_caller]
    pub fn read_data(&self, ticket: &Ticket<P>, offset: usize, to: &mut [u8]) {
        self.data(ticket).read(offset, to);
    }

    /// Copies data of a request in, from the byte at `offset` on: of what comes from the device.
    /// Panics if it does not fit.
    #[track_caller]
    pub fn write_data(&mut self, ticket: &Ticket<P>, offset: usize, from: &[u8]) {
        self.data(ticket).write(offset, from);
    }
}

/// The right to complete a request, which a driver has until [`Requests::complete`] takes it:
/// **nobody completes one twice, or one that he does not have**.
pub struct Ticket<P> {
    /// The request's number and one more, so that an `Option` of it is as short.
    number: NonZeroU16,
    protocol: PhantomData<fn() -> P>,
}

impl<P> Ticket<P> {
    fn new(number: usize) -> Option<Ticket<P>> {
        let number = NonZeroU16::MIN.checked_add(u16::try_from(number).ok()?)?;
        Some(Ticket { number, protocol: PhantomData })
    }

    /// The request's number, below [`Protocol::NUMBERS`]. No other that was taken and not
    /// completed has it.
    pub fn number(&self) -> usize {
        usize::from(self.number.get()) - 1
    }
}
