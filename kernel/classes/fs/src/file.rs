//! Open files and directories. They outlive the driver of their filesystem.

use super::error::{Error, Outcome};
use super::volume::Volume;
use alloc::sync::Arc;
use alloc::vec::Vec;
use ringfence_abi::fs::{FS_CREATE, FS_MAX_DATA, FS_TRUNCATE, FsError};
use ringfence_core::directory::{Entry, Stat};
use ringfence_core::path::Path;

/// The most bytes that one request moves.
pub const PIECE: usize = FS_MAX_DATA;

/// The most bytes of memory that a list of a directory takes, but for the entries of one request.
const MOST_LISTED: usize = 512 << 10;
/// The memory that must be free before entries are asked for: those of one request, and the list.
const ROOM_FOR_A_LIST: usize = 2 << 20;

/// Returns the bytes of memory that an entry takes.
pub fn cost(entry: &Entry) -> usize {
    size_of::<Entry>() + entry.name.len()
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// There must be one.
    Existing,
    /// An empty one is made if there is none.
    Create,
    /// It is made, or made empty.
    Empty,
}

/// An open file or directory. It is closed when it is dropped.
pub struct File {
    volume: Arc<Volume>,
    /// Its path in the filesystem.
    path: Path,
    number: u64,
    stat: Stat,
}

impl Drop for File {
    fn drop(&mut self) {
        self.volume.close_later(self.number);
    }
}

impl File {
    /// Opens the file or directory at `path` in a filesystem.
    pub(crate) async fn open(volume: Arc<Volume>, path: Path, how: How) -> Outcome<File> {
        let flags = match how {
            How::Existing => 0,
            How::Create => FS_CREATE,
            How::Empty => FS_CREATE | FS_TRUNCATE,
        };
        let (number, stat) = volume.open(&path, flags).await?;
        Ok(File { volume, path, number, stat })
    }

    /// Returns its description from when it was opened.
    pub fn stat(&self) -> Stat {
        self.stat
    }

    /// Does something with the file's number. A driver that does not know the number, as it has
    /// replaced another, opens the path again.
    async fn with<T>(&self, mut act: impl AsyncFnMut(&Volume, u64) -> Outcome<T>) -> Outcome<T> {
        const TRIES: usize = 4;
        for _ in 0..TRIES {
            match act(&self.volume, self.number).await {
                Err(Error::Said(FsError::Stale)) => self.volume.open_as(self.number, &self.path, 0).await?,
                done => return done,
            };
        }
        Err(FsError::Stale.into())
    }

    /// Reads from the byte at `offset` on, at most [`PIECE`] bytes. Returns the number of bytes,
    /// which is 0 at the file's end.
    pub async fn read(&self, offset: u64, to: &mut [u8]) -> Outcome<usize> {
        let most = to.len().min(PIECE);
        self.with(async |volume, number| volume.read(number, offset, to.get_mut(..most).unwrap_or(&mut [])).await).await
    }

    /// Writes all of `from`, from the byte at `offset` on. Bytes that are reported written are with
    /// the kernel, and are not lost with the filesystem's driver.
    pub async fn write(&self, offset: u64, from: &[u8]) -> Outcome<()> {
        let mut done = 0;
        while let Some(rest) = from.get(done..).filter(|rest| !rest.is_empty()) {
            let piece = rest.get(..PIECE).unwrap_or(rest);
            let at = offset.saturating_add(done as u64);
            match self.with(async |volume, number| volume.write(number, at, piece).await).await? {
                0 => return Err(FsError::NoSpace.into()),
                len_bytes => done += len_bytes,
            }
        }
        Ok(())
    }

    /// Makes the file `len_bytes` bytes long.
    pub async fn truncate(&self, len_bytes: u64) -> Outcome<()> {
        self.with(async |volume, number| volume.truncate(number, len_bytes).await).await
    }

    /// Returns the entries of a directory, without the directory itself and the one above, and
    /// whether there are more: at most `most` are returned, and no more than fit into
    /// [`MOST_LISTED`] bytes.
    pub async fn list(&self, most: usize) -> Outcome<(Vec<Entry>, bool)> {
        let (mut all, mut position, mut seen, mut held) = (Vec::new(), Some(0), 0, 0);
        while let Some(from) = position {
            if !hw::memory::has_room(ROOM_FOR_A_LIST) {
                return Err(Error::Memory("out of memory: there is no room for a list right now".into()));
            }
            let mut buffer = hw::memory::buffer(PIECE).map_err(Error::Memory)?;
            let (entries, next) =
                self.with(async |volume, number| volume.list(number, from, &mut buffer).await).await?;
            // A position that does not advance would be asked for again and again.
            if entries.is_empty() && next.is_some() {
                return Err(FsError::Corrupt.into());
            }
            // A driver may answer with the same entries for ever, also with the entries that are
            // left out.
            seen += entries.len();
            held += entries.iter().map(cost).sum::<usize>();
            all.extend(entries.into_iter().filter(|entry| !matches!(entry.name.as_str(), "." | "..")));
            if seen > most + 2 || held > MOST_LISTED {
                all.truncate(most);
                return Ok((all, true));
            }
            position = next;
        }
        Ok((all, false))
    }
}
