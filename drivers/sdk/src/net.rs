//! Network drivers.

use crate::service::{answer, raw};
use crate::shared::QueueMemory;
use crate::{Driver, Events, Refusal, Reply, Result};
use ringfence_abi::net::{
    EMPTY, FRAME_BYTES, NetInfo, QUEUE_BYTES, RECEIVED, RX_ADDRESS, RX_FRAMES, TRANSMIT, TRANSMITTED, TX_ADDRESS,
    TX_FRAMES, entry, split,
};
use ringfence_abi::queue::{Consumer, Producer, Words};

/// A network interface.
pub trait Nic: Sized + 'static {
    /// Takes the device into service, but receives nothing yet.
    fn init() -> Result<Self>;

    /// Its Ethernet address.
    fn mac(&self) -> [u8; 6];

    /// The queues are there: starts to receive.
    fn start(&mut self, queues: &mut Queues) -> Result<()>;

    /// Sends what is to be sent, delivers what was received, takes new frames to receive into.
    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply;

    /// Does what a person typed behind `tell NAME`.
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// Stops the device.
    fn exit(&mut self);
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
    fn register(mac: [u8; 6]) -> Result<Queues> {
        let info = NetInfo { mac, reserved: [0; 2] };
        // SAFETY: `info` lives until the call returns; the kernel maps the queues for good.
        let memory = unsafe {
            let start = answer(raw::rf_offer(&raw const info as u64, size_of::<NetInfo>() as u64))?;
            QueueMemory::new(start, QUEUE_BYTES)
        };
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

/// Makes a [`Driver`] of a [`Nic`].
pub struct NicDriver<N> {
    nic: N,
    queues: Queues,
}

impl<N: Nic> Driver for NicDriver<N> {
    fn init() -> Result<Self> {
        let mut nic = N::init()?;
        let mut queues = Queues::register(nic.mac())?;
        nic.start(&mut queues)?;
        Ok(NicDriver { nic, queues })
    }

    fn poll(&mut self, events: Events) -> Reply {
        self.nic.poll(events, &mut self.queues)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        self.nic.command(text)
    }

    fn exit(&mut self) {
        self.nic.exit();
    }
}
