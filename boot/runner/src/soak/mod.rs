//! `cargo run -- soak`: does work for minutes, while its drivers are ended at random moments in
//! random ways. Nothing may be lost.
//!
//! * [`copies`]: the work is a TCP stream and copies from disk to disk
//! * [`files`]: the work is files on filesystems
//! * [`victim`]: the drivers, and the ways to end them; [`attacked`]: the machine in which that
//!   happens; [`stream`]: the TCP stream
//!
//! Each way stops the driver's code at once. It is the `kill` command, or a change of the running
//! driver's code (`poke`) at its entry point or at an instruction that the work executes. Drivers
//! that go on with wrong results are the subject of `campaign`: no layer below could notice wrong
//! data.

mod attacked;
pub mod copies;
pub mod files;
mod stream;
mod victim;

use crate::machine::Machine;
use ringfence_abi::manifest::DomainKind;
use std::time::Duration;

/// The settings of a soak.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// How long to end drivers.
    pub time: Duration,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The kind of domain of the drivers that have a build for it.
    pub kind: DomainKind,
    /// Whether to print the summary as a JSON object.
    pub json: bool,
}

/// Longest time without the end of a piece of work, or without data on the stream.
const PATIENCE: Duration = Duration::from_secs(60);
