//! Rings of descriptors that the driver and a card share, with the frame of each descriptor.
//!
//! The driver fills the descriptors in order, and the card finishes them in the same order. A ring
//! needs no lock and no count: [`FrameRing::send`] and [`FrameRing::refill`] stop when it is full,
//! and the rest stays in the driver's queue until a later poll. A card without a register for the
//! length of its ring wants the last descriptor marked ([`Descriptor::is_last`]): without the mark
//! it goes on behind the ring.
//!
//! ```no_run
//! # #![forbid(unsafe_code)]
//! use ringfence_sdk::net::{Queues, TX_FRAMES, TxFrame};
//! use ringfence_sdk::ring::FrameRing;
//!
//! /// The first word of a descriptor of eight bytes: the card has it; a frame's length.
//! const OWN: u32 = 1 << 31;
//!
//! fn transmit(ring: &mut FrameRing<TxFrame, { 2 * TX_FRAMES }, 8>, queues: &mut Queues) {
//!     let has_new = ring.send(queues, |descriptor, address, frame| {
//!         descriptor.write(4, address as u32);
//!         descriptor.hand_over(0, OWN | frame.len_bytes() as u32);
//!     });
//!     if has_new {
//!         // Tell the card here.
//!     }
//!     ring.reclaim(queues, |descriptor| descriptor.is_finished(0, OWN));
//!     if let Some(_is_on) = ring.interrupt_changes() {
//!         // Turn the card's interrupt for sent frames on or off here.
//!     }
//! }
//! ```

use crate::Result;
use crate::dma::{self, Dma, Place};
use crate::net::{Counter, Queues, RX_FRAMES, Received, RxFrame, TX_FRAMES, TxFrame};
use core::marker::PhantomData;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A ring of `N` descriptors of `BYTES` bytes each. At most `N - 1` are under way at once, so that
/// a full ring differs from an empty one.
pub struct FrameRing<F, const N: usize, const BYTES: usize> {
    memory: Dma,
    /// The descriptor that the driver fills next.
    next: usize,
    /// The descriptor that the card finishes next.
    done: usize,
    /// Descriptors that can be filled.
    room: usize,
    interrupt_is_on: bool,
    /// The frame of each descriptor.
    frames: [Option<F>; N],
}

/// A descriptor in a ring. The card may write it at any moment.
#[derive(Clone, Copy)]
pub struct Descriptor<'a, const BYTES: usize> {
    /// Its first byte. All of the descriptor lies in the ring's memory.
    place: Place,
    is_last: bool,
    memory: PhantomData<&'a Dma>,
}

