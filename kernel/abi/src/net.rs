//! The memory that a network driver shares with the kernel: four rings of frame numbers, and the
//! frames themselves in DMA memory.
//!
//! A ring's entry is a frame number in its low half and a length in bytes in its high half. A frame
//! belongs to one side at a time. The kernel lends transmit frames through `transmit` and gets them
//! back through `transmitted`. It lends receive frames through `empty` and gets them back, filled,
//! through `received`.

use crate::queue::Place;
use bitflags::bitflags;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Length of a frame's buffer in bytes: a multiple of the buffer lengths that the 82540EM and its
/// relatives can be set to.
pub const FRAME_BYTES: usize = 2048;
/// Longest Ethernet frame without its check sequence (IEEE 802.3, 3.2.7). A driver may say that its
/// card takes longer ones ([`NetInfo::max_frame`]).
pub const MAX_FRAME: usize = 1514;
/// Shortest frame allowed on a wire, without its check sequence (IEEE 802.3, 3.2.7). The kernel
/// also hands out shorter frames, as many cards pad them.
pub const MIN_FRAME: usize = 60;
/// Frames for transmission, numbered from 0.
pub const TX_FRAMES: usize = 64;
/// Frames for reception, numbered from 0: enough for the full segments of two TCP windows of
/// 64 KiB.
pub const RX_FRAMES: usize = 128;

/// Frames to send: kernel to driver.
pub const TRANSMIT: Place = Place::new(8, TX_FRAMES);
/// Frames that were sent: driver to kernel.
pub const TRANSMITTED: Place = Place::new(TRANSMIT.end(), TX_FRAMES);
/// Frames to be filled: kernel to driver.
pub const EMPTY: Place = Place::new(TRANSMITTED.end(), RX_FRAMES);
/// Frames that were filled: driver to kernel.
pub const RECEIVED: Place = Place::new(EMPTY.end(), RX_FRAMES);

/// Word of the queue memory that holds the address of transmit frame 0 as the device sees it; the
/// other transmit frames follow frame 0.
pub const TX_ADDRESS: usize = 0;
/// Word of the queue memory that holds the address of receive frame 0 as the device sees it; the
/// other receive frames follow frame 0.
pub const RX_ADDRESS: usize = 1;
/// Word of the queue memory that holds the address of transmit frame 0 as the driver sees it; the
/// other transmit frames follow frame 0.
pub const TX_START: usize = 2;
/// Word of the queue memory that holds the address of receive frame 0 as the driver sees it; the
/// other receive frames follow frame 0.
pub const RX_START: usize = 3;
/// First of the words of the queue memory in which a driver counts lost and damaged frames: one
/// word for each [`Counter`].
pub const COUNTERS: usize = 4;

/// The counters of a network driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    /// Frames that the card had no room for.
    RxMissed = 0,
    /// Frames that were received damaged.
    RxErrors = 1,
    /// Frames that were not sent.
    TxErrors = 2,
    /// Collisions.
    Collisions = 3,
}

/// How many counters there are.
pub const COUNTER_COUNT: usize = 4;
const _: () = assert!(COUNTERS + COUNTER_COUNT <= TRANSMIT.base);

/// Word of the queue memory in which the kernel requests additional frames: [`Hearing`].
pub const HEARING: usize = RECEIVED.end();

/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (HEARING + 1) * 8;

bitflags! {
    /// The frames that a card receives besides those to its own address and to the broadcast
    /// address.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Hearing: u16 {
        /// Frames to any address.
        const PROMISCUOUS = 1 << 0;
        /// Frames to all groups (IEEE 802.3, 3.2.3: the first bit of an address tells whether it is
        /// a group address).
        const ALL_MULTICAST = 1 << 1;
    }
}

/// The description of a network interface that its driver passes to `rf_offer`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct NetInfo {
    /// The card's Ethernet address.
    pub mac: [u8; 6],
    /// Additional frames that the card can be set to receive, as bits of [`Hearing`].
    pub can_hear: u16,
    /// The longest frame that the card sends and receives, in bytes without the check sequence:
    /// from [`MAX_FRAME`] to [`FRAME_BYTES`], or 0 for [`MAX_FRAME`].
    pub max_frame: u16,
    /// Must be zero.
    pub reserved: [u16; 3],
}

impl NetInfo {
    /// Describes an interface with this Ethernet address.
    pub const fn new(mac: [u8; 6]) -> NetInfo {
        NetInfo { mac, can_hear: 0, max_frame: 0, reserved: [0; 3] }
    }

    /// Adds the frames that the card can be set to receive.
    pub const fn hears(self, can_hear: Hearing) -> NetInfo {
        NetInfo { can_hear: can_hear.bits(), ..self }
    }

    /// The same of a card that takes frames of up to `max_frame` bytes, at most [`FRAME_BYTES`].
    pub const fn longest(self, max_frame: usize) -> NetInfo {
        // What does not fit is too long, and refused.
        let max_frame = if max_frame < u16::MAX as usize { max_frame as u16 } else { u16::MAX };
        NetInfo { max_frame, ..self }
    }
}

/// Makes a ring entry for `len_bytes` bytes in frame `frame`.
pub const fn entry(frame: u32, len_bytes: u32) -> u64 {
    frame as u64 | (len_bytes as u64) << 32
}

/// Splits a ring entry into frame number and length in bytes.
pub const fn split(entry: u64) -> (u32, u32) {
    (entry as u32, (entry >> 32) as u32)
}
