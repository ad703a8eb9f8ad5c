//! The contract between the kernel and its driver modules. It is written down here and nowhere
//! else.
//!
//! * [`service`]: the requests that a driver can make of the kernel, each through its own call gate
//! * [`upcall`]: the requests that the kernel makes of a driver, through the module's single entry
//!   point
//! * [`manifest`]: a module's description of itself, which is read before any of its code runs;
//!   [`reset`]: how its device is stopped
//! * [`parameter`]: the values that a person can give a module when it is loaded
//! * [`register`]: the names of a device's registers, for people who watch them
//! * [`layout`]: the layout of a domain's slot of the address space
//! * [`queue`], [`net`], [`scsi`], [`block`]: the queues in memory that kernel and driver share
//!
//! The kernel, the SDK, the loader and the generated C header all take their numbers from here.
//! There is no unsafe code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod block;
pub mod fs;
pub mod layout;
pub mod manifest;
pub mod net;
pub mod parameter;
pub mod queue;
pub mod register;
pub mod reset;
pub mod scsi;
pub mod service;
pub mod upcall;

/// Version of everything in this crate. The loader refuses a module that was built for another
/// version.
pub const ABI_VERSION: u32 = 4;
