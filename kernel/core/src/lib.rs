//! The kernel's logic that needs no hardware: pure functions over bytes and numbers, tested on the
//! host.
//!
//! * [`descriptor`]: segment, gate and system descriptors in the CPU's format
//! * [`module`]: reads a module file, and refuses a malformed one with the reason; [`parameter`]:
//!   reads the values that a person gives for a module's parameters
//! * [`fault`]: the reasons why drivers are ended, and their texts; [`vector`], [`disassembly`]:
//!   exceptions and machine code in words
//! * [`lines`]: tables of source lines
//! * [`access`]: an access to a register, from its instruction
//! * [`elf_core`]: core files of drivers that were ended
//! * [`trace`]: the last events; [`histogram`]: how long things took; [`passed`]: the frames and
//!   requests that a trace notes
//! * [`command_line`], [`arguments`]: the shell's grammar, and how a command reads its arguments
//! * [`life`]: the states of a driver; [`debt`]: the CPU time that it owes; [`patience`]: how long
//!   its interrupts wait
//! * [`timer`]: a driver's timer, which says when the driver is polled
//! * [`limits`]: numbers that a person can change while the system runs
//! * [`line_editor`]: a line editor for a terminal
//! * [`pci`]: the configuration space of a PCI function; [`acpi`], [`dmar`]: the firmware's tables
//!   that describe the machine
//! * [`extent`]: ranges of addresses, and whether one lies within another
//! * [`port_bitmap`]: the I/O permission bitmap of a task state segment
//! * [`frames`]: the frames that a network driver has to send, and has received; [`checksum`]: the
//!   work on them that a card may do; [`packet`]: the content of a frame, in words
//! * [`requests`]: requests to a driver, which are repeated to its successor
//! * [`path`], [`directory`], [`date`]: paths of files, the entries of directories, and their
//!   dates; [`signature`], [`partition`]: the filesystem and the partitions on a disk
//! * [`block_cache`]: the blocks of a disk that are kept, and the writes that it does not have yet
//! * [`evidence`]: the evidence that admits a module file to ring 0
//! * [`cdb`], [`sense`]: SCSI commands, and the sense data of devices when a command fails
//! * [`dhcp`]: a DHCP client
//! * [`servers`]: small TCP and UDP servers, and a filter for the network stack below them
//!
//! There is no unsafe code. Nothing here panics on data from a driver, a module file or a device.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod access;
pub mod acpi;
pub mod arguments;
pub mod block_cache;
pub mod cdb;
pub mod checksum;
pub mod command_line;
pub mod date;
pub mod debt;
pub mod descriptor;
pub mod dhcp;
pub mod directory;
pub mod disassembly;
pub mod dmar;
pub mod elf_core;
pub mod evidence;
pub mod extent;
pub mod fault;
pub mod frames;
pub mod histogram;
pub mod life;
pub mod limits;
pub mod line_editor;
pub mod lines;
pub mod module;
pub mod packet;
pub mod parameter;
pub mod partition;
pub mod passed;
pub mod path;
pub mod patience;
pub mod pci;
pub mod port_bitmap;
pub mod requests;
pub mod sense;
pub mod servers;
pub mod signature;
pub mod tcg;
pub mod timer;
pub mod trace;
pub mod vector;
