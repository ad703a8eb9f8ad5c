//! Intel 82540EM and related cards (QEMU's `e1000`), and 82574L (QEMU's `e1000e`). Section and
//! table numbers are those of the *PCI/PCI-X Family of Gigabit Ethernet Controllers Software
//! Developer's Manual*, 317453-006, unless the 82574's datasheet is named.
//!
//! The card uses legacy descriptors in two DMA rings, one descriptor for each frame. Interrupts for
//! transmission are on only while sent frames are left to be reclaimed. The rings are longer than
//! the number of frames, so they never fill up.
#![no_std]
#![forbid(unsafe_code)]

mod registers;

use core::time::Duration;
use registers::{self as reg, Card, ctrl, eerd, int, rctl, rxd, tctl, txd};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::dma::{self, Dma};
use ringfence_sdk::net::{
    FRAME_BYTES, Hearing, NetInfo, Nic, NicDriver, Queues, RX_FRAMES, RxFrame, TX_FRAMES, TxFrame,
};
use ringfence_sdk::register::Registers;
use ringfence_sdk::ring::Ring;
use ringfence_sdk::{Events, Kind, Manifest, Reply, Reset, Result, driver};

driver!(
    NicDriver<E1000>,
    Manifest::new("e1000", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x8086, 0x100e), (0x8086, 0x100f), (0x8086, 0x100c), (0x8086, 0x1004), (0x8086, ID_82574L)])
        .dma_kib(64)
        .restart()
        .reset(
            Reset::register(0, reg::CTRL.offset(), 4)
                // QEMU's model keeps its rings over a reset, and ignores a ring of length 0.
                .zeroes([reg::RDLEN.offset(), reg::TDLEN.offset()])
                .sets(ctrl::RST)
                .waits_for(ctrl::RST, 0)
                .within_us(10_000)
        )
);

/// Descriptors in each ring. There are more than frames, so that head and tail never meet while the
/// ring has work.
const TX_RING: usize = 2 * TX_FRAMES;
const RX_RING: usize = 2 * RX_FRAMES;
/// Bytes in a descriptor.
const DESCRIPTOR: usize = 16;
/// The longest time that a reset may take.
const RESET: Duration = Duration::from_millis(10);
/// The longest time for writing a register of the PHY: 64 us, and a margin.
const PHY: Duration = Duration::from_millis(1);
/// The longest time for reading a word of the EEPROM.
const EEPROM: Duration = Duration::from_millis(10);

struct E1000 {
    registers: Registers<Card>,
    mac: [u8; 6],
    tx: Ring,
    rx: Ring,
    /// The frame of each descriptor.
    tx_frames: [Option<TxFrame>; TX_RING],
    rx_frames: [Option<RxFrame>; RX_RING],
    /// Whether the device is to interrupt after it has sent a frame: only while sent frames are
    /// left to be reclaimed.
    tx_interrupt: bool,
    causes: Causes,
}

/// The causes for which the device interrupts.
#[derive(Clone, Copy)]
struct Causes {
    /// Causes for reception: a frame was received, or could not be; the link has changed.
    receive: u32,
    /// The cause for transmission: a frame was sent.
    transmit: u32,
    /// Whether each cause has an interrupt of its own, which clears the cause.
    have_own: bool,
}

/// The causes when all share one line; reading the causes lowers the line.
const ON_LINE: Causes =
    Causes { receive: int::RXT0 | int::RXDMT0 | int::RXO | int::LSC, transmit: int::TXDW, have_own: false };
/// The causes when each has an interrupt of its own.
const WITH_OWN: Causes =
    Causes { receive: int::RXQ0 | int::OTHER | int::RXO | int::LSC, transmit: int::TXQ0, have_own: true };
/// The third of the card's own interrupts, for all causes but reception and transmission.
const OTHER_VECTOR: u32 = 2;
const ID_82574L: u16 = 0x10d3;

fn ring(len: usize) -> Result<Ring> {
    Ok(Ring::new(Dma::new(len * DESCRIPTOR)?, len))
}

/// Returns a card's name by its PCI device id.
fn card_name(id: u16) -> &'static str {
    match id {
        ID_82574L => "82574L",
        0x100e => "82540EM",
        0x100f => "82545EM",
        0x100c => "82544GC",
        0x1004 => "82543GC",
        _ => "a card",
    }
}

