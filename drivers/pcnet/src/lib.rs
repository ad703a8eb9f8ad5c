//! AMD Am79C970A (PCnet-PCI II), which is QEMU's `pcnet`. Sections are those of its data sheet,
//! 19436.
//!
//! The driver reaches the card through ports alone. It uses descriptors of the 32-bit style in two
//! DMA rings, one descriptor for each frame. The rings are longer than the number of frames, so
//! they never fill up.
#![no_std]
#![forbid(unsafe_code)]

mod registers;

use core::time::Duration;
use registers::{self as reg, csr0};
use ringfence_sdk::abi::reset::NO_REGISTER;
use ringfence_sdk::class::Device;
use ringfence_sdk::device::{self, Ports};
use ringfence_sdk::dma::{self, Dma};
use ringfence_sdk::net::{FRAME_BYTES, NetInfo, Nic, NicDriver, Queues, RX_FRAMES, RxFrame, TX_FRAMES, TxFrame};
use ringfence_sdk::ring::Ring;
use ringfence_sdk::{Events, Kind, Manifest, Reply, Reset, Result, driver};

driver!(
    NicDriver<Pcnet>,
    Manifest::new("pcnet", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x1022, 0x2000)])
        .dma_kib(64)
        .restart()
        .reset(
            Reset::register(0, reg::RDP as u32, 4)
                // With 0, RAP names CSR0, whose bit STOP stops the card.
                .zeroes([reg::RAP as u32, NO_REGISTER])
                .sets(csr0::STOP)
                .waits_for(csr0::INIT | csr0::START | csr0::RECEIVER_ON, 0)
                .within_us(10_000)
        )
);

/// Descriptors in each ring, powers of two (table 43). There are more than frames, so that the two
/// ends of a ring never meet.
const TX_RING: usize = 2 * TX_FRAMES;
const RX_RING: usize = 2 * RX_FRAMES;
const _: () = assert!(TX_RING.is_power_of_two() && RX_RING.is_power_of_two() && TX_RING <= 512 && RX_RING <= 512);
/// Bytes in a descriptor.
const DESCRIPTOR: usize = 16;
/// Bytes in the initialization block.
const INIT_BLOCK: usize = 28;
/// The longest time for the card to read the initialization block.
const INIT: Duration = Duration::from_millis(10);

struct Pcnet {
    ports: Ports,
    mac: [u8; 6],
    init: Dma,
    tx: Ring,
    rx: Ring,
    /// The frame of each descriptor.
    tx_frames: [Option<TxFrame>; TX_RING],
    rx_frames: [Option<RxFrame>; RX_RING],
    /// Whether the card is to interrupt after it has sent a frame: only while sent frames are left
    /// to be reclaimed.
    tx_interrupt: bool,
}

fn ring(len: usize) -> Result<Ring> {
    Ok(Ring::new(Dma::within_4_gib(len * DESCRIPTOR)?, len))
}

/// Hands the next descriptor of a ring to the card, with the buffer at `address`. Returns the
/// descriptor's number.
fn give(ring: &mut Ring, address: u64, len_bytes: u32, flags: u32) -> usize {
    let index = ring.next;
    let at = index * DESCRIPTOR;
    ring.memory.write(at, address as u32);
    ring.memory.write(at + 8, 0u32);
    dma::write_barrier();
    ring.memory.write(at + 4, reg::OWN | flags | reg::length(len_bytes));
    ring.next = ring.after(index);
    index
}

/// Returns the number and the status of the next descriptor, if the card has finished it.
fn finished(ring: &Ring) -> Option<(usize, u32)> {
    if ring.done == ring.next {
        return None;
    }
    let status: u32 = ring.memory.read(ring.done * DESCRIPTOR + 4);
    (status & reg::OWN == 0).then(|| {
        dma::read_barrier();
        (ring.done, status)
    })
}

