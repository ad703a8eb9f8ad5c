//! virtio network device over PCI: *Virtual I/O Device (VIRTIO) Version 1.0*, sections 2.4
//! (virtqueues), 4.1 (PCI) and 5.1 (network device).
//!
//! There is one queue for each direction, and each frame takes two descriptors: the header and the
//! frame itself, which is not copied. The header carries no information here, so all frames of a
//! direction share one.
#![no_std]
#![forbid(unsafe_code)]

use core::time::Duration;
use ringfence_sdk::class::Device;
use ringfence_sdk::device::{self, Mmio};
use ringfence_sdk::dma::Dma;
use ringfence_sdk::net::{FRAME_BYTES, Hearing, NetInfo, Nic, NicDriver, Queues, RxFrame, TxFrame};
use ringfence_sdk::virtio::Transport;
use ringfence_sdk::virtio::queue::Virtqueue;
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Reset, Result, driver};

driver!(
    NicDriver<VirtioNet>,
    Manifest::new("virtio-net", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Nic)
        .pci(&[(0x1af4, 0x1041), (0x1af4, 0x1000)])
        .dma_kib(32)
        .restart()
        .reset(Reset::virtio().within_us(100_000))
);

/// Numbers of the virtqueues (5.1.2), which are also the numbers of their interrupts.
/// `CONFIGURATION` is the interrupt for changes of the configuration.
const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;
const CONFIGURATION: u16 = 2;
/// The largest number of frames in a queue, and the number of descriptors of a frame.
const MOST: usize = 128;
const DESCRIPTORS: u16 = 2;
/// Length of the header in front of each frame (5.1.6), and the offsets of the two headers.
const HEADER_BYTES: usize = 12;
const RX_HEADER: usize = 64;
const TX_HEADER: usize = 0;
/// Offset of a command for the control queue, and of the acknowledgement that the device writes.
const COMMAND: usize = 128;
const ACKNOWLEDGEMENT: usize = COMMAND + 8;
/// Commands that set the receive filter (5.1.6.5.1): a class, the command, on or off.
const TAKE: u8 = 0;
const PROMISCUOUS: u8 = 0;
const ALL_MULTICAST: u8 = 1;
/// The longest time that a command may take.
const LIMIT: Duration = Duration::from_millis(100);

/// Features (5.1.3).
const HAS_MAC: u32 = 1 << 5;
const HAS_STATUS: u32 = 1 << 16;
const HAS_CONTROL: u32 = 1 << 17;
const HAS_FILTER: u32 = 1 << 18;
/// The device's configuration (5.1.4): the Ethernet address, 6 bytes, and the status.
const STATUS: usize = 6;
const STATUS_LINK_UP: u16 = 1;

struct VirtioNet {
    transport: Transport,
    config: Mmio,
    has_status: bool,
    is_up: bool,
    mac: [u8; 6],
    /// Memory for the header that the device reads with each frame to send, which is zero, the
    /// header that it writes with each received frame, and a command with its acknowledgement.
    headers: Dma,
    receive: Lane<RxFrame>,
    transmit: Lane<TxFrame>,
    /// The queue for commands, if the device can be told which frames to filter.
    control: Option<Virtqueue>,
    /// Whether the device is to interrupt after it has sent a frame.
    tx_interrupt: bool,
}

/// A virtqueue and its frames, indexed by the number of their pair of descriptors.
struct Lane<F> {
    queue: Virtqueue,
    frames: [Option<F>; MOST],
    /// Pairs of descriptors without a frame.
    free: [u16; MOST],
    free_count: usize,
}

impl<F> Lane<F> {
    /// Sets up queue `number`. All its frames share the header at `header`.
    fn new(transport: &mut Transport, number: u16, header: u64) -> Result<Lane<F>> {
        let mut queue = transport.queue(number, MOST as u16 * DESCRIPTORS, number)?;
        let count = usize::from(queue.size() / DESCRIPTORS);
        if count == 0 {
            log::error!("queue {number} has no room for a frame");
            return Err(Refusal::NotFound);
        }
        let mut free = [0; MOST];
        for (place, slot) in (0..).zip(free.iter_mut().take(count)) {
            *slot = place;
            queue.describe(place * DESCRIPTORS, header, HEADER_BYTES as u32);
        }
        Ok(Lane { queue, frames: [const { None }; MOST], free, free_count: count })
    }

    /// Returns whether there is room for a frame.
    fn has_room(&self) -> bool {
        self.free_count > 0
    }

