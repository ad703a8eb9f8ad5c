//! A filesystem: a driver, and its successors.

use super::error::{Error, Outcome};
use super::request::{Answer, Files, Request};
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use embassy_futures::yield_now;
use host::domain::cause::Cause;
use host::domain::{Handle, end};
use host::requests::Server;
use host::requests::attempt::{self, Attempt, Done};
use ringfence_abi::fs::{FS_DIRECTORY, FS_READ_ONLY, FsError, FsInfo, FsOutcome, Operation};
use ringfence_core::directory::{self, Entry, FileKind, Stat};
use ringfence_core::path::{self, Path};
use spin::Mutex;

static VOLUMES: Mutex<Vec<Arc<Volume>>> = Mutex::new(Vec::new());
/// The number of the next open file.
static NUMBERS: AtomicU64 = AtomicU64::new(1);

/// Adds a filesystem.
pub(crate) fn add(volume: Volume) -> Arc<Volume> {
    let volume = Arc::new(volume);
    VOLUMES.lock().push(volume.clone());
    volume
}

/// Forgets a filesystem.
pub(crate) fn forget(volume: &Arc<Volume>) {
    VOLUMES.lock().retain(|other| !Arc::ptr_eq(other, volume));
}

/// Returns all filesystems.
pub fn all() -> Vec<Arc<Volume>> {
    VOLUMES.lock().clone()
}

/// Returns the filesystem of a driver.
pub fn of(handle: &Handle) -> Option<Arc<Volume>> {
    all().into_iter().find(|volume| Arc::ptr_eq(&volume.server.handle(), handle))
}

/// The size of a filesystem in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// The part that is free.
    pub free: u64,
}

/// A filesystem.
pub struct Volume {
    /// The name of its driver.
    name: String,
    server: Server,
    info: FsInfo,
    gone: AtomicBool,
    /// The files that are open, with their paths.
    open: Mutex<Vec<(u64, Path)>>,
    /// Numbers of files that nobody needs any more, and that the driver still has open.
    to_close: Mutex<Vec<u64>>,
}

/// A file that is being opened, or closed: the driver may have it open when nobody waits for that
/// any more.
struct Unsettled<'a> {
    volume: &'a Volume,
    node: u64,
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        self.volume.close_later(self.node);
    }
}

/// Returns the text of a field that is padded with zeros, harmless for a terminal.
fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    path::shown(&String::from_utf8_lossy(field.get(..end).unwrap_or(field)))
}

fn stat_of(outcome: &FsOutcome) -> Stat {
    Stat { kind: FileKind::of(outcome.kind), len_bytes: outcome.value, modified: outcome.next }
}

impl Volume {
    pub(crate) fn new(name: String, server: Server, info: &FsInfo) -> Volume {
        Volume {
            name,
            server,
            info: *info,
            gone: AtomicBool::new(false),
            open: Mutex::default(),
            to_close: Mutex::default(),
        }
    }

    /// Returns the name of its driver.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the name of its format.
    pub fn format(&self) -> String {
        text(&self.info.format)
    }

    /// Returns the disk that it is on.
    pub fn disk(&self) -> String {
        text(&self.info.disk)
    }

    /// Returns the name of the volume; empty if it has none.
    pub fn label(&self) -> String {
        text(&self.info.label)
    }

    pub(crate) fn label_words(&self) -> String {
        let label = self.label();
        if label.is_empty() { label } else { format!(", called {label}") }
    }

    /// Returns whether it cannot be written.
    pub fn is_read_only(&self) -> bool {
        self.info.flags & FS_READ_ONLY != 0
    }

    /// Returns how many of its files are open.
    pub fn open_files(&self) -> usize {
        self.open.lock().len()
    }

    /// Returns the current driver.
    pub fn handle(&self) -> Handle {
        self.server.handle()
    }

    pub(crate) fn is_still(&self, info: &FsInfo) -> bool {
        self.info == *info
    }

    pub(crate) fn replace(&self, fresh: &Handle) {
        // A new driver has nothing open.
        self.to_close.lock().clear();
        self.server.replace::<Files>(fresh);
    }

