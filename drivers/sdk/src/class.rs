//! Classes of devices that drivers offer. Each class has a channel to the kernel, and
//! [`ClassDriver`] makes a [`Driver`] from a [`Device`] of any class.
//!
//! A class whose channel carries requests defines their format ([`Protocol`]) and uses
//! [`Requests`]. Network cards have a channel of their own, which carries frames.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../examples/channel.rs")]
#![doc = "```"]

use crate::dma::Bytes;
use crate::service::safe::rf_offer;
use crate::shared::QueueMemory;
use crate::{Command, Driver, Events, Refusal, Reply, Result};
use alloc::vec::Vec;
use core::marker::PhantomData;
use core::num::NonZeroU16;
use core::ptr::NonNull;
use ringfence_abi::queue::{Complete, Consumer, HasQueues, Native, Producer, Putting, Rings, Submit, Taking, Words};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A class of devices.
pub trait Class {
    /// The description of the device that the driver gives to the kernel.
    type Info;
    /// The driver's end of the queues that it shares with the kernel.
    type Channel;

    /// Offers a device, and opens the channel.
    ///
    /// # Errors
    /// [`Refusal::Invalid`] if the description is not valid for the class, [`Refusal::Full`] if the
    /// kernel takes no more devices of the class.
    fn offer(info: Self::Info) -> Result<Self::Channel>;
}

/// A device of a class.
pub trait Device<C: Class>: Sized + 'static {
    /// The commands for help and completion ([`Driver::COMMANDS`]).
    const COMMANDS: &'static [Command] = &[];

    /// Takes the device into service.
    fn init() -> Result<Self>;

    /// Describes the device to the kernel.
    fn info(&self) -> C::Info;

    /// Does the part of the initialization that needs the channel. Called once, after the channel
    /// was opened. The usual order is: tell the device where its memory is;
    /// [`enable_dma`](crate::device::enable_dma); give the device the buffers that it fills; start
    /// the device; [`enable_interrupts`](crate::device::enable_interrupts).
    fn start(&mut self, channel: &mut C::Channel) -> Result<()> {
        let _ = channel;
        Ok(())
    }

    /// Takes work out of the channel, and puts finished work into it.
    fn poll(&mut self, events: Events, channel: &mut C::Channel) -> Reply;

    /// Carries out the command that a person typed after `tell NAME` ([`Driver::command`]).
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// The version of the state that [`Device::save`] returns ([`Driver::STATE_VERSION`]).
    const STATE_VERSION: u32 = 0;

    /// Returns the state that the next build is to have ([`Driver::save`]).
    fn save(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over the state that the build before has saved, after [`Device::start`]
    /// ([`Driver::restore`]).
    fn restore(&mut self, version: u32, state: &[u8]) -> Result<()> {
        let _ = (version, state);
        Err(Refusal::Invalid)
    }

    /// Stops the device.
    fn exit(&mut self);
}

/// The [`Driver`] of a [`Device`].
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

    const STATE_VERSION: u32 = D::STATE_VERSION;

    fn save(&mut self) -> Vec<u8> {
        self.device.save()
    }

    fn restore(&mut self, version: u32, state: &[u8]) -> Result<()> {
        self.device.restore(version, state)
    }

    fn exit(&mut self) {
        self.device.exit();
    }
}

/// Passes `info` to the kernel, which maps the queues of `Q`.
pub(crate) fn open<Q: HasQueues>(info: &(impl IntoBytes + Immutable)) -> Result<QueueMemory<Q>> {
    #[cfg(feature = "fake")]
    crate::fake::offers(8 * Q::WORDS);
    let start = rf_offer(info.as_bytes())?;
    // SAFETY: the kernel has mapped the queues at `start`, and never unmaps them.
    Ok(unsafe { QueueMemory::new(start) })
}

/// The format of the requests of a class.
pub trait Protocol: Rings {
    /// The description of the device that the driver gives to the kernel.
    type Info: IntoBytes + Immutable;
    /// A request of the kernel.
    type Request: FromBytes + IntoBytes + Immutable;
    /// The driver's answer to a request.
    type Outcome: IntoBytes + Immutable;

    /// Length of the memory that holds the rings and the requests, in bytes.
    const QUEUE_BYTES: usize;
    /// How many numbers requests have, from 0 on.
    const NUMBERS: usize;

    /// Copies request `number` out of shared memory.
    fn read(memory: &impl Words, number: usize) -> Option<Self::Request>;

    /// Returns the address of a request's data for the driver, and the length of the data in bytes.
    fn data(request: &Self::Request) -> (u64, u32);

    /// Writes the outcome of request `number` into shared memory.
    fn write(memory: &impl Words, number: usize, outcome: &Self::Outcome);
}

/// A channel of requests.
pub struct Requests<P> {
    memory: QueueMemory<Requests<P>>,
    submit: Consumer<Submit<P>>,
    complete: Producer<Complete<P>>,
}

