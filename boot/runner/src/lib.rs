//! The host's side of Ringfence: builds the kernel and its modules, packs the ramdisk, boots all of it in QEMU and says
//! how that ended. `cargo run` is its command line; the tests use it as a library.
//!
//! * [`toolchain`]: which compiler builds for the bare machine
//! * [`build`]: loader, kernel and modules
//! * `header`: what modules in C include
//! * [`ramdisk`]: the one file that the loader gets
//! * [`machine`]: a QEMU machine, and how a run of it ended
//! * [`bochs`]: another emulator, for a second opinion
//! * [`bench`]: what protection costs
//! * [`campaign`]: what becomes of drivers whose code is changed
//! * [`echo`]: an echo server; `page`: tables and charts
//! * [`gdb`]: what gdb is told
//! * [`source`]: source lines for fault reports
//! * [`soak`]: streams and copies that go on while their drivers are ended
//! * [`iso`]: the same system for machines with a BIOS

#![forbid(unsafe_code)]

use std::path::PathBuf;

pub mod bench;
pub mod bochs;
pub mod build;
pub mod campaign;
pub mod echo;
pub mod gdb;
mod header;
pub mod iso;
pub mod machine;
mod page;
pub mod ramdisk;
pub mod soak;
pub mod source;
pub mod toolchain;

/// The project's folder.
pub fn project() -> PathBuf {
    // This crate is in boot/runner.
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path.pop();
    path
}

/// The folder for everything that is built.
pub fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    own.unwrap_or_else(|| project().join("target")).join("ringfence")
}
