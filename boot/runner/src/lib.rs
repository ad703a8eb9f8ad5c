//! The host's side of Ringfence: builds the kernel and its modules, packs the ramdisk, boots the
//! system in QEMU and reports how the run ended. `cargo run` is its command line; the tests use it
//! as a library.
//!
//! * [`toolchain`]: the compiler for the bare machine
//! * [`build`]: builds the loader, the kernel and the modules
//! * [`holes`]: moves instructions whose bytes happen to form others
//! * [`header`]: the C header for modules
//! * [`check`]: checks a module as the kernel would; [`conform`]: tests that any driver must pass;
//!   [`wire`]: a cable, and frames for it
//! * [`ramdisk`]: the one file that the loader gets
//! * [`machine`]: a QEMU machine, and how a run of it ended
//! * [`images`]: images of filesystems, by the host's own tools
//! * [`bochs`]: another emulator, for a second opinion
//! * [`bench`]: measures the cost of protection; [`profile`]: where its instructions go
//! * [`campaign`]: changes drivers' code and observes the outcome
//! * [`drivers`]: the drivers of a machine; [`record`]: records a run of one of them
//! * [`echo`]: an echo server; `page`: tables and charts
//! * [`gdb`]: gdb for one driver, for the whole machine, and for core files
//! * [`new`]: makes the sources of a driver; [`lab`]: exercises, and their checkers
//! * [`session`]: a connection to a running system; [`push`]: brings it a new build of a driver,
//!   and [`dev`] does so at each save; [`trace`]: collects the events at drivers' boundaries
//! * [`keys`]: keys, signatures and signed files; [`verify`]: evidence about a module, in a signed
//!   report
//! * [`output`]: the runner's output
//! * [`source`]: source lines for fault reports
//! * [`snippets`]: runs generated machine code in ring 1
//! * [`soak`]: runs streams and copies while their drivers are ended
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
pub mod dev;
pub mod drivers;
pub mod echo;
pub mod gdb;
pub mod header;
pub mod holes;
pub mod images;
pub mod iso;
pub mod keys;
pub mod lab;
pub mod machine;
pub mod new;
pub mod output;
mod page;
pub mod profile;
pub mod push;
pub mod ramdisk;
pub mod record;
pub mod session;
pub mod snippets;
pub mod soak;
pub mod source;
pub mod toolchain;
pub mod trace;
pub mod verify;
pub mod wire;

/// Returns the project's folder.
///
/// It may differ from the folder in which the runner was compiled: the checkout may have been moved
/// or copied since, together with its build outputs.
pub fn project() -> PathBuf {
    static PROJECT: OnceLock<PathBuf> = OnceLock::new();
    PROJECT.get_or_init(find_project).clone()
}

fn find_project() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    // 'cargo run' sets these variables for this package. If another package's cargo set them, the
    // location of this program is a better guide than the variables.
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

/// Returns the checkout that contains `path`.
fn project_above(path: &Path) -> Option<PathBuf> {
    let is_project =
        |folder: &&Path| folder.join("boot/runner/Cargo.toml").is_file() && folder.join("kernel/abi").is_dir();
    path.ancestors().find(is_project).map(Path::to_path_buf)
}

/// Returns the folder for all build outputs.
pub fn target() -> PathBuf {
    let own = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = own.unwrap_or_else(|| project().join("target")).join("ringfence");
    // An absolute path, so that tools started in another folder find the same one.
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
