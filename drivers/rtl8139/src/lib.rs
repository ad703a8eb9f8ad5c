//! Realtek RTL8139, which is QEMU's `rtl8139`. Sections are those of the *RTL8139C(L) Data Sheet*,
//! 1.4.
//!
//! The card sends up to four frames at a time, directly from their memory. It writes received
//! frames into one ring, one after the other, and the driver copies them from there.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod registers;
#[cfg(test)]
mod tests;

use core::time::Duration;
use registers::{self as reg, Card, cause, command, tx};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::dma::{self, Dma};
use ringfence_sdk::net::{Counter, EthernetAddress, Hearing, MAX_FRAME, NetInfo, Nic, NicDriver, Queues, TxFrame};
use ringfence_sdk::register::Registers;
use ringfence_sdk::{Events, Kind, Manifest, Reply, Reset, Result, driver};

driver!(
    NicDriver<Rtl8139>,
    Manifest::new("rtl8139", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x10ec, 0x8139), (0x10ec, 0x8138), (0x1113, 0x1211), (0x1500, 0x1360)])
        .dma_kib(64)
        .restart()
        .reset(
            Reset::register(1, reg::COMMAND.offset(), 1)
                .sets(command::RESET as u32)
                .waits_for(command::RESET as u32, 0)
                .within_us(10_000)
        )
);

/// The number of frames that the card can send at a time.
const SENDING: usize = 4;
/// The length of the ring's memory: the data sheet requires 16 more bytes behind the ring.
const RING_BYTES: usize = reg::RING_BYTES + 16;
/// Bytes in front of a received frame: its status, and its length including the check sequence.
const HEADER: usize = 4;
const CHECK: usize = 4;
/// The causes that always interrupt: all causes that the driver handles, except for sent frames.
const CAUSES: u16 = cause::RECEIVED | cause::RECEIVE_ERROR | cause::RING_FULL | cause::LINK | cause::FIFO_FULL;
/// The longest time that a reset may take.
const RESET: Duration = Duration::from_millis(10);

struct Rtl8139 {
    registers: Registers<Card>,
    mac: [u8; 6],
    ring: Dma,
    /// Offset of the next frame in the ring.
    at: usize,
    /// The frames that the card is sending; the total number handed to the card; the total number
    /// taken back.
    sending: [Option<TxFrame>; SENDING],
    next: usize,
    done: usize,
    /// Whether the card is to interrupt after it has sent a frame.
    tx_interrupt: bool,
    /// The frames that the card receives besides frames to itself and to all, as bits of the
    /// receive configuration.
    hears: u32,
    /// The groups among them, as the card's hash filter.
    filter: [u32; 2],
}

impl Device<Nic> for Rtl8139 {
    fn init() -> Result<Rtl8139> {
        let registers = Registers::map()?;
        registers.write(reg::CONFIGURATION_1, 0);
        registers.write(reg::COMMAND, command::RESET);
        device::wait_until(RESET, || registers.read(reg::COMMAND) & command::RESET == 0)
            .inspect_err(|_| log::error!("the card does not come out of reset"))?;
        let mut mac = [0; 6];
        for (byte, register) in mac.iter_mut().zip(reg::ADDRESS.all()) {
            *byte = registers.read(register);
        }
        log::info!("RTL8139 at {}", EthernetAddress(mac));
        Ok(Rtl8139 {
            registers,
            mac,
            ring: Dma::within_4_gib(RING_BYTES)?,
            at: 0,
            sending: [const { None }; SENDING],
            next: 0,
            done: 0,
            tx_interrupt: false,
            hears: 0,
            filter: [0; 2],
        })
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(self.mac).hears(Hearing::all())
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        queues.check_within_4_gib()?;
        device::enable_dma()?;
        self.set_hearing(queues);
        self.start_receiver();
        self.registers.write(reg::TX_CONFIGURATION, reg::TX_NORMAL);
        self.registers.write(reg::MASK, CAUSES);
        device::enable_interrupts()
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut reply = Reply::ACKNOWLEDGED;
        if events.contains(Events::INTERRUPT) {
            let causes = self.registers.read(reg::CAUSES);
            self.registers.write(reg::CAUSES, causes);
            if causes & (cause::RING_FULL | cause::FIFO_FULL) != 0 {
                queues.count(Counter::RxMissed, (self.registers.read(reg::MISSED) & 0xff_ffff).into());
                self.registers.write(reg::MISSED, 0);
            }
            if causes & cause::LINK != 0 {
                let up = self.registers.read(reg::MEDIA_STATUS) & reg::NO_LINK == 0;
                log::info!("link {}", if up { "up" } else { "down" });
                reply |= if up { Reply::LINK_UP } else { Reply::LINK_DOWN };
            }
        }
        if events.contains(Events::HEARING) {
            self.set_hearing(queues);
            self.tell_hearing();
        }
        self.transmit(queues);
        self.receive(queues);
        reply
    }

    fn exit(&mut self) {
        self.registers.write(reg::MASK, 0);
        self.registers.write(reg::COMMAND, command::RESET);
    }
}

