//! Drivers of network cards.
//!
//! A frame belongs to the driver from when the driver takes it until it gives it back. A driver
//! tells a device with descriptors the address of the frame. For a device without descriptors, the
//! driver copies the bytes ([`Queues::read`], [`Queues::write`]).

use crate::Result;
use crate::class::{self, Class, ClassDriver};
use crate::dma::Bytes;
use crate::shared::QueueMemory;
use core::fmt;
use core::num::{NonZeroU16, NonZeroU32};
use core::ptr::NonNull;
use ringfence_abi::net::{
    self, COUNTERS, Entry, GROUPS, HEARING, QUEUE_BYTES, RX_ADDRESS, RX_START, TX_ADDRESS, TX_START,
};
pub use ringfence_abi::net::{
    Counter, FRAME_BYTES, MAX_FRAME, MAX_GROUPS, MAX_QUEUES, MIN_FRAME, RX_FRAMES, TX_FRAMES,
};
pub use ringfence_abi::net::{Hearing, NetInfo, Offload, Sum};
use ringfence_abi::queue::{Consumer, HasQueues, Native, Producer, Putting, Taking, Words};

/// Network interfaces.
pub struct Nic;

/// The most addresses that [`Queues::addresses`] returns.
pub const MAX_ADDRESSES: usize = 2 + MAX_GROUPS;

/// An Ethernet address, to be written with colons.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EthernetAddress(pub [u8; 6]);

impl fmt::Display for EthernetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|byte| write!(f, ":{byte:02x}"))
    }
}

/// The driver of a network interface.
pub type NicDriver<N> = ClassDriver<N, Nic>;

impl Class for Nic {
    type Info = NetInfo;
    type Channel = Queues;

    fn offer(info: NetInfo) -> Result<Queues> {
        Queues::offer(&info)
    }
}

/// A frame to send. A driver has the frame until [`Queues::give_transmitted`] takes it: **no driver
/// can give back a frame twice, or a frame that it does not have**. If the driver drops the frame,
/// the kernel never gets it back.
#[must_use = "the kernel waits for it"]
#[derive(Debug)]
pub struct TxFrame {
    /// The lower half of the ring's entry, with one bit always set ([`Number`]).
    lower: NonZeroU32,
    /// The upper half. 32-bit code moves halves.
    upper: u32,
}

impl TxFrame {
    /// Returns the frame's number, below [`TX_FRAMES`]. No other frame that the driver has to send
    /// has this number.
    #[inline]
    pub fn number(&self) -> usize {
        self.place().get()
    }

    /// Returns the number of bytes to send, with the header and without the check sequence.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.entry().len_bytes()
    }

    /// Returns the queue of the card that is to send the frame: below the number of queues that the
    /// driver has declared ([`NetInfo::queues`]). All frames of a connection have the same queue.
    #[inline]
    pub fn queue(&self) -> usize {
        self.entry().queue()
    }

    /// Returns the checksum that the card is to complete, if the driver has declared that it does
    /// ([`Offload::TX_CHECKSUM`]).
    #[inline]
    pub fn sum(&self) -> Option<Sum> {
        self.entry().sum()
    }

    /// Returns a copy. Only the SDK can make one, and it gives no copy back.
    #[inline]
    pub(crate) fn copy(&self) -> TxFrame {
        TxFrame { ..*self }
    }

    #[inline]
    fn entry(&self) -> Entry {
        Entry(u64::from(self.upper) << 32 | u64::from(self.lower.get()))
    }

    #[inline]
    fn place(&self) -> Number {
        Number(Number::TAKEN | self.lower.get() as u16)
    }
}

/// An empty frame to fill. As with [`TxFrame`], a driver has the frame until
/// [`Queues::give_received`] takes it. The frame has room for [`FRAME_BYTES`] bytes.
#[must_use = "the kernel waits for it"]
#[derive(Debug)]
pub struct RxFrame {
    number: Number,
}

impl RxFrame {
    /// Returns the frame's number, below [`RX_FRAMES`]. No other frame that the driver has to fill
    /// has this number.
    #[inline]
    pub fn number(&self) -> usize {
        self.number.get()
    }
}

