//! Network drivers.
//!
//! A driver has a frame from when it takes it until it gives it back. A device with descriptors is
//! told where the frame lies; a driver of one without copies the bytes
//! ([`Queues::read`], [`Queues::write`]).

use crate::Result;
use crate::class::{self, Class, ClassDriver};
use crate::dma::Bytes;
use crate::shared::QueueMemory;
use core::num::NonZeroU16;
use core::ptr::NonNull;
use ringfence_abi::net::{
    COUNTERS, EMPTY, HEARING, QUEUE_BYTES, RECEIVED, RX_ADDRESS, RX_START, TRANSMIT, TRANSMITTED, TX_ADDRESS, TX_START,
    entry, split,
};
pub use ringfence_abi::net::{Counter, FRAME_BYTES, MAX_FRAME, MIN_FRAME, RX_FRAMES, TX_FRAMES};
pub use ringfence_abi::net::{Hearing, NetInfo};
use ringfence_abi::queue::{Consumer, Producer, Words};

/// Network interfaces.
pub struct Nic;

/// Makes a driver of a network interface.
pub type NicDriver<N> = ClassDriver<N, Nic>;

impl Class for Nic {
    type Info = NetInfo;
    type Channel = Queues;

    fn offer(info: NetInfo) -> Result<Queues> {
        Queues::offer(&info)
    }
}

/// A frame that is to be sent, which a driver has until [`Queues::give_transmitted`] takes it:
/// **nobody gives one back twice, or one that he does not have**. The kernel does not get one back
/// that is dropped.
#[must_use = "the kernel waits for it"]
#[derive(Debug)]
pub struct TxFrame {
    number: Number,
    len_bytes: u16,
}

impl TxFrame {
    /// Its number, below [`TX_FRAMES`]. No other that a driver has to send has it.
    #[inline]
    pub fn number(&self) -> usize {
        self.number.get()
    }

    /// Bytes to be sent, with the header and without the check sequence.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes.into()
    }
}

/// An empty frame that is to be filled, which a driver has until [`Queues::give_received`] takes
/// it, as with [`TxFrame`]. It has room for [`FRAME_BYTES`].
#[must_use = "the kernel waits for it"]
#[derive(Debug)]
pub struct RxFrame {
    number: Number,
}

impl RxFrame {
    /// Its number, below [`RX_FRAMES`]. No other that a driver has to fill has it.
    #[inline]
    pub fn number(&self) -> usize {
        self.number.get()
    }
}

/// A frame that a driver has: what [`Queues::read`] and [`Queues::write`] take.
pub trait Frame: sealed::Frame {}

impl Frame for TxFrame {}
impl Frame for RxFrame {}

mod sealed {
    use super::*;

    pub trait Frame {
        /// The frame's bytes in memory.
        fn bytes(&self, queues: &Queues) -> Bytes;
    }

    impl Frame for TxFrame {
        fn bytes(&self, queues: &Queues) -> Bytes {
            self.number.bytes(queues.memory.load(TX_START), TX_FRAMES, self.len_bytes())
        }
    }

    impl Frame for RxFrame {
        fn bytes(&self, queues: &Queues) -> Bytes {
            self.number.bytes(queues.memory.load(RX_START), RX_FRAMES, FRAME_BYTES)
        }
    }
}

/// A frame's number, with a bit that is always set, so that an `Option` of a frame is as short.
#[derive(Debug)]
struct Number(NonZeroU16);

impl Number {
    const TAKEN: NonZeroU16 = NonZeroU16::MIN.saturating_add(0x7fff);

    #[inline]
    fn new(number: u32) -> Number {
        Number(Number::TAKEN | number as u16)
    }

    #[inline]
    fn get(&self) -> usize {
        usize::from(self.0.get() ^ Number::TAKEN.get())
    }

    /// Where the frame lies, if the first one lies at `first`.
    #[inline]
    fn place(&self, first: u64) -> u64 {
        first + (self.get() * FRAME_BYTES) as u64
    }

    /// The first `len_bytes` bytes of the frame, if those of the first of `count` lie at `first`.
    fn bytes(&self, first: u64, count: usize, len_bytes: usize) -> Bytes {
        let start = NonNull::new(self.place(first) as *mut u8).unwrap_or(NonNull::dangling());
        let len_bytes = if self.get() < count { len_bytes.min(FRAME_BYTES) } else { 0 };
        // SAFETY: the kernel has mapped as much there for each frame, for good.
        unsafe { Bytes::new(start, len_bytes) }
    }
}

/// The driver's end of the queues.
pub struct Queues {
    memory: QueueMemory,
    transmit: Consumer,
    transmitted: Producer,
    empty: Consumer,
    received: Producer,
    tx_address: u64,
    rx_address: u64,
}

