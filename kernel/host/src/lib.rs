//! What runs drivers, whatever they drive.
//!
//! * [`domain`]: a loaded driver
//! * [`service`]: what it may ask the kernel for
//! * [`poll`]: when it runs; [`requests`]: what it is asked to carry out, for classes of which that
//!   is so
//! * [`module`]: how it is loaded and unloaded; [`file`], [`ramdisk`]: from what
//! * [`supervise`]: what becomes of it when it was ended
//!
//! Nothing here knows what a driver drives: that is what [`domain::offer`] is for.
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod domain;
pub mod file;
pub mod module;
pub mod poll;
pub mod ramdisk;
pub mod requests;
pub mod service;
pub mod supervise;
