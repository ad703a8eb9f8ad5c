//! The memory that a network driver shares with the kernel: four rings of frame numbers, and the
//! frames themselves in DMA memory.
//!
//! A ring's entry names a frame, its length, the queue of the card, and the card's work on the
//! checksum ([`Entry`]). A frame belongs to one side at a time. The kernel lends transmit frames
//! through `transmit` and gets them back through `transmitted`. It lends receive frames through
//! `empty` and gets them back, filled, through `received`.

use crate::queue::{Place, Ring};
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

/// Declares the type of each ring.
macro_rules! rings {
    ($($place:ident $ring:ident,)*) => {
        $(
            #[doc = concat!("The ring [`", stringify!($place), "`].")]
            pub struct $ring;

            impl Ring for $ring {
                const PLACE: Place = $place;
            }
        )*
    };
}
rings! {
    TRANSMIT Transmit,
    TRANSMITTED Transmitted,
    EMPTY Empty,
    RECEIVED Received,
}

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

/// First of the words of the queue memory in which the kernel lists the groups of
/// [`Hearing::GROUPS`]. A word has a group's Ethernet address, its first byte in the lowest bits,
/// or is 0 behind the last group.
pub const GROUPS: usize = HEARING + 1;
/// The most groups that the kernel lists.
pub const MAX_GROUPS: usize = 8;

/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (GROUPS + MAX_GROUPS) * 8;

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
        /// Frames to the groups that the kernel lists ([`GROUPS`]). A card may hear some others
        /// too, as many filters are hash tables.
        const GROUPS = 1 << 2;
    }
}

bitflags! {
    /// Work on checksums that a card does in place of the kernel.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Offload: u16 {
        /// The card completes the checksum of a frame to send, where [`Entry::sum`] asks for it.
        const TX_CHECKSUM = 1 << 0;
        /// The card checks the TCP or UDP checksum of frames that it receives. The driver says so
        /// of each such frame ([`Entry::is_checked`]); the kernel checks the others.
        const RX_CHECKSUM = 1 << 1;
    }
}

/// The most queues in each direction that a card can use.
pub const MAX_QUEUES: usize = 4;

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
    /// Work that the card does in place of the kernel, as bits of [`Offload`].
    pub offload: u16,
    /// Queues of the card in each direction, up to [`MAX_QUEUES`]; 0 means one.
    pub queues: u16,
    /// Must be zero.
    pub reserved: u16,
}

impl NetInfo {
    /// Describes an interface with this Ethernet address.
    pub const fn new(mac: [u8; 6]) -> NetInfo {
        NetInfo { mac, can_hear: 0, max_frame: 0, offload: 0, queues: 0, reserved: 0 }
    }

    /// Adds the frames that the card can be set to receive.
    pub const fn hears(self, can_hear: Hearing) -> NetInfo {
        NetInfo { can_hear: can_hear.bits(), ..self }
    }

    /// The same of a card that takes frames of up to `max_frame` bytes, at most [`FRAME_BYTES`].
    pub const fn longest(self, max_frame: usize) -> NetInfo {
        // A length that does not fit is too long, and refused.
        let max_frame = if max_frame < u16::MAX as usize { max_frame as u16 } else { u16::MAX };
        NetInfo { max_frame, ..self }
    }

    /// The same of a card that does this work in place of the kernel.
    pub const fn offloads(self, offload: Offload) -> NetInfo {
        NetInfo { offload: offload.bits(), ..self }
    }

    /// The same of a card with `queues` queues in each direction, at most [`MAX_QUEUES`].
    pub const fn queues(self, queues: usize) -> NetInfo {
        let queues = if queues < u16::MAX as usize { queues as u16 } else { u16::MAX };
        NetInfo { queues, ..self }
    }
}

/// An Internet checksum (RFC 1071) that the card completes: it adds up the bytes from `start` to
/// the end of the frame, and writes the complement of the sum `offset` bytes after `start`. The
/// frame has the sum of the pseudo-header there (RFC 9293, 3.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum {
    /// The first byte that is added up, counted from the start of the frame; never 0.
    pub start: u8,
    /// The place of the sum, in bytes after `start`.
    pub offset: u8,
}

/// An entry of the rings. In its word, the frame's number has bits 0 to 15, the queue bits 16 to
/// 31, and the length bits 32 to 47. In an entry of `transmit`, [`Sum::start`] has bits 48 to 55,
/// 0 for no sum, and [`Sum::offset`] bits 56 to 63. In an entry of `received`, bit 48 says that the
/// card has checked the frame's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    /// Returns the entry for `len_bytes` bytes in frame `frame`, of the card's first queue.
    #[inline]
    pub const fn new(frame: u16, len_bytes: u16) -> Entry {
        Entry(frame as u64 | (len_bytes as u64) << 32)
    }

    /// The same of another queue.
    #[inline]
    pub const fn in_queue(self, queue: u16) -> Entry {
        Entry(self.0 | (queue as u64) << 16)
    }

    /// The same of a frame whose sum the card completes.
    #[inline]
    pub const fn with_sum(self, sum: Sum) -> Entry {
        Entry(self.0 | (sum.start as u64) << 48 | (sum.offset as u64) << 56)
    }

    /// The same of a frame whose checksum the card has checked, or has not.
    #[inline]
    pub const fn checked(self, is_checked: bool) -> Entry {
        Entry(self.0 | (is_checked as u64) << 48)
    }

    /// Returns the frame's number.
    #[inline]
    pub const fn frame(self) -> usize {
        self.0 as u16 as usize
    }

    /// Returns the number of the card's queue.
    #[inline]
    pub const fn queue(self) -> usize {
        (self.0 >> 16) as u16 as usize
    }

    /// Returns the length in bytes.
    #[inline]
    pub const fn len_bytes(self) -> usize {
        (self.0 >> 32) as u16 as usize
    }

    /// Returns the sum that the card has to complete.
    #[inline]
    pub const fn sum(self) -> Option<Sum> {
        let [.., start, offset] = self.0.to_le_bytes();
        if start == 0 { None } else { Some(Sum { start, offset }) }
    }

    /// Returns whether the card has checked the frame's checksum.
    #[inline]
    pub const fn is_checked(self) -> bool {
        self.0 >> 48 & 1 != 0
    }
}
