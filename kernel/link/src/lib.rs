//! What kernel and runner say to each other over the second serial port: for programs, as the
//! console is for people.
//!
//! * [`frame`]: pieces of bytes on numbered channels, on a line that may lose or garble some
//! * [`event`]: what the kernel tells of on channel [`EVENTS`]
//!
//! Both sides use this crate, and so agree. JSON, or a line of text each, would not need one; but
//! there is no text that a driver could not say, too, and a number in a sentence is lost when the
//! sentence is mended.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod event;
pub mod frame;

/// The channel of events, from the kernel to the runner. The others are free.
pub const EVENTS: u8 = 0;
