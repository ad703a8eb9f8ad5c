//! virtio SCSI host over PCI: *Virtual I/O Device (VIRTIO) Version 1.0*, sections 2.4 (virtqueues),
//! 4.1 (PCI) and 5.6 (SCSI host).
//!
//! There are up to four request queues, one for each group of units, so that a slow unit holds up
//! only its own group. Each has three fixed descriptors for each request that the kernel can have
//! under way. The control queue is for resets, and the driver reports the event queue's events to
//! the kernel.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod wire;

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use ringfence_sdk::class::Device;
use ringfence_sdk::device;
use ringfence_sdk::dma::Dma;
use ringfence_sdk::scsi::{
    CAN_RESET_LOGICAL_UNIT, DIRECTION_IN, DIRECTION_OUT, FUNCTION_COMMAND, HOST_ABORTED, HOST_ERROR, HOST_NO_DEVICE,
    HOST_OK, HOST_RESET, MAX_SENSE, Outcome, Queues, REQUESTS, Request, Scsi, ScsiDriver, ScsiInfo, Ticket,
};
use ringfence_sdk::virtio::Transport;
use ringfence_sdk::virtio::queue::Virtqueue;
use ringfence_sdk::{Events, Kind, Manifest, Refusal, Reply, Reset, Result, driver};
use wire::{
    Event, FUNCTION_BYTES, Function, REQUEST_BYTES, RESPONSE_BYTES, RESPONSE_HEAD_BYTES, RequestHeader, Response,
    event, features, response,
};
use zerocopy::IntoBytes;

driver!(
    ScsiDriver<VirtioScsi>,
    Manifest::new("virtio-scsi", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Scsi)
        .pci(&[(0x1af4, 0x1048), (0x1af4, 0x1004)])
        .dma_kib(64)
        .restart()
        .reset(Reset::virtio().within_us(100_000))
);

/// Numbers of the virtqueues (5.6.2).
const CONTROL_QUEUE: u16 = 0;
const EVENT_QUEUE: u16 = 1;
const REQUEST_QUEUE: u16 = 2;
/// The most request queues that are used; the first of them has number [`REQUEST_QUEUE`].
const MOST_QUEUES: u32 = 4;
/// Interrupts of the device's own, if it can have them: one for requests, and one for the rest.
const VECTORS: u64 = 2;
const REQUEST_VECTOR: u16 = 0;
const OTHER_VECTOR: u16 = 1;
/// Descriptors for one request: header, response, data.
const DESCRIPTORS: u16 = 3;
/// Number of events that can be pending.
const EVENTS: u16 = 8;
/// The header and the response of each request have cache lines of their own.
const SLOT_BYTES: usize = 256;
const RESPONSE_OFFSET: usize = 64;
const _: () = assert!(REQUEST_BYTES <= RESPONSE_OFFSET && RESPONSE_OFFSET + RESPONSE_BYTES <= SLOT_BYTES);

struct VirtioScsi {
    transport: Transport,
    requests: Vec<Virtqueue>,
    control: Virtqueue,
    events: Virtqueue,
    /// Headers and responses.
    slots: Dma,
    /// Buffers into which the device writes events.
    event_buffers: Dma,
    /// The requests that the device has, by their number.
    under_way: [Option<Ticket>; REQUESTS],
    /// The reset of a logical unit that the device has, and its memory.
    reset: Option<Ticket>,
    function: Dma,
    info: ScsiInfo,
}

