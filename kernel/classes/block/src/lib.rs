//! Disks behind any driver, and the class of block devices, each of which is one disk.
//!
//! * [`disk`]: the interface of a disk, and the list of all disks
//! * [`partition`]: disks that are parts of other disks
//! * [`client`]: drivers that use a disk; [`cache`]: the caches of the disks of filesystems
//! * [`class`]: the entry in the kernel's table of classes; [`request`]: requests to a block
//!   device; [`device`]: the disk of a block device
//!
//! Other classes whose drivers have disks add theirs with [`disk::add`]; users of disks see no
//! difference.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod cache;
mod class;
pub mod client;
mod device;
pub mod disk;
pub mod partition;
pub mod request;

pub use class::CLASS;
