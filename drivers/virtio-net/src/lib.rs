//! virtio network device over PCI: *Virtual I/O Device (VIRTIO) Version 1.0*, sections 2.4
//! (virtqueues), 4.1 (PCI) and 5.1 (network device).
//!
//! There are up to four pairs of queues, one queue for each direction (5.1.6.5.5), and each frame
//! takes two descriptors: the header and the frame itself, which is not copied. The header says
//! which checksum the device has to complete, or has checked (5.1.6.2, 5.1.6.4).
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;
use core::time::Duration;
use ringfence_sdk::class::Device;
use ringfence_sdk::device::{self, Mmio};
use ringfence_sdk::dma::Dma;
use ringfence_sdk::net::{
    EthernetAddress, FRAME_BYTES, Hearing, MAX_GROUPS, MAX_QUEUES, NetInfo, Nic, NicDriver, Offload, Queues, Received,
    RxFrame, Sum, TxFrame,
};
use ringfence_sdk::virtio::Transport;
use ringfence_sdk::virtio::queue::Virtqueue;
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Reset, Result, driver};

driver!(
    NicDriver<VirtioNet>,
    Manifest::new("virtio-net", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x1af4, 0x1041), (0x1af4, 0x1000)])
        .dma_kib(128)
        .restart()
        .reset(Reset::virtio().within_us(100_000))
);

/// The largest number of frames in a queue, and the number of descriptors of a frame.
const MOST: usize = 128;
const DESCRIPTORS: u16 = 2;
/// Length of the header in front of each frame (5.1.6), and the distance between two headers.
const HEADER_BYTES: usize = 12;
const HEADER: usize = 16;
/// Flags of a header: the device completes the checksum; it has checked it (5.1.6).
const NEEDS_SUM: u8 = 1 << 0;
const IS_VALID: u8 = 1 << 1;
/// Offset of the acknowledgement that the device writes behind a command for the control queue.
const ACKNOWLEDGEMENT: usize = 64;
/// Commands (5.1.6.5): a class, the command, its data. They set the receive filter, on or off, the
/// groups that it lets through, and the number of pairs of queues.
const FILTER: u8 = 0;
const PROMISCUOUS: u8 = 0;
const ALL_MULTICAST: u8 = 1;
const ADDRESSES: u8 = 1;
const SET_TABLE: u8 = 0;
const PAIRS: u8 = 4;
const SET_PAIRS: u8 = 0;
/// The longest time that a command may take.
const LIMIT: Duration = Duration::from_millis(100);

/// Features (5.1.3).
const HAS_SUMS: u32 = 1 << 0;
const HAS_CHECKS: u32 = 1 << 1;
const HAS_MAC: u32 = 1 << 5;
const HAS_STATUS: u32 = 1 << 16;
const HAS_CONTROL: u32 = 1 << 17;
const HAS_FILTER: u32 = 1 << 18;
const HAS_PAIRS: u32 = 1 << 22;
const WANTED: u32 = HAS_SUMS | HAS_CHECKS | HAS_MAC | HAS_STATUS | HAS_CONTROL | HAS_FILTER | HAS_PAIRS;
/// The device's configuration (5.1.4): the Ethernet address, 6 bytes; the status; the number of
/// pairs of queues.
const STATUS: usize = 6;
const MOST_PAIRS: usize = 8;
const STATUS_LINK_UP: u16 = 1;

struct VirtioNet {
    transport: Transport,
    config: Mmio,
    /// The features that the device and the driver have.
    has: u32,
    is_up: bool,
    mac: [u8; 6],
    /// The pairs of queues, at least one.
    pairs: Vec<Pair>,
    /// The queue for commands, and memory for a command and its acknowledgement.
    control: Option<Virtqueue>,
    commands: Dma,
}

/// A queue for each direction.
struct Pair {
    receive: Lane<RxFrame>,
    transmit: Lane<TxFrame>,
    /// Whether the device is to interrupt after it has sent a frame.
    tx_interrupt: bool,
}

/// A virtqueue and its frames, indexed by the number of their pair of descriptors.
struct Lane<F> {
    queue: Virtqueue,
    /// A header for each frame.
    headers: Dma,
    frames: [Option<F>; MOST],
    /// Pairs of descriptors without a frame.
    free: [u16; MOST],
    free_count: usize,
}