impl<P: Protocol> HasQueues for Requests<P> {
    const WORDS: usize = P::QUEUE_BYTES / 8;
}

// The driver trusts the ring positions that the kernel writes. If they were false, it could do
// nothing about it.
impl<P: Protocol> Requests<P> {
    pub(crate) fn offer(info: &P::Info) -> Result<Requests<P>> {
        Ok(Requests { memory: open(info)?, submit: Consumer::new(), complete: Producer::new() })
    }

    /// Takes the next request to carry out, and the right to complete it.
    #[inline]
    pub fn take(&mut self) -> Option<(Ticket<P>, P::Request)> {
        self.take_all().next()
    }

    /// Takes all requests to carry out, as [`Requests::take`] does one by one. The kernel sees that
    /// when the iterator is dropped, so drop it before you complete a request or sleep.
    #[inline]
    pub fn take_all(&mut self) -> impl Iterator<Item = (Ticket<P>, P::Request)> {
        TakeAll { numbers: self.submit.taking(self.memory), memory: self.memory }
    }

    /// Completes a request.
    #[inline]
    pub fn complete(&mut self, ticket: Ticket<P>, outcome: &P::Outcome) {
        self.completing().complete(ticket, outcome);
    }

    /// Begins to complete several requests. The kernel sees that when the result is dropped.
    #[inline]
    pub fn completing(&mut self) -> Completing<'_, P> {
        Completing { numbers: self.complete.putting(self.memory), memory: self.memory }
    }

    fn data(&self, ticket: &Ticket<P>) -> Bytes {
        let (start, len_bytes) = P::read(&self.memory, ticket.number()).map_or((0, 0), |request| P::data(&request));
        let start = NonNull::new(start as *mut u8).unwrap_or(NonNull::dangling());
        // SAFETY: the kernel has mapped this much data for each request, and never unmaps it.
        unsafe { Bytes::new(start, len_bytes as usize) }
    }

    /// Returns the data of a request as it lies in memory.
    ///
    /// # Safety
    /// No device may reach the data. The kernel leaves it alone until the request is completed, but
    /// for what the driver asks a disk to read there. Nobody else has it.
    pub(crate) unsafe fn data_mut(&mut self, ticket: &Ticket<P>) -> &mut [u8] {
        // SAFETY: this driver alone has the data, and it has no other reference to it, as the slice
        // borrows all requests.
        unsafe { self.data(ticket).as_mut_slice() }
    }

    /// Copies data of a request that goes to the device into `to`, from the byte at `offset` on.
    /// Panics if the range is not inside the request's data.
    #[track_caller]
    pub fn read_data(&self, ticket: &Ticket<P>, offset: usize, to: &mut [u8]) {
        self.data(ticket).read(offset, to);
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("out {:x} {offset:x} ", ticket.number()), to);
    }

    /// Copies `from` into the data of a request that reads from the device, from the byte at
    /// `offset` on. Panics if `from` does not fit.
    #[track_caller]
    pub fn write_data(&mut self, ticket: &Ticket<P>, offset: usize, from: &[u8]) {
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("in {:x} {offset:x} ", ticket.number()), from);
        self.data(ticket).write(offset, from);
    }
}

/// All requests to carry out.
struct TakeAll<'a, P: Protocol> {
    numbers: Taking<'a, Submit<P>, Native, QueueMemory<Requests<P>>>,
    memory: QueueMemory<Requests<P>>,
}

impl<P: Protocol> Iterator for TakeAll<'_, P> {
    type Item = (Ticket<P>, P::Request);

    #[inline(always)]
    fn next(&mut self) -> Option<(Ticket<P>, P::Request)> {
        let number = usize::try_from(self.numbers.take().ok()??).ok()?;
        if number >= P::NUMBERS {
            return None;
        }
        let request = P::read(&self.memory, number)?;
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("request {number:x} "), request.as_bytes());
        Some((Ticket::new(number)?, request))
    }
}

/// Several requests that the driver completes.
pub struct Completing<'a, P: Protocol> {
    numbers: Putting<'a, Complete<P>, Native, QueueMemory<Requests<P>>>,
    memory: QueueMemory<Requests<P>>,
}

impl<P: Protocol> Completing<'_, P> {
    /// Completes a request.
    #[inline(always)]
    pub fn complete(&mut self, ticket: Ticket<P>, outcome: &P::Outcome) {
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("completed {:x} ", ticket.number()), outcome.as_bytes());
        P::write(&self.memory, ticket.number(), outcome);
        // There is room: the ring has an entry for every request.
        self.numbers.put_half(ticket.number() as u32);
    }
}

/// The right to complete a request. A driver has the ticket until [`Requests::complete`] or
/// [`Completing::complete`] takes it: **no driver completes a request twice, or a request that it
/// does not have**. A driver that forgets the iterator of [`Requests::take_all`] gets the same
/// tickets again; the kernel ends a driver that completes a request twice.
pub struct Ticket<P> {
    /// The request's number plus one, so that an `Option` of a ticket needs no more space.
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
