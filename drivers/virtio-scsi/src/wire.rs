//! What goes over the queues (VIRTIO 1.0, 5.6.6). All fields little-endian.

use ringfence_sdk::abi::scsi::MAX_CDB;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Offsets into the device's configuration (5.6.4).
pub mod config {
    /// Highest target number.
    pub const MAX_TARGET: usize = 30;
    /// Highest logical unit number.
    pub const MAX_LUN: usize = 32;
}

/// Sense data that the device returns unless told otherwise (5.6.4).
pub const SENSE_BYTES: usize = 96;
/// Length of a request's header in bytes.
pub const REQUEST_BYTES: usize = size_of::<RequestHeader>();
/// Length of a response in bytes.
pub const RESPONSE_BYTES: usize = size_of::<Response>();

/// What the device reads of a request (5.6.6.1).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct RequestHeader {
    lun: [u8; 8],
    id: U64,
    task_attribute: u8,
    priority: u8,
    command_reference: u8,
    cdb: [u8; MAX_CDB],
}
const _: () = assert!(REQUEST_BYTES == 51 && RESPONSE_BYTES == 108);

impl RequestHeader {
    /// A simple task for logical unit `lun` of `target`, addressed as 5.6.6.1 says.
    pub fn new(target: u8, lun: u16, id: u64, cdb: &[u8; MAX_CDB]) -> RequestHeader {
        let [high, low] = (lun & 0x3fff | 0x4000).to_be_bytes();
        RequestHeader {
            lun: [1, target, high, low, 0, 0, 0, 0],
            id: U64::new(id),
            task_attribute: 0,
            priority: 0,
            command_reference: 0,
            cdb: *cdb,
        }
    }
}

/// What the device writes of a request.
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
pub struct Response {
    /// Length of the sense data in bytes.
    pub sense_len: U32,
    /// Bytes that were not moved.
    pub residual: U32,
    /// Status qualifier.
    pub status_qualifier: U16,
    /// SCSI status.
    pub status: u8,
    /// One of [`response`].
    pub response: u8,
    /// Sense data.
    pub sense: [u8; SENSE_BYTES],
}

/// What became of a request.
pub mod response {
    /// It reached the device.
    pub const OK: u8 = 0;
    /// It was aborted.
    pub const ABORTED: u8 = 2;
    /// There is no such target.
    pub const BAD_TARGET: u8 = 3;
    /// The device was reset.
    pub const RESET: u8 = 4;
    /// There is no such logical unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// Features (5.6.3): the device says when units come and go, and when they change.
pub mod features {
    /// VIRTIO_SCSI_F_HOTPLUG.
    pub const HOTPLUG: u32 = 1 << 1;
    /// VIRTIO_SCSI_F_CHANGE.
    pub const CHANGE: u32 = 1 << 2;
}

/// Kinds of events (5.6.6.3).
pub mod event {
    /// A bit beside the kind: others before were lost.
    pub const MISSED: u32 = 1 << 31;
    /// A unit came, went, or was reset.
    pub const TRANSPORT_RESET: u32 = 1;
    /// Something of a unit changed, its capacity say.
    pub const CHANGE: u32 = 3;
}

/// What the device puts into the event queue (5.6.6.3).
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
pub struct Event {
    /// What happened.
    pub event: U32,
    /// To which unit.
    pub lun: [u8; 8],
    /// Why.
    pub reason: U32,
}
