//! The tree of files: the mounted filesystems, and the files that paths lead to.

use super::error::{Error, Outcome};
use super::file::{File, How};
use super::volume::Volume;
use alloc::sync::Arc;
use alloc::vec::Vec;
use ringfence_abi::fs::FsError;
use ringfence_core::directory::{FileKind, Stat};
use ringfence_core::path::Path;
use spin::Mutex;

/// A mounted filesystem.
#[derive(Clone)]
pub struct Mount {
    /// The path where it is mounted.
    pub at: Path,
    /// The filesystem.
    pub volume: Arc<Volume>,
}

static MOUNTS: Mutex<Vec<Mount>> = Mutex::new(Vec::new());

/// Returns all mounted filesystems, by path.
pub fn mounts() -> Vec<Mount> {
    let mut mounts = MOUNTS.lock().clone();
    mounts.sort_by(|one, other| one.at.cmp(&other.at));
    mounts
}

/// Returns whether a filesystem is mounted at `path` itself.
pub fn is_mounted_at(path: &Path) -> bool {
    MOUNTS.lock().iter().any(|mount| mount.at == *path)
}

/// Mounts a filesystem. Returns `false` if there is one at `at`.
pub fn mount(at: Path, volume: Arc<Volume>) -> bool {
    let mut mounts = MOUNTS.lock();
    let is_free = mounts.iter().all(|mount| mount.at != at);
    if is_free {
        mounts.push(Mount { at, volume });
    }
    is_free
}

/// Takes a filesystem out of the tree.
pub(crate) fn forget(volume: &Arc<Volume>) {
    MOUNTS.lock().retain(|mount| !Arc::ptr_eq(&mount.volume, volume));
}

/// Returns the filesystem that `path` is in, and the path there.
pub fn find(path: &Path) -> Outcome<(Arc<Volume>, Path)> {
    let mounts = MOUNTS.lock();
    let inside = mounts.iter().filter(|mount| path.is_below(&mount.at));
    let nearest = inside.max_by_key(|mount| mount.at.as_str().len());
    nearest.and_then(|mount| Some((mount.volume.clone(), path.below(&mount.at)?))).ok_or(Error::NotMounted)
}

/// Describes the file or directory at `path`.
pub async fn stat(path: &Path) -> Outcome<Stat> {
    let (volume, inner) = find(path)?;
    volume.stat(&inner).await
}

/// Opens the file or directory at `path`.
pub async fn open(path: &Path, how: How) -> Outcome<File> {
    let (volume, inner) = find(path)?;
    File::open(volume, inner, how).await
}

/// Opens the regular file at `path`.
pub async fn open_file(path: &Path, how: How) -> Outcome<File> {
    let file = open(path, how).await?;
    match file.stat().kind {
        FileKind::File => Ok(file),
        FileKind::Directory => Err(FsError::IsADirectory.into()),
        FileKind::Link | FileKind::Other => Err(FsError::Unsupported.into()),
    }
}

/// Makes a directory.
pub async fn make_directory(path: &Path) -> Outcome<()> {
    let (volume, inner) = find(path)?;
    volume.make_directory(&inner).await
}

/// Removes a file or an empty directory.
pub async fn remove(path: &Path) -> Outcome<()> {
    let (volume, inner) = find(path)?;
    if inner.is_root() {
        return Err(FsError::Busy.into());
    }
    volume.remove(&inner).await
}

/// Gives the file or directory at `from` the path `to`, in the same filesystem.
pub async fn rename(from: &Path, to: &Path) -> Outcome<()> {
    let ((volume, from), (other, to)) = (find(from)?, find(to)?);
    if !Arc::ptr_eq(&volume, &other) {
        return Err(Error::Across);
    }
    if from.is_root() || to.is_root() {
        return Err(FsError::Busy.into());
    }
    volume.rename(&from, &to).await
}
