//! A driver's queues as smoltcp sees them. Frames that would harm smoltcp are taken out, and so are
//! frames for the DHCP client.

use super::queues::Queues;
use alloc::boxed::Box;
use host::domain::cause::Cause;
use ringfence_abi::net::{FRAME_BYTES, Offload};
use ringfence_core::checksum;
use ringfence_core::dhcp::{self, Change, Client};
use ringfence_core::servers::is_harmless;
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use smoltcp::wire::EthernetAddress;

/// Bytes of an Ethernet header, which the MTU does not count (RFC 894).
pub const ETHERNET_HEADER: usize = 14;

/// A driver's queues, for one turn of the stack.
pub struct Adapter<'a> {
    /// The longest IP packet that is sent, in bytes.
    pub mtu: usize,
    pub queues: &'a mut Queues,
    /// Room for a received frame, and for a sent frame.
    pub room: &'a mut Room,
    /// The driver's fault, if it committed one.
    pub cause: &'a mut Option<Cause>,
    /// The DHCP client, if the interface has one.
    pub dhcp: Option<&'a mut Client>,
    /// The change that a frame for the DHCP client has caused.
    pub change: &'a mut Option<Change>,
}

/// Copies of frames, which the driver cannot change. They are kept for the next frames: to make new
/// ones would cost as much as the frames.
pub struct Room {
    received: [u8; FRAME_BYTES],
    sent: [u8; FRAME_BYTES],
}

impl Room {
    pub fn new() -> Box<Room> {
        Box::new(Room { received: [0; FRAME_BYTES], sent: [0; FRAME_BYTES] })
    }
}

/// A received frame.
pub struct Received<'a>(&'a [u8]);

/// A frame to be sent.
pub struct Sending<'a> {
    queues: &'a mut Queues,
    room: &'a mut [u8; FRAME_BYTES],
    cause: &'a mut Option<Cause>,
}

impl phy::Device for Adapter<'_> {
    type RxToken<'a>
        = Received<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Received<'_>, Sending<'_>)> {
        // A received frame may need an answer at once, so a frame is taken only if one can be sent.
        self.transmit(now)?;
        let len_bytes = loop {
            let given = match self.queues.receive(&mut self.room.received) {
                Ok(given) => given?,
                Err(cause) => {
                    *self.cause = Some(cause.into());
                    return None;
                }
            };
            let frame = self.room.received.get_mut(..given.len_bytes)?;
            if given.is_checked {
                checksum::remove_udp(frame);
            } else if self.queues.offloads(Offload::RX_CHECKSUM) && !checksum::is_right(frame) {
                continue;
            }
            if let Some(client) = &mut self.dhcp
                && dhcp::is_reply(frame, EthernetAddress(self.queues.mac))
            {
                *self.change = client.receive(now, frame).or(self.change.take());
            } else if is_harmless(frame) {
                break given.len_bytes;
            }
        };
        let Room { received, sent } = self.room;
        Some((Received(received.get(..len_bytes)?), Sending { queues: self.queues, room: sent, cause: self.cause }))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        match self.queues.can_send() {
            Ok(true) => Some(Sending { queues: self.queues, room: &mut self.room.sent, cause: self.cause }),
            Ok(false) => None,
            Err(cause) => {
                *self.cause = Some(cause.into());
                None
            }
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = ETHERNET_HEADER + self.mtu;
        capabilities.checksum = ChecksumCapabilities::default();
        let does = |offload| self.queues.offloads(offload);
        capabilities.checksum.tcp = match (does(Offload::TX_CHECKSUM), does(Offload::RX_CHECKSUM)) {
            (false, false) => Checksum::Both,
            (false, true) => Checksum::Tx,
            (true, false) => Checksum::Rx,
            (true, true) => Checksum::None,
        };
        capabilities
    }
}

impl phy::RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

/// More than the headers of a frame, in bytes. The stack sets their fields one by one.
const HEADERS: usize = 128;

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len_bytes: usize, f: F) -> R {
        // smoltcp keeps to the size that `capabilities` names.
        let frame = &mut self.room[..len_bytes.min(FRAME_BYTES)];
        // Header bytes that the stack does not write must not be of the frame before. It writes all
        // data.
        frame.iter_mut().take(HEADERS).for_each(|byte| *byte = 0);
        let result = f(frame);
        // The stack has left the checksum to the card, if the card completes it.
        let sum = if self.queues.offloads(Offload::TX_CHECKSUM) { checksum::prepare(frame) } else { None };
        if let Err(cause) = self.queues.send(frame, sum) {
            *self.cause = Some(cause.into());
        }
        result
    }
}