impl<const BYTES: usize> Descriptor<'_, BYTES> {
    /// Returns whether the descriptor is the last one of the ring, which some cards want marked.
    #[inline]
    pub fn is_last(&self) -> bool {
        self.is_last
    }

    /// Reads a value `offset` bytes from the start of the descriptor. Panics if the value is not
    /// inside the descriptor.
    #[inline]
    #[track_caller]
    pub fn read<T: FromBytes>(&self, offset: usize) -> T {
        self.check::<T>(offset);
        // SAFETY: the value is inside the descriptor, which is inside the ring.
        unsafe { self.place.read(offset, Self::aligns::<T>(offset)) }
    }

    /// Writes a value `offset` bytes from the start of the descriptor. Panics if the value does not
    /// fit into the descriptor.
    #[inline]
    #[track_caller]
    pub fn write<T: IntoBytes + Immutable>(&self, offset: usize, value: T) {
        self.check::<T>(offset);
        // SAFETY: the value is inside the descriptor, which is inside the ring.
        unsafe { self.place.write(offset, value, Self::aligns::<T>(offset)) };
    }

    /// Returns whether a value at `offset` of any descriptor is aligned. The ring itself begins at
    /// a page. This is known when the driver is compiled, so no access has to find out.
    #[inline(always)]
    const fn aligns<T>(offset: usize) -> bool {
        BYTES.is_multiple_of(align_of::<T>()) && offset.is_multiple_of(align_of::<T>())
    }

    /// Panics if a value at `offset` does not lie in the descriptor. With an offset that is known
    /// when the driver is compiled, nothing is left of this check.
    #[inline(always)]
    #[track_caller]
    fn check<T>(&self, offset: usize) {
        let inside = offset <= BYTES && size_of::<T>() <= BYTES - offset;
        assert!(inside, "{} bytes at {offset:#x} outside a descriptor of {BYTES} bytes", size_of::<T>());
    }

    /// Returns the word at `offset`, if the card has cleared the bits `own` in it: then the card
    /// has finished the descriptor, and all data that it has written can be read.
    #[inline]
    pub fn finished(&self, offset: usize, own: u32) -> Option<u32> {
        let word: u32 = self.read(offset);
        dma::read_barrier();
        (word & own == 0).then_some(word)
    }

    /// Returns whether the card has [finished](Descriptor::finished) the descriptor.
    #[inline]
    pub fn is_finished(&self, offset: usize, own: u32) -> bool {
        self.finished(offset, own).is_some()
    }

    /// Writes the word that makes the descriptor the card's, after all writes before.
    #[inline]
    pub fn hand_over<T: IntoBytes + Immutable>(&self, offset: usize, value: T) {
        dma::write_barrier();
        self.write(offset, value);
    }
}

impl<F, const N: usize, const BYTES: usize> FrameRing<F, N, BYTES> {
    /// Allocates an empty ring of zeroed descriptors.
    pub fn new() -> Result<Self> {
        Ok(Self::in_memory(Dma::new(N * BYTES)?))
    }

    /// Allocates the same for a card whose addresses have 32 bits.
    ///
    /// # Errors
    /// Those of [`Dma::within_4_gib`].
    pub fn within_4_gib() -> Result<Self> {
        Ok(Self::in_memory(Dma::within_4_gib(N * BYTES)?))
    }

    fn in_memory(memory: Dma) -> Self {
        FrameRing { memory, next: 0, done: 0, room: N - 1, interrupt_is_on: false, frames: [const { None }; N] }
    }

    /// Returns the card's address of the first descriptor.
    pub fn address(&self) -> u64 {
        self.memory.address(0)
    }

    /// Returns the length of all descriptors, in bytes.
    pub const fn len_bytes(&self) -> usize {
        N * BYTES
    }

    /// Returns the index of the descriptor that is filled next, for a card that is told the ring's
    /// tail.
    #[inline]
    pub fn tail(&self) -> usize {
        self.next
    }

