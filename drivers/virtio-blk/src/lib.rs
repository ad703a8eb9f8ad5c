//! virtio block device over PCI: *Virtual I/O Device (VIRTIO) Version 1.0*, sections 2.4
//! (virtqueues), 4.1 (PCI) and 5.2 (block device).
//!
//! There is one request queue, with three fixed descriptors for each request that the kernel can
//! have in flight: header, data, status.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_OK, BLOCK_READ_ONLY, BLOCK_REQUESTS, BLOCK_UNSUPPORTED, BLOCK_WRITE, Block,
    BlockDriver, BlockInfo, BlockRequest, Queues, Ticket,
};
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::dma::Dma;
use ringfence_sdk::virtio::Transport;
use ringfence_sdk::virtio::queue::Virtqueue;
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Reset, Result, driver};

driver!(
    BlockDriver<VirtioBlk>,
    Manifest::new("virtio-blk", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Block)
        .pci(&[(0x1af4, 0x1042), (0x1af4, 0x1001)])
        .dma_kib(32)
        .restart()
        .reset(Reset::virtio().within_us(100_000))
);

/// Number of the virtqueue (5.2.2), and of the queue's own interrupt, if the device can have one.
const REQUEST_QUEUE: u16 = 0;
const REQUEST_VECTOR: u16 = 0;
/// Descriptors for one request: header, status, data.
const DESCRIPTORS: u16 = 3;
/// The header and the status of each request have a cache line of their own.
const SLOT_BYTES: usize = 64;
/// The header (5.2.6): type, reserved, sector. The status byte follows in the same slot.
const HEADER_BYTES: usize = 16;
const STATUS_OFFSET: usize = 32;
/// The unit of the sector in a header and of the capacity, for blocks of any length (5.2.4).
const SECTOR_BYTES: u64 = 512;

/// Features (5.2.3).
mod features {
    pub const READ_ONLY: u32 = 1 << 5;
    pub const BLOCK_SIZE: u32 = 1 << 6;
    pub const FLUSH: u32 = 1 << 9;
}

/// Offsets into the device's configuration (5.2.4).
mod config {
    pub const CAPACITY: usize = 0;
    pub const BLOCK_SIZE: usize = 20;
}

/// Types of requests, and results of a request (5.2.6).
mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
}
mod status {
    pub const OK: u8 = 0;
    pub const UNSUPPORTED: u8 = 2;
    /// The status byte's value before the device writes it.
    pub const NONE: u8 = 0xff;
}

struct VirtioBlk {
    transport: Transport,
    requests: Virtqueue,
    /// Headers and status bytes.
    slots: Dma,
    /// The requests that the device has, by their number.
    under_way: [Option<Ticket>; BLOCK_REQUESTS],
    info: BlockInfo,
    /// Whether the device has a cache to flush.
    flushes: bool,
}

impl Device<Block> for VirtioBlk {
    fn init() -> Result<VirtioBlk> {
        // 3.1.1: reset, acknowledge, negotiate, set up the queues, start.
        let mut transport = Transport::find()?;
        let has = transport.begin(features::READ_ONLY | features::BLOCK_SIZE | features::FLUSH)?;
        let config = transport.config()?;
        let block_bytes = match has & features::BLOCK_SIZE {
            0 => SECTOR_BYTES as u32,
            _ => config.read32(config::BLOCK_SIZE),
        };
        if !block_bytes.is_power_of_two() || u64::from(block_bytes) < SECTOR_BYTES {
            log::error!("blocks of {block_bytes} bytes are not supported");
            return Err(Refusal::Invalid);
        }
        let sectors = u64::from(config.read32(config::CAPACITY)) | u64::from(config.read32(config::CAPACITY + 4)) << 32;
        transport.ask_for_vectors(1)?;
        let size = (BLOCK_REQUESTS as u16 * DESCRIPTORS).next_power_of_two();
        let requests = transport.queue(REQUEST_QUEUE, size, REQUEST_VECTOR)?;
        // A device with a smaller queue has fewer requests in flight.
        let depth = usize::from(requests.size() / DESCRIPTORS).min(BLOCK_REQUESTS);
        if depth == 0 {
            log::error!("the request queue has only {} descriptors", requests.size());
            return Err(Refusal::NotFound);
        }
        let mut model = [0; 24];
        model.iter_mut().zip(b"virtio block device").for_each(|(to, from)| *to = *from);
        let info = BlockInfo {
            blocks: sectors / (u64::from(block_bytes) / SECTOR_BYTES),
            block_bytes,
            queue_depth: depth as u32,
            flags: if has & features::READ_ONLY != 0 { BLOCK_READ_ONLY } else { 0 },
            reserved: 0,
            model,
        };
        let slots = Dma::new(BLOCK_REQUESTS * SLOT_BYTES)?;
        let under_way = [const { None }; BLOCK_REQUESTS];
        let flushes = has & features::FLUSH != 0;
        let mut disk = VirtioBlk { transport, requests, slots, under_way, info, flushes };
        disk.describe_slots();
        device::enable_dma()?;
        disk.transport.finish();
        device::enable_interrupts()?;
        log::info!("{} blocks of {block_bytes} bytes, {depth} requests at once", info.blocks);
        Ok(disk)
    }

