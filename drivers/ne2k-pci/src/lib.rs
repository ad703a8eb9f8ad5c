//! NE2000 on PCI (RTL8029AS and related cards), which is QEMU's `ne2k_pci`. Sections are those of
//! the *DP8390D/NS32490D NIC* data sheet, TL/F/8582.
//!
//! The card has neither DMA nor registers in memory. It has memory of its own, which the driver
//! reaches through one port, 16 bits at a time. The driver copies a frame to send into that memory.
//! Received frames lie in a ring of pages there until the driver copies them out.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod registers;
#[cfg(test)]
mod tests;

use core::time::Duration;
use registers::{self as reg, Card, cause, command};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::net::{Counter, EthernetAddress, Hearing, MAX_FRAME, NetInfo, Nic, NicDriver, Queues, TxFrame};
use ringfence_sdk::register::{RegisterArray, Registers};
use ringfence_sdk::{Events, Kind, Manifest, Reply, Result, driver};

driver!(
    NicDriver<Ne2k>,
    Manifest::new("ne2k-pci", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x10ec, 0x8029), (0x1050, 0x0940), (0x8e2e, 0x3000), (0x4a14, 0x5000)])
        .restart()
);

/// The number of pages for the frame that is being sent.
const TRANSMIT_PAGES: u8 = (MAX_FRAME as u16).div_ceil(reg::PAGE) as u8;
/// The receive ring: all other pages.
const RING: u8 = reg::FIRST_PAGE + TRANSMIT_PAGES;
const RING_END: u8 = reg::END_PAGE;
/// Bytes in front of a received frame: its status, the page of the next frame, and the frame's
/// length in bytes including this header.
const HEADER: usize = 4;
/// The causes that always interrupt: all causes that the driver handles, except for sent frames.
const CAUSES: u8 = cause::RECEIVED | cause::RECEIVE_ERROR | cause::OVERWRITE;
/// The longest time that a reset may take.
const RESET: Duration = Duration::from_millis(10);
/// How long the chip may go on working after it was stopped (7.0: 1.6 ms).
const STOP: Duration = Duration::from_micros(1600);

struct Ne2k {
    registers: Registers<Card>,
    mac: [u8; 6],
    /// The frame that the card is sending.
    sending: Option<TxFrame>,
    /// Whether the card is to interrupt after it has sent a frame.
    tx_interrupt: bool,
    /// The page of the next frame to read.
    next: u8,
    /// The frames that the card receives, as a value of the receive configuration.
    takes: u8,
    /// The groups among them, as the chip's hash filter.
    filter: [u8; 8],
}

impl Device<Nic> for Ne2k {
    fn init() -> Result<Ne2k> {
        let registers = Registers::map()?;
        // QEMU's model keeps the selected page over a reset, and an earlier driver may have
        // selected page 1.
        registers.write(reg::COMMAND, command::STOP | command::NO_REMOTE);
        registers.write(reg::RESET, registers.read(reg::RESET));
        device::wait_until(RESET, || registers.read(reg::CAUSES) & cause::IN_RESET != 0)
            .inspect_err(|_| log::error!("the card does not come out of reset"))?;
        let mac = [0; 6];
        let mut card =
            Ne2k { registers, mac, sending: None, tx_interrupt: false, next: RING, takes: 0, filter: [0; 8] };
        card.stop();
        registers.write(reg::DATA_CONFIG, reg::WORDS);
        // The Ethernet address is in front of the card's memory, each byte twice.
        let mut twice = [0; 12];
        card.read(0, &mut twice);
        for (byte, pair) in card.mac.iter_mut().zip(twice.chunks(2)) {
            *byte = pair[0];
        }
        log::info!("NE2000 at {}", EthernetAddress(card.mac));
        Ok(card)
    }

