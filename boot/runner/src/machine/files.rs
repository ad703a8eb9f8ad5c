//! The files of one run: its ramdisk and its scratch disk. They are removed when the run ends.
//! Files of a runner that was killed are removed when the next runner starts.

use crate::target;
use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Length in bytes of the scratch disk, which a machine has if the user gives it no disk.
pub const DISK_BYTES: u64 = 64 << 20;

/// The files of one run.
pub struct RunFiles(TempDir);

impl RunFiles {
    /// Makes a folder for the files. The folder is removed when the value is dropped.
    pub fn new() -> Result<RunFiles> {
        let runs = target().join("runs");
        fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
        sweep(&runs);
        let folder = tempfile::Builder::new().prefix(&format!("{}.", std::process::id())).tempdir_in(&runs);
        Ok(RunFiles(folder.with_context(|| format!("cannot make a folder in {}", runs.display()))?))
    }

    /// Returns the folder.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file to the folder and returns its path.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Makes an empty disk for this run.
    pub fn scratch_disk(&self) -> Result<PathBuf> {
        let path = self.0.path().join("scratch.img");
        let made = File::create(&path).and_then(|file| file.set_len(DISK_BYTES));
        made.with_context(|| format!("cannot make the scratch disk {}", path.display()))?;
        Ok(path)
    }
}

/// Removes the folders of runners that were killed. A folder's name begins with the process ID of
/// its runner.
fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('.').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Another runner may be removing the same folder.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
