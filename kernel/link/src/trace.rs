//! Traces, which the kernel sends on channel [`TRACES`](crate::TRACES) to programs that have asked
//! for them ([`crate::request::What::Trace`]).

use crate::event::Text;
use alloc::borrow::Cow;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// Some of the events of a driver's trace, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece<'a> {
    /// The driver's name.
    pub driver: Text<'a>,
    /// The driver's class: `nic`, `scsi`, `block` or `fs`, or `other` for none.
    pub kind: Text<'a>,
    /// Whether a person has asked for these events to be saved (`trace NAME save`), and no program.
    pub is_saved: bool,
    /// How many events before these are missing: there was no room for them.
    pub lost: u64,
    /// How many of these events lack their text, sense data or bytes of a frame: those of later
    /// events have taken the place.
    pub cut: u64,
    /// The events.
    pub events: Vec<Traced<'a>>,
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traced<'a> {
    /// When it happened, in nanoseconds since boot.
    pub at_ns: u64,
    /// The kind of the event, and its data.
    pub what: What<'a>,
}

/// An event at a driver's boundary. Words are for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What<'a> {
    /// The kernel entered the driver.
    Enter {
        /// The upcall's name.
        upcall: Text<'a>,
        /// Its arguments.
        words: Text<'a>,
    },
    /// The driver has left the upcall, or sleeps in it.
    Leave {
        /// Its result.
        words: Text<'a>,
        /// How long the driver ran, in nanoseconds.
        took_ns: u64,
    },
    /// The driver slept, and goes on.
    Woken,
    /// The driver has called a service.
    Call {
        /// The service's name.
        service: Text<'a>,
        /// The call with its arguments and its result.
        words: Text<'a>,
        /// How long it took, in nanoseconds. The event's time is that of its end.
        took_ns: u64,
    },
    /// The driver was given a frame to send, or a request.
    Given {
        /// How many of its kind came before it.
        number: u64,
        /// Bytes of the frame, or of the request's data.
        len_bytes: u32,
        /// The frame or the request.
        content: Content<'a>,
        /// The same in words.
        words: Text<'a>,
    },
    /// The driver has given back a frame that it was given to send, or a request.
    Done {
        /// How many of its kind came before it.
        number: u64,
        /// The driver's result for it: 0 is success.
        result: u32,
        /// What else it says about a failure: a SCSI command's sense data.
        detail: Cow<'a, [u8]>,
        /// The same in words.
        words: Text<'a>,
    },
    /// The driver has received a frame.
    Received {
        /// How many came before it.
        number: u64,
        /// The frame's length in bytes.
        len_bytes: u32,
        /// The frame, or its first bytes.
        frame: Cow<'a, [u8]>,
        /// The same in words.
        words: Text<'a>,
    },
    /// The driver has accessed a register of its device.
    Access {
        /// The register's name, or its region and its offset there.
        register: Text<'a>,
        /// Whether it was read.
        reads: bool,
        /// Whether it was written.
        writes: bool,
        /// The bytes that were accessed.
        width_bytes: u8,
        /// The value that was read or written, if that is known.
        value: Option<u64>,
        /// The access in words.
        words: Text<'a>,
        /// The place of the instruction in the driver.
        place: Text<'a>,
    },
    /// The driver was ended.
    Ended {
        /// The kind of the fault.
        kind: Text<'a>,
        /// The address that its device was not to reach, in words; an empty text for other kinds.
        words: Text<'a>,
    },
    /// Another instance is in the driver's place.
    Replaced,
    /// Anything else.
    Note {
        /// The event in words.
        words: Text<'a>,
    },
}

/// A frame or a request that a driver was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content<'a> {
    /// A frame, or its first bytes.
    Frame(Cow<'a, [u8]>),
    /// A request, in its class's format.
    Request([u64; 3]),
}

impl Piece<'_> {
    /// Writes the piece into `room`. Returns the number of bytes written, or `None` if `room` is
    /// too small.
    pub fn write(&self, room: &mut [u8]) -> Option<usize> {
        crate::write(self, room)
    }
}

impl Piece<'static> {
    /// Reads the piece that a payload holds; `None` if it holds none.
    pub fn read(payload: &[u8]) -> Option<Piece<'static>> {
        crate::read(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let frame = [7; 60];
        let whats = [
            What::Enter { upcall: "poll".into(), words: "queue".into() },
            What::Given { number: 1, len_bytes: 60, content: Content::Frame((&frame[..]).into()), words: "".into() },
            What::Given { number: 2, len_bytes: 0, content: Content::Request([u64::MAX; 3]), words: "".into() },
            What::Replaced,
        ];
        let events = whats.into_iter().map(|what| Traced { at_ns: u64::MAX, what }).collect();
        let piece = Piece { driver: "e1000".into(), kind: "nic".into(), is_saved: false, lost: 3, cut: 1, events };
        let mut room = [0; 1024];
        let len = piece.write(&mut room).unwrap();
        assert_eq!(Piece::read(&room[..len]), Some(piece));
        assert_eq!(Piece::read(&room[..=len]), None, "one with something behind it");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Piece::read(&bytes);
        }
    }
}
