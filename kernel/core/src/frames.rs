//! The frames of a network driver: four rings of frame numbers, and an account of which frames the
//! driver has ([`ringfence_abi::net`]).
//!
//! **This side believes only its own account**: a frame that was not lent, or that the driver has
//! not taken yet, is [`Wrong`]. Frames are lent by number and not by address, so that a driver
//! cannot name memory that is no frame.

use crate::checksum;
use crate::limits::TRANSMIT_MS;
use crate::passed::{Moved, Notes, Seen, Side};
use crate::requests::{Data, Wrong};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use ringfence_abi::net::{
    self, COUNTER_COUNT, COUNTERS, Entry, FRAME_BYTES, GROUPS, HEARING, Hearing, MAX_FRAME, MAX_GROUPS, MAX_QUEUES,
    NetInfo, Offload, RX_FRAMES, Sum, TX_FRAMES,
};
use ringfence_abi::queue::{Consumer, Producer, Words};

/// Shortest frame that is passed on: an Ethernet header.
const MIN_FRAME: usize = 14;
/// The kernel keeps one bit for each frame to send.
const _: () = assert!(TX_FRAMES == u64::BITS as usize);
/// Shortest time from a poll to the next poll for sent frames, in nanoseconds.
const LOOK_AGAIN_NS: u64 = 20_000_000;
/// Longest time from a poll to the next poll for sent frames, in nanoseconds.
const LOOK_AGAIN_MOST_NS: u64 = 1_000_000_000;

/// The account of a network driver's frames.
pub struct Frames<Q, M> {
    memory: Q,
    tx: M,
    rx: M,
    /// Returns the nanoseconds since boot.
    clock: fn() -> u64,
    card: Card,
    transmit: Producer<net::Transmit>,
    transmitted: Consumer<net::Transmitted>,
    empty: Producer<net::Empty>,
    received: Consumer<net::Received>,
    /// The frames to send that the driver does not have, one bit for each.
    tx_free: u64,
    /// The receive frames that the driver has, by their position in the queue of empty frames. The
    /// driver cannot give a frame back before it has taken that position.
    rx_lent: [Option<u64>; RX_FRAMES],
    /// Receive frames that were handed back since the driver was polled last.
    handed_back: usize,
    /// The most empty receive frames that the driver has had.
    most_empty: u64,
    /// Frames put into `transmit` since the driver was last polled.
    unsent: usize,
    /// When to poll the driver again because it may have sent frames, in nanoseconds since boot.
    look_again_at: u64,
    /// The time from the next poll to `look_again_at`, in nanoseconds. It doubles each time while
    /// the driver gives no frame back.
    look_again_in: u64,
    /// When the driver last gave a frame back, or got one while it had none, in nanoseconds since
    /// boot.
    progress_ns: u64,
    /// The entries of the frames to send that the driver has, each with its position in `transmit`.
    tx_entries: [(u64, Entry); TX_FRAMES],
    /// Frames that the driver before this one had delivered when it was ended, and whether its card
    /// had checked them.
    inherited: VecDeque<(Vec<u8>, bool)>,
    /// The frames and bytes that had gone through the drivers before this one.
    moved_before: Moved,
    /// Counters for `ip`.
    pub counts: Counts,
    /// Whether there is a link, as far as the driver has said.
    has_link: bool,
    /// Whether a link came up since [`Frames::take_link_up`] was called last.
    link_came_up: bool,
    /// The frames that a trace has seen.
    seen: Seen,
}

/// The abilities of a driver's card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Card {
    /// The longest frame that the card takes, in bytes.
    pub max_frame: usize,
    /// Work that it does in place of the kernel.
    pub offload: Offload,
    /// Queues in each direction, from 1 to [`MAX_QUEUES`].
    pub queues: usize,
}

impl Card {
    /// Returns the abilities that a driver describes; `None` if they make no sense.
    pub fn new(info: &NetInfo) -> Option<Card> {
        let max_frame = usize::from(info.max_frame);
        let queues = usize::from(info.queues);
        let offload = Offload::from_bits(info.offload)?;
        let is_right = (max_frame == 0 || (MAX_FRAME..=FRAME_BYTES).contains(&max_frame)) && queues <= MAX_QUEUES;
        is_right.then(|| Card { max_frame: max_frame.max(MAX_FRAME), offload, queues: queues.max(1) })
    }
}

/// A received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Its length in bytes.
    pub len_bytes: usize,
    /// Whether the card has checked its TCP or UDP checksum.
    pub is_checked: bool,
}

/// Counts of the frames that went through an interface.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Frames handed to the driver, and delivered by it, for each queue of the card.
    pub by_queue: [(u64, u64); MAX_QUEUES],
    /// Errors that the driver has counted, by [`Counter`](ringfence_abi::net::Counter).
    pub errors: [u64; COUNTER_COUNT],
    /// Bytes of all frames in both directions.
    pub bytes: u64,
}

impl Counts {
    /// Returns the number of frames handed to the driver.
    pub fn sent(&self) -> u64 {
        self.by_queue.iter().map(|(sent, _)| sent).sum()
    }