/// The result of receiving into a frame: a length in bytes, or more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// The number of received bytes, without the check sequence; 0 if the frame goes back unused.
    /// **A length above [`FRAME_BYTES`] ends the driver**, so a driver must check the length that a
    /// card reports.
    pub len_bytes: usize,
    /// The card's queue that has received the frame.
    pub queue: usize,
    /// Whether the card has checked the TCP or UDP checksum, and found it right. Only a driver that
    /// has declared [`Offload::RX_CHECKSUM`] may say so.
    pub is_checked: bool,
}

impl From<usize> for Received {
    #[inline]
    fn from(len_bytes: usize) -> Received {
        Received { len_bytes, queue: 0, is_checked: false }
    }
}

/// A frame that the driver has; an argument of [`Queues::read`] and [`Queues::write`].
pub trait Frame: sealed::Frame {}

impl Frame for TxFrame {}
impl Frame for RxFrame {}

mod sealed {
    use super::*;

    pub trait Frame {
        /// Returns the frame's bytes in memory.
        fn bytes(&self, memory: &impl Words) -> Bytes;
    }

    impl Frame for TxFrame {
        fn bytes(&self, memory: &impl Words) -> Bytes {
            self.place().bytes(memory.load(TX_START), TX_FRAMES, self.len_bytes())
        }
    }

    impl Frame for RxFrame {
        fn bytes(&self, memory: &impl Words) -> Bytes {
            self.number.bytes(memory.load(RX_START), RX_FRAMES, FRAME_BYTES)
        }
    }
}

/// A frame's number, with one bit always set, so that an `Option` of a frame needs no more space.
#[derive(Debug)]
struct Number(NonZeroU16);

impl Number {
    const TAKEN: NonZeroU16 = NonZeroU16::MIN.saturating_add(0x7fff);

    #[inline]
    fn new(number: usize) -> Number {
        Number(Number::TAKEN | number as u16)
    }

    #[inline]
    fn get(&self) -> usize {
        usize::from(self.0.get() ^ Number::TAKEN.get())
    }

    /// Returns the address of the frame, if the first frame is at `first`.
    #[inline]
    fn place(&self, first: u64) -> u64 {
        first.wrapping_add((self.get() * FRAME_BYTES) as u64)
    }

    /// Returns the first `len_bytes` bytes of the frame, if the first of `count` frames is at
    /// `first`.
    fn bytes(&self, first: u64, count: usize, len_bytes: usize) -> Bytes {
        let start = NonNull::new(self.place(first) as *mut u8).unwrap_or(NonNull::dangling());
        let len_bytes = if self.get() < count { len_bytes.min(FRAME_BYTES) } else { 0 };
        // SAFETY: the kernel has mapped `FRAME_BYTES` bytes for each frame, and never unmaps them.
        unsafe { Bytes::new(start, len_bytes) }
    }
}

/// The driver's end of the queues.
pub struct Queues {
    memory: QueueMemory<Queues>,
    transmit: Consumer<net::Transmit>,
    transmitted: Producer<net::Transmitted>,
    empty: Consumer<net::Empty>,
    received: Producer<net::Received>,
    tx_address: u64,
    rx_address: u64,
}

impl HasQueues for Queues {
    const WORDS: usize = QUEUE_BYTES / 8;
}

// The driver trusts the ring positions that the kernel writes. If they were false, it could do
// nothing about it.
impl Queues {
    fn offer(info: &NetInfo) -> Result<Queues> {
        let memory: QueueMemory<Queues> = class::open(info)?;
        Ok(Queues {
            tx_address: memory.load(TX_ADDRESS),
            rx_address: memory.load(RX_ADDRESS),
            memory,
            transmit: Consumer::new(),
            transmitted: Producer::new(),
            empty: Consumer::new(),
            received: Producer::new(),
        })
    }

    /// Checks that a device with 32-bit addresses reaches all frames.
    ///
    /// # Errors
    /// [`crate::Refusal::NoMemory`] if the device does not, with a line in the log.
    pub fn check_within_4_gib(&self) -> Result<()> {
        if u32::try_from(self.end_of_frames()).is_err() {
            log::error!("the card does not reach memory above 4 GiB");
            return Err(crate::Refusal::NoMemory);
        }
        Ok(())
    }

    /// Returns the device's address of the end of the highest frame.
    fn end_of_frames(&self) -> u64 {
        let end = |first: u64, count: usize| first + (count * FRAME_BYTES) as u64;
        end(self.tx_address, TX_FRAMES).max(end(self.rx_address, RX_FRAMES))
    }

