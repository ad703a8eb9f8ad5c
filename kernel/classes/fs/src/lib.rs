//! Filesystems, and the files of all of them under one root.
//!
//! * [`tree`]: the mounted filesystems, and the files that paths lead to
//! * [`file`]: open files
//! * [`volume`]: a filesystem: a driver, and its successors
//! * [`class`]: the entry in the kernel's table of classes; [`request`]: requests to a driver
//!
//! **A file stays open when its filesystem's driver is ended.** The kernel has the path and the
//! number of each open file, and the requests under way. The driver's successor knows neither, says
//! so, and is told.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

mod class;
pub mod error;
pub mod file;
mod request;
pub mod tree;
pub mod volume;

pub use class::CLASS;