impl Device<Nic> for Pcnet {
    fn init() -> Result<Pcnet> {
        let ports = Ports::open(0)?;
        // One of these reads resets the card, whichever mode it is in. The first 32-bit write sets
        // the 32-bit mode.
        ports.read32(reg::RESET);
        ports.read16(reg::RESET_16);
        ports.write32(reg::RDP, 0);
        let [a, b, c, d] = ports.read32(reg::APROM).to_le_bytes();
        let [e, f, ..] = ports.read32(reg::APROM + 4).to_le_bytes();
        let card = Pcnet {
            ports,
            mac: [a, b, c, d, e, f],
            init: Dma::within_4_gib(INIT_BLOCK)?,
            tx: ring(TX_RING)?,
            rx: ring(RX_RING)?,
            tx_frames: [const { None }; TX_RING],
            rx_frames: [const { None }; RX_RING],
            tx_interrupt: false,
        };
        card.write(reg::CSR0, csr0::STOP);
        ports.write32(reg::RAP, reg::BCR20);
        ports.write32(reg::BDP, reg::STYLE_32_BITS);
        log::info!("PCnet-PCI II at {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        Ok(card)
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(self.mac)
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        queues.check_within_4_gib()?;
        self.fill_init_block();
        let init = self.init.address(0) as u32;
        self.write(reg::CSR1, init & 0xffff);
        self.write(reg::CSR2, init >> 16);
        self.write(reg::CSR3, csr0::INIT_DONE | csr0::TRANSMITTED);
        self.write(reg::CSR4, reg::CSR4_PAD);
        device::enable_dma()?;
        self.write(reg::CSR0, csr0::INIT);
        device::wait_until(INIT, || self.read(reg::CSR0) & csr0::INIT_DONE != 0)
            .inspect_err(|_| log::error!("the card does not read its initialization block"))?;
        self.refill(queues);
        self.write(reg::CSR0, csr0::CAUSES | csr0::START | csr0::INTERRUPTS);
        device::enable_interrupts()
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        if events.contains(Events::INTERRUPT) {
            let causes = self.read(reg::CSR0) & csr0::CAUSES;
            self.write(reg::CSR0, causes | csr0::INTERRUPTS);
        }
        self.transmit(queues);
        self.receive(queues);
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {
        self.write(reg::CSR0, csr0::STOP);
    }
}

impl Pcnet {
    fn read(&self, csr: u32) -> u32 {
        self.ports.write32(reg::RAP, csr);
        self.ports.read32(reg::RDP)
    }

    fn write(&self, csr: u32, value: u32) {
        self.ports.write32(reg::RAP, csr);
        self.ports.write32(reg::RDP, value);
    }

    /// Fills in the initialization block of the 32-bit style: mode, lengths of the rings, Ethernet
    /// address, no multicast, addresses of the rings.
    fn fill_init_block(&mut self) {
        self.init.write(0, self.rx.len.ilog2() << 20 | self.tx.len.ilog2() << 28);
        self.init.write_bytes(4, &self.mac);
        self.init.write(20, self.rx.memory.address(0) as u32);
        self.init.write(24, self.tx.memory.address(0) as u32);
    }

    /// Hands new frames to the card, and takes back the sent frames.
    fn transmit(&mut self, queues: &mut Queues) {
        let before = self.tx.next;
        while let Some(frame) = queues.take_transmit() {
            let flags = reg::START_OF_PACKET | reg::END_OF_PACKET;
            let index = give(&mut self.tx, queues.tx_address(&frame), frame.len_bytes() as u32, flags);
            self.tx_frames[index] = Some(frame);
        }
        if self.tx.next != before {
            self.write(reg::CSR0, csr0::TRANSMIT_DEMAND | csr0::INTERRUPTS);
        }
        while let Some((index, _)) = finished(&self.tx) {
            if let Some(frame) = self.tx_frames[index].take() {
                queues.give_transmitted(frame);
            }
            self.tx.done = self.tx.after(index);
        }
        let left = self.tx.done != self.tx.next;
        if left != self.tx_interrupt {
            self.tx_interrupt = left;
            self.write(reg::CSR3, csr0::INIT_DONE | if left { 0 } else { csr0::TRANSMITTED });
        }
    }

    /// Delivers the received frames and gives the card new frames.
    fn receive(&mut self, queues: &mut Queues) {
        while let Some((index, status)) = finished(&self.rx) {
            let len_bytes: u32 = self.rx.memory.read::<u32>(index * DESCRIPTOR + 8) & 0xfff;
            let whole = reg::START_OF_PACKET | reg::END_OF_PACKET;
            // A frame that is damaged, or longer than the buffer, is delivered empty, so that the
            // kernel gets its buffer back.
            let good = status & reg::ERROR == 0 && status & whole == whole;
            let len_bytes = if good { len_bytes.saturating_sub(reg::CHECK_BYTES) } else { 0 };
            if let Some(frame) = self.rx_frames[index].take() {
                queues.give_received(frame, len_bytes as usize);
            }
            self.rx.done = self.rx.after(index);
        }
        self.refill(queues);
    }

    fn refill(&mut self, queues: &mut Queues) {
        while let Some(frame) = queues.take_empty() {
            let index = give(&mut self.rx, queues.rx_address(&frame), FRAME_BYTES as u32, 0);
            self.rx_frames[index] = Some(frame);
        }
    }
}