impl<F> Lane<F> {
    /// Sets up queue `number`, which interrupts with `vector`.
    fn new(transport: &mut Transport, number: u16, vector: u16) -> Result<Lane<F>> {
        let mut queue = transport.queue(number, MOST as u16 * DESCRIPTORS, vector)?;
        let count = usize::from(queue.size() / DESCRIPTORS);
        if count == 0 {
            log::error!("queue {number} has no room for a frame");
            return Err(Refusal::NotFound);
        }
        let headers = Dma::new(MOST * HEADER)?;
        let mut free = [0; MOST];
        for (place, slot) in (0..).zip(free.iter_mut().take(count)) {
            *slot = place;
            let header = headers.address(usize::from(place) * HEADER);
            queue.describe(place * DESCRIPTORS, header, HEADER_BYTES as u32);
        }
        Ok(Lane { queue, headers, frames: [const { None }; MOST], free, free_count: count })
    }

    /// Returns how many frames the device has.
    fn busy(&self) -> usize {
        usize::from(self.queue.size() / DESCRIPTORS) - self.free_count
    }

    /// Returns whether there is room for a frame.
    fn has_room(&self) -> bool {
        self.free_count > 0
    }

    /// Writes the header of the next frame that is put.
    fn say(&mut self, sum: Option<Sum>) {
        let place = self.free_count.checked_sub(1).map_or(0, |index| self.free[index]);
        // Flags; no segmentation; where the sum starts, and its place.
        let words = match sum {
            Some(Sum { start, offset }) => [NEEDS_SUM.into(), u32::from(start) << 16, offset.into()],
            None => [0u32; 3],
        };
        self.headers.write(usize::from(place) * HEADER, words);
    }

    /// Puts a frame at `address` into the queue. `device_writes` says whether the device writes it.
    fn put(&mut self, frame: F, address: u64, len_bytes: usize, device_writes: bool) {
        self.free_count -= 1;
        let place = self.free[self.free_count];
        let (header, data) = (place * DESCRIPTORS, place * DESCRIPTORS + 1);
        self.queue.describe(data, address, len_bytes as u32);
        self.queue.chain([(header, device_writes), (data, device_writes)]);
        self.queue.offer(header);
        self.frames[usize::from(place)] = Some(frame);
    }

    /// Takes the next frame that the device has finished, with its place and the number of bytes
    /// written to it.
    fn take(&mut self) -> Option<(F, u16, usize)> {
        loop {
            let (head, written) = self.queue.take_used()?;
            let place = head / DESCRIPTORS;
            // A descriptor without a frame is skipped.
            if let Some(frame) = self.frames.get_mut(usize::from(place)).and_then(Option::take) {
                self.free[self.free_count] = place;
                self.free_count += 1;
                return Some((frame, place, written.saturating_sub(HEADER_BYTES)));
            }
        }
    }

    /// Shows the device the new frames. Once for a batch, and apart: it is compiled once.
    #[inline(never)]
    fn publish(&mut self, transport: &Transport) {
        self.queue.publish();
        if self.queue.wants_notification() {
            transport.notify(&self.queue);
        }
    }
}

impl Pair {
    /// Sets up pair `index`. A single pair has an interrupt for each direction; of several, each
    /// has one.
    fn new(transport: &mut Transport, index: u16, is_single: bool) -> Result<Pair> {
        let (receive, transmit) = (2 * index, 2 * index + 1);
        let vectors = if is_single { (receive, transmit) } else { (index, index) };
        Ok(Pair {
            receive: Lane::new(transport, receive, vectors.0)?,
            transmit: Lane::new(transport, transmit, vectors.1)?,
            tx_interrupt: true,
        })
    }

    fn reclaim(&mut self, queues: &mut Queues) {
        while let Some((frame, ..)) = self.transmit.take() {
            queues.give_transmitted(frame);
        }
    }
}