impl Device<Nic> for E1000 {
    fn init() -> Result<E1000> {
        let registers = Registers::map()?;
        // 14.3: reset, then disable all interrupts, and clear those that the reset has caused.
        registers.write(reg::IMC, u32::MAX);
        registers.set(reg::CTRL, ctrl::RST);
        device::wait_until(RESET, || registers.read(reg::CTRL) & ctrl::RST == 0)
            .inspect_err(|_| log::error!("the device does not come out of reset"))?;
        registers.write(reg::IMC, u32::MAX);
        registers.read(reg::ICR);
        registers.set(reg::CTRL, ctrl::SLU | ctrl::ASDE);

        // QEMU's model keeps its registers over a reset. Values left by another driver must not
        // matter.
        for register in reg::OFF {
            registers.write(register, 0);
        }
        // QEMU's model keeps the PHY's registers, too. In loopback, the card would receive only its
        // own frames.
        registers.write(reg::MDIC, reg::MDIC_NORMAL);
        // If the PHY does not report the end, the register was written nevertheless.
        let _ = device::wait_until(PHY, || registers.read(reg::MDIC) & reg::MDIC_READY != 0);
        // 5.6.1: the first three words of the EEPROM are the Ethernet address.
        let id = device::pci_read(2, 2)? as u16;
        let [a, b] = eeprom(&registers, id, 0)?;
        let [c, d] = eeprom(&registers, id, 1)?;
        let [e, f] = eeprom(&registers, id, 2)?;
        let mac = [a, b, c, d, e, f];
        registers.write(reg::RAL0, u32::from_le_bytes([a, b, c, d]));
        registers.write(reg::RAH0, u32::from_le_bytes([e, f, 0, 0]) | reg::RAH_AV);
        let name = card_name(id);
        // Only the 82574L has interrupts of its own.
        let causes = if id == ID_82574L { own_interrupts(&registers)? } else { ON_LINE };
        log::info!("{name} at {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        Ok(E1000 {
            registers,
            mac,
            tx: ring(TX_RING)?,
            rx: ring(RX_RING)?,
            tx_frames: [const { None }; TX_RING],
            rx_frames: [const { None }; RX_RING],
            tx_interrupt: false,
            causes,
        })
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(self.mac).hears(Hearing::all()).longest(FRAME_BYTES)
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        let registers = &self.registers;
        // 14.4: receive initialization.
        for entry in reg::MTA.all() {
            registers.write(entry, 0);
        }
        let begin = |ring: &Ring, [low, high, len, head, tail]: [_; 5]| {
            let address = ring.memory.address(0);
            registers.write(low, address as u32);
            registers.write(high, (address >> 32) as u32);
            registers.write(len, (ring.len * DESCRIPTOR) as u32);
            registers.write(head, 0);
            registers.write(tail, 0);
        };
        begin(&self.rx, [reg::RDBAL, reg::RDBAH, reg::RDLEN, reg::RDH, reg::RDT]);
        begin(&self.tx, [reg::TDBAL, reg::TDBAH, reg::TDLEN, reg::TDH, reg::TDT]);
        device::enable_dma()?;
        // 14.5: transmit initialization, with the inter-packet gap for copper (table 13-77).
        registers.write(reg::TIPG, 10 | 8 << 10 | 6 << 20);
        registers.write(reg::TCTL, tctl::EN | tctl::PSP | 0xf << tctl::CT | 0x40 << tctl::COLD);
        self.set_hearing(queues.hearing());
        self.refill(queues);
        self.registers.write(reg::IMS, self.causes.receive);
        device::enable_interrupts()
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut reply = Reply::ACKNOWLEDGED;
        let must_ask = !self.causes.have_own || events.has_vector(OTHER_VECTOR);
        if events.contains(Events::INTERRUPT) && must_ask {
            // Reading the causes clears them and lowers the line (13.4.17). With the card's own
            // interrupts, these causes are cleared by writing ones (82574 datasheet, 10.2.4.1).
            let causes = self.registers.read(reg::ICR);
            if self.causes.have_own {
                self.registers.write(reg::ICR, causes & (int::OTHER | int::LSC | int::RXO));
            }
            if causes & int::LSC != 0 {
                let up = self.registers.read(reg::STATUS) & reg::STATUS_LU != 0;
                log::info!("link {}", if up { "up" } else { "down" });
                reply |= if up { Reply::LINK_UP } else { Reply::LINK_DOWN };
            }
        }
        if events.contains(Events::HEARING) {
            self.set_hearing(queues.hearing());
        }
        self.transmit(queues);
        self.receive(queues);
        reply
    }

    fn exit(&mut self) {
        self.registers.write(reg::IMC, u32::MAX);
        self.registers.write(reg::RCTL, 0);
        self.registers.write(reg::TCTL, 0);
        self.registers.set(reg::CTRL, ctrl::RST);
    }
}

/// Asks for three interrupts: for reception, for transmission, and for all other causes (82574
/// datasheet, 7.4). If the card does not get them, it uses its line.
fn own_interrupts(registers: &Registers<Card>) -> Result<Causes> {
    if device::vectors(3)? < 3 {
        return Ok(ON_LINE);
    }
    registers.write(reg::IVAR, reg::IVAR_THREE);
    registers.write(reg::EIAC, int::RXQ0 | int::TXQ0);
    registers.set(reg::CTRL_EXT, reg::CTRL_EXT_IAME);
    Ok(WITH_OWN)
}

