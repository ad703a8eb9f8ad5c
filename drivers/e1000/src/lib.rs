//! Intel 82540EM and related cards (QEMU's `e1000`), and 82574L (QEMU's `e1000e`). Section and
//! table numbers are those of the *PCI/PCI-X Family of Gigabit Ethernet Controllers Software
//! Developer's Manual*, 317453-006, unless the 82574's datasheet is named.
//!
//! The card uses descriptors in two DMA rings: a legacy one for each frame, or an extended one for
//! a frame whose checksum the card completes. A context descriptor says which checksum that is,
//! when it is not the same as before. Interrupts for transmission are on only while sent frames are
//! left to be reclaimed.
#![no_std]
#![forbid(unsafe_code)]

mod registers;

use core::time::Duration;
use registers::{self as reg, Card, ctrl, eerd, int, rctl, rxd, tctl, txd};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::net::{
    EthernetAddress, FRAME_BYTES, Hearing, NetInfo, Nic, NicDriver, Offload, Queues, RX_FRAMES, Received, RxFrame, Sum,
    TX_FRAMES, TxFrame,
};
use ringfence_sdk::register::Registers;
use ringfence_sdk::ring::FrameRing;
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
/// ring has work. A frame to send may need two, and a ring's length is a multiple of 128 bytes
/// (14.5).
const TX_RING: usize = 4 * TX_FRAMES;
const RX_RING: usize = 2 * RX_FRAMES;
/// Bytes in a descriptor (3.2.3, 3.3.3).
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
    tx: FrameRing<TxFrame, TX_RING, DESCRIPTOR>,
    rx: FrameRing<RxFrame, RX_RING, DESCRIPTOR>,
    /// Whether the descriptor that the card finishes next goes on with a frame that is longer than
    /// its buffers.
    is_long: bool,
    /// The checksum that the card was told of last.
    sum: Option<Sum>,
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
        // 14.3: reset, then disable all interrupts, and clear the interrupts that the reset has
        // caused.
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
        log::info!("{name} at {}", EthernetAddress(mac));
        Ok(E1000 { registers, mac, tx: FrameRing::new()?, rx: FrameRing::new()?, is_long: false, sum: None, causes })
    }

    fn info(&self) -> NetInfo {
        let offload = if self.checks() { Offload::all() } else { Offload::TX_CHECKSUM };
        NetInfo::new(self.mac).hears(Hearing::all()).longest(FRAME_BYTES).offloads(offload)
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        let registers = &self.registers;
        // 14.4: receive initialization.
        let begin = |address: u64, len_bytes: usize, [low, high, len, head, tail]: [_; 5]| {
            registers.write(low, address as u32);
            registers.write(high, (address >> 32) as u32);
            registers.write(len, len_bytes as u32);
            registers.write(head, 0);
            registers.write(tail, 0);
        };
        let (rx, tx) = (&self.rx, &self.tx);
        begin(rx.address(), rx.len_bytes(), [reg::RDBAL, reg::RDBAH, reg::RDLEN, reg::RDH, reg::RDT]);
        begin(tx.address(), tx.len_bytes(), [reg::TDBAL, reg::TDBAH, reg::TDLEN, reg::TDH, reg::TDT]);
        if self.checks() {
            registers.write(reg::RXCSUM, reg::RXCSUM_TUOFLD);
        }
        device::enable_dma()?;
        // 14.5: transmit initialization, with the inter-packet gap for copper (table 13-77).
        registers.write(reg::TIPG, 10 | 8 << 10 | 6 << 20);
        registers.write(reg::TCTL, tctl::EN | tctl::PSP | 0xf << tctl::CT | 0x40 << tctl::COLD);
        self.set_hearing(queues);
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
            self.set_hearing(queues);
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

/// Returns the descriptor that tells the card which checksum to complete in the frames after it
/// (3.3.5).
#[cold]
fn context(sum: Sum) -> [u64; 2] {
    let (start, place) = (u64::from(sum.start), u64::from(sum.start) + u64::from(sum.offset));
    [start << 32 | place << 40, txd::CONTEXT]
}

impl E1000 {
    /// Sets the groups to receive: a table of 4096 bits, one for each value of the upper 12 bits of
    /// a group's address (13.5.1).
    #[inline(never)]
    fn set_groups(&self, queues: &Queues) {
        for register in reg::MTA.all() {
            self.registers.write(register, 0);
        }
        for [.., low, high] in queues.groups() {
            let bit = usize::from(u16::from_le_bytes([low, high]) >> 4);
            self.registers.set(reg::MTA.at(bit / 32), 1 << (bit % 32));
        }
    }

    /// Tells the receiver which frames to receive (13.4.22).
    fn set_hearing(&self, queues: &Queues) {
        let hearing = queues.hearing();
        self.set_groups(queues);
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
        const COMMAND: u64 = ((txd::EOP | txd::IFCS | txd::RS) as u64) << 24;
        let last = &mut self.sum;
        let has_new = self.tx.send_with_commands(queues, |tail, address, frame| {
            let mut command = frame.len_bytes() as u64 | COMMAND;
            let descriptor = match frame.sum() {
                None => tail.descriptor(),
                Some(sum) => {
                    command |= txd::WITH_SUM;
                    // The card remembers which checksum it completes.
                    match last.replace(sum) == Some(sum) {
                        true => tail.descriptor(),
                        false => tail.command(|descriptor| descriptor.write(0, context(sum))),
                    }
                }
            };
            descriptor.write(0, address);
            descriptor.write(8, command);
        });
        if has_new {
            self.registers.write(reg::TDT, self.tx.tail() as u32);
        }
        self.tx.reclaim(queues, |descriptor| descriptor.read::<u8>(12) & txd::DD != 0);
        if let Some(is_on) = self.tx.interrupt_changes() {
            self.registers.write(if is_on { reg::IMS } else { reg::IMC }, self.causes.transmit);
        }
    }

    /// Returns whether the card checks the checksums of received frames. QEMU's model of the older
    /// cards says of each frame that it has not.
    fn checks(&self) -> bool {
        self.causes.have_own
    }

    /// Delivers the received frames and gives the device new frames (3.2).
    fn receive(&mut self, queues: &mut Queues) {
        // No descriptor has this value if the card does not check.
        let checked = if self.checks() { rxd::CHECKED } else { 1 };
        let is_long = &mut self.is_long;
        self.rx.receive(queues, |descriptor| {
            // One read returns length, checksum, status and errors.
            let written: u64 = descriptor.read(8);
            if written & rxd::DD == 0 {
                return None;
            }
            // A frame that is damaged, or longer than one buffer, is delivered empty: each buffer
            // goes back.
            let len_bytes = if written & (rxd::EOP | rxd::ERRORS) == rxd::EOP && !*is_long {
                usize::from(written as u16)
            } else {
                *is_long = written & rxd::EOP == 0;
                0
            };
            Some(Received { len_bytes, queue: 0, is_checked: written & rxd::CHECK == checked })
        });
        self.refill(queues);
    }

    fn refill(&mut self, queues: &mut Queues) {
        let has_new = self.rx.refill(queues, |descriptor, address| {
            descriptor.write(0, address);
            descriptor.write(8, 0u64);
        });
        if has_new {
            self.registers.write(reg::RDT, self.rx.tail() as u32);
        }
    }
}