    /// Returns whether the device has frames.
    fn is_busy(&self) -> bool {
        self.free_count < usize::from(self.queue.size() / DESCRIPTORS)
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

    /// Takes the next frame that the device has finished, with the number of bytes written to it.
    fn take(&mut self) -> Option<(F, usize)> {
        loop {
            let (head, written) = self.queue.take_used()?;
            let place = head / DESCRIPTORS;
            // A descriptor without a frame is skipped.
            if let Some(frame) = self.frames.get_mut(usize::from(place)).and_then(Option::take) {
                self.free[self.free_count] = place;
                self.free_count += 1;
                return Some((frame, written.saturating_sub(HEADER_BYTES)));
            }
        }
    }

    /// Shows the device the new frames. Once for a batch, and apart: it is compiled once.
    #[inline(never)]
    fn publish(&mut self, transport: &Transport, number: u16) {
        self.queue.publish();
        if self.queue.wants_notification() {
            transport.notify(number);
        }
    }
}

impl Device<Nic> for VirtioNet {
    fn init() -> Result<VirtioNet> {
        // 3.1.1: reset, acknowledge, negotiate, set up the queues, start.
        let mut transport = Transport::find()?;
        let has = transport.begin(HAS_MAC | HAS_STATUS | HAS_CONTROL | HAS_FILTER)?;
        let config = transport.config()?;
        if has & HAS_MAC == 0 {
            log::error!("the device has no address");
            return Err(Refusal::NotFound);
        }
        let mut mac = [0; 6];
        for (index, byte) in mac.iter_mut().enumerate() {
            *byte = config.read8(index);
        }
        transport.ask_for_vectors(3)?;
        transport.watch_configuration(CONFIGURATION);
        let headers = Dma::new(ACKNOWLEDGEMENT + 1)?;
        let receive = Lane::new(&mut transport, RECEIVE, headers.address(RX_HEADER))?;
        let transmit = Lane::new(&mut transport, TRANSMIT, headers.address(TX_HEADER))?;
        let control = match has & HAS_FILTER {
            0 => None,
            _ => Some(transport.queue(CONTROL, DESCRIPTORS, CONFIGURATION)?),
        };
        let [a, b, c, d, e, f] = mac;
        log::info!("virtio network device at {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}");
        Ok(VirtioNet {
            transport,
            config,
            has_status: has & HAS_STATUS != 0,
            is_up: true,
            mac,
            headers,
            receive,
            transmit,
            control,
            tx_interrupt: true,
        })
    }

    fn info(&self) -> NetInfo {
        let can_hear = if self.control.is_some() { Hearing::all() } else { Hearing::empty() };
        NetInfo::new(self.mac).hears(can_hear).longest(FRAME_BYTES)
    }

    fn start(&mut self, queues: &mut Queues) -> Result<()> {
        self.headers.write(TX_HEADER, [0u8; HEADER_BYTES]);
        device::enable_dma()?;
        self.transport.finish();
        self.set_hearing(queues.hearing());
        self.is_up = !self.has_status || self.config.read16(STATUS) & STATUS_LINK_UP != 0;
        self.refill(queues);
        device::enable_interrupts()
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut reply = Reply::ACKNOWLEDGED;
        if events.contains(Events::INTERRUPT) && self.transport.configuration_changed(events) && self.has_status {
            // The interrupt may have had another cause, so the status is compared.
            let up = self.config.read16(STATUS) & STATUS_LINK_UP != 0;
            if core::mem::replace(&mut self.is_up, up) != up {
                log::info!("link {}", if up { "up" } else { "down" });
                reply |= if up { Reply::LINK_UP } else { Reply::LINK_DOWN };
            }
        }
        if events.contains(Events::HEARING) {
            self.set_hearing(queues.hearing());
        }
        self.send(queues);
        while let Some((frame, len_bytes)) = self.receive.take() {
            // The length that the device reports may be impossible.
            queues.give_received(frame, if len_bytes > FRAME_BYTES { 0 } else { len_bytes });
        }
        self.refill(queues);
        reply
    }

    fn exit(&mut self) {
        self.transport.reset();
    }
}

impl VirtioNet {
    /// Tells the device which frames to receive. A device without a filter receives all frames.
    fn set_hearing(&mut self, hearing: Hearing) {
        for (command, what) in [(PROMISCUOUS, Hearing::PROMISCUOUS), (ALL_MULTICAST, Hearing::ALL_MULTICAST)] {
            self.command([TAKE, command, hearing.contains(what).into()]);
        }
    }

    /// Gives the device a command, and waits until the device has carried it out.
    fn command(&mut self, command: [u8; 3]) {
        let Some(control) = &mut self.control else { return };
        control.want_interrupts(false);
        self.headers.write(COMMAND, command);
        control.describe(0, self.headers.address(COMMAND), command.len() as u32);
        control.describe(1, self.headers.address(ACKNOWLEDGEMENT), 1);
        control.chain([(0, false), (1, true)]);
        control.offer(0);
        control.publish();
        self.transport.notify(CONTROL);
        if device::wait_until(LIMIT, || control.take_used().is_some()).is_err() {
            log::warn!("the device does not answer, and filters frames as it did");
        }
    }

    /// Takes back the sent frames, and hands new frames to the device, with one notification for
    /// each batch.
    fn send(&mut self, queues: &mut Queues) {
        self.reclaim(queues);
        while self.hand_over(queues) {
            self.reclaim(queues);
        }
        // An interrupt is wanted only while sent frames are left to be taken back.
        let left = self.transmit.is_busy();
        if left != self.tx_interrupt {
            self.tx_interrupt = left;
            self.transmit.queue.want_interrupts(left);
        }
        self.reclaim(queues);
    }

    /// Hands over as many frames as there is room for. Returns whether there was any frame.
    fn hand_over(&mut self, queues: &mut Queues) -> bool {
        let mut any = false;
        while self.transmit.has_room()
            && let Some(frame) = queues.take_transmit()
        {
            let (address, len_bytes) = (queues.tx_address(&frame), frame.len_bytes());
            self.transmit.put(frame, address, len_bytes, false);
            any = true;
        }
        if any {
            self.transmit.publish(&self.transport, TRANSMIT);
        }
        any
    }

    fn reclaim(&mut self, queues: &mut Queues) {
        while let Some((frame, _)) = self.transmit.take() {
            queues.give_transmitted(frame);
        }
    }

    fn refill(&mut self, queues: &mut Queues) {
        let mut any = false;
        while self.receive.has_room()
            && let Some(frame) = queues.take_empty()
        {
            let address = queues.rx_address(&frame);
            self.receive.put(frame, address, FRAME_BYTES, true);
            any = true;
        }
        if any {
            self.receive.publish(&self.transport, RECEIVE);
        }
    }
}