/// Reads word `address` of the EEPROM of a card with device id `id` (5.3.1).
fn eeprom(registers: &Registers<Card>, id: u16, address: u32) -> Result<[u8; 2]> {
    let (at, done) = if id == ID_82574L { (2, eerd::DONE_82574) } else { (8, eerd::DONE) };
    registers.write(reg::EERD, address << at | eerd::START);
    device::wait_until(EEPROM, || registers.read(reg::EERD) & done != 0)
        .inspect_err(|_| log::error!("the EEPROM does not answer"))?;
    Ok(((registers.read(reg::EERD) >> 16) as u16).to_le_bytes())
}

impl E1000 {
    /// Tells the receiver which frames to receive (13.4.22).
    fn set_hearing(&self, hearing: Hearing) {
        let mut receive = rctl::EN | rctl::LPE | rctl::BAM | rctl::SECRC;
        if hearing.contains(Hearing::PROMISCUOUS) {
            receive |= rctl::UPE | rctl::MPE;
        }
        if hearing.contains(Hearing::ALL_MULTICAST) {
            receive |= rctl::MPE;
        }
        // QEMU's model keeps this register over a reset, and receives nothing for a second after
        // each write.
        if self.registers.read(reg::RCTL) != receive {
            self.registers.write(reg::RCTL, receive);
        }
    }

    /// Hands new frames to the device, with one write of the tail, and takes back the sent frames
    /// (3.3).
    fn transmit(&mut self, queues: &mut Queues) {
        let before = self.tx.next;
        while let Some(frame) = queues.take_transmit() {
            let index = self.tx.next;
            let command = u64::from(txd::EOP | txd::IFCS | txd::RS);
            let descriptor = [queues.tx_address(&frame), frame.len_bytes() as u64 | command << 24];
            self.tx.memory.write(index * DESCRIPTOR, descriptor);
            self.tx_frames[index] = Some(frame);
            self.tx.next = self.tx.after(index);
        }
        if self.tx.next != before {
            dma::write_barrier();
            self.registers.write(reg::TDT, self.tx.next as u32);
        }
        while self.tx.done != self.tx.next {
            let status: u8 = self.tx.memory.read(self.tx.done * DESCRIPTOR + 12);
            if status & txd::DD == 0 {
                break;
            }
            if let Some(frame) = self.tx_frames[self.tx.done].take() {
                queues.give_transmitted(frame);
            }
            self.tx.done = self.tx.after(self.tx.done);
        }
        let left = self.tx.done != self.tx.next;
        if left != self.tx_interrupt {
            self.tx_interrupt = left;
            self.registers.write(if left { reg::IMS } else { reg::IMC }, self.causes.transmit);
        }
    }

    /// Delivers the received frames and gives the device new frames (3.2).
    fn receive(&mut self, queues: &mut Queues) {
        while self.rx.done != self.rx.next {
            // One read returns length, checksum, status and errors.
            let written: u64 = self.rx.memory.read(self.rx.done * DESCRIPTOR + 8);
            let [len_low, len_high, _, _, status, errors, ..] = written.to_le_bytes();
            if status & rxd::DD == 0 {
                break;
            }
            dma::read_barrier();
            let len_bytes = u16::from_le_bytes([len_low, len_high]);
            if status & rxd::EOP == 0 {
                match self.skip_long(queues) {
                    true => continue,
                    false => break,
                }
            }
            // A frame that is damaged is delivered empty: the buffer goes back.
            let good = errors & rxd::ERRORS == 0;
            if let Some(frame) = self.rx_frames[self.rx.done].take() {
                queues.give_received(frame, if good { len_bytes.into() } else { 0 });
            }
            self.rx.done = self.rx.after(self.rx.done);
        }
        self.refill(queues);
    }

    /// Gives back the buffers of a frame that is longer than one buffer. Returns `false` if the
    /// device has not received the whole frame yet.
    #[cold]
    fn skip_long(&mut self, queues: &mut Queues) -> bool {
        let mut end = self.rx.done;
        loop {
            let status: u8 = self.rx.memory.read(end * DESCRIPTOR + 12);
            if end == self.rx.next || status & rxd::DD == 0 {
                return false;
            }
            end = self.rx.after(end);
            if status & rxd::EOP != 0 {
                break;
            }
        }
        while self.rx.done != end {
            if let Some(frame) = self.rx_frames[self.rx.done].take() {
                queues.give_received(frame, 0);
            }
            self.rx.done = self.rx.after(self.rx.done);
        }
        true
    }

    fn refill(&mut self, queues: &mut Queues) {
        let before = self.rx.next;
        while let Some(frame) = queues.take_empty() {
            let index = self.rx.next;
            self.rx.memory.write(index * DESCRIPTOR, [queues.rx_address(&frame), 0]);
            self.rx_frames[index] = Some(frame);
            self.rx.next = self.rx.after(index);
        }
        if self.rx.next != before {
            dma::write_barrier();
            self.registers.write(reg::RDT, self.rx.next as u32);
        }
    }
}