    /// Marks the filesystem as gone: requests fail from now on.
    pub(crate) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
        self.server.set_gone();
    }

    pub(crate) fn wake(&self) {
        self.server.wake();
    }

    /// Sends a request and waits for its outcome. If the driver is ended meanwhile, its successor
    /// is asked whether the request `is_done` before it gets the request.
    async fn ask_unless(
        &self,
        request: Request,
        data_out: &[u8],
        data_in: &mut [u8],
        is_done: impl AsyncFn() -> bool,
    ) -> Outcome<FsOutcome> {
        if self.gone.load(Ordering::Acquire) {
            return Err(Error::Gone);
        }
        // A driver may answer every request at once: other tasks have their turn in between.
        yield_now().await;
        self.close_waiting().await;
        self.attempt(request, data_out, data_in, is_done).await
    }

    /// Sends a request, as [`Volume::ask_unless`] does.
    async fn attempt(
        &self,
        request: Request,
        data_out: &[u8],
        data_in: &mut [u8],
        is_done: impl AsyncFn() -> bool,
    ) -> Outcome<FsOutcome> {
        let mut attempt = Attempt::<Files>::new(&self.server);
        match attempt.outcome(&request, data_out, data_in, is_done).await {
            Ok(Done::Now(Ok(outcome))) => Ok(outcome),
            Ok(Done::Now(Err(error))) => Err(error.into()),
            Ok(Done::Before) => Ok(FsOutcome::default()),
            Err(_) => Err(Error::Gone),
        }
    }

    async fn ask(&self, request: Request, data_out: &[u8], data_in: &mut [u8]) -> Outcome<FsOutcome> {
        self.ask_unless(request, data_out, data_in, async || false).await
    }

    /// Asks the current driver to describe the file or directory at `path`, ahead of all other
    /// requests.
    async fn look(&self, path: &Path) -> Option<Answer> {
        let request = Request { operation: Operation::Stat, node: 0, offset: 0, flags: 0 };
        let path = path.as_str().as_bytes();
        attempt::send::<Files>(&self.server.handle(), None, &request, path, &mut [], None).await.ok()
    }

    async fn is_there(&self, path: &Path) -> bool {
        matches!(self.look(path).await, Some(Ok(_)))
    }

    async fn is_missing(&self, path: &Path) -> bool {
        matches!(self.look(path).await, Some(Err(FsError::NotFound)))
    }

    /// Ends a driver that has given an impossible answer.
    fn blame(&self, entry: u64) -> Error {
        end::condemn(&self.server.handle(), Cause::QueueEntry { queue: "complete", entry });
        Error::Nonsense
    }

    /// Sends a request about a path.
    async fn ask_about(&self, operation: Operation, path: &Path) -> Outcome<FsOutcome> {
        let request = Request { operation, node: 0, offset: 0, flags: 0 };
        self.ask(request, path.as_str().as_bytes(), &mut []).await
    }

    /// Describes the file or directory at `path`.
    pub async fn stat(&self, path: &Path) -> Outcome<Stat> {
        self.ask_about(Operation::Stat, path).await.map(|outcome| stat_of(&outcome))
    }

    /// Returns the size of the filesystem.
    pub async fn space(&self) -> Outcome<Space> {
        let request = Request { operation: Operation::Space, node: 0, offset: 0, flags: 0 };
        let outcome = self.ask(request, &[], &mut []).await?;
        Ok(Space { total: outcome.value, free: outcome.next.min(outcome.value) })
    }

    /// Has everything put on the disk's medium.
    pub async fn sync(&self) -> Outcome<()> {
        let request = Request { operation: Operation::Sync, node: 0, offset: 0, flags: 0 };
        self.ask(request, &[], &mut []).await.map(|_| ())
    }

    /// Makes a directory.
    pub async fn make_directory(&self, path: &Path) -> Outcome<()> {
        let request = Request { operation: Operation::MakeDirectory, node: 0, offset: 0, flags: 0 };
        let is_done = async || matches!(self.look(path).await, Some(Ok(found)) if found.kind == FS_DIRECTORY);
        self.ask_unless(request, path.as_str().as_bytes(), &mut [], is_done).await.map(|_| ())
    }

    /// Removes a file or an empty directory.
    pub async fn remove(&self, path: &Path) -> Outcome<()> {
        self.check_not_open(path)?;
        let request = Request { operation: Operation::Remove, node: 0, offset: 0, flags: 0 };
        let is_done = async || self.is_missing(path).await;
        self.ask_unless(request, path.as_str().as_bytes(), &mut [], is_done).await.map(|_| ())
    }

    /// Gives the file or directory at `from` the path `to`. A file that is there is replaced.
    pub async fn rename(&self, from: &Path, to: &Path) -> Outcome<()> {
        self.check_not_open(from)?;
        self.check_not_open(to)?;
        let offset = from.as_str().len() as u64;
        let request = Request { operation: Operation::Rename, node: 0, offset, flags: 0 };
        let is_done = async || self.is_missing(from).await && self.is_there(to).await;
        let both = format!("{from}{to}");
        self.ask_unless(request, both.as_bytes(), &mut [], is_done).await.map(|_| ())
    }

    /// Opens the file or directory at `path` under a new number.
    pub(crate) async fn open(&self, path: &Path, flags: u32) -> Outcome<(u64, Stat)> {
        let node = NUMBERS.fetch_add(1, Ordering::Relaxed);
        self.open.lock().push((node, path.clone()));
        let unsettled = Unsettled { volume: self, node };
        let stat = self.open_as(node, path, flags).await?;
        core::mem::forget(unsettled);
        Ok((node, stat))
    }

    /// Refuses to take the name of a file away by which the file is opened again if its driver is
    /// ended.
    fn check_not_open(&self, path: &Path) -> Outcome<()> {
        match self.open.lock().iter().any(|(_, open)| open.is_below(path)) {
            true => Err(FsError::Busy.into()),
            false => Ok(()),
        }
    }

    /// Opens a path under this number.
    pub(crate) async fn open_as(&self, node: u64, path: &Path, flags: u32) -> Outcome<Stat> {
        let request = Request { operation: Operation::Open, node, offset: 0, flags };
        let outcome = self.ask(request, path.as_str().as_bytes(), &mut []).await?;
        Ok(stat_of(&outcome))
    }

    /// Notes that nobody needs the file with this number any more.
    pub(crate) fn close_later(&self, node: u64) {
        self.open.lock().retain(|(open, _)| *open != node);
        self.to_close.lock().push(node);
    }

    /// Closes the files that nobody needs any more. The driver does that in the same upcall as the
    /// request that is sent next, unless its queue is full.
    async fn close_waiting(&self) {
        // One after the other: if this future is dropped, the others stay.
        let next = || self.to_close.lock().pop();
        while let Some(node) = next() {
            let request = Request { operation: Operation::Close, node, offset: 0, flags: 0 };
            if !attempt::post::<Files>(&self.server.handle(), &request) {
                let unsettled = Unsettled { volume: self, node };
                // A driver that does not know the number has nothing to close.
                let _ = self.attempt(request, &[], &mut [], async || false).await;
                core::mem::forget(unsettled);
            }
        }
    }

    /// Reads from an open file. Returns the number of bytes.
    pub(crate) async fn read(&self, node: u64, offset: u64, to: &mut [u8]) -> Outcome<usize> {
        let outcome = self.ask(Request { operation: Operation::Read, node, offset, flags: 0 }, &[], to).await?;
        self.checked(outcome.value, to.len())
    }

    /// Writes to an open file. Returns the number of bytes.
    pub(crate) async fn write(&self, node: u64, offset: u64, from: &[u8]) -> Outcome<usize> {
        let outcome = self.ask(Request { operation: Operation::Write, node, offset, flags: 0 }, from, &mut []).await?;
        self.checked(outcome.value, from.len())
    }

    /// Makes an open file `len_bytes` bytes long.
    pub(crate) async fn truncate(&self, node: u64, len_bytes: u64) -> Outcome<()> {
        let request = Request { operation: Operation::Truncate, node, offset: len_bytes, flags: 0 };
        // With data, so that it keeps its place among the writes if it is sent again.
        self.ask(request, &len_bytes.to_le_bytes(), &mut []).await.map(|_| ())
    }

    /// Returns entries of an open directory from a position on, and the next position, if there is
    /// one. `buffer` is for the driver's answer.
    pub(crate) async fn list(&self, node: u64, from: u64, buffer: &mut [u8]) -> Outcome<(Vec<Entry>, Option<u64>)> {
        let request = Request { operation: Operation::List, node, offset: from, flags: 0 };
        let outcome = self.ask(request, &[], buffer).await?;
        let len_bytes = self.checked(outcome.value, buffer.len())?;
        let entries = directory::entries(buffer.get(..len_bytes).unwrap_or(buffer));
        let entries = entries.map_err(|_| self.blame(outcome.value))?;
        Ok((entries, Some(outcome.next).filter(|next| *next != 0)))
    }

    /// Checks a number of bytes that the driver claims to have moved.
    fn checked(&self, claimed: u64, most: usize) -> Outcome<usize> {
        usize::try_from(claimed).ok().filter(|claimed| *claimed <= most).ok_or_else(|| self.blame(claimed))
    }
}
