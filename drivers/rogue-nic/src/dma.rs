//! Has the e1000 move words between its driver's memory and any address. With PHY loopback, the
//! card receives its own frames, and the receive buffer may be at any address (e1000 manual, 3.2,
//! 3.3, 13.4).

use ringfence_sdk::abi::layout::{DMA, PAGE_SIZE, SLOT_SIZE};
use ringfence_sdk::abi::net::{FRAME_BYTES, RX_ADDRESS, TX_ADDRESS, TX_FRAMES};
use ringfence_sdk::service::raw;
use ringfence_sdk::{Result, device};

const RCTL: u64 = 0x100;
const TCTL: u64 = 0x400;
const MDIC: u64 = 0x20;
const RDBAL: u64 = 0x2800;
const TDBAL: u64 = 0x3800;
/// Offsets from a ring's base register to its length, head and tail.
const LENGTH: u64 = 8;
const HEAD: u64 = 0x10;
const TAIL: u64 = 0x18;
const FRAME: u64 = 64;
/// Offsets in the memory for received frames, which the device can write.
const RX_RING: u64 = 0;
const TX_RING: u64 = 0x100;
const BUFFER: u64 = 0x1000;

/// The card, and the memory that came with the queues.
pub struct Card {
    registers: u64,
    /// The memory for frames to send and for received frames: its address for the driver and for
    /// the device.
    tx: (u64, u64),
    rx: (u64, u64),
}

impl Card {
    fn new(queues: *mut u64) -> Card {
        let slot = queues as u64 & !(SLOT_SIZE - 1);
        let device = |word: usize| unsafe { queues.add(word).read_volatile() };
        let tx = slot + DMA;
        let rx = tx + (TX_FRAMES * FRAME_BYTES) as u64 + PAGE_SIZE;
        let registers = unsafe { raw::rf_bar_map(0) } as u64;
        Card { registers, tx: (tx, device(TX_ADDRESS)), rx: (rx, device(RX_ADDRESS)) }
    }

    /// Returns the card, in loopback.
    pub fn looped_back(queues: *mut u64) -> Result<Card> {
        let card = Card::new(queues);
        card.loop_back()?;
        Ok(card)
    }

    fn set(&self, register: u64, value: u32) {
        unsafe { ((self.registers + register) as *mut u32).write_volatile(value) };
    }

    fn get(&self, register: u64) -> u32 {
        unsafe { ((self.registers + register) as *const u32).read_volatile() }
    }

    fn store(at: u64, value: u64) {
        unsafe { (at as *mut u64).write_volatile(value) };
    }

    /// Puts the card into loopback. After each write of RCTL, QEMU's model receives nothing for a
    /// second. RCTL keeps its value, so it is written only if it differs.
    fn loop_back(&self) -> Result<()> {
        const ENABLE: u32 = 1 << 1;
        const PROMISCUOUS: u32 = 1 << 3 | 1 << 4 | 1 << 15;
        const STRIP_CRC: u32 = 1 << 26;
        /// Write register 0 of PHY 1: loopback, full duplex, 1 Gbit/s.
        const PHY_LOOPBACK: u32 = 1 << 26 | 1 << 21 | 0x4140;
        device::enable_dma()?;
        self.set(MDIC, PHY_LOOPBACK);
        let receive = ENABLE | PROMISCUOUS | STRIP_CRC;
        if self.get(RCTL) != receive {
            self.set(RCTL, receive);
        }
        self.set(TCTL, ENABLE);
        Ok(())
    }

    /// Has the card send the frame at the device's address `from`, and receive it at `to`.
    fn move_frame(&self, from: u64, to: u64) {
        const END_OF_PACKET_REPORT: u64 = 0b1011 << 24;
        let (rings, device) = self.rx;
        Self::store(rings + RX_RING, to);
        Self::store(rings + RX_RING + 8, 0);
        Self::store(rings + TX_RING, from);
        Self::store(rings + TX_RING + 8, FRAME | END_OF_PACKET_REPORT);
        for (base, ring, tail) in [(RDBAL, RX_RING, 7), (TDBAL, TX_RING, 1)] {
            let address = device + ring;
            self.set(base, address as u32);
            self.set(base + 4, (address >> 32) as u32);
            self.set(base + LENGTH, 128);
            self.set(base + HEAD, 0);
            self.set(base + TAIL, 0);
            self.set(base + TAIL, tail);
        }
    }

    /// Has the card write a frame that begins with `value` to `address`.
    pub fn write(&self, address: u64, value: u64) {
        Self::store(self.tx.0, value);
        (1..FRAME / 8).for_each(|word| Self::store(self.tx.0 + 8 * word, 0));
        self.move_frame(self.tx.1, address);
    }

    /// Has the card read a frame from `address`. Returns the first word of the frame.
    pub fn read(&self, address: u64) -> u64 {
        Self::store(self.rx.0 + BUFFER, 0);
        self.move_frame(address, self.rx.1 + BUFFER);
        unsafe { ((self.rx.0 + BUFFER) as *const u64).read_volatile() }
    }

    /// Has the card write to the memory for frames to send, which the card may only read.
    pub fn write_what_is_only_read(&self) {
        self.write(self.tx.1 + 0x1000, u64::MAX);
    }
}
