//! All that knows the CPU.
//!
//! * [`entry_area`]: the pages that every root maps: entry text, GDT, IDT, TSS, LDT, entry stacks
//! * `entry.S`, [`gates`]: every way into the kernel and out of it
//! * [`traps`], [`vector`]: exceptions and interrupts in Rust, and their numbers
//! * [`cpu`]: per-CPU state and control registers
//! * [`interrupts`], [`time`]: 8259 and 8254
//! * [`watch`]: breakpoints on an instruction and on memory
//! * [`power`]: how the machine ends
//! * [`tcg`]: what QEMU's emulation does that no CPU does

pub mod cpu;
pub mod entry_area;
pub mod gates;
pub mod interrupts;
pub mod power;
pub mod tcg;
pub mod time;
pub mod traps;
pub mod vector;
pub mod watch;