    /// Returns whether the card has finished all descriptors.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.done == self.next
    }

    /// Returns the number of descriptors that can be filled.
    #[inline]
    pub fn room(&self) -> usize {
        self.room
    }

    /// Returns descriptor `index`, which is below `N`.
    #[inline]
    fn descriptor(&self, index: usize) -> Descriptor<'_, BYTES> {
        at::<N, BYTES>(&self.memory, index)
    }

    /// Fills the next descriptor, which belongs to `frame`; a descriptor with a command for the
    /// card has none. If the ring is full, the frame comes back.
    #[inline]
    pub fn push(
        &mut self,
        frame: Option<F>,
        fill: impl FnOnce(Descriptor<BYTES>),
    ) -> core::result::Result<(), Option<F>> {
        if self.room == 0 {
            return Err(frame);
        }
        self.put(frame, fill);
        Ok(())
    }

    #[inline]
    fn put(&mut self, frame: Option<F>, fill: impl FnOnce(Descriptor<BYTES>)) {
        let index = self.next % N;
        fill(self.descriptor(index));
        self.hold(index, frame);
    }

    /// Notes that descriptor `index`, the next one, is filled, and has this frame.
    #[inline]
    fn hold(&mut self, index: usize, frame: Option<F>) {
        self.frames[index] = frame;
        self.next = after::<N>(index);
        self.room = self.room.wrapping_sub(1);
    }

    /// Fills the next descriptor with a command for the card, which belongs to no frame. Returns
    /// whether there was room for it.
    #[inline]
    pub fn push_command(&mut self, fill: impl FnOnce(Descriptor<BYTES>)) -> bool {
        self.push(None, fill).is_ok()
    }

    /// Notes that the descriptors before `next` are filled, and returns whether any is new.
    #[inline]
    fn fill_up_to(&mut self, next: usize) -> bool {
        let count = between::<N>(self.next, next);
        (self.next, self.room) = (next, self.room.wrapping_sub(count));
        dma::write_barrier();
        count > 0
    }

    /// Notes that the card has finished the descriptors before `done`.
    #[inline]
    fn empty_up_to(&mut self, done: usize) {
        let count = between::<N>(self.done, done);
        (self.done, self.room) = (done, self.room.wrapping_add(count));
    }

    /// Takes back the descriptor that the card finishes next, if `is_done` says that it has. It
    /// may have no frame.
    #[inline]
    pub fn pop(&mut self, is_done: impl FnOnce(Descriptor<BYTES>) -> bool) -> Option<Option<F>> {
        self.finished(|descriptor| is_done(descriptor).then_some(())).map(|(frame, ())| frame)
    }

    #[inline]
    fn finished<T>(&mut self, result: impl FnOnce(Descriptor<BYTES>) -> Option<T>) -> Option<(Option<F>, T)> {
        if self.done == self.next {
            return None;
        }
        let index = self.done % N;
        let result = result(self.descriptor(index))?;
        dma::read_barrier();
        self.done = after::<N>(index);
        self.room = self.room.wrapping_add(1);
        Some((self.frames[index].take(), result))
    }
}

/// Returns the descriptor after `index`; the first one follows the last one. The remainder is one
/// instruction if `N` is a power of two, and cheaper than a check with a panic.
#[inline]
fn after<const N: usize>(index: usize) -> usize {
    index.wrapping_add(1) % N
}

/// Returns the number of descriptors from `from` up to `to`, at most `N - 1`.
#[inline]
fn between<const N: usize>(from: usize, to: usize) -> usize {
    to.wrapping_add(N).wrapping_sub(from) % N
}

/// The place behind the filled descriptors.
pub struct Tail<'a, const N: usize, const BYTES: usize> {
    memory: &'a Dma,
    next: &'a mut usize,
}

impl<'a, const N: usize, const BYTES: usize> Tail<'a, N, BYTES> {
    /// Returns the descriptor of the frame.
    #[inline]
    pub fn descriptor(self) -> Descriptor<'a, BYTES> {
        at::<N, BYTES>(self.memory, *self.next)
    }

    /// Has `fill` fill a descriptor with a command for the card, and returns the frame's, which is
    /// the one behind it.
    #[inline]
    pub fn command(self, fill: impl FnOnce(Descriptor<BYTES>)) -> Descriptor<'a, BYTES> {
        fill(at::<N, BYTES>(self.memory, *self.next));
        *self.next = after::<N>(*self.next);
        self.descriptor()
    }
}

/// Returns descriptor `index % N` of the ring in `memory`, which has `N`.
#[inline]
fn at<const N: usize, const BYTES: usize>(memory: &Dma, index: usize) -> Descriptor<'_, BYTES> {
    let index = index % N;
    // SAFETY: the ring's memory has `N` descriptors of `BYTES` bytes.
    Descriptor { place: unsafe { memory.at(index * BYTES) }, is_last: index == N - 1, memory: PhantomData }
}