    /// Returns which frames the card is to receive besides those to its own address and to all.
    /// Only frames that the driver has declared are asked for ([`NetInfo::hears`]). Several kinds
    /// may be set: they add up, and with [`Hearing::PROMISCUOUS`] the others add nothing. The card
    /// may receive more. The driver is polled with [`Events::HEARING`](crate::Events::HEARING) when
    /// this has changed.
    pub fn hearing(&self) -> Hearing {
        let bits = self.memory.load(HEARING);
        #[cfg(feature = "record")]
        crate::record::line(format_args!("hearing {bits:x}"));
        Hearing::from_bits_truncate(bits as u16)
    }

    /// Returns the Ethernet addresses of the groups to hear ([`Hearing::GROUPS`]), at most
    /// [`MAX_GROUPS`].
    pub fn groups(&self) -> impl Iterator<Item = [u8; 6]> {
        (0..MAX_GROUPS).map_while(|index| self.group(index))
    }

    /// Returns all addresses that a card with the address `mac` is to receive frames for: its own,
    /// the broadcast address, and those of the groups, at most [`MAX_ADDRESSES`]. This is for a
    /// card whose filter is a list of addresses.
    pub fn addresses(&self, mac: [u8; 6]) -> impl Iterator<Item = [u8; 6]> {
        [mac, [0xff; 6]].into_iter().chain(self.groups())
    }

    // Not inlined: a loop that is unrolled eight times would be no faster, and much longer.
    #[inline(never)]
    fn group(&self, index: usize) -> Option<[u8; 6]> {
        let word = self.memory.load(GROUPS + index);
        let [a, b, c, d, e, f, ..] = word.to_le_bytes();
        let group = (word != 0).then_some([a, b, c, d, e, f]);
        #[cfg(feature = "record")]
        if let Some(group) = group {
            crate::record::bytes(format_args!("group "), &group);
        }
        group
    }

    /// Returns the hash filter of 64 bits that many cards have for groups: bit `n % 8` of byte
    /// `n / 8` is set if `n` is the upper six bits of a group's check sequence.
    pub fn group_filter(&self) -> [u8; 8] {
        let mut filter = [0; 8];
        for group in self.groups() {
            let bit = check_sequence(&group) >> 26;
            filter[bit as usize / 8] |= 1 << (bit % 8);
        }
        filter
    }

    /// Adds `frames` to an error counter, which the command `ip` shows.
    pub fn count(&mut self, counter: Counter, frames: u64) {
        let word = COUNTERS + counter as usize;
        self.memory.store(word, self.memory.load(word).saturating_add(frames));
    }

    /// Takes the next frame to send.
    #[inline]
    pub fn take_transmit(&mut self) -> Option<TxFrame> {
        self.sending().take()
    }