impl Device<Nic> for VirtioNet {
    fn init() -> Result<VirtioNet> {
        // 3.1.1: reset, acknowledge, negotiate, set up the queues, start.
        let mut transport = Transport::find()?;
        let has = transport.begin(WANTED)?;
        let config = transport.config()?;
        if has & HAS_MAC == 0 {
            log::error!("the device has no address");
            return Err(Refusal::NotFound);
        }
        let mut mac = [0; 6];
        for (index, byte) in mac.iter_mut().enumerate() {
            *byte = config.read8(index);
        }
        // The control queue is behind all queues that the device has, whether they are used or not.
        let most = if has & HAS_PAIRS != 0 { config.read16(MOST_PAIRS).clamp(1, 0x4000) } else { 1 };
        let has_control = has & HAS_CONTROL != 0;
        let count = if has_control { most.min(MAX_QUEUES as u16) } else { 1 };
        let vectors = if count == 1 { 3 } else { count + 1 };
        transport.ask_for_vectors(vectors.into())?;
        transport.watch_configuration(vectors - 1);
        let mut pairs = Vec::with_capacity(count.into());
        for index in 0..count {
            pairs.push(Pair::new(&mut transport, index, count == 1)?);
        }
        let control = match has_control {
            true => Some(transport.queue(2 * most, DESCRIPTORS, vectors - 1)?),
            false => None,
        };
        log::info!("virtio network device at {}", EthernetAddress(mac));
        let commands = Dma::new(ACKNOWLEDGEMENT + 1)?;
        Ok(VirtioNet { transport, config, has, is_up: true, mac, pairs, control, commands })
    }

    fn info(&self) -> NetInfo {
        let has = |feature: u32| self.has & feature != 0;
        let can_hear = if has(HAS_FILTER) && self.control.is_some() { Hearing::all() } else { Hearing::empty() };
        let mut offload = Offload::empty();
        offload.set(Offload::TX_CHECKSUM, has(HAS_SUMS));
        offload.set(Offload::RX_CHECKSUM, has(HAS_CHECKS));
        NetInfo::new(self.mac).hears(can_hear).longest(FRAME_BYTES).offloads(offload).queues(self.pairs.len())
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        device::enable_dma()?;
        self.transport.finish();
        self.set_hearing(queues);
        if let count @ 2.. = self.pairs.len() {
            self.command(&[PAIRS, SET_PAIRS, count as u8, 0])?;
        }
        let has_status = self.has & HAS_STATUS != 0;
        self.is_up = !has_status || self.config.read16(STATUS) & STATUS_LINK_UP != 0;
        self.refill(queues);
        device::enable_interrupts()
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut reply = Reply::ACKNOWLEDGED;
        if events.contains(Events::INTERRUPT)
            && self.transport.configuration_changed(events)
            && self.has & HAS_STATUS != 0
        {
            // The interrupt may have had another cause, so the status is compared.
            let up = self.config.read16(STATUS) & STATUS_LINK_UP != 0;
            if core::mem::replace(&mut self.is_up, up) != up {
                log::info!("link {}", if up { "up" } else { "down" });
                reply |= if up { Reply::LINK_UP } else { Reply::LINK_DOWN };
            }
        }
        if events.contains(Events::HEARING) {
            self.set_hearing(queues);
        }
        self.send(queues);
        self.receive(queues);
        self.refill(queues);
        reply
    }

    fn exit(&mut self) {
        self.transport.reset();
    }
}

impl VirtioNet {
    /// Tells the device which frames to receive. A device without a filter receives all frames.
    fn set_hearing(&mut self, queues: &Queues) {
        if self.has & HAS_FILTER == 0 || self.control.is_none() {
            return;
        }
        let hearing = queues.hearing();
        // Two tables, each behind its length: no other hosts, and the groups.
        let mut table = [0; 2 + 4 + 4 + 6 * MAX_GROUPS];
        table[..2].copy_from_slice(&[ADDRESSES, SET_TABLE]);
        let (head, addresses) = table.split_at_mut(10);
        let mut count = 0;
        for (place, group) in addresses.chunks_exact_mut(6).zip(queues.groups()) {
            place.copy_from_slice(&group);
            count += 1;
        }
        head[6] = count;
        if self.command(&table[..10 + 6 * usize::from(count)]).is_err() {
            log::warn!("the device lets the groups through that it did");
        }
        for (command, what) in [(PROMISCUOUS, Hearing::PROMISCUOUS), (ALL_MULTICAST, Hearing::ALL_MULTICAST)] {
            if self.command(&[FILTER, command, hearing.contains(what).into()]).is_err() {
                log::warn!("the device filters frames as it did");
            }
        }
    }