impl<const N: usize, const BYTES: usize> FrameRing<TxFrame, N, BYTES> {
    /// Takes the frames to send, as long as there is room. `fill` fills the descriptor of a frame
    /// with this address for the card. Returns whether there was a frame: then tell the card.
    ///
    /// A driver whose card has several queues, or does not pad ([`Queues::pad`]), takes the frames
    /// itself and uses [`FrameRing::push`].
    #[inline]
    pub fn send(&mut self, queues: &mut Queues, mut fill: impl FnMut(Descriptor<BYTES>, u64, &TxFrame)) -> bool {
        self.send_each(queues, 1, |tail, address, frame| fill(tail.descriptor(), address, frame))
    }

    /// The same for a card that is told in a descriptor of its own how to treat the frames behind
    /// it. `fill` gets a [`Tail`] in place of a descriptor. The ring must have more than two
    /// descriptors for each of the [`TX_FRAMES`]: as many frames are taken as there is room for
    /// two descriptors each.
    #[inline]
    pub fn send_with_commands(&mut self, queues: &mut Queues, fill: impl FnMut(Tail<N, BYTES>, u64, &TxFrame)) -> bool {
        const { assert!(N > 2 * TX_FRAMES, "the ring has no room for all frames and their commands") };
        self.send_each(queues, 2, fill)
    }

    /// Takes the frames to send, as long as there is room for `most` descriptors for each.
    #[inline(always)]
    fn send_each(
        &mut self,
        queues: &mut Queues,
        most: usize,
        mut fill: impl FnMut(Tail<N, BYTES>, u64, &TxFrame),
    ) -> bool {
        if !queues.has_transmit() {
            return false;
        }
        let mut frames = queues.sending();
        frames.look(self.room / most);
        let mut next = self.next;
        while let Some(frame) = frames.take_known() {
            let first = next;
            // The frame is noted first, so that `fill` needs fewer registers.
            let copy = frame.copy();
            self.frames[first % N] = Some(frame);
            fill(Tail { memory: &self.memory, next: &mut next }, frames.address(&copy), &copy);
            if next != first {
                self.frames.swap(first % N, next % N);
            }
            next = after::<N>(next);
        }
        self.fill_up_to(next)
    }

    /// Gives back the frames whose descriptors the card has finished, up to the first one of which
    /// `is_sent` says that it has not. A driver adds up in a variable the errors that `is_sent`
    /// finds, and counts them afterwards ([`Queues::count`]). Descriptors of commands are asked
    /// about as well.
    #[inline]
    pub fn reclaim(&mut self, queues: &mut Queues, mut is_sent: impl FnMut(Descriptor<BYTES>) -> bool) {
        // The position is in a register: each write to shared memory would have the compiler read
        // it again.
        let (mut done, next) = (self.done, self.next);
        if done == next || !is_sent(self.descriptor(done)) {
            return;
        }
        let mut sent = queues.sent();
        loop {
            dma::read_barrier();
            if let Some(frame) = self.frames[done % N].take() {
                sent.give(frame);
            }
            done = after::<N>(done);
            if done == next || !is_sent(self.descriptor(done)) {
                break;
            }
        }
        self.empty_up_to(done);
    }

    /// Returns whether the card is to interrupt after it has sent a frame, if that has changed
    /// since the last call: only while sent frames are left to be reclaimed. At first, it is not.
    #[inline]
    pub fn interrupt_changes(&mut self) -> Option<bool> {
        let is_on = !self.is_empty();
        if is_on == self.interrupt_is_on {
            return None;
        }
        self.interrupt_is_on = is_on;
        Some(is_on)
    }
}

impl<const N: usize, const BYTES: usize> FrameRing<RxFrame, N, BYTES> {
    /// How many empty frames are given to a card that has some, at least: an eighth of those that
    /// it can have. To tell the card is slow, and it has enough of them meanwhile.
    const REFILL: usize = (if N < RX_FRAMES { N } else { RX_FRAMES }).div_ceil(8);

