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

pub mod event;
pub mod file;
pub mod frame;
pub mod request;
pub mod trace;

/// The channel of events, from the kernel to the runner.
pub const EVENTS: u8 = 0;

/// The channel of requests, from the runner to the kernel.
pub const REQUESTS: u8 = 1;

/// The channel of traces, from the kernel to the runner.
pub const TRACES: u8 = 2;

/// The channel of what the kernel says to a debugger, from the kernel to the runner: the number of
/// the session in 8 bytes, the lowest first, and bytes of gdb's remote protocol.
pub const DEBUGGER: u8 = 3;

/// The channel of files that the runner is to keep, from the kernel to the runner. The other
/// channels are free.
pub const FILES: u8 = 4;
