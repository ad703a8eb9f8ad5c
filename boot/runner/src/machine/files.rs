//! The files of one run: its ramdisk, its scratch disk. They go when the run ends; those of a
//! runner that was killed go when the next one starts.

use crate::target;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Length of a disk that is there when a person brings none, in bytes.
pub const DISK_BYTES: u64 = 64 << 20;

/// The files of one run.
pub struct RunFiles(TempDir);

impl RunFiles {
    /// A folder for them, which is gone when this is dropped.
    pub fn new() -> Result<RunFiles> {
        let runs = target().join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
        sweep(&runs);
        let folder = tempfile::Builder::new().prefix(&format!("{}.", std::process::id())).tempdir_in(&runs);
        Ok(RunFiles(folder.with_context(|| format!("cannot make a folder in {}", runs.display()))?))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file and returns its place.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// A disk of its own, with nothing on it.
    pub fn scratch_disk(&self) -> Result<PathBuf> {
        let path = self.0.path().join("scratch.img");
        let made = File::create(&path).and_then(|file| file.set_len(DISK_BYTES));
        made.with_context(|| format!("cannot make the scratch disk {}", path.display()))?;
        Ok(path)
    }
}

/// Removes what runners left behind that were killed: their folders begin with their process's
/// number.
fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Another runner may be doing the same.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
