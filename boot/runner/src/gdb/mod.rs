//! gdb, with a machine or with its drivers.
//!
//! * [`machine`]: the scripts for gdb on QEMU's own port, which stops the whole machine
//! * [`drivers`]: `cargo run -- gdb`: stops one driver of a system that runs
//! * [`core`]: core files of drivers that were ended

pub mod core;
pub mod drivers;
pub mod machine;
