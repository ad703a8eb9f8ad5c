//! AMD Am79C970A (PCnet-PCI II), which is QEMU's `pcnet`. Sections are those of its data sheet,
//! 19436.
//!
//! The driver reaches the card through ports alone. It uses descriptors of the 32-bit style in two
//! DMA rings, one descriptor for each frame.
#![no_std]
#![forbid(unsafe_code)]

mod registers;

use core::time::Duration;
use registers::{self as reg, Card, csr0};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::dma::Dma;
use ringfence_sdk::net::{
    EthernetAddress, FRAME_BYTES, NetInfo, Nic, NicDriver, Queues, RX_FRAMES, RxFrame, TX_FRAMES, TxFrame,
};
use ringfence_sdk::register::Registers;
use ringfence_sdk::ring::{Descriptor, FrameRing};
use ringfence_sdk::{Events, Kind, Manifest, NO_REGISTER, Reply, Reset, Result, driver};

driver!(
    NicDriver<Pcnet>,
    Manifest::new("pcnet", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x1022, 0x2000)])
        .dma_kib(64)
        .restart()
        .reset(
            Reset::register(0, reg::RDP.offset(), 4)
                // With 0, RAP names CSR0, whose bit STOP stops the card.
                .zeroes([reg::RAP.offset(), NO_REGISTER])
                .sets(csr0::STOP)
                .waits_for(csr0::INIT | csr0::START | csr0::RECEIVER_ON, 0)
                .within_us(10_000)
        )
);

/// Descriptors in each ring, powers of two (table 43), with room for all frames.
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
    registers: Registers<Card>,
    mac: [u8; 6],
    init: Dma,
    tx: FrameRing<TxFrame, TX_RING, DESCRIPTOR>,
    rx: FrameRing<RxFrame, RX_RING, DESCRIPTOR>,
}

/// Fills a descriptor and hands it to the card.
fn fill(descriptor: Descriptor<DESCRIPTOR>, address: u64, len_bytes: usize, flags: u32) {
    descriptor.write(0, address as u32);
    descriptor.write(8, 0u32);
    descriptor.hand_over(4, reg::OWN | flags | reg::length(len_bytes as u32));
}

impl Device<Nic> for Pcnet {
    fn init() -> Result<Pcnet> {
        let registers = Registers::map()?;
        // One of these reads resets the card, whichever mode it is in. The first 32-bit write sets
        // the 32-bit mode.
        registers.read(reg::RESET);
        registers.read(reg::RESET_16);
        registers.write(reg::RDP, 0);
        let [a, b, c, d] = registers.read(reg::APROM.at(0)).to_le_bytes();
        let [e, f, ..] = registers.read(reg::APROM.at(1)).to_le_bytes();
        let card = Pcnet {
            registers,
            mac: [a, b, c, d, e, f],
            init: Dma::within_4_gib(INIT_BLOCK)?,
            tx: FrameRing::within_4_gib()?,
            rx: FrameRing::within_4_gib()?,
        };
        card.write(reg::CSR0, csr0::STOP);
        registers.write(reg::RAP, reg::BCR20);
        registers.write(reg::BDP, reg::STYLE_32_BITS);
        log::info!("PCnet-PCI II at {}", EthernetAddress(card.mac));
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
        self.registers.write(reg::RAP, csr);
        self.registers.read(reg::RDP)
    }

    fn write(&self, csr: u32, value: u32) {
        self.registers.write(reg::RAP, csr);
        self.registers.write(reg::RDP, value);
    }

    /// Fills in the initialization block of the 32-bit style: mode, lengths of the rings, Ethernet
    /// address, no multicast, addresses of the rings.
    fn fill_init_block(&mut self) {
        self.init.write(0, RX_RING.ilog2() << 20 | TX_RING.ilog2() << 28);
        self.init.write_bytes(4, &self.mac);
        self.init.write(20, self.rx.address() as u32);
        self.init.write(24, self.tx.address() as u32);
    }

    /// Hands new frames to the card, and takes back the sent frames.
    fn transmit(&mut self, queues: &mut Queues) {
        const WHOLE: u32 = reg::START_OF_PACKET | reg::END_OF_PACKET;
        if self.tx.send(queues, |descriptor, address, frame| fill(descriptor, address, frame.len_bytes(), WHOLE)) {
            self.write(reg::CSR0, csr0::TRANSMIT_DEMAND | csr0::INTERRUPTS);
        }
        self.tx.reclaim(queues, |descriptor| descriptor.is_finished(4, reg::OWN));
        if let Some(is_on) = self.tx.interrupt_changes() {
            self.write(reg::CSR3, csr0::INIT_DONE | if is_on { 0 } else { csr0::TRANSMITTED });
        }
    }

    /// Delivers the received frames and gives the card new frames.
    fn receive(&mut self, queues: &mut Queues) {
        const WHOLE: u32 = reg::START_OF_PACKET | reg::END_OF_PACKET;
        self.rx.receive(queues, |descriptor| {
            let status = descriptor.finished(4, reg::OWN)?;
            let len_bytes = descriptor.read::<u32>(8) & 0xfff;
            // A frame that is damaged, or longer than the buffer, is delivered empty, so that the
            // kernel gets its buffer back.
            let is_good = status & (reg::ERROR | WHOLE) == WHOLE;
            Some(if is_good { len_bytes.saturating_sub(reg::CHECK_BYTES) as usize } else { 0 })
        });
        self.refill(queues);
    }

    fn refill(&mut self, queues: &mut Queues) {
        self.rx.refill(queues, |descriptor, address| fill(descriptor, address, FRAME_BYTES, 0));
    }
}