// The kernel's positions are true. If they were not, there would be nothing to do.
impl Queues {
    fn offer(info: &NetInfo) -> Result<Queues> {
        let memory = class::open(info, QUEUE_BYTES)?;
        Ok(Queues {
            memory,
            transmit: Consumer::new(TRANSMIT),
            transmitted: Producer::new(TRANSMITTED),
            empty: Consumer::new(EMPTY),
            received: Producer::new(RECEIVED),
            tx_address: memory.load(TX_ADDRESS),
            rx_address: memory.load(RX_ADDRESS),
        })
    }

    /// That all frames lie where a device with addresses of 32 bits reaches them.
    ///
    /// # Errors
    /// [`crate::Refusal::NoMemory`] if not, with a line in the log.
    pub fn check_within_4_gib(&self) -> Result<()> {
        if u32::try_from(self.end_of_frames()).is_err() {
            log::error!("the card does not reach memory above 4 GiB");
            return Err(crate::Refusal::NoMemory);
        }
        Ok(())
    }

    /// Where the highest frame ends, for the device.
    fn end_of_frames(&self) -> u64 {
        let end = |first: u64, count: usize| first + (count * FRAME_BYTES) as u64;
        end(self.tx_address, TX_FRAMES).max(end(self.rx_address, RX_FRAMES))
    }

    /// What the card is to hear besides frames to itself and to all, of what the driver has said
    /// that it can ([`NetInfo::hears`]). It may hear more. A poll with
    /// [`Events::HEARING`](crate::Events::HEARING) says that this has changed.
    pub fn hearing(&self) -> Hearing {
        Hearing::from_bits_truncate(self.memory.load(HEARING) as u16)
    }

    /// Counts what went wrong with so many frames, for `ip`.
    pub fn count(&mut self, counter: Counter, frames: u64) {
        let word = COUNTERS + counter as usize;
        self.memory.store(word, self.memory.load(word).saturating_add(frames));
    }

    /// The next frame to send.
    #[inline]
    pub fn take_transmit(&mut self) -> Option<TxFrame> {
        let (number, len_bytes) = split(self.transmit.take(&self.memory).ok()??);
        Some(TxFrame { number: Number::new(number), len_bytes: len_bytes as u16 })
    }

    /// Where the device finds a frame to send.
    #[inline]
    pub fn tx_address(&self, frame: &TxFrame) -> u64 {
        frame.number.place(self.tx_address)
    }

    /// Copies bytes of a frame out, from the byte at `offset` on. Panics if they are not all
    /// inside.
    #[track_caller]
    pub fn read(&self, frame: &impl Frame, offset: usize, to: &mut [u8]) {
        frame.bytes(self).read(offset, to);
    }

    /// Copies bytes into a frame, from the byte at `offset` on: what was received, or a checksum
    /// that the card does not make. Panics if they do not fit.
    #[track_caller]
    pub fn write(&mut self, frame: &mut impl Frame, offset: usize, from: &[u8]) {
        frame.bytes(self).write(offset, from);
    }

    /// Fills a frame that is shorter than [`MIN_FRAME`] up with zeros, for a card that does not do
    /// so.
    pub fn pad(&mut self, frame: &mut TxFrame) {
        let had = frame.len_bytes();
        if let Some(zeros) = [0; MIN_FRAME].get(had..) {
            frame.len_bytes = (had + zeros.len()) as u16;
            self.write(frame, had, zeros);
        }
    }

    /// Gives back a frame that was sent. A driver that sends none of the frames that it has for
    /// five seconds (`limits transmit-ms`) is ended as stuck; it may keep them as long, so that
    /// an interrupt for what was sent is only needed while some are left.
    #[inline]
    pub fn give_transmitted(&mut self, frame: TxFrame) {
        // There is room: the ring holds all frames.
        let _ = self.transmitted.put(&self.memory, entry(frame.number() as u32, 0));
    }

    /// The next frame to receive into. A driver that has less than a quarter of the frames that it
    /// had at most is polled with [`Events::QUEUE`](crate::Events::QUEUE), so that it takes those
    /// that came back.
    #[inline]
    pub fn take_empty(&mut self) -> Option<RxFrame> {
        let (number, _) = split(self.empty.take(&self.memory).ok()??);
        Some(RxFrame { number: Number::new(number) })
    }

    /// Where the device is to put what it receives into a frame.
    #[inline]
    pub fn rx_address(&self, frame: &RxFrame) -> u64 {
        frame.number.place(self.rx_address)
    }

    /// Delivers a frame in which `len_bytes` bytes were received, without the check sequence. One
    /// with none goes back as it was. **More than [`FRAME_BYTES`] ends the driver**: what a card
    /// says of a length is to be looked at before.
    #[inline]
    pub fn give_received(&mut self, frame: RxFrame, len_bytes: usize) {
        // There is room: the ring holds all frames.
        let _ = self.received.put(&self.memory, entry(frame.number() as u32, len_bytes as u32));
    }
}