impl Rtl8139 {
    /// Starts the receiver at the beginning of the ring. The receiver must be on before it is told
    /// which frames to receive (5.7).
    fn start_receiver(&mut self) {
        let registers = &self.registers;
        registers.write(reg::COMMAND, command::TRANSMIT);
        registers.write(reg::RING, self.ring.address(0) as u32);
        registers.write(reg::COMMAND, command::TRANSMIT | command::RECEIVE);
        self.tell_hearing();
        self.at = 0;
        self.tell_position();
    }

    /// Decides which frames the card receives: the filter says to which groups, and the receive
    /// configuration whether to any (6.1 and 6.6).
    fn set_hearing(&mut self, queues: &Queues) {
        let hearing = queues.hearing();
        self.hears = if hearing.is_empty() { 0 } else { reg::RX_GROUPS };
        self.filter = [u32::MAX; 2];
        if hearing.contains(Hearing::PROMISCUOUS) {
            self.hears |= reg::RX_ALL;
        } else if hearing == Hearing::GROUPS {
            let [a, b, c, d, e, f, g, h] = queues.group_filter();
            self.filter = [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])];
        }
    }

    fn tell_hearing(&self) {
        for (register, half) in reg::MULTICAST.all().zip(self.filter) {
            self.registers.write(register, half);
        }
        self.registers.write(reg::RX_CONFIGURATION, reg::RX_NORMAL | self.hears);
    }

    /// Tells the card how far the driver has read the ring (5.8: minus 16).
    fn tell_position(&self) {
        self.registers.write(reg::READ, (self.at as u16).wrapping_sub(16));
    }

    /// Takes back the sent frames and hands new ones to the card, as long as the card takes any.
    fn transmit(&mut self, queues: &mut Queues) {
        self.reclaim(queues);
        while self.hand_over(queues) {
            self.reclaim(queues);
        }
        let waits = self.next != self.done;
        if waits != self.tx_interrupt {
            self.tx_interrupt = waits;
            let sent = if waits { cause::TRANSMITTED | cause::TRANSMIT_ERROR } else { 0 };
            self.registers.write(reg::MASK, CAUSES | sent);
        }
    }

    fn reclaim(&mut self, queues: &mut Queues) {
        while self.done != self.next {
            let slot = self.done % SENDING;
            let status = self.registers.read(reg::TX_STATUS.at(slot));
            if status & (tx::SENT | tx::UNDERRUN | tx::GIVEN_UP) == 0 {
                break;
            }
            if status & tx::SENT == 0 {
                queues.count(Counter::TxErrors, 1);
            }
            if let Some(frame) = self.sending[slot].take() {
                queues.give_transmitted(frame);
            }
            self.done = self.done.wrapping_add(1);
        }
    }

    /// Hands over as many frames as the card takes. Returns whether there was any frame.
    fn hand_over(&mut self, queues: &mut Queues) -> bool {
        let before = self.next;
        while self.next.wrapping_sub(self.done) < SENDING {
            let Some(mut frame) = queues.take_transmit() else { break };
            queues.pad(&mut frame);
            let slot = self.next % SENDING;
            self.registers.write(reg::TX_ADDRESS.at(slot), queues.tx_address(&frame) as u32);
            // Clearing the bit OWN starts the transmission.
            self.registers.write(reg::TX_STATUS.at(slot), frame.len_bytes() as u32 & !tx::OWN);
            self.sending[slot] = Some(frame);
            self.next = self.next.wrapping_add(1);
        }
        self.next != before
    }

    /// Copies a frame out of the ring, which continues at its beginning.
    fn read_ring(&self, to: &mut [u8]) {
        let start = (self.at + HEADER) % reg::RING_BYTES;
        let (first, rest) = to.split_at_mut(to.len().min(reg::RING_BYTES - start));
        self.ring.read_bytes(start, first);
        self.ring.read_bytes(0, rest);
    }

    /// Copies frames out of the ring, as long as the ring has frames and the kernel has lent empty
    /// ones.
    fn receive(&mut self, queues: &mut Queues) {
        while self.registers.read(reg::COMMAND) & command::EMPTY == 0 {
            dma::read_barrier();
            let [status, len_bytes]: [u16; 2] = self.ring.read(self.at);
            if len_bytes == reg::UNFINISHED {
                break;
            }
            let Some(mut frame) = queues.take_empty() else { break };
            let whole = usize::from(len_bytes);
            if status & reg::RECEIVED_WELL == 0 || !(CHECK..reg::RING_BYTES).contains(&whole) {
                // The next frame cannot be found, so the ring is set up again.
                log::warn!("a frame of {whole} bytes with status {status:#x}: the receive ring is set up anew");
                queues.give_received(frame, 0);
                queues.count(Counter::RxErrors, 1);
                return self.start_receiver();
            }
            // A frame that is too long is delivered empty.
            let mut bytes = [0; MAX_FRAME];
            let bytes = bytes.get_mut(..whole - CHECK).unwrap_or(&mut []);
            self.read_ring(bytes);
            queues.write(&mut frame, 0, bytes);
            queues.give_received(frame, bytes.len());
            self.at = (self.at + HEADER + whole).next_multiple_of(4) % reg::RING_BYTES;
            self.tell_position();
        }
    }
}