    /// Begins to take several frames to send.
    #[inline]
    pub(crate) fn sending(&mut self) -> Sending<'_> {
        Sending { entries: self.transmit.taking(self.memory), first: self.tx_address, memory: self.memory }
    }

    /// Returns the device's address of a frame to send.
    #[inline]
    pub fn tx_address(&self, frame: &TxFrame) -> u64 {
        frame.place().place(self.tx_address)
    }

    /// Copies bytes of a frame into `to`, from the byte at `offset` on. Panics if they are not
    /// inside the frame.
    #[track_caller]
    pub fn read(&self, frame: &impl Frame, offset: usize, to: &mut [u8]) {
        frame.bytes(&self.memory).read(offset, to);
    }

    /// Copies bytes into a frame, from the byte at `offset` on: received data, or a checksum that
    /// the card does not compute. Panics if they do not fit.
    #[track_caller]
    pub fn write(&mut self, frame: &mut impl Frame, offset: usize, from: &[u8]) {
        #[cfg(feature = "fake")]
        crate::fake::frame_written(offset, from);
        #[cfg(feature = "record")]
        crate::record::bytes(format_args!("f {offset:x} "), from);
        frame.bytes(&self.memory).write(offset, from);
    }

    /// Pads a frame that is shorter than [`MIN_FRAME`] with zeros, for a card that does not do
    /// that.
    pub fn pad(&mut self, frame: &mut TxFrame) {
        let had = frame.len_bytes();
        if let Some(zeros) = [0; MIN_FRAME].get(had..) {
            // The length becomes `MIN_FRAME`, so that nothing is carried beyond it.
            frame.upper = frame.upper.saturating_add(zeros.len() as u32);
            self.write(frame, had, zeros);
        }
    }

    /// Gives back a frame that was sent. The kernel ends a driver as stuck if it has frames to send
    /// and gives none back for five seconds (`limits transmit-ms`). Within that time the driver may
    /// keep sent frames. It therefore needs an interrupt for sent frames only while some are left.
    #[inline]
    pub fn give_transmitted(&mut self, frame: TxFrame) {
        self.sent().give(frame);
    }

    /// Begins to give back several frames that were sent.
    #[inline]
    pub(crate) fn sent(&mut self) -> Sent<'_> {
        Sent { entries: self.transmitted.putting(self.memory) }
    }

    /// Returns the number of empty frames to take.
    #[inline]
    pub(crate) fn empty_len(&self) -> u64 {
        self.empty.believed_len(&self.memory)
    }

    /// Returns whether there is a frame to send.
    #[inline]
    pub(crate) fn has_transmit(&self) -> bool {
        !self.transmit.is_empty(&self.memory)
    }

    /// Takes the next frame to receive into. A driver that has at most a quarter of the largest
    /// number of empty frames that it ever had is polled with
    /// [`Events::QUEUE`](crate::Events::QUEUE), so that it takes the frames that came back.
    #[inline]
    pub fn take_empty(&mut self) -> Option<RxFrame> {
        self.filling().take()
    }

    /// Begins to take several frames to receive into.
    #[inline]
    pub(crate) fn filling(&mut self) -> Filling<'_> {
        Filling { entries: self.empty.taking(self.memory), first: self.rx_address }
    }

    /// Returns the device's address of a frame to receive into.
    #[inline]
    pub fn rx_address(&self, frame: &RxFrame) -> u64 {
        frame.number.place(self.rx_address)
    }

    /// Delivers a frame: with its length in bytes, or with a [`Received`].
    #[inline]
    pub fn give_received(&mut self, frame: RxFrame, received: impl Into<Received>) {
        self.delivering().give(frame, received.into());
    }

    /// Begins to deliver several frames.
    #[inline]
    pub(crate) fn delivering(&mut self) -> Delivering<'_> {
        Delivering { entries: self.received.putting(self.memory) }
    }
}

/// Several frames that the driver takes to send ([`Queues::take_transmit`]).
pub(crate) struct Sending<'a> {
    entries: Taking<'a, net::Transmit, Native, QueueMemory<Queues>>,
    /// The device's address of the first frame.
    first: u64,
    #[cfg_attr(not(feature = "record"), expect(dead_code, reason = "only a record has the frame's bytes"))]
    memory: QueueMemory<Queues>,
}

impl Sending<'_> {
    /// Takes the next frame.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Option<TxFrame> {
        self.entries.take().ok()?.map(|entry| self.frame(entry))
    }

    /// Looks for frames. [`Sending::take_known`] then returns at most `most`.
    #[inline(always)]
    pub(crate) fn look(&mut self, most: usize) {
        self.entries.look(most);
    }

    /// Takes the next frame that is known.
    #[inline(always)]
    pub(crate) fn take_known(&mut self) -> Option<TxFrame> {
        self.entries.take_known().map(|entry| self.frame(entry))
    }

    #[inline(always)]
    fn frame(&self, entry: u64) -> TxFrame {
        let frame = TxFrame { lower: NonZeroU32::from(Number::TAKEN) | entry as u32, upper: (entry >> 32) as u32 };
        #[cfg(feature = "record")]
        {
            let mut bytes = [0; FRAME_BYTES];
            let bytes = &mut bytes[..frame.len_bytes().min(FRAME_BYTES)];
            sealed::Frame::bytes(&frame, &self.memory).read(0, bytes);
            crate::record::bytes(format_args!("transmit {entry:x} "), bytes);
        }
        frame
    }

    /// Returns the device's address of a frame.
    #[inline(always)]
    pub(crate) fn address(&self, frame: &TxFrame) -> u64 {
        frame.place().place(self.first)
    }
}

/// Several frames that were sent, which the driver gives back ([`Queues::give_transmitted`]).
pub(crate) struct Sent<'a> {
    entries: Putting<'a, net::Transmitted, Native, QueueMemory<Queues>>,
}

