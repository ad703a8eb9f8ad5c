//! Network drivers.

use crate::Result;
use crate::class::{self, Class, ClassDriver};
use crate::shared::QueueMemory;
pub use ringfence_abi::net::NetInfo;
use ringfence_abi::net::{
    EMPTY, FRAME_BYTES, QUEUE_BYTES, RECEIVED, RX_ADDRESS, RX_FRAMES, TRANSMIT, TRANSMITTED, TX_ADDRESS, TX_FRAMES,
    entry, split,
};
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

/// A frame that is to be sent or filled.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Its number.
    pub number: u32,
    /// Bytes to be sent, or room to be filled.
    pub len_bytes: u32,
    /// Its address for the device.
    pub address: u64,
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

    fn frame(entry: u64, first: u64) -> Frame {
        let (number, len_bytes) = split(entry);
        Frame { number, len_bytes, address: first + u64::from(number) * FRAME_BYTES as u64 }
    }

    /// Where the highest frame ends, for the device: some do not reach all of memory.
    pub fn end_of_frames(&self) -> u64 {
        let end = |first: u64, count: usize| first + (count * FRAME_BYTES) as u64;
        end(self.tx_address, TX_FRAMES).max(end(self.rx_address, RX_FRAMES))
    }

    /// The next frame to send.
    pub fn take_transmit(&mut self) -> Option<Frame> {
        let entry = self.transmit.take(&self.memory).ok()??;
        Some(Self::frame(entry, self.tx_address))
    }

    /// Gives back a frame that was sent.
    pub fn give_transmitted(&mut self, number: u32) {
        // There is room: the ring holds all frames.
        let _ = self.transmitted.put(&self.memory, entry(number, 0));
    }

    /// The next frame to receive into.
    pub fn take_empty(&mut self) -> Option<Frame> {
        let entry = self.empty.take(&self.memory).ok()??;
        Some(Self::frame(entry, self.rx_address))
    }

    /// Delivers a frame in which `len_bytes` bytes were received.
    pub fn give_received(&mut self, number: u32, len_bytes: u32) {
        // There is room: the ring holds all frames.
        let _ = self.received.put(&self.memory, entry(number, len_bytes));
    }
}