    /// Returns how much has gone through in both directions.
    fn moved(&self) -> Moved {
        Moved { count: self.sent().wrapping_add(self.received()), bytes: self.bytes }
    }

    /// Returns the number of frames that it delivered.
    pub fn received(&self) -> u64 {
        self.by_queue.iter().map(|(_, received)| received).sum()
    }
}

impl<Q: Words, M: Data> Frames<Q, M> {
    /// Tells the driver which frames the card is to receive besides frames to itself and to all,
    /// and the groups, of which the first [`MAX_GROUPS`] are listed.
    pub fn say_hearing(&self, hearing: Hearing, groups: impl Iterator<Item = [u8; 6]>) {
        let word = |[a, b, c, d, e, f]: [u8; 6]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let words = groups.map(word).chain(core::iter::repeat(0));
        words.take(MAX_GROUPS).enumerate().for_each(|(index, word)| self.memory.store(GROUPS + index, word));
        self.memory.store(HEARING, hearing.bits().into());
    }

    /// Notes that the driver has seen the link go down, come up, or both.
    pub fn link_is(&mut self, came_up: bool, went_down: bool) {
        self.link_came_up |= came_up && (went_down || !self.has_link);
        self.has_link = came_up;
        // The driver is not to blame for frames that it could not send in the meantime.
        self.progress_ns = (self.clock)();
    }

    /// Begins the time anew that the driver has to send a frame.
    pub fn excuse(&mut self) {
        self.progress_ns = (self.clock)();
    }

    /// Returns whether there is a link, as far as the driver has said.
    pub fn has_link(&self) -> bool {
        self.has_link
    }

    /// Returns whether a link came up since the last call.
    pub fn take_link_up(&mut self) -> bool {
        core::mem::take(&mut self.link_came_up)
    }

    /// Takes back the frames that were sent. Returns the time, in nanoseconds since boot, at which
    /// the driver counts as stuck unless it sends another frame; `None` if it has no frame or no
    /// link.
    pub fn deadline_ns(&mut self) -> Result<Option<u64>, Wrong> {
        self.reclaim()?;
        Ok((self.has_link && self.in_hand() > 0).then(|| self.progress_ns + TRANSMIT_MS.get() * 1_000_000))
    }

    /// Takes over the frames of another driver, which was ended: keeps the frames that the driver
    /// had delivered, and sends again the frames that it had not given back. A frame that it had
    /// sent, but not given back, is sent twice; networks may duplicate frames as well.
    pub fn take_over(&mut self, other: &mut Frames<Q, M>) {
        let mut frame = [0; FRAME_BYTES];
        // The other driver was ended: its ring gets no new frames, so that the loop ends.
        while let Ok(Some(received)) = other.receive(&mut frame) {
            let mut kept = Vec::new();
            if let Some(frame) = frame.get(..received.len_bytes)
                && self.inherited.len() < RX_FRAMES
                && kept.try_reserve_exact(frame.len()).is_ok()
                && self.inherited.try_reserve(1).is_ok()
            {
                kept.extend_from_slice(frame);
                self.inherited.push_back((kept, received.is_checked));
            }
        }
        // A lie of the ended driver ends this early. All frames that were not taken back by then
        // are sent again.
        let _ = other.reclaim();
        let unsent = other.entries();
        other.tx_free = u64::MAX;
        for entry in unsent {
            // The other driver may have taken longer frames than this one does.
            let Some(frame) = frame.get_mut(..entry.len_bytes()).filter(|frame| frame.len() <= self.card.max_frame)
            else {
                continue;
            };
            if other.tx.read(entry.frame() * FRAME_BYTES, frame) {
                let sum = entry.sum().filter(|_| self.offloads(Offload::TX_CHECKSUM));
                if entry.sum().is_some() && sum.is_none() {
                    checksum::complete(frame);
                }
                // The new driver's queue has the same length, and is still empty.
                let _ = self.send(frame, sum);
            }
        }
        self.has_link = other.has_link;
        // The counters of the new driver are in its own memory. The counters of the other driver
        // are saved here, because its memory is freed soon.
        self.counts = Counts { errors: other.all_counts().errors, ..other.counts };
        self.moved_before = other.counts.moved();
    }

    /// Returns the counts of the interface, with the errors that its drivers have counted.
    pub fn all_counts(&self) -> Counts {
        let mut counts = self.counts;
        for (index, errors) in counts.errors.iter_mut().enumerate() {
            *errors = errors.saturating_add(self.memory.load(COUNTERS + index));
        }
        counts
    }

    /// Returns how many frames went through this driver, and how many bytes.
    pub fn moved(&self) -> Moved {
        let all = self.counts.moved();
        let Moved { count, bytes } = self.moved_before;
        Moved { count: all.count.wrapping_sub(count), bytes: all.bytes.wrapping_sub(bytes) }
    }