impl Sent<'_> {
    #[inline(always)]
    pub(crate) fn give(&mut self, frame: TxFrame) {
        #[cfg(feature = "record")]
        crate::record::line(format_args!("transmitted {:x}", frame.number()));
        // There is room: the ring has an entry for every frame.
        self.entries.put_half(frame.number() as u32);
    }
}

/// Several frames that the driver takes to receive into ([`Queues::take_empty`]).
pub(crate) struct Filling<'a> {
    entries: Taking<'a, net::Empty, Native, QueueMemory<Queues>>,
    /// The device's address of the first frame.
    first: u64,
}

impl Filling<'_> {
    /// Takes the next frame.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> Option<RxFrame> {
        self.entries.take().ok()?.map(Filling::frame)
    }

    /// Looks for frames. [`Filling::take_known`] then returns at most `most`.
    #[inline(always)]
    pub(crate) fn look(&mut self, most: usize) {
        self.entries.look(most);
    }

    /// Takes the next frame that is known.
    #[inline(always)]
    pub(crate) fn take_known(&mut self) -> Option<RxFrame> {
        self.entries.take_known().map(Filling::frame)
    }

    #[inline(always)]
    fn frame(entry: u64) -> RxFrame {
        let entry = Entry(entry);
        #[cfg(feature = "record")]
        crate::record::line(format_args!("empty {:x}", entry.frame()));
        RxFrame { number: Number::new(entry.frame()) }
    }

    /// Returns the device's address of a frame.
    #[inline(always)]
    pub(crate) fn address(&self, frame: &RxFrame) -> u64 {
        frame.number.place(self.first)
    }
}

/// Several received frames that the driver delivers ([`Queues::give_received`]).
pub(crate) struct Delivering<'a> {
    entries: Putting<'a, net::Received, Native, QueueMemory<Queues>>,
}

impl Delivering<'_> {
    #[inline(always)]
    pub(crate) fn give(&mut self, frame: RxFrame, received: Received) {
        let Received { len_bytes, queue, is_checked } = received;
        // A length that does not fit is too long in any case.
        let entry = Entry::new(frame.number() as u16, len_bytes.min(u16::MAX.into()) as u16);
        let entry = entry.in_queue(queue as u16).checked(is_checked);
        #[cfg(feature = "record")]
        crate::record::line(format_args!("received {:x}", entry.0));
        // There is room: the ring has an entry for every frame.
        self.entries.put_within_room(entry.0);
    }
}

/// Returns the check sequence of Ethernet (IEEE 802.3, 3.2.9) before its complement is taken, with
/// the first bit on the left, as cards compute it for their filters.
fn check_sequence(bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x04c1_1db7;
    bytes.iter().fold(u32::MAX, |check, byte| {
        (0..8).fold(check, |check, bit| {
            let is_odd = (check >> 31) ^ u32::from(byte >> bit & 1) != 0;
            (check << 1) ^ if is_odd { POLYNOMIAL } else { 0 }
        })
    })
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::fake::Kernel;
    use std::string::ToString;

    #[test]
    fn an_address_is_written_with_colons() {
        assert_eq!(EthernetAddress([0, 0x52, 0xab, 3, 0x40, 0xff]).to_string(), "00:52:ab:03:40:ff");
    }

    /// The complement is the well-known CRC-32, bits mirrored: 0xcbf43926 for these digits.
    #[test]
    fn the_check_sequence_is_that_of_ethernet() {
        assert_eq!(!check_sequence(b"123456789").reverse_bits(), 0xcbf4_3926);
    }

    /// A list of addresses for a card's filter: its own, the broadcast address, the groups.
    #[test]
    fn a_filter_lists_own_address_broadcast_and_groups() {
        let mut kernel = Kernel::new(());
        let queues = kernel.run(|| Nic::offer(NetInfo::new([0, 1, 2, 3, 4, 5]))).expect("queues");
        let group = [1, 0, 0x5e, 0, 0, 9];
        kernel.net.as_mut().expect("an interface").hear(Hearing::GROUPS, &[group]);
        let addresses = queues.addresses([0, 1, 2, 3, 4, 5]);
        assert!(addresses.eq([[0, 1, 2, 3, 4, 5], [0xff; 6], group]));
    }
}
