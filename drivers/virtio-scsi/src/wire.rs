//! The structures in the queues (VIRTIO 1.0, 5.6.6). All fields are little-endian.

use ringfence_sdk::abi::scsi::MAX_CDB;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Offsets into the device's configuration (5.6.4).
pub mod config {
    /// Number of request queues.
    pub const QUEUES: usize = 0;
    /// Highest target number.
    pub const MAX_TARGET: usize = 30;
    /// Highest logical unit number.
    pub const MAX_LUN: usize = 32;
}

/// Length of the sense data that the device returns by default (5.6.4).
pub const SENSE_BYTES: usize = 96;
/// Length of a request's header in bytes.
pub const REQUEST_BYTES: usize = size_of::<RequestHeader>();
/// Length of the part of a response before its sense data, and of a whole response, in bytes.
pub const RESPONSE_HEAD_BYTES: usize = 12;
pub const RESPONSE_BYTES: usize = RESPONSE_HEAD_BYTES + SENSE_BYTES;

/// The part of a request that the device reads (5.6.6.1).
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
    /// A simple task for logical unit `lun` of `target`, with an identifier that no other has.
    pub fn new(target: u8, lun: u16, id: u64, cdb: &[u8; MAX_CDB]) -> RequestHeader {
        RequestHeader {
            lun: address(target, lun),
            id: U64::new(id),
            task_attribute: 0,
            priority: 0,
            command_reference: 0,
            cdb: *cdb,
        }
    }
}

/// The part of a task management function that the device reads (5.6.6.2).
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub struct Function {
    kind: U32,
    subtype: U32,
    lun: [u8; 8],
    id: U64,
}
/// Its length in bytes; the response, one byte of [`response`], is behind it.
pub const FUNCTION_BYTES: usize = size_of::<Function>();

impl Function {
    /// LOGICAL UNIT RESET.
    pub fn reset(target: u8, lun: u16) -> Function {
        const TASK_MANAGEMENT: u32 = 0;
        const LOGICAL_UNIT_RESET: u32 = 5;
        let (kind, subtype) = (U32::new(TASK_MANAGEMENT), U32::new(LOGICAL_UNIT_RESET));
        Function { kind, subtype, lun: address(target, lun), id: U64::new(0) }
    }
}

/// Logical unit `lun` of `target`, addressed as 5.6.6.1 says.
fn address(target: u8, lun: u16) -> [u8; 8] {
    let [high, low] = (lun & 0x3fff | 0x4000).to_be_bytes();
    [1, target, high, low, 0, 0, 0, 0]
}

/// The part of a request that the device writes, without the sense data that follows it.
pub struct Response {
    /// Length of the sense data in bytes.
    pub sense_len: u32,
    /// Number of bytes of data that were not transferred.
    pub residual: u32,
    /// SCSI status.
    pub status: u8,
    /// One of [`response`].
    pub response: u8,
}

impl From<[u32; RESPONSE_HEAD_BYTES / 4]> for Response {
    fn from([sense_len, residual, rest]: [u32; RESPONSE_HEAD_BYTES / 4]) -> Response {
        // The two bytes of the status qualifier are ignored.
        let [_, _, status, response] = rest.to_le_bytes();
        Response { sense_len: u32::from_le(sense_len), residual: u32::from_le(residual), status, response }
    }
}

/// Results of a request.
pub mod response {
    /// It reached the device; a function is complete.
    pub const OK: u8 = 0;
    /// The request was aborted.
    pub const ABORTED: u8 = 2;
    /// The target does not exist.
    pub const BAD_TARGET: u8 = 3;
    /// The device was reset.
    pub const RESET: u8 = 4;
    /// A function was carried out.
    pub const SUCCEEDED: u8 = 10;
    /// The logical unit does not exist.
    pub const INCORRECT_LUN: u8 = 12;
}

/// Features (5.6.3): the device reports units that come, go or change.
pub mod features {
    /// VIRTIO_SCSI_F_HOTPLUG.
    pub const HOTPLUG: u32 = 1 << 1;
    /// VIRTIO_SCSI_F_CHANGE.
    pub const CHANGE: u32 = 1 << 2;
}

/// Kinds of events (5.6.6.3).
pub mod event {
    /// A flag in addition to the kind: earlier events were lost.
    pub const MISSED: u32 = 1 << 31;
    /// A unit came, went, or was reset.
    pub const TRANSPORT_RESET: u32 = 1;
    /// A property of a unit changed, for example its capacity.
    pub const CHANGE: u32 = 3;
}

/// An event, as the device puts it into the event queue (5.6.6.3).
#[derive(Clone, Copy, FromBytes)]
#[repr(C)]
pub struct Event {
    /// The kind of event.
    pub event: U32,
    /// The unit to which the event happened.
    pub lun: [u8; 8],
    /// The reason for the event.
    pub reason: U32,
}
