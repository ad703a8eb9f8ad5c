//! A driver of an invented PCI card with registers in memory, ports, and memory that the card
//! writes.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::device::{self, Mmio, Ports};
use ringfence_sdk::dma::{Dma, read_barrier};
use ringfence_sdk::{Driver, Events, Manifest, Refusal, Reply, Reset, Result, driver};

driver!(
    Card,
    Manifest::new("card", "0.1.0")
        .pci(&[(0x1234, 0x0001)])
        .dma_kib(4)
        // If the driver can't stop the card, the kernel sets bit 31 of register 0 in BAR 0 and
        // waits until the bit is clear.
        .reset(Reset::register(0, 0, 4).sets(1 << 31).waits_for(1 << 31, 0).within_us(10_000))
);

/// Offsets of the registers in BAR 0, and of the port in BAR 1.
const STATUS: usize = 8;
const BUFFER: usize = 16;
const START: u16 = 0;

struct Card {
    registers: Mmio,
    ports: Ports,
    buffer: Dma,
}

impl Driver for Card {
    fn init() -> Result<Card> {
        let (registers, ports) = (Mmio::map(0)?, Ports::open(1)?);
        let buffer = Dma::new(4096)?;
        // The card's address of the buffer, which is not the driver's address.
        registers.write64(BUFFER, buffer.address(0));
        device::enable_dma()?;
        device::enable_interrupts()?;
        ports.write8(START, 1);
        Ok(Card { registers, ports, buffer })
    }

    fn poll(&mut self, events: Events) -> Reply {
        if events.contains(Events::INTERRUPT) && self.registers.read32(STATUS) & 1 != 0 {
            read_barrier();
            // The value is copied out, because the card may write the buffer at any moment.
            let first: u32 = self.buffer.read(0);
            log::info!("the card says {first:#x}");
            self.ports.write8(START, 1);
        }
        Reply::ACKNOWLEDGED
    }

    fn command(&mut self, _: &str) -> Result<u64> {
        Err(Refusal::NotFound)
    }
}
