//! The requests that programs send to the kernel.
//!
//! Each request has an id that its sender chooses, and is answered by one
//! [`Answered`](crate::event::Event::Answered) with that id. A sender that gets no answer sends the
//! request again: a request, or its answer, may be lost on the line. So a request must have no
//! effect when it comes a second time, and the kernel answers the last one of a sender again.

use crate::event::Text;
use alloc::borrow::Cow;
use serde::{Deserialize, Serialize};

/// The most bytes of a [`Request::Piece`].
pub const MAX_PIECE: usize = 4096;

/// How long a trace goes on that nobody asks for again.
pub const TRACE_SECONDS: u64 = 10;

/// The answer to a program for which the trace begins.
pub const BEGUN: &str = "the trace has begun";
/// The answer to a program that has asked before, in time.
pub const GOES_ON: &str = "the trace goes on";

/// How long a session with gdb goes on in which nobody says anything.
pub const DEBUG_SECONDS: u64 = 10;

/// A request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request<'a> {
    /// A number that no other request of this run has; senders choose it at random.
    pub id: u64,
    /// The action that is wanted.
    pub what: What<'a>,
}

/// An action that a request wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What<'a> {
    /// A module file comes, in pieces. The answer is the number of its build.
    File {
        /// A number for the file, chosen at random, by which the requests that follow name it.
        file: u64,
        /// The module's name.
        name: Text<'a>,
        /// The file's length in bytes.
        len_bytes: u32,
    },
    /// A piece of a file.
    Piece {
        /// The file.
        file: u64,
        /// The offset of the first byte in the file. Pieces come in order.
        offset: u32,
        /// The bytes, at most [`MAX_PIECE`].
        bytes: Cow<'a, [u8]>,
    },
    /// Trace a driver, and send its events on channel [`TRACES`](crate::TRACES) for
    /// [`TRACE_SECONDS`] from now on. A sender that wants more asks again before. The answer is
    /// [`BEGUN`] or [`GOES_ON`], and comes behind the events that others had the driver traced for.
    /// All programs get the same events.
    Trace {
        /// A number for the program, chosen at random.
        program: u64,
        /// The driver's name.
        driver: Text<'a>,
        /// How many bytes of a frame are to be sent. Others may want more.
        frame_bytes: u32,
    },
    /// End the trace of a driver that a program has asked for, once all its events are sent. It
    /// goes on for other programs.
    EndTrace {
        /// The program.
        program: u64,
        /// The driver's name.
        driver: Text<'a>,
    },
    /// Bytes of gdb's remote protocol. The first ones begin a session, which ends [`DEBUG_SECONDS`]
    /// after the last ones. A sender without any bytes sends an empty request now and then.
    Debug {
        /// A number for the session, chosen at random.
        session: u64,
        /// The driver that the session is about, if not all drivers.
        driver: Option<Text<'a>>,
        /// The bytes, at most [`MAX_PIECE`].
        bytes: Cow<'a, [u8]>,
    },
    /// End a session with gdb.
    EndDebug {
        /// The session.
        session: u64,
    },
    /// The file is complete: keep it, and put the module in the place of the drivers that were
    /// loaded from a file of this name. If there are none, load it.
    Load {
        /// The file.
        file: u64,
        /// Parameters for a module that is loaded, each as `name=value`.
        parameters: alloc::vec::Vec<Text<'a>>,
        /// Whether the driver is to stand for the debugger at its first instruction.
        stops: bool,
    },
}

impl Request<'_> {
    /// Writes the request into `room`. Returns the number of bytes written, or `None` if `room` is
    /// too small.
    pub fn write(&self, room: &mut [u8]) -> Option<usize> {
        crate::write(self, room)
    }
}

impl Request<'static> {
    /// Reads the request that a payload holds; `None` if it holds no request.
    pub fn read(payload: &[u8]) -> Option<Request<'static>> {
        crate::read(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MAX_PAYLOAD;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read_and_the_longest_piece_fits_a_frame() {
        let bytes = [0xa5; MAX_PIECE];
        let requests = [
            What::File { file: 7, name: "e1000".into(), len_bytes: u32::MAX },
            What::Piece { file: u64::MAX, offset: u32::MAX, bytes: (&bytes[..]).into() },
            What::Load { file: 7, parameters: ["a=1".into(), "b=".into()].into(), stops: true },
        ];
        for what in requests {
            let request = Request { id: u64::MAX, what };
            let mut room = [0; MAX_PAYLOAD];
            let len = request.write(&mut room).unwrap();
            assert_eq!(Request::read(&room[..len]), Some(request));
            assert_eq!(Request::read(&room[..=len]), None, "one with something behind it");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Request::read(&bytes);
        }
    }
}
