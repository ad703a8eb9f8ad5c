//! The frames and requests that kernel and driver pass to each other, as a trace notes them.
//!
//! The accounts of a class note nothing while a driver runs untraced. A trace asks an account
//! before and after each upcall for the frames and requests that it has not seen yet ([`Seen`]), so
//! that it costs nothing when it is off.

/// The content of a request, in words of a class's own format.
pub type Request = [u64; 3];

/// What a driver says about a failure of a request besides its result, in its class's format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detail {
    bytes: [u8; Detail::MOST],
    len: usize,
}

impl Detail {
    /// The most bytes that are kept.
    pub const MOST: usize = 48;

    /// Keeps the first bytes of `bytes`.
    pub fn new(bytes: &[u8]) -> Detail {
        let mut detail = Detail { bytes: [0; Detail::MOST], len: bytes.len().min(Detail::MOST) };
        detail.bytes.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        detail
    }

    /// Returns the bytes.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

/// The content of a frame or request that was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content<'a> {
    /// A frame: its first bytes.
    Frame(&'a [u8]),
    /// A request.
    Request(Request),
}

/// A frame or a request that was passed. `number` says how many of its kind came before it. Sent
/// frames and received frames are different kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed<'a> {
    /// The kernel gave it to the driver.
    Given {
        /// Its number.
        number: u64,
        /// Its place among the frames or requests that the driver has.
        place: usize,
        /// Bytes of the frame, or of the request's data.
        len_bytes: u32,
        /// Its content.
        content: Content<'a>,
    },
    /// The driver has given it back: it is sent, or carried out.
    Done {
        /// Its number.
        number: u64,
        /// Its place among the frames or requests that the driver has.
        place: usize,
        /// The driver's result for it, if it has one: 0 is success.
        result: u32,
        /// What else the driver says about a failure, in its class's format.
        detail: &'a [u8],
    },
    /// The driver has received a frame.
    Received {
        /// Its number.
        number: u64,
        /// Its length in bytes.
        len_bytes: u32,
        /// Its first bytes.
        frame: &'a [u8],
    },
}

/// The side that has passed something on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The kernel, before an upcall.
    Kernel,
    /// The driver, in an upcall.
    Driver,
}

/// How much has gone through a driver.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// Frames or requests.
    pub count: u64,
    /// Bytes of the frames, or of the requests' data.
    pub bytes: u64,
}

/// How much of an account a trace has seen: positions in the queues.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// Position in the queue of the frames to send, or of the requests.
    pub given: u64,
    /// Position in the queue of the frames or requests that the driver has given back.
    pub done: u64,
    /// Position in the queue of the frames that the driver has received.
    pub received: u64,
}