    /// Returns an account in which the driver has all frames to receive into, and none to send.
    /// `memory` holds the rings, `tx` and `rx` the frames.
    pub fn new(memory: Q, [tx, rx]: [M; 2], clock: fn() -> u64, card: Card) -> Frames<Q, M> {
        let mut frames = Frames {
            memory,
            tx,
            rx,
            clock,
            card,
            transmit: Producer::new(),
            transmitted: Consumer::new(),
            empty: Producer::new(),
            received: Consumer::new(),
            tx_free: u64::MAX,
            rx_lent: [None; RX_FRAMES],
            handed_back: 0,
            most_empty: 0,
            unsent: 0,
            look_again_at: 0,
            look_again_in: LOOK_AGAIN_NS,
            progress_ns: 0,
            tx_entries: [(0, Entry(0)); TX_FRAMES],
            inherited: VecDeque::new(),
            moved_before: Moved::default(),
            counts: Counts::default(),
            has_link: true,
            link_came_up: false,
            seen: Seen::default(),
        };
        for frame in 0..RX_FRAMES {
            // The ring is empty, and has room for all frames.
            let _ = frames.lend(frame);
        }
        frames
    }

    /// Returns how many frames to send the driver has.
    pub fn in_hand(&self) -> usize {
        self.tx_free.count_zeros() as usize
    }

    /// Returns the entries of the frames to send that the driver has, in the order in which it got
    /// them.
    fn entries(&self) -> impl Iterator<Item = Entry> + use<Q, M> {
        self.entries_at().map(|(_, entry)| entry)
    }

    /// Returns the same entries as [`Frames::entries`], each with its position in `transmit`.
    fn entries_at(&self) -> impl Iterator<Item = (u64, Entry)> + use<Q, M> {
        let is_lent = |number: usize| self.tx_free >> number & 1 == 0;
        let mut entries = self.tx_entries;
        for (_, (position, _)) in entries.iter_mut().enumerate().filter(|(number, _)| !is_lent(*number)) {
            // The free frames come last.
            *position = u64::MAX;
        }
        entries.sort_unstable_by_key(|(position, _)| *position);
        entries.into_iter().take(self.in_hand())
    }

