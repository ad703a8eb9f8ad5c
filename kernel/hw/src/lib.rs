//! The hardware layer of the kernel. **All of the kernel's unsafe code is here**, and the layers
//! above get a safe interface.
//!
//! `docs/soundness.md` says for each part why no safe use of it breaks memory safety.
//!
//! * [`arch`]: the CPU: entry code, traps, interrupts, time, ports
//! * [`memory`]: frames, page tables, the heap, memory that drivers and devices write, registers of
//!   devices
//! * [`space`]: the address space of a domain; [`upcall`]: entering it, and leaving it
//! * [`pci`], [`fixed`], [`iommu`]: devices, and the fence that keeps them to their driver's memory
//! * [`symbols`]: addresses in words
//! * [`console`]: serial line and screen; [`link`]: events for programs; [`panic`]: the kernel's
//!   own end; [`task`]: tasks and the time they wait for; [`latency`]: how long interrupts are off
//! * [`boot`], [`firmware`]: the descriptions of the machine from the loader and from ACPI
#![no_std]
#![warn(missing_docs)]

extern crate alloc;

pub mod arch;
#[forbid(unsafe_code)]
pub mod boot;
pub mod console;
#[forbid(unsafe_code)]
pub mod firmware;
#[forbid(unsafe_code)]
pub mod fixed;
#[forbid(unsafe_code)]
pub mod iommu;
pub mod latency;
pub mod link;
mod lock;
pub mod memory;
pub mod panic;
pub mod pci;
pub mod space;
pub mod symbols;
pub mod task;
pub mod upcall;
