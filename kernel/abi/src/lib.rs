//! The contract between the kernel and its driver modules, and the only place where it is written
//! down.
//!
//! * [`service`]: what a driver may ask of the kernel, through one call gate each
//! * [`upcall`]: what the kernel asks of a driver, through the module's single entry point
//! * [`manifest`]: what a module says about itself before any of it runs; [`reset`]: how its device
//!   is stopped
//! * [`parameter`]: what a person can give it when it is loaded
//! * [`layout`]: where things lie in a domain's slot of the address space
//! * [`queue`], [`net`], [`scsi`], [`block`]: the queues in memory that kernel and driver share
//!
//! Kernel, SDK, loader and the generated C header all take their numbers from here. There is no
//! unsafe code.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod block;
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

/// Version of everything in this crate. The loader refuses a module that was built for another one.
pub const ABI_VERSION: u32 = 4;