    /// Tells `notes` of each frame that one side has passed to the other since the last call for
    /// that side, with at most `most` bytes of the frame. Believes nothing: a lie is found when the
    /// entry is taken.
    pub fn passed(&mut self, side: Side, most: usize, notes: &mut impl Notes) {
        /// Copies the beginning of the frame `entry` to `room`.
        fn first<'a>(from: &impl Data, entry: Entry, most: usize, room: &'a mut [u8; FRAME_BYTES]) -> &'a [u8] {
            let room = room.get_mut(..entry.len_bytes().min(most)).unwrap_or_default();
            if from.read(entry.frame() * FRAME_BYTES, room) { room } else { &[] }
        }
        let mut room = [0; FRAME_BYTES];
        match side {
            Side::Kernel => {
                let end = self.transmit.position();
                if self.seen.given < end {
                    for (position, entry) in self.entries_at().filter(|(position, _)| *position >= self.seen.given) {
                        let first = first(&self.tx, entry, most, &mut room);
                        notes.frame(position, entry.frame(), entry.len_bytes() as u32, first);
                    }
                    self.seen.given = end;
                }
            }
            Side::Driver => {
                let ahead = self.transmitted.ahead(&self.memory, self.seen.done);
                // After a lie, the end may lie before the position that the trace has seen.
                self.seen.done = self.seen.done.max(ahead.end);
                for position in ahead {
                    let place = Consumer::<net::Transmitted>::entry(&self.memory, position);
                    let is_lent = place < TX_FRAMES as u64 && self.tx_free >> place & 1 == 0;
                    if let Some((number, _)) = self.tx_entries.get(place as usize).filter(|_| is_lent) {
                        notes.done(*number, place as usize, 0, &[]);
                    }
                }
                let ahead = self.received.ahead(&self.memory, self.seen.received);
                self.seen.received = self.seen.received.max(ahead.end);
                for position in ahead {
                    let entry = Entry(Consumer::<net::Received>::entry(&self.memory, position));
                    if entry.len_bytes() <= FRAME_BYTES {
                        let first = first(&self.rx, entry, most, &mut room);
                        notes.received(position, entry.len_bytes() as u32, first);
                    }
                }
            }
        }
    }

    fn lend(&mut self, frame: usize) -> Result<(), Wrong> {
        let position = self.empty.position();
        if self
            .empty
            .put(&self.memory, Entry::new(frame as u16, FRAME_BYTES as u16).0)
            .map_err(Wrong::position("empty"))?
        {
            self.rx_lent[frame] = Some(position);
            self.handed_back += 1;
        }
        Ok(())
    }

    /// Returns whether the driver has left something in its queues, be it a lie, and the stack must
    /// look.
    #[inline]
    pub fn has_news(&mut self) -> bool {
        self.received.len(&self.memory) != Ok(0) || self.transmitted.len(&self.memory) != Ok(0)
    }

    /// Returns whether the driver must be polled so that it takes the receive frames that were
    /// handed back: it has at most a quarter of the most that it has had. **A device without an
    /// empty frame raises no interrupt, and would never receive again.** The frames may all have
    /// come from one of several queues, which has only its share: then half of a share is enough.
    pub fn is_starved(&mut self) -> Result<bool, Wrong> {
        if self.handed_back == 0 {
            return Ok(false);
        }
        let taken = self.empty.taken(&self.memory).map_err(Wrong::position("empty"))?;
        let filled = self.received.put(&self.memory).map_err(Wrong::position("received"))?;
        let has = taken.saturating_sub(filled);
        self.most_empty = self.most_empty.max(has);
        let queues = self.card.queues;
        Ok(has * 4 <= self.most_empty || queues > 1 && (2 * queues * self.handed_back) as u64 >= self.most_empty)
    }

    /// Notes that the driver is about to be polled at `now_ns` since boot. It sees all frames that
    /// are there for it.
    pub fn before_poll(&mut self, now_ns: u64) {
        (self.unsent, self.handed_back) = (0, 0);
        self.look_again_at = now_ns.saturating_add(self.look_again_in);
        self.look_again_in = (self.look_again_in * 2).min(LOOK_AGAIN_MOST_NS);
    }

    /// Takes back the frames that were sent.
    fn reclaim(&mut self) -> Result<(), Wrong> {
        let mut progress = false;
        while let Some(taken) = self.transmitted.take(&self.memory).map_err(Wrong::position("transmitted"))? {
            // The entry has a frame's number, and nothing else.
            let bit = if taken < TX_FRAMES as u64 { 1 << taken } else { 0 };
            if bit == 0 || self.tx_free & bit != 0 {
                return Err(Wrong::Entry("transmitted", taken));
            }
            self.tx_free |= bit;
            progress = true;
        }
        if progress {
            self.progress_ns = (self.clock)();
            self.look_again_in = LOOK_AGAIN_NS;
        }
        Ok(())
    }

    /// Returns whether a frame can be sent.
    pub fn can_send(&mut self) -> Result<bool, Wrong> {
        Ok(self.free_frame()?.is_some())
    }

    /// Returns a free frame to send, if there is one.
    #[inline]
    fn free_frame(&mut self) -> Result<Option<usize>, Wrong> {
        if self.tx_free == 0 {
            self.reclaim()?;
        }
        Ok((self.tx_free != 0).then(|| self.tx_free.trailing_zeros() as usize))
    }

    /// Returns the abilities of the driver's card.
    #[inline]
    pub fn card(&self) -> Card {
        self.card
    }

    /// Returns whether the card does all of this work.
    pub fn offloads(&self, offload: Offload) -> bool {
        self.card.offload.contains(offload)
    }

    /// Submits a frame of at most [`Card::max_frame`] bytes, which the caller sees to; `false` if
    /// there is no room. The driver looks at it when it is polled. With `sum`, the card completes
    /// the frame's checksum; the caller sees to it that the card can.
    pub fn send(&mut self, frame: &[u8], sum: Option<Sum>) -> Result<bool, Wrong> {
        if frame.len() > FRAME_BYTES {
            return Ok(false);
        }
        let Some(number) = self.free_frame()? else { return Ok(false) };
        self.tx.write(number * FRAME_BYTES, frame);
        let mut entry = Entry::new(number as u16, frame.len() as u16);
        let mut queue = 0;
        if self.card.queues > 1 {
            queue = checksum::flow(frame) % self.card.queues;
            entry = entry.in_queue(queue as u16);
        }
        if let Some(sum) = sum {
            entry = entry.with_sum(sum);
        }
        let position = self.transmit.position();
        let put = self.transmit.put(&self.memory, entry.0).map_err(Wrong::position("transmit"))?;
        if put {
            if self.in_hand() == 0 {
                self.progress_ns = (self.clock)();
            }
            self.tx_free &= !(1 << number);
            self.tx_entries[number] = (position, entry);
            self.unsent = self.unsent.wrapping_add(1);
            count_up(&mut self.counts.by_queue[queue].0);
            self.counts.bytes = self.counts.bytes.wrapping_add(frame.len() as u64);
        }
        Ok(put)
    }

    /// Returns the number of frames submitted since the driver was polled last: it must be polled
    /// for them.
    pub fn unsent(&self) -> usize {
        self.unsent
    }

    /// Returns when to poll the driver for frames that it has sent but not given back, in
    /// nanoseconds since boot: its device may raise no interrupt for them.
    pub fn look_again_ns(&self) -> Option<u64> {
        (self.in_hand() > 0).then_some(self.look_again_at)
    }

    /// Copies the next received frame into `to`.
    pub fn receive(&mut self, to: &mut [u8; FRAME_BYTES]) -> Result<Option<Received>, Wrong> {
        if let Some((frame, is_checked)) = self.inherited.pop_front()
            && let Some(room) = to.get_mut(..frame.len())
        {
            room.copy_from_slice(&frame);
            // It was counted when the other driver delivered it.
            return Ok(Some(Received { len_bytes: frame.len(), is_checked }));
        }
        loop {
            let Some(taken) = self.received.take(&self.memory).map_err(Wrong::position("received"))? else {
                return Ok(None);
            };
            let bad = Wrong::Entry("received", taken);
            let entry = Entry(taken);
            let (number, len_bytes) = (entry.frame(), entry.len_bytes());
            let position = self.rx_lent.get_mut(number).and_then(Option::take).ok_or(bad)?;
            if position >= self.empty.taken(&self.memory).map_err(Wrong::position("empty"))? {
                return Err(bad);
            }
            let may_be_checked = self.offloads(Offload::RX_CHECKSUM);
            let above = taken >> 48;
            if entry.queue() >= self.card.queues || above > u64::from(may_be_checked) {
                return Err(bad);
            }
            let room = to.get_mut(..len_bytes).ok_or(bad)?;
            self.rx.read(number * FRAME_BYTES, room);
            self.lend(number)?;
            if len_bytes >= MIN_FRAME {
                count_up(&mut self.counts.by_queue[entry.queue()].1);
                self.counts.bytes = self.counts.bytes.wrapping_add(len_bytes as u64);
                return Ok(Some(Received { len_bytes, is_checked: entry.is_checked() }));
            }
        }
    }
}

