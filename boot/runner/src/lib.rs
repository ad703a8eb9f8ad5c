//! The host's side of Ringfence: builds the kernel and its modules, packs the ramdisk, boots all of
//! it in QEMU and says how that ended. `cargo run` is its command line; the tests use it as a
//! library.
//!
//! * [`toolchain`]: which compiler builds for the bare machine
//! * [`build`]: loader, kernel and modules
//! * [`header`]: what modules in C include
//! * [`check`]: what the kernel would say of a module; [`conform`]: what any driver must do;
//!   [`wire`]: a cable, and frames for it
//! * [`ramdisk`]: the one file that the loader gets
//! * [`machine`]: a QEMU machine, and how a run of it ended
//! * [`bochs`]: another emulator, for a second opinion
//! * [`bench`]: what protection costs
//! * [`campaign`]: what becomes of drivers whose code is changed
//! * [`drivers`]: the drivers of a machine
//! * [`echo`]: an echo server; `page`: tables and charts
//! * [`gdb`]: what gdb is told
//! * [`output`]: what the runner says
//! * [`source`]: source lines for fault reports
//! * [`snippets`]: what becomes of made-up machine code
//! * [`soak`]: streams and copies that go on while their drivers are ended
//! * [`iso`]: the same system for machines without QEMU's own loader

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub mod bench;
pub mod bochs;
pub mod build;
pub mod campaign;
pub mod check;
pub mod conform;
pub mod drivers;
pub mod echo;
pub mod gdb;
pub mod header;
pub mod iso;
pub mod machine;
pub mod output;
mod page;
pub mod ramdisk;
pub mod snippets;
pub mod soak;
pub mod source;
pub mod toolchain;
pub mod wire;

/// The project's folder.
///
/// Not the one that this was compiled in: a checkout may have been moved or copied since, with all
/// that was built.
pub fn project() -> PathBuf {
    static PROJECT: OnceLock<PathBuf> = OnceLock::new();
    PROJECT.get_or_init(find_project).clone()
}

fn find_project() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    // 'cargo run' says it of this package. What another package's cargo says is less than where
    // this program lies.
    let own = variable("CARGO_PKG_NAME").is_some_and(|name| name.as_os_str() == env!("CARGO_PKG_NAME"));
    let manifest = variable("CARGO_MANIFEST_DIR");
    let (first, last) = if own { (manifest, None) } else { (None, manifest) };
    let program = std::env::current_exe().ok();
    let here = std::env::current_dir().ok();
    let mut starts = [first, program, last, here].into_iter().flatten();
    starts.find_map(|start| project_above(&start)).unwrap_or_else(|| {
        output::complain("ringfence: where is the project? Run it with 'cargo run' in its folder");
        std::process::exit(4)
    })
}

/// The checkout that `path` lies in.
fn project_above(path: &Path) -> Option<PathBuf> {
    let is_project =
        |folder: &&Path| folder.join("boot/runner/Cargo.toml").is_file() && folder.join("kernel/abi").is_dir();
    path.ancestors().find(is_project).map(Path::to_path_buf)
}

/// The folder for everything that is built.
pub fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = own.unwrap_or_else(|| project().join("target")).join("ringfence");
    // Tools that are started elsewhere mean the same one.
    std::path::absolute(&folder).unwrap_or(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_project_is_the_one_that_is_around() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("kernel/abi")).unwrap();
        std::fs::create_dir_all(folder.path().join("boot/runner")).unwrap();
        let inside = folder.path().join("target/debug/ringfence");
        assert_eq!(project_above(&inside), None);
        std::fs::write(folder.path().join("boot/runner/Cargo.toml"), "").unwrap();
        assert_eq!(project_above(&inside).as_deref(), Some(folder.path()));
        assert_eq!(project_above(Path::new("/nowhere")), None);
    }
}
