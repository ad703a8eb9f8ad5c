//! All that knows the CPU.
//!
//! * [`entry_area`]: the pages that every root maps: entry text, GDT, IDT, TSS, LDT, entry stacks
//! * `entry.S`, [`gates`]: every way into the kernel and out of it
//! * [`traps`], [`frame`], [`vector`]: exceptions and interrupts in Rust, what they hit, and their
//!   numbers
//! * [`cpu`], [`trap_stacks`]: per-CPU state and control registers; stacks for what hits the kernel
//! * [`handlers`]: what the parts above do for this one
//! * [`port`], [`msr`]: I/O ports and model-specific registers
//! * [`interrupts`], [`line`], [`pic`], [`io_apic`], [`local_apic`]: the 8259s, and the CPU's own
//!   controller
//! * [`clock`], [`time`]: what counts at a known rate, and what goes by it: the TSC and the tick
//! * [`watch`]: breakpoints on an instruction and on memory
//! * `bench`, `hazard`: what only measurements and tests need, behind features
//! * [`power`]: how the machine ends
//! * [`tcg`]: what QEMU's emulation does that no CPU does

#[cfg(feature = "bench")]
pub mod bench;
pub mod clock;
pub mod cpu;
pub mod entry_area;
pub mod frame;
pub(crate) mod gates;
pub mod handlers;
#[cfg(feature = "campaign")]
pub mod hazard;
pub mod interrupts;
pub mod io_apic;
pub mod line;
pub mod local_apic;
mod msr;
mod pic;
pub mod port;
pub mod power;
pub mod tcg;
pub mod time;
pub mod trap_stacks;
pub mod traps;
pub use gates::{Caller, caller};
pub mod uart;
pub use ringfence_core::vector;
pub mod watch;