    /// Gives the device a command, and waits until the device has carried it out.
    #[inline(never)]
    fn command(&mut self, command: &[u8]) -> Result<()> {
        let Some(control) = &mut self.control else { return Err(Refusal::NotFound) };
        control.want_interrupts(false);
        self.commands.write_bytes(0, command);
        self.commands.write(ACKNOWLEDGEMENT, u8::MAX);
        control.describe(0, self.commands.address(0), command.len() as u32);
        control.describe(1, self.commands.address(ACKNOWLEDGEMENT), 1);
        control.chain([(0, false), (1, true)]);
        control.offer(0);
        control.publish();
        self.transport.notify(control);
        let answered = device::wait_until(LIMIT, || control.take_used().is_some());
        if answered.is_err() || self.commands.read::<u8>(ACKNOWLEDGEMENT) != 0 {
            log::warn!("the device does not carry out command {command:?}");
            return Err(Refusal::NotFound);
        }
        Ok(())
    }

    /// Takes back the sent frames, and hands new frames to the device, with one notification for
    /// each batch and queue.
    fn send(&mut self, queues: &mut Queues) {
        self.reclaim(queues);
        while self.hand_over(queues) {
            self.reclaim(queues);
        }
        for pair in &mut self.pairs {
            // An interrupt is wanted only while sent frames are left to be taken back.
            let left = pair.transmit.busy() > 0;
            if left != pair.tx_interrupt {
                pair.tx_interrupt = left;
                pair.transmit.queue.want_interrupts(left);
            }
            pair.reclaim(queues);
        }
    }

    fn reclaim(&mut self, queues: &mut Queues) {
        self.pairs.iter_mut().for_each(|pair| pair.reclaim(queues));
    }

    /// Hands over as many frames as there is room for. Returns whether there was any frame.
    fn hand_over(&mut self, queues: &mut Queues) -> bool {
        let (mut used, has_sums) = (0u32, self.has & HAS_SUMS != 0);
        // The next frame may be for any of the queues, so that all of them must have room.
        while self.pairs.iter().all(|pair| pair.transmit.has_room())
            && let Some(frame) = queues.take_transmit()
        {
            let index = frame.queue();
            // The kernel names a queue that was declared.
            let Some(pair) = self.pairs.get_mut(index) else {
                queues.give_transmitted(frame);
                continue;
            };
            if has_sums {
                pair.transmit.say(frame.sum());
            }
            let (address, len_bytes) = (queues.tx_address(&frame), frame.len_bytes());
            pair.transmit.put(frame, address, len_bytes, false);
            used |= 1 << index;
        }
        self.publish(used, |pair, transport| pair.transmit.publish(transport));
        used != 0
    }

    /// Shows the device the new frames of the pairs whose bits are set.
    fn publish(&mut self, used: u32, publish: fn(&mut Pair, &Transport)) {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            if used >> index & 1 != 0 {
                publish(pair, &self.transport);
            }
        }
    }

    fn receive(&mut self, queues: &mut Queues) {
        let checks = self.has & HAS_CHECKS != 0;
        for (queue, pair) in self.pairs.iter_mut().enumerate() {
            while let Some((frame, place, len_bytes)) = pair.receive.take() {
                // The length that the device reports may be impossible.
                let len_bytes = if len_bytes > FRAME_BYTES { 0 } else { len_bytes };
                let flags = || pair.receive.headers.read::<u8>(usize::from(place) * HEADER);
                // A frame whose checksum is left open comes from this machine, and is whole.
                let is_checked = checks && flags() & (NEEDS_SUM | IS_VALID) != 0;
                queues.give_received(frame, Received { len_bytes, queue, is_checked });
            }
        }
    }

    /// Gives empty frames to the device, to the queue that has the fewest.
    fn refill(&mut self, queues: &mut Queues) {
        let mut used = 0u32;
        loop {
            let least = self.pairs.iter_mut().enumerate().min_by_key(|(_, pair)| pair.receive.busy());
            let Some((index, pair)) = least.filter(|(_, pair)| pair.receive.has_room()) else { break };
            let Some(frame) = queues.take_empty() else { break };
            let address = queues.rx_address(&frame);
            pair.receive.put(frame, address, FRAME_BYTES, true);
            used |= 1 << index;
        }
        self.publish(used, |pair, transport| pair.receive.publish(transport));
    }
}