    fn info(&self) -> NetInfo {
        NetInfo::new(self.mac).hears(Hearing::all())
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        self.set_hearing(queues);
        let registers = &self.registers;
        registers.write(reg::MASK, CAUSES);
        device::enable_interrupts()?;
        self.receive_from_start();
        Ok(())
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        if events.contains(Events::HEARING) {
            self.set_hearing(queues);
            self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE | command::PAGE_1);
            self.write_filter();
            self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
            self.registers.write(reg::RECEIVE_CONFIG, self.takes);
        }
        // The line stays raised as long as an unmasked cause is set.
        let causes = self.registers.read(reg::CAUSES);
        self.registers.write(reg::CAUSES, causes & !cause::IN_RESET);
        self.transmit(queues);
        self.receive(queues);
        if causes & cause::RECEIVE_ERROR != 0 {
            queues.count(Counter::RxErrors, 1);
        }
        if causes & cause::OVERWRITE != 0 {
            queues.count(Counter::RxMissed, self.registers.read(reg::MISSED).into());
            self.recover(queues);
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {
        self.registers.write(reg::MASK, 0);
        self.stop();
    }
}

impl Ne2k {
    /// Stops the chip. It receives nothing until it is started again.
    fn stop(&self) {
        self.registers.write(reg::COMMAND, command::STOP | command::NO_REMOTE);
        self.registers.write(reg::RECEIVE_CONFIG, reg::MONITOR);
        self.registers.write(reg::TRANSMIT_CONFIG, reg::LOOPBACK);
    }

    /// Sets up an empty ring and starts the chip, in the order that 9.0 requires.
    fn receive_from_start(&mut self) {
        let registers = &self.registers;
        self.stop();
        registers.write(reg::DATA_CONFIG, reg::WORDS);
        registers.write(reg::RING_START, RING);
        registers.write(reg::RING_STOP, RING_END);
        registers.write(reg::BOUNDARY, RING);
        registers.write(reg::COMMAND, command::STOP | command::NO_REMOTE | command::PAGE_1);
        for (register, byte) in reg::ADDRESS.all().zip(self.mac) {
            registers.write(register, byte);
        }
        self.write_filter();
        // The boundary is one page behind the next frame to read. If the two were equal, the chip
        // would take the ring for full.
        self.next = RING + 1;
        registers.write(reg::CURRENT, self.next);
        registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
        registers.write(reg::TRANSMIT_CONFIG, 0);
        registers.write(reg::RECEIVE_CONFIG, self.takes);
    }

    /// Decides which frames the chip receives: the filter says to which groups, and the receive
    /// configuration whether to any (10.3).
    fn set_hearing(&mut self, queues: &Queues) {
        let hearing = queues.hearing();
        self.takes = reg::TAKE_BROADCAST | if hearing.is_empty() { 0 } else { reg::TAKE_GROUPS };
        self.filter = [0xff; 8];
        if hearing.contains(Hearing::PROMISCUOUS) {
            self.takes |= reg::TAKE_ALL;
        } else if hearing == Hearing::GROUPS {
            self.filter = queues.group_filter();
        }
    }

    /// Writes the filter, which is on page 1. Page 0 is selected afterwards by the caller.
    fn write_filter(&self) {
        for (register, byte) in reg::MULTICAST.all().zip(self.filter) {
            self.registers.write(register, byte);
        }
    }

    /// Sets a pair of registers, the low byte first.
    fn set(&self, pair: RegisterArray<Card, u8, 2>, value: u16) {
        for (register, byte) in pair.all().zip(value.to_le_bytes()) {
            self.registers.write(register, byte);
        }
    }

    /// Starts a transfer of `len_bytes` bytes at `address` of the card's memory through the data
    /// port.
    fn remote(&self, address: u16, len_bytes: usize, direction: u8) {
        self.set(reg::REMOTE_BYTES, len_bytes.next_multiple_of(2) as u16);
        self.set(reg::REMOTE_ADDRESS, address);
        self.registers.write(reg::COMMAND, command::START | direction);
    }

    /// Copies bytes out of the card's memory.
    fn read(&self, address: u16, to: &mut [u8]) {
        self.remote(address, to.len(), command::REMOTE_READ);
        self.registers.read_words(reg::DATA, to);
        if !to.len().is_multiple_of(2)
            && let Some(last) = to.last_mut()
        {
            *last = self.registers.read(reg::DATA) as u8;
        }
        self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
    }

