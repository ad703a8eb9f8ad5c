//! The compiler for the bare machine: the user's own, if it has the target, or else the
//! distribution's with the sysroot that `boot/setup.sh` made.

use crate::project;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The target of everything except the runner.
pub const TARGET: &str = "x86_64-unknown-none";
/// The target of segmented modules. It has no SSE, and nothing of Linux or the GNU C library is
/// linked.
pub const TARGET_32: &str = "i586-unknown-linux-gnu";
/// Flags for [`TARGET_32`]: a newer CPU's instructions, but for those on registers that drivers do
/// not have. A call costs 32-bit code more, as its arguments are on the stack: so more is inlined,
/// with which a filesystem's operations take up to a tenth fewer instructions.
const FLAGS_32: [&str; 10] = [
    "-C",
    "llvm-args=-inline-threshold=1200",
    "-C",
    "target-cpu=pentium-m",
    "-C",
    "target-feature=-sse,-sse2",
    "-C",
    "relocation-model=static",
    "-C",
    "force-frame-pointers=yes",
];

/// The path of the project's folder in build outputs, the same wherever the checkout lies.
pub const BUILT_AS: &str = "/ringfence";

/// A compiler for [`TARGET`].
pub struct Toolchain {
    sysroot: PathBuf,
    /// Whether `cargo` uses another compiler by default.
    foreign: bool,
}

impl Toolchain {
    /// Finds a toolchain. If there is none, runs `boot/setup.sh` to make one.
    pub fn find() -> Result<Toolchain> {
        if let Some(found) = Self::look()? {
            return Ok(found);
        }
        let status = Command::new(setup_script()).current_dir(project()).status().context("running boot/setup.sh")?;
        if !status.success() {
            bail!("boot/setup.sh failed");
        }
        Self::look()?.context("boot/setup.sh made no toolchain for the bare machine")
    }

    fn look() -> Result<Option<Toolchain>> {
        // The script runs in the project's folder because rustup chooses the compiler by folder.
        let output = Command::new(setup_script()).current_dir(project()).arg("--print-sysroot").output();
        let output = output.context("running boot/setup.sh")?;
        if !output.status.success() {
            bail!("boot/setup.sh failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let sysroot = String::from_utf8(output.stdout)?.trim().to_string();
        if sysroot.is_empty() {
            return Ok(None);
        }
        let sysroot = PathBuf::from(sysroot);
        // The sysroot that the script makes has a compiler of its own. rustup's sysroot has a cargo
        // as well, and is used through that.
        let foreign = sysroot.join("bin/rustc").is_file() && !sysroot.join("bin/cargo").is_file();
        let foreign = foreign && sysroot != Path::new("/usr");
        Ok(Some(Toolchain { sysroot, foreign }))
    }

    /// Returns whether it builds for [`TARGET_32`].
    pub fn has_32(&self) -> bool {
        self.sysroot.join("lib/rustlib").join(TARGET_32).join("lib").is_dir()
    }

    /// Returns a cargo command that builds for [`TARGET_32`] into `target_dir`.
    pub fn cargo_32(&self, subcommand: &str, target_dir: &Path) -> Command {
        self.cargo_for(TARGET_32, &FLAGS_32, subcommand, target_dir)
    }

    /// Returns a cargo command that builds for [`TARGET`] into `target_dir`.
    pub fn cargo(&self, subcommand: &str, target_dir: &Path) -> Command {
        self.cargo_for(TARGET, &[], subcommand, target_dir)
    }

    fn cargo_for(&self, target: &str, flags: &[&str], subcommand: &str, target_dir: &Path) -> Command {
        let mut command = Command::new("cargo");
        // Settings of an outer cargo for its own compiler must not leak into this one.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO_") && text != "CARGO_HOME" || text == "RUSTFLAGS" || text == "RUSTC" {
                command.env_remove(&name);
            }
        }
        command.current_dir(project());
        if self.foreign {
            // Clippy's driver is a compiler too, but does not run through the `RUSTC` wrapper.
            command.env("RUSTC", self.sysroot.join("bin/rustc")).env("SYSROOT", &self.sysroot);
            command.env("PATH", prepend_path("/usr/bin"));
        }
        let remap = format!("--remap-path-prefix={}={BUILT_AS}", project().display());
        let flags: Vec<&str> = flags.iter().copied().chain([&*remap]).collect();
        command.args([subcommand, "--target", target]);
        command.arg("--config").arg(format!("target.{target}.rustflags={flags:?}"));
        command.arg("--target-dir").arg(target_dir);
        command
    }

    /// Returns a command that runs the sysroot's linker.
    pub fn linker(&self) -> Command {
        let mut linker = Command::new(self.sysroot.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld"));
        linker.args(["-flavor", "gnu"]);
        linker
    }
}

fn setup_script() -> PathBuf {
    project().join("boot/setup.sh")
}

fn prepend_path(first: &str) -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(PathBuf::from(first)).chain(std::env::split_paths(&path));
    std::env::join_paths(all).unwrap_or(path)
}