    /// Gives the card the empty frames, as long as there is room, when there are several. `fill`
    /// fills the descriptor of a frame with this address for the card. Returns whether there was a
    /// frame: then tell the card.
    #[inline]
    pub fn refill(&mut self, queues: &mut Queues, fill: impl FnMut(Descriptor<BYTES>, u64)) -> bool {
        // Most polls find few empty frames.
        (queues.empty_len() >= Self::REFILL as u64 || self.is_empty()) && self.refill_some(queues, fill)
    }

    #[inline(never)]
    fn refill_some(&mut self, queues: &mut Queues, mut fill: impl FnMut(Descriptor<BYTES>, u64)) -> bool {
        if self.room < Self::REFILL {
            return false;
        }
        let mut frames = queues.filling();
        frames.look(self.room);
        let mut next = self.next;
        while let Some(frame) = frames.take_known() {
            fill(self.descriptor(next), frames.address(&frame));
            self.frames[next % N] = Some(frame);
            next = after::<N>(next);
        }
        self.fill_up_to(next)
    }

    /// Delivers the received frames. `received` returns the length in bytes of a descriptor's
    /// frame, or a [`Received`]; and `None` if the card has not finished the descriptor. A frame
    /// with the length 0 is damaged: its memory goes back, and the error is counted. If `received`
    /// reads more than the word that says so, it calls [`dma::read_barrier`] in between.
    #[inline]
    pub fn receive<R: Into<Received>>(
        &mut self,
        queues: &mut Queues,
        mut received: impl FnMut(Descriptor<BYTES>) -> Option<R>,
    ) {
        let next = self.next;
        let mut look = |ring: &Self, done| if done != next { received(ring.descriptor(done)) } else { None };
        let Some(mut received) = look(self, self.done) else { return };
        let (mut done, mut damaged) = (self.done, 0);
        let mut frames = queues.delivering();
        loop {
            dma::read_barrier();
            if let Some(frame) = self.frames[done % N].take() {
                let received = received.into();
                damaged += u64::from(received.len_bytes == 0);
                frames.give(frame, received);
            }
            done = after::<N>(done);
            match look(self, done) {
                Some(more) => received = more,
                None => break,
            }
        }
        drop(frames);
        self.empty_up_to(done);
        if damaged > 0 {
            queues.count(Counter::RxErrors, damaged);
        }
    }
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use super::*;
    use crate::class::Class;
    use crate::fake::Kernel;
    use crate::net::{NetInfo, Nic, Sum};
    use std::vec::Vec;

    /// The word of a descriptor that says whose it is: the driver's, once the model has cleared it.
    const OWN: u32 = 1;

    fn offered(kernel: &mut Kernel) -> Queues {
        kernel.run(|| Nic::offer(NetInfo::new([0, 1, 2, 3, 4, 5]))).expect("queues")
    }

    /// Of three received frames the second is damaged: its memory goes back, and it is counted.
    #[test]
    fn a_damaged_frame_is_counted_and_goes_back() {
        let mut kernel = Kernel::new(());
        let mut queues = offered(&mut kernel);
        kernel.net.as_mut().expect("an interface").lend(0, 3);
        kernel.run(|| {
            let mut ring: FrameRing<RxFrame, 4, 8> = FrameRing::new().expect("memory");
            assert!(ring.refill(&mut queues, |descriptor, _| descriptor.hand_over(0, OWN)));
            assert_eq!(ring.room(), 0);
            let mut lens = [60, 0, 1514].into_iter();
            ring.receive(&mut queues, |_| lens.next());
            assert!(ring.is_empty());
        });
        let net = kernel.net.as_mut().expect("an interface");
        let lens: Vec<usize> = net.take_received().iter().map(Vec::len).collect();
        assert_eq!(lens, [60, 0, 1514]);
        assert_eq!(net.counted(Counter::RxErrors), 1);
    }

