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

/// Takes note of the frames and requests that were passed. `number` says how many of its kind came
/// before one; sent frames and received frames are different kinds. `place` is its place among the
/// frames or requests that the driver has.
pub trait Notes {
    /// The kernel gave a frame of `len_bytes` bytes, whose first bytes are `first`, to the driver.
    fn frame(&mut self, number: u64, place: usize, len_bytes: u32, first: &[u8]);

    /// The kernel gave a request with `len_bytes` bytes of data to the driver.
    fn request(&mut self, number: u64, place: usize, len_bytes: u32, request: &Request);

    /// The driver has given one back: it is sent, or carried out. `result` is the driver's result,
    /// if it has one; 0 is success. `detail` is what else the driver says about a failure, in its
    /// class's format.
    fn done(&mut self, number: u64, place: usize, result: u32, detail: &[u8]);

    /// The driver has received a frame of `len_bytes` bytes, whose first bytes are `first`.
    fn received(&mut self, number: u64, len_bytes: u32, first: &[u8]);
}

/// Takes no note: what was passed so far counts as seen.
impl Notes for () {
    fn frame(&mut self, _: u64, _: usize, _: u32, _: &[u8]) {}
    fn request(&mut self, _: u64, _: usize, _: u32, _: &Request) {}
    fn done(&mut self, _: u64, _: usize, _: u32, _: &[u8]) {}
    fn received(&mut self, _: u64, _: u32, _: &[u8]) {}
}

/// What was passed, in words.
#[cfg(test)]
pub(crate) struct Words(pub alloc::vec::Vec<alloc::string::String>);

#[cfg(test)]
impl Notes for Words {
    fn frame(&mut self, number: u64, place: usize, len_bytes: u32, first: &[u8]) {
        self.0.push(alloc::format!("frame {number} at {place}, {len_bytes}: {first:?}"));
    }

    fn request(&mut self, number: u64, place: usize, len_bytes: u32, request: &Request) {
        self.0.push(alloc::format!("request {number} at {place}, {len_bytes}: {request:?}"));
    }

    fn done(&mut self, number: u64, place: usize, result: u32, detail: &[u8]) {
        self.0.push(alloc::format!("done {number} at {place}: {result} {detail:?}"));
    }

    fn received(&mut self, number: u64, len_bytes: u32, first: &[u8]) {
        self.0.push(alloc::format!("received {number}, {len_bytes}: {first:?}"));
    }
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
