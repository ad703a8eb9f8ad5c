//! The kernel's end of a network interface.

use super::{Kernel, Memory, seen_by_device};
use ringfence_abi::net::{self, Entry, FRAME_BYTES, Hearing, RX_FRAMES, Sum, TX_FRAMES};
use ringfence_abi::queue::{Consumer, Producer, Words};
use std::vec::Vec;

/// The kernel's end of a network interface.
pub struct Net {
    memory: Memory,
    transmit: Producer<net::Transmit>,
    transmitted: Consumer<net::Transmitted>,
    empty: Producer<net::Empty>,
    received: Consumer<net::Received>,
    next: u64,
}

impl Net {
    /// Queues a frame for the driver to send through the card's first queue.
    pub fn transmit(&mut self, frame: &[u8]) {
        self.transmit_as(frame, 0, None);
    }

    /// Queues a frame for the driver to send through queue `queue` of the card. With `sum`, the
    /// card is to complete its checksum.
    pub fn transmit_as(&mut self, frame: &[u8], queue: u16, sum: Option<Sum>) {
        let number = self.next % TX_FRAMES as u64;
        self.next += 1;
        let entry = Entry::new(number as u16, frame.len() as u16).in_queue(queue);
        self.put(sum.map_or(entry, |sum| entry.with_sum(sum)), frame);
    }

    /// Queues a frame with this entry for the driver to send.
    pub(super) fn put(&mut self, entry: Entry, frame: &[u8]) {
        assert!(entry.frame() < TX_FRAMES);
        let place = self.memory.load(net::TX_START) + (entry.frame() * FRAME_BYTES) as u64;
        for (index, byte) in frame.iter().enumerate() {
            assert!(index < FRAME_BYTES);
            // SAFETY: the byte is inside the frame.
            unsafe { (place as *mut u8).add(index).write(*byte) };
        }
        assert_eq!(self.transmit.put(&self.memory, entry.0), Ok(true));
    }

    /// Takes the frames that the driver has sent and given back, and returns their number.
    pub fn take_transmitted(&mut self) -> usize {
        self.take_sent().len()
    }

    /// Takes the numbers of the frames that the driver has sent and given back.
    pub(super) fn take_sent(&mut self) -> Vec<u64> {
        std::iter::from_fn(|| self.transmitted.take(&self.memory).expect("a position that can be")).collect()
    }

    /// Lends the driver `count` empty frames, from number `first` on.
    pub fn lend(&mut self, first: usize, count: usize) {
        let numbers: Vec<u64> = (first..first + count).map(|number| number as u64).collect();
        self.lend_each(&numbers);
    }

    /// Sets which frames the driver's card is to hear, and to which groups. The driver sees it when
    /// it is polled with [`Events::HEARING`](crate::Events::HEARING).
    pub fn hear(&mut self, hearing: Hearing, groups: &[[u8; 6]]) {
        let word = |[a, b, c, d, e, f]: [u8; 6]| u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        let words = groups.iter().copied().map(word).chain(std::iter::repeat(0));
        words.take(net::MAX_GROUPS).enumerate().for_each(|(index, word)| self.memory.store(net::GROUPS + index, word));
        self.memory.store(net::HEARING, hearing.bits().into());
    }

    pub(super) fn lend_each(&mut self, numbers: &[u64]) {
        for number in numbers {
            assert!(*number < RX_FRAMES as u64);
            assert_eq!(self.empty.put(&self.memory, *number), Ok(true));
        }
    }

    /// Returns the value of one of the driver's counters.
    pub fn counted(&self, counter: net::Counter) -> u64 {
        self.memory.load(net::COUNTERS + counter as usize)
    }

    /// Takes the frames that the driver has delivered.
    pub fn take_received(&mut self) -> Vec<Vec<u8>> {
        self.take_entries().into_iter().map(|(_, frame)| frame).collect()
    }

    /// Takes the frames that the driver has delivered, each with its entry: the number, the card's
    /// queue, and whether the card has checked the frame.
    pub fn take_entries(&mut self) -> Vec<(Entry, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some(delivered) = self.received.take(&self.memory).expect("a position that can be") {
            let (number, len_bytes) = (Entry(delivered).frame(), Entry(delivered).len_bytes());
            assert!(number < RX_FRAMES && len_bytes <= FRAME_BYTES);
            let place = self.memory.load(net::RX_START) + (number * FRAME_BYTES) as u64;
            // SAFETY: the byte is inside the frame.
            let bytes = (0..len_bytes).map(|index| unsafe { (place as *const u8).add(index).read() }).collect();
            frames.push((Entry(delivered), bytes));
        }
        frames
    }
}

/// Creates the queues of a network interface.
pub(super) fn offer(kernel: &mut Kernel) -> i64 {
    let start = Kernel::allocate(net::QUEUE_BYTES as u64);
    let tx = Kernel::allocate_dma((TX_FRAMES * FRAME_BYTES) as u64);
    let rx = Kernel::allocate_dma((RX_FRAMES * FRAME_BYTES) as u64);
    let memory = Memory::new(start, net::QUEUE_BYTES);
    for (address, start, place) in [(net::TX_ADDRESS, net::TX_START, tx), (net::RX_ADDRESS, net::RX_START, rx)] {
        memory.store(address, seen_by_device(place));
        memory.store(start, place);
    }
    let mut net = Net {
        memory,
        transmit: Producer::new(),
        transmitted: Consumer::new(),
        empty: Producer::new(),
        received: Consumer::new(),
        next: 0,
    };
    let (empty, hearing, groups) = std::mem::take(&mut kernel.at_start);
    net.lend_each(&empty);
    net.hear(hearing, &groups);
    kernel.net = Some(net);
    start as i64
}