    /// Sends one frame after another, as long as the card takes them.
    fn transmit(&mut self, queues: &mut Queues) {
        loop {
            // 10.2: the chip clears the bit when it has sent the frame, or given it up.
            let is_busy = self.registers.read(reg::COMMAND) & command::TRANSMIT != 0;
            if !is_busy && let Some(frame) = self.sending.take() {
                queues.give_transmitted(frame);
            }
            if self.sending.is_some() {
                break;
            }
            let Some(mut frame) = queues.take_transmit() else { break };
            queues.pad(&mut frame);
            let mut bytes = [0; MAX_FRAME + 1];
            let bytes = &mut bytes[..frame.len_bytes().min(MAX_FRAME)];
            queues.read(&frame, 0, bytes);
            self.send(bytes);
            self.sending = Some(frame);
        }
        let waits = self.sending.is_some();
        if waits != self.tx_interrupt {
            self.tx_interrupt = waits;
            let sent = if waits { cause::TRANSMITTED | cause::TRANSMIT_ERROR } else { 0 };
            self.registers.write(reg::MASK, CAUSES | sent);
        }
    }

    fn send(&self, bytes: &[u8]) {
        let page = reg::FIRST_PAGE;
        self.remote(u16::from(page) * reg::PAGE, bytes.len(), command::REMOTE_WRITE);
        self.registers.write_words(reg::DATA, bytes);
        if let [last] = bytes.chunks_exact(2).remainder() {
            self.registers.write(reg::DATA, u16::from(*last));
        }
        self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
        self.registers.write(reg::TRANSMIT_PAGE, page);
        self.set(reg::TRANSMIT_BYTES, bytes.len() as u16);
        self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE | command::TRANSMIT);
    }

    /// Returns the page into which the next frame is received.
    fn current(&self) -> u8 {
        self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE | command::PAGE_1);
        let page = self.registers.read(reg::CURRENT);
        self.registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
        page
    }

    /// Copies frames out of the ring, as long as the ring has frames and the kernel has lent empty
    /// ones.
    fn receive(&mut self, queues: &mut Queues) {
        while self.next != self.current() {
            let Some(mut frame) = queues.take_empty() else { break };
            let start = u16::from(self.next) * reg::PAGE;
            let mut header = [0; HEADER];
            self.read(start, &mut header);
            let [status, next, low, high] = header;
            let len_bytes = usize::from(u16::from_le_bytes([low, high])).saturating_sub(HEADER);
            // 8.0: after an error the contents of the ring cannot be trusted, so the ring is set up
            // again.
            if !(RING..RING_END).contains(&next) || len_bytes > MAX_FRAME {
                log::warn!("the receive ring is damaged at page {:#x}: it is set up anew", self.next);
                queues.give_received(frame, 0);
                return self.receive_from_start();
            }
            let mut bytes = [0; MAX_FRAME + 1];
            let bytes = &mut bytes[..len_bytes];
            self.read_ring(start + HEADER as u16, bytes);
            queues.write(&mut frame, 0, bytes);
            queues.give_received(frame, if status & reg::RECEIVED_WELL != 0 { len_bytes } else { 0 });
            self.next = next;
            let boundary = if next == RING { RING_END - 1 } else { next - 1 };
            self.registers.write(reg::BOUNDARY, boundary);
        }
    }

    /// Copies bytes out of the ring, whose first page follows its last one.
    fn read_ring(&self, start: u16, to: &mut [u8]) {
        let end = u16::from(RING_END) * reg::PAGE;
        let (first, rest) = to.split_at_mut(to.len().min(usize::from(end - start)));
        self.read(start, first);
        if !rest.is_empty() {
            self.read(u16::from(RING) * reg::PAGE, rest);
        }
    }

    /// Recovers from an overflow of the ring (7.0): stops the chip, empties the ring, and starts
    /// the chip again.
    fn recover(&mut self, queues: &mut Queues) {
        let registers = &self.registers;
        registers.write(reg::COMMAND, command::STOP | command::NO_REMOTE);
        device::pause(STOP);
        self.set(reg::REMOTE_BYTES, 0);
        registers.write(reg::TRANSMIT_CONFIG, reg::LOOPBACK);
        registers.write(reg::COMMAND, command::START | command::NO_REMOTE);
        self.receive(queues);
        self.registers.write(reg::CAUSES, cause::OVERWRITE);
        self.registers.write(reg::TRANSMIT_CONFIG, 0);
    }
}