    fn info(&self) -> BlockInfo {
        self.info
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        if events.contains(Events::INTERRUPT) {
            // 4.1.4.5: reading the status lowers the line.
            self.transport.acknowledge();
        }
        while let Some((head, _)) = self.requests.take_used() {
            let number = usize::from(head / DESCRIPTORS);
            if let Some(ticket) = self.under_way.get_mut(number).and_then(Option::take) {
                queues.complete(ticket, &self.status(number));
            }
        }
        let mut submitted = false;
        while let Some((ticket, request)) = queues.take() {
            match request.operation {
                BLOCK_FLUSH if !self.flushes => queues.complete(ticket, &BLOCK_OK),
                _ => {
                    self.submit(ticket, &request);
                    submitted = true;
                }
            }
        }
        if submitted {
            self.requests.publish();
            if self.requests.wants_notification() {
                self.transport.notify(&self.requests);
            }
        }
        Reply::ACKNOWLEDGED
    }

    fn exit(&mut self) {
        self.transport.reset();
    }
}

impl VirtioBlk {
    /// Writes the constant part of the descriptors: the addresses of each request's header and
    /// status.
    fn describe_slots(&mut self) {
        let (requests, slots) = (&mut self.requests, &self.slots);
        for number in 0..self.info.queue_depth as u16 {
            let slot = usize::from(number) * SLOT_BYTES;
            let head = number * DESCRIPTORS;
            requests.describe(head, slots.address(slot), HEADER_BYTES as u32);
            requests.describe(head + 1, slots.address(slot + STATUS_OFFSET), 1);
        }
    }

    /// Hands a request to the device. Not inlined: in the loop that calls this function, a jump
    /// would look like an instruction that is refused under QEMU 10 (docs/threat-model.md).
    #[inline(never)]
    fn submit(&mut self, ticket: Ticket, request: &BlockRequest) {
        let number = ticket.number();
        let slot = number * SLOT_BYTES;
        let (kind, sector) = match request.operation {
            BLOCK_FLUSH => (kind::FLUSH, 0),
            BLOCK_WRITE => (kind::OUT, request.lba * (u64::from(self.info.block_bytes) / SECTOR_BYTES)),
            _ => (kind::IN, request.lba * (u64::from(self.info.block_bytes) / SECTOR_BYTES)),
        };
        self.slots.write(slot, kind);
        self.slots.write(slot + 4, 0_u32);
        self.slots.write(slot + 8, sector);
        self.slots.write(slot + STATUS_OFFSET, status::NONE);
        // 2.4.4.2: buffers that the device reads come before buffers that it writes.
        let head = number as u16 * DESCRIPTORS;
        let (status, data) = (head + 1, head + 2);
        self.requests.describe(data, request.data_address, request.data_len);
        match kind {
            kind::OUT => self.requests.chain([(head, false), (data, false), (status, true)]),
            kind::IN => self.requests.chain([(head, false), (data, true), (status, true)]),
            _ => self.requests.chain([(head, false), (status, true)]),
        }
        self.requests.offer(head);
        self.under_way[number] = Some(ticket);
    }

    fn status(&self, number: usize) -> u32 {
        match self.slots.read::<u8>(number * SLOT_BYTES + STATUS_OFFSET) {
            status::OK => BLOCK_OK,
            status::UNSUPPORTED => BLOCK_UNSUPPORTED,
            _ => BLOCK_ERROR,
        }
    }
}
