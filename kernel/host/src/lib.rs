//! Runs drivers of all classes.
//!
//! * [`domain`]: a loaded driver
//! * [`service`]: the services that a driver calls
//! * [`poll`]: runs drivers when they have work
//! * [`requests`]: requests to drivers, for the classes that have requests
//! * [`module`]: loads and unloads drivers; [`file`], [`ramdisk`], [`pushed`]: the files of modules
//! * [`evidence`]: the evidence about module files, and whether it is enough for ring 0;
//!   [`promote`]: moves drivers between rings
//! * [`supervise`]: restarts drivers that were ended; [`reload`]: puts another build in a driver's
//!   place
//! * [`debugger`]: lets drivers go on that stand still for a debugger
//!
//! Nothing here knows a class of devices: the classes plug into [`domain::offer`].
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

pub mod debugger;
pub mod domain;
pub mod evidence;
pub mod file;
pub mod module;
pub mod poll;
pub mod promote;
pub mod pushed;
pub mod ramdisk;
pub mod reload;
pub mod requests;
pub mod service;
pub mod supervise;
