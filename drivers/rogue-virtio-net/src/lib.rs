//! Has a virtio network device access memory that does not belong to its driver: `tell
//! rogue-virtio-net VERB ADDRESS`. The queues are the driver's own; the addresses in their
//! descriptors are not (VIRTIO 1.0, 2.4.5).
#![no_std]
#![forbid(unsafe_code)]

use core::time::Duration;
use ringfence_sdk::device;
use ringfence_sdk::dma::Dma;
use ringfence_sdk::virtio::Transport;
use ringfence_sdk::virtio::queue::Virtqueue;
use ringfence_sdk::{Driver, Kind, Manifest, Refusal, Reset, Result, driver, number};

driver!(
    RogueVirtioNet,
    Manifest::new("rogue-virtio-net", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Other)
        .by_hand()
        .pci(&[(0x1af4, 0x1041), (0x1af4, 0x1000)])
        .dma_kib(32)
        .reset(Reset::virtio().within_us(100_000))
);

/// The queues for frames to send, and for commands (5.1.2).
const TRANSMIT: u16 = 1;
const CONTROL: u16 = 2;
/// The features of a control queue that sets filters (5.1.3).
const HAS_CONTROL: u32 = 1 << 17 | 1 << 18;
/// Length of the header in front of a frame, and of a frame, in bytes.
const HEADER: u32 = 12;
const FRAME: u32 = 64;
/// A command that changes nothing: the receive filter is as it was, off (5.1.6.5.1).
const COMMAND: [u8; 3] = [0, 0, 0];
/// The longest that the device may take.
const LIMIT: Duration = Duration::from_secs(10);

struct RogueVirtioNet {
    transport: Transport,
    transmit: Virtqueue,
    control: Virtqueue,
    own: Dma,
}

impl Driver for RogueVirtioNet {
    fn init() -> Result<RogueVirtioNet> {
        let mut transport = Transport::find()?;
        if transport.begin(HAS_CONTROL)? != HAS_CONTROL {
            return Err(Refusal::NotFound);
        }
        let (transmit, control) = (transport.queue(TRANSMIT, 4, 0)?, transport.queue(CONTROL, 4, 0)?);
        let own = Dma::new((HEADER + FRAME) as usize)?;
        device::enable_dma()?;
        transport.finish();
        Ok(RogueVirtioNet { transport, transmit, control, own })
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, address) = text.split_once(' ').ok_or(Refusal::NotFound)?;
        let address = number(address)?;
        let own = self.own.address(0);
        let (number, [first, second], device_writes) = match verb {
            "send" => (TRANSMIT, [(own, HEADER), (address, FRAME)], false),
            "header" => (TRANSMIT, [(address, HEADER), (own, FRAME)], false),
            "acknowledge" => (CONTROL, [(own, COMMAND.len() as u32), (address, 1)], true),
            _ => return Err(Refusal::NotFound),
        };
        let queue = if number == TRANSMIT { &mut self.transmit } else { &mut self.control };
        self.own.write_bytes(0, &COMMAND);
        queue.describe(0, first.0, first.1);
        queue.describe(1, second.0, second.1);
        queue.chain([(0, false), (1, device_writes)]);
        queue.offer(0);
        queue.publish();
        self.transport.notify(queue);
        // The device works when its host gets to it, so the driver waits for it: the device's work
        // is part of the command.
        let transport = &self.transport;
        device::wait_until(LIMIT, || queue.take_used().is_some() || transport.needs_reset())?;
        Ok(0)
    }

    fn exit(&mut self) {
        self.transport.reset();
    }
}