impl Device<Scsi> for VirtioScsi {
    fn init() -> Result<VirtioScsi> {
        // 3.1.1: reset, acknowledge, negotiate, set up the queues, start.
        let mut transport = Transport::find()?;
        transport.begin(features::HOTPLUG | features::CHANGE)?;
        let config = transport.config()?;
        let limit = |offset, most: u32| config.read32(offset).min(most);
        transport.ask_for_vectors(VECTORS)?;
        let size = (REQUESTS as u16 * DESCRIPTORS).next_power_of_two();
        let count = limit(wire::config::QUEUES, MOST_QUEUES).max(1) as u16;
        let mut requests = Vec::with_capacity(count.into());
        for index in 0..count {
            requests.push(transport.queue(REQUEST_QUEUE + index, size, REQUEST_VECTOR)?);
        }
        // A device with a smaller queue has fewer requests in flight.
        let descriptors = requests.iter().map(Virtqueue::size).min().unwrap_or(0);
        let depth = usize::from(descriptors / DESCRIPTORS).min(REQUESTS);
        if depth == 0 {
            log::error!("a request queue has only {descriptors} descriptors");
            return Err(Refusal::NotFound);
        }
        let info = ScsiInfo {
            max_targets: u32::from(config.read16(wire::config::MAX_TARGET)).min(255) + 1,
            max_luns: limit(wire::config::MAX_LUN, 255) + 1,
            queue_depth: depth as u32,
            // Not ABORT TASK: QEMU 10.0 waits for ever for a lock that it holds when it gets that
            // for a request under way.
            functions: CAN_RESET_LOGICAL_UNIT,
        };
        let control = transport.queue(CONTROL_QUEUE, 2, OTHER_VECTOR)?;
        let events = transport.queue(EVENT_QUEUE, EVENTS, OTHER_VECTOR)?;
        let slots = Dma::new(REQUESTS * SLOT_BYTES)?;
        let event_buffers = Dma::new(usize::from(EVENTS) * size_of::<Event>())?;
        let mut host = VirtioScsi {
            transport,
            requests,
            control,
            events,
            slots,
            event_buffers,
            under_way: [const { None }; REQUESTS],
            reset: None,
            function: Dma::new(FUNCTION_BYTES + 1)?,
            info,
        };
        host.describe_slots();
        device::enable_dma()?;
        host.transport.finish();
        for index in 0..host.events.size() {
            host.offer_event_buffer(index);
        }
        host.transport.notify(&host.events);
        device::enable_interrupts()?;
        let queues = if count > 1 { format!(" in {count} queues") } else { String::new() };
        log::info!("{} targets, {} requests at once{queues}", host.info.max_targets, host.info.queue_depth);
        Ok(host)
    }

    fn info(&self) -> ScsiInfo {
        self.info
    }

    fn poll(&mut self, events: Events, queues: &mut Queues) -> Reply {
        let mut reply = Reply::ACKNOWLEDGED;
        if events.contains(Events::INTERRUPT) {
            // 4.1.4.5: reading the status lowers the line.
            self.transport.acknowledge();
            if self.transport.has_fired(events, OTHER_VECTOR) && self.take_events() {
                reply |= Reply::UNITS_CHANGED;
            }
        }
        let mut submitted = 0u32;
        for (ticket, request) in queues.take_all() {
            if request.function == FUNCTION_COMMAND {
                submitted |= 1 << self.submit(ticket, &request);
            } else {
                self.begin_reset(ticket, request.target as u8, request.lun);
            }
        }
        for (index, requests) in (0..).zip(&mut self.requests) {
            if submitted >> index & 1 != 0 {
                requests.publish();
                if requests.wants_notification() {
                    self.transport.notify(requests);
                }
            }
        }
        // The device completes a task management function behind the requests that it is about. To
        // keep that order, the control queue is read first, and completed last.
        let reset = if self.reset.is_some() { self.take_reset() } else { None };
        let mut completing = queues.completing();
        for requests in &mut self.requests {
            while let Some((head, _)) = requests.take_used() {
                let number = usize::from(head / DESCRIPTORS);
                let Some(ticket) = self.under_way.get_mut(number).and_then(Option::take) else { continue };
                let response = Response::from(self.slots.read::<[u32; _]>(response_at(number)));
                match response.sense_len {
                    0 => completing.complete(ticket, &outcome(&response)),
                    _ => completing.complete(ticket, &with_sense(&response, &self.slots, number)),
                }
            }
        }
        if let Some((ticket, outcome)) = reset {
            completing.complete(ticket, &outcome);
        }
        reply
    }

    fn exit(&mut self) {
        self.transport.reset();
    }
}

/// Returns where the response to request `number` begins in the slots.
fn response_at(number: usize) -> usize {
    number * SLOT_BYTES + RESPONSE_OFFSET
}

/// Returns the outcome of a request without sense data.
#[inline]
fn outcome(response: &Response) -> Outcome {
    let host = match response.response {
        response::OK => HOST_OK,
        response::BAD_TARGET | response::INCORRECT_LUN => HOST_NO_DEVICE,
        response::RESET => HOST_RESET,
        response::ABORTED => HOST_ABORTED,
        _ => HOST_ERROR,
    };
    Outcome { host, ..Outcome::answered(response.status, response.residual) }
}

