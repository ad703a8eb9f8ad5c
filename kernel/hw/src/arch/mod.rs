//! The code that depends on the CPU.
//!
//! * [`entry_area`]: the pages that every root maps: entry text, GDT, IDT, TSS, LDT, entry stacks
//! * `entry.S`, [`gates`]: every way into the kernel and out of it
//! * [`traps`], [`frame`], [`vector`]: the handling of exceptions and interrupts in Rust, the
//!   registers that they save, and their numbers
//! * [`cpu`], [`trap_stacks`]: per-CPU state and control registers; stacks for traps that hit the
//!   kernel
//! * [`handlers`]: the functions of the layers above, which this layer calls
//! * [`port`], [`msr`]: I/O ports and model-specific registers
//! * [`interrupts`], [`line`], [`pic`], [`io_apic`], [`local_apic`]: interrupt lines, the 8259s,
//!   the I/O APIC, and the CPU's own controller
//! * [`clock`], [`time`]: counters with a known rate; the TSC and the tick, which depend on them
//! * [`uart`]: serial ports
//! * [`watch`]: breakpoints on an instruction and on memory
//! * [`syscall`]: the end of a segmented driver's upcall by SYSCALL
//! * [`confinement`]: the checks that a segmented domain runs at boot
//! * `bench`, `hazard`: code for measurements and tests only, behind features
//! * [`power`]: the end of the machine
//! * [`tcg`]: behaviour of QEMU's emulation that no CPU has

#[cfg(feature = "bench")]
pub mod bench;
pub mod clock;
pub mod confinement;
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
pub mod rtc;
pub mod syscall;
pub mod tcg;
pub mod time;
pub mod trap_stacks;
pub mod traps;
pub use gates::{Caller, caller};
pub mod uart;
pub use ringfence_core::vector;
pub mod watch;
