//! A driver's queues as smoltcp sees them. Frames that would harm smoltcp are taken out, and so are
//! frames for the DHCP client.

use super::queues::Queues;
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
    /// The driver's fault, if it committed one.
    pub cause: &'a mut Option<Cause>,
    /// The DHCP client, if the interface has one.
    pub dhcp: Option<&'a mut Client>,
    /// The change that a frame for the DHCP client has caused.
    pub change: &'a mut Option<Change>,
}

/// A received frame: a copy that the driver cannot change any more.
pub struct Received {
    frame: [u8; FRAME_BYTES],
    len_bytes: usize,
}

/// A frame to be sent.
pub struct Sending<'a> {
    queues: &'a mut Queues,
    cause: &'a mut Option<Cause>,
}

impl phy::Device for Adapter<'_> {
    type RxToken<'a>
        = Received
    where
        Self: 'a;
    type TxToken<'a>
        = Sending<'a>
    where
        Self: 'a;

    fn receive(&mut self, now: Instant) -> Option<(Received, Sending<'_>)> {
        // A received frame may need an answer at once, so a frame is taken only if one can be sent.
        self.transmit(now)?;
        let mut received = Received { frame: [0; FRAME_BYTES], len_bytes: 0 };
        loop {
            let is_checked = match self.queues.receive(&mut received.frame) {
                Ok(given) => {
                    let given = given?;
                    received.len_bytes = given.len_bytes;
                    given.is_checked
                }
                Err(cause) => {
                    *self.cause = Some(cause.into());
                    return None;
                }
            };
            let frame = received.frame.get_mut(..received.len_bytes)?;
            if is_checked {
                checksum::remove_udp(frame);
            } else if self.queues.offloads(Offload::RX_CHECKSUM) && !checksum::is_right(frame) {
                continue;
            }
            if let Some(client) = &mut self.dhcp
                && dhcp::is_reply(frame, EthernetAddress(self.queues.mac))
            {
                *self.change = client.receive(now, frame).or(self.change.take());
            } else if is_harmless(frame) {
                return Some((received, Sending { queues: self.queues, cause: self.cause }));
            }
        }
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        match self.queues.can_send() {
            Ok(true) => Some(Sending { queues: self.queues, cause: self.cause }),
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

impl phy::RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.frame.get(..self.len_bytes).unwrap_or(&[]))
    }
}

impl phy::TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len_bytes: usize, f: F) -> R {
        let mut frame = [0; FRAME_BYTES];
        // smoltcp keeps to the size that `capabilities` names.
        let frame = &mut frame[..len_bytes.min(FRAME_BYTES)];
        let result = f(frame);
        // The stack has left the checksum to the card, if the card completes it.
        let sum = if self.queues.offloads(Offload::TX_CHECKSUM) { checksum::prepare(frame) } else { None };
        if let Err(cause) = self.queues.send(frame, sum) {
            *self.cause = Some(cause.into());
        }
        result
    }
}