/// The same with the sense data of request `number`.
#[cold]
fn with_sense(response: &Response, slots: &Dma, number: usize) -> Outcome {
    let mut sense = [0; MAX_SENSE];
    slots.read_bytes(response_at(number) + RESPONSE_HEAD_BYTES, &mut sense);
    outcome(response).with_sense(sense.get(..response.sense_len as usize).unwrap_or(&sense))
}

impl VirtioScsi {
    /// Writes the constant part of the descriptors: the addresses of each request's header and
    /// response.
    fn describe_slots(&mut self) {
        for requests in &mut self.requests {
            for number in 0..self.info.queue_depth as u16 {
                let slot = usize::from(number) * SLOT_BYTES;
                let head = number * DESCRIPTORS;
                requests.describe(head, self.slots.address(slot), REQUEST_BYTES as u32);
                requests.describe(head + 1, self.slots.address(slot + RESPONSE_OFFSET), RESPONSE_BYTES as u32);
            }
        }
    }

    /// Puts a command into the queue of its unit. Returns the queue's index.
    fn submit(&mut self, ticket: Ticket, request: &Request) -> usize {
        // A device has at least one queue.
        let index = (request.target as usize + usize::from(request.lun)) % self.requests.len().max(1);
        let requests = &mut self.requests[index];
        let number = ticket.number();
        let slot = number * SLOT_BYTES;
        let header = RequestHeader::new(request.target as u8, request.lun, number as u64, &request.cdb);
        self.slots.write_bytes(slot, header.as_bytes());
        // 2.4.4.2: buffers that the device reads come before buffers that it writes.
        let head = number as u16 * DESCRIPTORS;
        let (response, data) = (head + 1, head + 2);
        requests.describe(data, request.data_address, request.data_len);
        match request.direction {
            DIRECTION_OUT => requests.chain([(head, false), (data, false), (response, true)]),
            DIRECTION_IN => requests.chain([(head, false), (response, true), (data, true)]),
            _ => requests.chain([(head, false), (response, true)]),
        }
        requests.offer(head);
        self.under_way[number] = Some(ticket);
        index
    }

    /// Begins the reset of a logical unit.
    #[cold]
    fn begin_reset(&mut self, ticket: Ticket, target: u8, lun: u16) {
        self.function.write_bytes(0, Function::reset(target, lun).as_bytes());
        self.control.describe(0, self.function.address(0), FUNCTION_BYTES as u32);
        self.control.describe(1, self.function.address(FUNCTION_BYTES), 1);
        self.control.chain([(0, false), (1, true)]);
        self.control.offer(0);
        self.control.publish();
        self.transport.notify(&self.control);
        self.reset = Some(ticket);
    }

    /// Returns the reset, if the device has completed it, with its outcome.
    #[cold]
    fn take_reset(&mut self) -> Option<(Ticket, Outcome)> {
        self.control.take_used()?;
        let ticket = self.reset.take()?;
        let host = match self.function.read(FUNCTION_BYTES) {
            response::OK | response::SUCCEEDED => HOST_OK,
            response::BAD_TARGET | response::INCORRECT_LUN => HOST_NO_DEVICE,
            _ => HOST_ERROR,
        };
        Some((ticket, Outcome::failed(host)))
    }

    fn offer_event_buffer(&mut self, index: u16) {
        let offset = usize::from(index) * size_of::<Event>();
        self.events.describe(index, self.event_buffers.address(offset), size_of::<Event>() as u32);
        self.events.chain([(index, true)]);
        self.events.offer(index);
        self.events.publish();
    }

    /// Takes the events from the queue. Returns whether units may have come, gone or changed.
    fn take_events(&mut self) -> bool {
        let mut changed = false;
        while let Some((index, _)) = self.events.take_used() {
            let index = index % EVENTS;
            let event: Event = self.event_buffers.read(usize::from(index) * size_of::<Event>());
            let kind = event.event.get();
            // 5.6.6.3: the events that were missed may have been of any kind.
            changed |=
                kind & event::MISSED != 0 || [event::TRANSPORT_RESET, event::CHANGE].contains(&(kind & !event::MISSED));
            log::info!("event {kind:#x} of target {}, reason {:#x}", event.lun[1], event.reason.get());
            self.offer_event_buffer(index);
            self.transport.notify(&self.events);
        }
        changed
    }
}