/// Counts a frame. No machine carries 2^64 frames.
#[inline]
fn count_up(frames: &mut u64) {
    *frames = frames.wrapping_add(1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ringfence_abi::net::{EMPTY, QUEUE_BYTES, RECEIVED, TRANSMITTED};
    use ringfence_abi::queue::{ENTRIES, PUT, Place, TAKEN};
    use std::cell::RefCell;
    use std::rc::Rc;

    #[derive(Clone)]
    struct Memory(Rc<RefCell<Vec<u8>>>);

    impl Memory {
        fn new(len_bytes: usize) -> Memory {
            Memory(Rc::new(RefCell::new(vec![0; len_bytes])))
        }
    }

    impl Words for Memory {
        fn load(&self, index: usize) -> u64 {
            let bytes = self.0.borrow();
            bytes.get(index * 8..index * 8 + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap()))
        }
        fn store(&self, index: usize, value: u64) {
            if let Some(word) = self.0.borrow_mut().get_mut(index * 8..index * 8 + 8) {
                word.copy_from_slice(&value.to_le_bytes());
            }
        }
    }

    impl Data for Memory {
        fn read(&self, offset: usize, to: &mut [u8]) -> bool {
            self.0.borrow().get(offset..offset + to.len()).map(|from| to.copy_from_slice(from)).is_some()
        }
        fn write(&self, offset: usize, from: &[u8]) -> bool {
            self.0.borrow_mut().get_mut(offset..offset + from.len()).map(|to| to.copy_from_slice(from)).is_some()
        }
    }

    /// The driver's end of the queues, which a test can make lie.
    struct Driver {
        rings: Memory,
        rx: Memory,
        transmitted: u64,
        received: u64,
    }

    impl Driver {
        fn put(&self, place: Place, at: u64, entry: u64) {
            self.rings.store(place.base + ENTRIES + at as usize % place.capacity, entry);
            self.rings.store(place.base + PUT, at + 1);
        }

        fn give_back(&mut self, number: u32) {
            self.put(TRANSMITTED, self.transmitted, u64::from(number));
            self.transmitted += 1;
        }

        fn takes_empty(&self, count: u64) {
            self.rings.store(EMPTY.base + TAKEN, count);
        }

        fn deliver(&mut self, number: u32, bytes: &[u8]) {
            Data::write(&self.rx, number as usize * FRAME_BYTES, bytes);
            self.put(RECEIVED, self.received, Entry::new(number as u16, bytes.len() as u16).0);
            self.received += 1;
        }
    }

    fn plain(len_bytes: usize) -> Received {
        Received { len_bytes, is_checked: false }
    }

    fn pair() -> (Frames<Memory, Memory>, Driver) {
        with(NetInfo::new([2; 6]))
    }

    fn with(info: NetInfo) -> (Frames<Memory, Memory>, Driver) {
        let card = Card::new(&info).unwrap();
        let (rings, tx, rx) =
            (Memory::new(QUEUE_BYTES), Memory::new(TX_FRAMES * FRAME_BYTES), Memory::new(RX_FRAMES * FRAME_BYTES));
        let driver = Driver { rings: rings.clone(), rx: rx.clone(), transmitted: 0, received: 0 };
        (Frames::new(rings, [tx, rx], || 5, card), driver)
    }

    #[test]
    fn a_frame_is_sent_and_comes_back_once() {
        let (mut frames, mut driver) = pair();
        assert_eq!(frames.send(&[1; FRAME_BYTES + 1], None), Ok(false));
        for number in 0..TX_FRAMES {
            assert_eq!(frames.send(&[number as u8; 60], None), Ok(true), "{number}");
        }
        assert_eq!((frames.can_send(), frames.in_hand(), frames.unsent()), (Ok(false), TX_FRAMES, TX_FRAMES));
        driver.give_back(0);
        assert_eq!((frames.can_send(), frames.in_hand()), (Ok(true), TX_FRAMES - 1));
        driver.give_back(0);
        assert_eq!(frames.deadline_ns(), Err(Wrong::Entry("transmitted", 0)));
    }

    #[test]
    fn a_trace_sees_each_frame_once_on_each_side() {
        fn passed(frames: &mut Frames<Memory, Memory>, side: Side) -> Vec<String> {
            let mut seen = crate::passed::Words(Vec::new());
            frames.passed(side, 2, &mut seen);
            seen.0
        }
        let given = |number: u8, place: usize, len_bytes: u32, byte: u8| {
            format!("frame {number} at {place}, {len_bytes}: {:?}", [byte; 2])
        };
        let (mut frames, mut driver) = pair();
        for number in 0..2 {
            frames.send(&[number; 60], None).unwrap();
        }
        assert_eq!(passed(&mut frames, Side::Kernel), [given(0, 0, 60, 0), given(1, 1, 60, 1)]);
        assert!(passed(&mut frames, Side::Kernel).is_empty());
        driver.takes_empty(2);
        driver.give_back(1);
        driver.deliver(0, &[7; 61]);
        assert_eq!(passed(&mut frames, Side::Driver), ["done 1 at 1: 0 []", "received 0, 61: [7, 7]"]);
        assert!(passed(&mut frames, Side::Driver).is_empty());
        // The entries are still in the queues for the account.
        assert_eq!(frames.receive(&mut [0; FRAME_BYTES]), Ok(Some(plain(61))));
        assert_eq!(frames.moved(), Moved { count: 3, bytes: 60 + 60 + 61 });
        assert_eq!((frames.deadline_ns().is_ok(), frames.in_hand()), (true, 1));
        frames.send(&[9; 62], None).unwrap();
        assert_eq!(passed(&mut frames, Side::Kernel), [given(2, 1, 62, 9)]);
        // A lie is not seen here.
        driver.give_back(TX_FRAMES as u32 + 1);
        driver.put(RECEIVED, 1, Entry::new(1, FRAME_BYTES as u16 + 1).0);
        assert!(passed(&mut frames, Side::Driver).is_empty());
        assert!(frames.deadline_ns().is_err() && frames.receive(&mut [0; FRAME_BYTES]).is_err());
    }

    #[test]
    fn what_the_driver_never_had_is_wrong() {
        let (mut frames, mut driver) = pair();
        driver.give_back(TX_FRAMES as u32);
        assert_eq!(frames.deadline_ns(), Err(Wrong::Entry("transmitted", TX_FRAMES as u64)));
        let mut to = [0; FRAME_BYTES];
        let (mut frames, mut driver) = pair();
        // The frame is lent, but the driver has not taken it yet.
        driver.deliver(0, &[7; 60]);
        assert_eq!(frames.receive(&mut to), Err(Wrong::Entry("received", Entry::new(0, 60).0)));
        let (mut frames, mut driver) = pair();
        driver.takes_empty(2);
        driver.deliver(RX_FRAMES as u32, &[]);
        assert!(matches!(frames.receive(&mut to), Err(Wrong::Entry("received", _))));
        let (mut frames, driver) = pair();
        driver.takes_empty(2);
        driver.put(RECEIVED, 0, Entry::new(0, FRAME_BYTES as u16 + 1).0);
        assert!(matches!(frames.receive(&mut to), Err(Wrong::Entry("received", _))));
        let (mut frames, driver) = pair();
        driver.takes_empty(RX_FRAMES as u64 + 1);
        frames.handed_back = 1;
        assert!(matches!(frames.is_starved(), Err(Wrong::Position("empty", _))));
    }

    #[test]
    fn what_was_received_is_copied_and_the_frame_lent_again() {
        let (mut frames, mut driver) = pair();
        let mut to = [0; FRAME_BYTES];
        driver.takes_empty(3);
        driver.deliver(1, &[9; 60]);
        // A frame shorter than a header is dropped.
        driver.deliver(0, &[1; 13]);
        assert_eq!(frames.receive(&mut to), Ok(Some(plain(60))));
        assert_eq!(to[..60], [9; 60]);
        assert_eq!((frames.receive(&mut to), frames.counts.received()), (Ok(None), 1));
        // Both frames are at the end of the queue now.
        driver.deliver(1, &[9; 60]);
        assert!(matches!(frames.receive(&mut to), Err(Wrong::Entry("received", _))), "it is not taken again yet");
    }

    #[test]
    fn a_driver_without_empty_frames_is_starved() {
        let (mut frames, mut driver) = pair();
        let mut to = [0; FRAME_BYTES];
        frames.before_poll(0);
        assert_eq!(frames.is_starved(), Ok(false));
        driver.takes_empty(64);
        for number in 0..49 {
            driver.deliver(number, &[2; 60]);
            assert_eq!(frames.receive(&mut to), Ok(Some(plain(60))));
            assert_eq!(frames.is_starved(), Ok(number == 48), "{number}");
        }
    }

    #[test]
    fn a_successor_sends_what_was_not_and_receives_what_was() {
        let (mut old, mut driver) = pair();
        for byte in [1, 2, 3] {
            old.send(&[byte; 60], None).unwrap();
        }
        driver.give_back(1);
        driver.takes_empty(1);
        driver.deliver(0, &[8; 60]);
        let (mut fresh, _) = pair();
        fresh.take_over(&mut old);
        let sent: Vec<u8> = fresh
            .entries()
            .map(|entry| {
                let mut byte = [0];
                Data::read(&fresh.tx, entry.frame() * FRAME_BYTES, &mut byte);
                byte[0]
            })
            .collect();
        assert_eq!(sent, [1, 3]);
        let mut to = [0; FRAME_BYTES];
        assert_eq!((fresh.receive(&mut to), to[0], fresh.receive(&mut to)), (Ok(Some(plain(60))), 8, Ok(None)));
    }

    /// A frame that was sent has a low number again, behind older frames.
    #[test]
    fn a_successor_sends_frames_in_their_order() {
        let (mut old, mut driver) = pair();
        [1, 2, 3].into_iter().for_each(|byte| assert_eq!(old.send(&[byte; 60], None), Ok(true)));
        driver.give_back(0);
        old.reclaim().unwrap();
        assert_eq!(old.send(&[4; 60], None), Ok(true));
        assert_eq!(old.entries().map(|entry| entry.frame()).collect::<Vec<_>>(), [1, 2, 0]);
        let (mut fresh, _) = pair();
        fresh.take_over(&mut old);
        assert_eq!((fresh.in_hand(), old.in_hand()), (3, 0));
    }

    #[test]
    fn a_successor_is_given_no_frame_that_is_too_long_for_it() {
        let ((mut old, _), (mut fresh, _)) = (pair(), pair());
        old.send(&[1; MAX_FRAME], None).unwrap();
        old.send(&[2; MAX_FRAME + 1], None).unwrap();
        fresh.take_over(&mut old);
        assert_eq!(fresh.entries().map(|entry| entry.len_bytes()).collect::<Vec<_>>(), [MAX_FRAME]);
    }

    /// The counters may have any values, because they are only shown.
    #[test]
    fn what_drivers_count_adds_up() {
        let ((mut old, _), (mut fresh, _)) = (pair(), pair());
        old.memory.store(COUNTERS + 1, 7);
        old.memory.store(COUNTERS + 3, u64::MAX);
        assert_eq!(old.all_counts().errors, [0, 7, 0, u64::MAX]);
        fresh.take_over(&mut old);
        fresh.memory.store(COUNTERS + 1, 2);
        fresh.memory.store(COUNTERS + 3, 1);
        assert_eq!(fresh.all_counts().errors, [0, 9, 0, u64::MAX]);
    }

    #[test]
    fn nobody_is_to_blame_without_a_link() {
        let (mut frames, _) = pair();
        assert_eq!(frames.deadline_ns(), Ok(None));
        frames.send(&[1; 60], None).unwrap();
        assert_eq!(frames.deadline_ns(), Ok(Some(5 + TRANSMIT_MS.get() * 1_000_000)));
        frames.link_is(false, true);
        assert_eq!((frames.has_link(), frames.deadline_ns(), frames.take_link_up()), (false, Ok(None), false));
        frames.link_is(true, false);
        assert_eq!((frames.has_link(), frames.take_link_up(), frames.take_link_up()), (true, true, false));
        // A driver that reports both has seen the link go down and come up.
        frames.link_is(true, true);
        assert!(frames.take_link_up());
    }

    #[test]
    fn one_that_gives_nothing_back_is_looked_after_less_and_less() {
        let (mut frames, mut driver) = pair();
        assert_eq!(frames.look_again_ns(), None);
        frames.send(&[1; 60], None).unwrap();
        let mut waits = Vec::new();
        for _ in 0..8 {
            frames.before_poll(1000);
            waits.push((frames.look_again_ns().unwrap() - 1000) / 1_000_000);
        }
        assert_eq!(waits, [20, 40, 80, 160, 320, 640, 1000, 1000]);
        frames.send(&[1; 60], None).unwrap();
        driver.give_back(0);
        frames.deadline_ns().unwrap();
        frames.before_poll(1000);
        assert_eq!(frames.look_again_ns(), Some(1000 + LOOK_AGAIN_NS));
    }

    #[test]
    fn a_card_that_makes_no_sense_is_none() {
        let info = NetInfo::new([2; 6]);
        let card = Card::new(&info);
        assert_eq!(card, Some(Card { max_frame: MAX_FRAME, offload: Offload::empty(), queues: 1 }));
        let most = info.longest(FRAME_BYTES).offloads(Offload::all()).queues(MAX_QUEUES);
        let card = Card::new(&most);
        assert_eq!(card, Some(Card { max_frame: FRAME_BYTES, offload: Offload::all(), queues: MAX_QUEUES }));
        assert_eq!(Card::new(&info.longest(MAX_FRAME - 1)), None);
        assert_eq!(Card::new(&info.longest(FRAME_BYTES + 1)), None);
        assert_eq!(Card::new(&info.queues(MAX_QUEUES + 1)), None);
        assert_eq!(Card::new(&info.queues(1 << 16)), None);
        assert_eq!(Card::new(&NetInfo { offload: 1 << 2, ..info }), None);
    }

    /// Returns a TCP segment from `port` in a frame.
    fn segment(port: u8) -> Vec<u8> {
        let mut frame = vec![2; 54];
        frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6]);
        frame[34..54].copy_from_slice(&[0, port, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 0x50, 0x10, 0, 9, 0, 0, 0, 0]);
        frame
    }

    #[test]
    fn a_connection_has_one_queue_of_the_card() {
        let (mut frames, _) = with(NetInfo::new([2; 6]).queues(2));
        let queue = |frames: &mut Frames<Memory, Memory>, port| {
            assert_eq!(frames.send(&segment(port), None), Ok(true));
            frames.entries().last().unwrap().queue()
        };
        let queues: Vec<usize> = (0..16).map(|port| queue(&mut frames, port)).collect();
        let again: Vec<usize> = (0..16).map(|port| queue(&mut frames, port)).collect();
        assert_eq!(queues, again);
        let second = queues.iter().sum::<usize>() as u64 * 2;
        assert_eq!(frames.counts.by_queue[..2], [(32 - second, 0), (second, 0)]);
        assert!((2..32).contains(&second), "{second}");
    }

    #[test]
    fn a_queue_or_a_check_that_the_card_does_not_have_is_wrong() {
        let deliver = |info, entry: Entry| {
            let (mut frames, driver) = with(info);
            driver.takes_empty(1);
            driver.put(RECEIVED, 0, entry.0);
            (frames.receive(&mut [0; FRAME_BYTES]), frames.counts.by_queue[1].1)
        };
        let (info, entry) = (NetInfo::new([2; 6]), Entry::new(0, 60));
        let wrong = |entry: Entry| (Err(Wrong::Entry("received", entry.0)), 0);
        assert_eq!(deliver(info, entry.in_queue(1)), wrong(entry.in_queue(1)));
        assert_eq!(deliver(info.queues(2), entry.in_queue(1)), (Ok(Some(plain(60))), 1));
        assert_eq!(deliver(info.queues(2), entry.in_queue(2)), wrong(entry.in_queue(2)));
        assert_eq!(deliver(info, entry.checked(true)), wrong(entry.checked(true)));
        let checks = info.offloads(Offload::RX_CHECKSUM);
        assert_eq!(deliver(checks, entry.checked(true)), (Ok(Some(Received { len_bytes: 60, is_checked: true })), 0));
        let sum = entry.with_sum(Sum { start: 2, offset: 0 });
        assert_eq!(deliver(checks, sum), wrong(sum));
        // A frame that was sent comes back with its number, and nothing else.
        let (mut frames, driver) = pair();
        assert_eq!(frames.send(&[1; 60], None), Ok(true));
        driver.put(TRANSMITTED, 0, Entry::new(0, 60).0);
        assert_eq!(frames.deadline_ns(), Err(Wrong::Entry("transmitted", Entry::new(0, 60).0)));
    }

    /// If one queue has used up its share of the empty frames, the sum does not show it.
    #[test]
    fn one_of_several_queues_runs_dry_alone() {
        for (queues, is_starved) in [(1, false), (4, true)] {
            let (mut frames, mut driver) = with(NetInfo::new([2; 6]).queues(queues));
            frames.before_poll(0);
            driver.takes_empty(RX_FRAMES as u64);
            for number in 0..RX_FRAMES as u32 / 4 {
                driver.deliver(number, &[2; 60]);
                assert_eq!(frames.receive(&mut [0; FRAME_BYTES]), Ok(Some(plain(60))));
            }
            assert_eq!(frames.is_starved(), Ok(is_starved), "{queues}");
        }
    }

    #[test]
    fn a_successor_delivers_what_was_received_and_counts_it_once() {
        let info = NetInfo::new([2; 6]).queues(2).offloads(Offload::RX_CHECKSUM);
        let ((mut old, driver), (mut fresh, _)) = (with(info), with(info));
        driver.takes_empty(1);
        driver.put(RECEIVED, 0, Entry::new(0, 60).in_queue(1).checked(true).0);
        fresh.take_over(&mut old);
        let received = Ok(Some(Received { len_bytes: 60, is_checked: true }));
        assert_eq!(fresh.receive(&mut [0; FRAME_BYTES]), received);
        assert_eq!(fresh.counts.by_queue[..2], [(0, 0), (0, 1)]);
    }

    #[test]
    fn a_successor_completes_the_sums_that_its_card_does_not() {
        let sent = |frames: &Frames<Memory, Memory>| {
            let entry = frames.entries().next().unwrap();
            let mut frame = vec![0; entry.len_bytes()];
            assert!(frames.tx.read(entry.frame() * FRAME_BYTES, &mut frame));
            (entry.sum(), checksum::is_right(&frame))
        };
        let offers = NetInfo::new([2; 6]).offloads(Offload::TX_CHECKSUM);
        for (info, completed) in [(offers, false), (NetInfo::new([2; 6]), true)] {
            let ((mut old, _), (mut fresh, _)) = (with(offers), with(info));
            let mut frame = segment(7);
            let sum = checksum::prepare(&mut frame);
            old.send(&frame, sum).unwrap();
            fresh.take_over(&mut old);
            assert_eq!(sent(&fresh), (sum.filter(|_| !completed), completed));
        }
    }
}