    /// A card that has frames is told of an eighth of a ring's at once; one that has none, of each.
    #[test]
    fn a_ring_is_refilled_when_several_frames_are_empty_or_it_is_dry() {
        const N: usize = 2 * RX_FRAMES;
        let mut kernel = Kernel::new(());
        let mut queues = offered(&mut kernel);
        let mut ring: FrameRing<RxFrame, N, 8> = kernel.run(FrameRing::new).expect("memory");
        let mut first = 0;
        // How many frames come back, how many the card has afterwards, and whether it is told.
        for (count, has, is_told) in [(1, 1, true), (15, 1, false), (1, 17, true), (15, 17, false), (16, 48, true)] {
            kernel.net.as_mut().expect("an interface").lend(first, count);
            first += count;
            let has_new = kernel.run(|| ring.refill(&mut queues, |descriptor, _| descriptor.hand_over(0, OWN)));
            assert_eq!((N - 1 - ring.room(), has_new), (has, is_told));
        }
    }

    /// A frame with a command in front of it comes back when the card has finished its own
    /// descriptor, wherever in the ring the two are.
    #[test]
    fn a_command_in_front_of_a_frame_is_not_the_frame() {
        const N: usize = 2 * TX_FRAMES + 3;
        let mut kernel = Kernel::new(());
        let mut queues = offered(&mut kernel);
        let mut ring: FrameRing<TxFrame, N, 8> = kernel.run(FrameRing::new).expect("memory");
        let mut commands = 0;
        // Two of three frames have a checksum. The rounds go around the ring several times.
        for round in 0..20 {
            let sums: Vec<_> =
                (0..30).map(|number| (number % 3 != 0).then_some(Sum { start: 34, offset: 6 })).collect();
            for sum in &sums {
                kernel.net.as_mut().expect("an interface").transmit_as(&[7; 60], 0, *sum);
            }
            kernel.run(|| {
                let has_new = ring.send_with_commands(&mut queues, |tail, _, frame| {
                    let descriptor = match frame.sum() {
                        None => tail.descriptor(),
                        Some(_) => tail.command(|command| {
                            commands += 1;
                            command.hand_over(0, OWN)
                        }),
                    };
                    descriptor.hand_over(0, OWN);
                });
                assert!(has_new);
            });
            assert_eq!(commands, 20 * (round + 1));
            for sum in sums {
                for is_frame in [Some(false).filter(|_| sum.is_some()), Some(true)].into_iter().flatten() {
                    let mut left = 1;
                    kernel.run(|| {
                        ring.reclaim(&mut queues, |_| {
                            left -= 1;
                            left == 0
                        });
                    });
                    let back = kernel.net.as_mut().expect("an interface").take_transmitted();
                    assert_eq!(back, usize::from(is_frame), "round {round}");
                }
            }
            assert!(ring.is_empty() && ring.room() == N - 1);
        }
    }

    /// A command takes a descriptor, in the order of the ring, and no frame comes back for it.
    #[test]
    fn a_command_belongs_to_no_frame() {
        let mut kernel = Kernel::new(());
        let mut queues = offered(&mut kernel);
        kernel.net.as_mut().expect("an interface").transmit(&[7; 60]);
        kernel.run(|| {
            let mut ring: FrameRing<TxFrame, 3, 8> = FrameRing::new().expect("memory");
            assert!(ring.push_command(|descriptor| descriptor.hand_over(0, OWN)));
            assert!(ring.send(&mut queues, |descriptor, _, _| descriptor.hand_over(0, OWN)));
            assert!(!ring.push_command(|_| panic!("the ring is full")));
            ring.reclaim(&mut queues, |descriptor| descriptor.is_finished(0, OWN));
            assert_eq!(ring.room(), 0);
            ring.reclaim(&mut queues, |_| true);
            assert_eq!(ring.room(), 2);
        });
        assert_eq!(kernel.net.as_mut().expect("an interface").take_transmitted(), 1);
    }
}
