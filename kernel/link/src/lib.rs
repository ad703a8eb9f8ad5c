//! The protocol between kernel and runner on the second serial port: it is for programs, as the
//! console is for people.
//!
//! * [`frame`]: pieces of bytes on numbered channels, on a line that may lose or garble some
//! * [`event`]: the events that the kernel reports on channel [`EVENTS`]
//! * [`request`]: the requests that programs send on channel [`REQUESTS`]
//! * [`file`]: the files that the kernel sends on channel [`FILES`]
//! * [`trace`]: the traces that the kernel sends on channel [`TRACES`]
//!
//! Kernel and runner both use this crate, so that they agree. Lines of text or JSON
//! would need no crate. But a driver could print any such text, too, and a number
//! inside a sentence is lost as soon as the sentence is reworded.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod event;
pub mod file;
pub mod frame;
pub mod request;
pub mod trace;

/// Writes `message` into `room`. Returns the number of bytes written, or `None` if `room` is too
/// small.
fn write<T: Serialize>(message: &T, room: &mut [u8]) -> Option<usize> {
    Some(postcard::to_slice(message, room).ok()?.len())
}

/// Reads the message that a payload holds; `None` if it holds none. A payload is exactly one
/// message: bytes after it would have no meaning.
fn read<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    let (message, rest) = postcard::take_from_bytes(payload).ok()?;
    rest.is_empty().then_some(message)
}

/// The channel of events, from the kernel to the runner.
pub const EVENTS: u8 = 0;

/// The channel of requests, from the runner to the kernel.
pub const REQUESTS: u8 = 1;

/// The channel of traces, from the kernel to the runner.
pub const TRACES: u8 = 2;

/// The channel of the kernel's output to a debugger, from the kernel to the runner: the number of
/// the session in 8 bytes, the lowest first, and bytes of gdb's remote protocol.
pub const DEBUGGER: u8 = 3;

/// The channel of files that the runner is to keep, from the kernel to the runner. The other
/// channels are free.
pub const FILES: u8 = 4;
