//! The kernel's logic that needs no hardware: pure functions over bytes and numbers, tested on the
//! host.
//!
//! * [`descriptor`]: segment, gate and system descriptors as the CPU wants them
//! * [`module`]: reads a module file and refuses what is malformed, with the reason; [`parameter`]:
//!   what a person gives it
//! * [`fault`]: why drivers are ended, and in which words; [`vector`], [`disassembly`]: exceptions
//!   and machine code in words; [`trace`]: what happened last
//! * [`command_line`], [`arguments`]: the shell's grammar, and what a command makes of its words
//! * [`life`]: what becomes of a driver; [`debt`]: what it owes for the CPU time that it has had
//! * [`timer`]: when a driver is polled because time has gone by
//! * [`limits`]: numbers that a person can change while the system runs
//! * [`line_editor`]: a line editor for a terminal
//! * [`pci`]: what a PCI function says of itself; [`acpi`], [`dmar`]: what firmware says of the
//!   machine
//! * [`extent`]: ranges of addresses, and whether one lies within another
//! * [`port_bitmap`]: the I/O permission bitmap of a task state segment
//! * [`frames`]: what a network driver has to send, and has received
//! * [`requests`]: what a driver was asked to carry out, and again its successor
//! * [`cdb`], [`sense`]: SCSI commands and what devices say when they fail
//! * [`dhcp`]: a DHCP client
//! * [`servers`]: small TCP and UDP servers, and what is kept from the network stack below them
//!
//! There is no unsafe code, and nothing here panics on what a driver, a module file or a device
//! says.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod arguments;
pub mod cdb;
pub mod command_line;
pub mod debt;
pub mod descriptor;
pub mod dhcp;
pub mod disassembly;
pub mod dmar;
pub mod extent;
pub mod fault;
pub mod frames;
pub mod life;
pub mod limits;
pub mod line_editor;
pub mod module;
pub mod parameter;
pub mod pci;
pub mod port_bitmap;
pub mod requests;
pub mod sense;
pub mod servers;
pub mod tcg;
pub mod timer;
pub mod trace;
pub mod vector;
