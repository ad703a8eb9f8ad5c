//! Has an RTL8139 access memory that does not belong to its driver: `tell rogue-rtl8139 VERB
//! ADDRESS`. The card has no descriptors; it takes the address of each frame to send, and of its
//! receive ring, from registers (*RTL8139C(L) Data Sheet*, 1.4, section 5).
#![no_std]
#![forbid(unsafe_code)]

use core::time::Duration;
use ringfence_sdk::device::{self, Ports};
use ringfence_sdk::dma::Dma;
use ringfence_sdk::{Driver, Kind, Manifest, Refusal, Reset, Result, driver, number};

driver!(
    RogueRtl8139,
    Manifest::new("rogue-rtl8139", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Other)
        .by_hand()
        .pci(&[(0x10ec, 0x8139)])
        .dma_kib(4)
        .reset(Reset::register(0, COMMAND as u32, 1).sets(RESET as u32).waits_for(RESET as u32, 0).within_us(10_000))
);

/// Registers: status and address of the first frame to send, the address of the receive ring, the
/// command, and the configuration of each direction.
const TX_STATUS: u16 = 0x10;
const TX_ADDRESS: u16 = 0x20;
const RING: u16 = 0x30;
const COMMAND: u16 = 0x37;
const TX_CONFIGURATION: u16 = 0x40;
const RX_CONFIGURATION: u16 = 0x44;
/// COMMAND: transmitter on; receiver on; reset.
const TRANSMIT: u8 = 1 << 2;
const RECEIVE: u8 = 1 << 3;
const RESET: u8 = 1 << 4;
/// TX_CONFIGURATION: the card receives the frames that it sends. RX_CONFIGURATION: it receives all
/// frames.
const LOOP_BACK: u32 = 0b11 << 17;
const ALL: u32 = 1;
/// Length of the frames that are sent, in bytes.
const FRAME: u32 = 64;
const LIMIT: Duration = Duration::from_millis(10);

struct RogueRtl8139 {
    ports: Ports,
    frame: Dma,
}

impl Driver for RogueRtl8139 {
    fn init() -> Result<RogueRtl8139> {
        let (ports, frame) = (Ports::open(0)?, Dma::within_4_gib(FRAME as usize)?);
        ports.write8(COMMAND, RESET);
        device::wait_until(LIMIT, || ports.read8(COMMAND) & RESET == 0)?;
        device::enable_dma()?;
        Ok(RogueRtl8139 { ports, frame })
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, address) = text.split_once(' ').ok_or(Refusal::NotFound)?;
        let address = number(address)? as u32;
        let own = self.frame.address(0) as u32;
        match verb {
            "transmit-from" => self.transmit(address, TRANSMIT),
            "receive-to" => {
                self.ports.write32(RING, address);
                self.ports.write32(RX_CONFIGURATION, ALL);
                self.transmit(own, TRANSMIT | RECEIVE);
            }
            "own-frame" => self.transmit(own, TRANSMIT),
            _ => return Err(Refusal::NotFound),
        }
        Ok(0)
    }

    fn exit(&mut self) {
        self.ports.write8(COMMAND, RESET);
    }
}

impl RogueRtl8139 {
    /// Has the card send the frame at `address` to itself, with these parts of the card on.
    fn transmit(&self, address: u32, on: u8) {
        self.ports.write8(COMMAND, on);
        self.ports.write32(TX_CONFIGURATION, LOOP_BACK);
        self.ports.write32(TX_ADDRESS, address);
        self.ports.write32(TX_STATUS, FRAME);
    }
}
