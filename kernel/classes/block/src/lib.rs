//! Disks, whatever they are behind; and the class of block devices, which are one each.
//!
//! * [`disk`]: what a disk is, and all that are there
//! * [`client`]: drivers that use a disk
//! * [`class`]: what the kernel below knows of block devices; [`request`]: what requests to one are
//!   like; [`device`]: the disk of one
//!
//! Other classes whose drivers have disks add theirs ([`disk::add`]): who uses disks does not care.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

mod class;
pub mod client;
mod device;
pub mod disk;
pub mod request;

pub use class::CLASS;
