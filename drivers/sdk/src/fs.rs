//! Drivers of filesystems. Such a driver uses a disk, and offers the files on it.
//!
//! A filesystem implements [`Filesystem`], one method for each thing that the kernel asks for;
//! [`FsDriver`] makes a driver of it. The methods may wait for the disk ([`BufferedDisk`]):
//! meanwhile the kernel and all other drivers run.
//!
//! **A request is completed when the kernel has all its writes.** Then the driver may be ended at
//! any time, and its successor has lost no change that was reported done. When a write fails, the
//! request fails, and the filesystem is mounted again before the next one: what it knows of the
//! disk's content may be ahead of the disk.

use crate::block::{BufferedDisk, Lent};
use crate::class::{self, Protocol, Requests};
use crate::shared::text_of;
use crate::{Driver, Events, Reply, Result};
use alloc::string::String;
use alloc::vec::Vec;
use ringfence_abi::fs::{
    COMPLETE, FS_CREATE, FS_MAX_NAME, FS_REQUESTS, FS_TRUNCATE, FsEntry, FsOutcome, FsRequest, Operation, QUEUE_BYTES,
    SUBMIT, read_request, write_outcome,
};
pub use ringfence_abi::fs::{FS_READ_ONLY, FsError, FsInfo};
use ringfence_abi::queue::{Place, Rings, Words};
use zerocopy::IntoBytes;

/// The most files that are open at once.
const MOST_OPEN: usize = 64;

/// The result of an operation on files.
pub type Outcome<T> = core::result::Result<T, FsError>;

/// Kind of the file that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum FileKind {
    /// A directory.
    Directory = ringfence_abi::fs::FS_DIRECTORY,
    /// A regular file.
    File = ringfence_abi::fs::FS_FILE,
    /// A symbolic link, in a list of entries.
    Link = ringfence_abi::fs::FS_LINK,
    /// None of the others: a device, a socket...
    Other = ringfence_abi::fs::FS_OTHER,
}

/// The description of a file or of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its kind.
    pub kind: FileKind,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// When it was changed last, in seconds since 1970.
    pub modified: u64,
}

/// The size of a filesystem in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All of it.
    pub total: u64,
    /// The part that is free.
    pub free: u64,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// Make an empty file if there is nothing.
    pub create: bool,
    /// Make the file empty.
    pub truncate: bool,
}

/// Entries of a directory on their way to the kernel.
pub struct Entries<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
}

impl Entries<'_> {
    /// Adds an entry. Returns `false`, and adds nothing, if there is no room. A name that is too
    /// long for the kernel is left out.
    pub fn add(&mut self, name: &[u8], stat: &Stat) -> bool {
        if name.len() > FS_MAX_NAME {
            return true;
        }
        let len_bytes = size_of::<FsEntry>() + name.len().next_multiple_of(8);
        if self.bytes.len() + len_bytes > self.room {
            return false;
        }
        let head = FsEntry {
            len_bytes: stat.len_bytes,
            modified: stat.modified,
            kind: stat.kind as u32,
            name_len: name.len() as u32,
        };
        let end = self.bytes.len() + len_bytes;
        self.bytes.extend_from_slice(head.as_bytes());
        self.bytes.extend_from_slice(name);
        self.bytes.resize(end, 0);
        true
    }
}

/// A filesystem.
///
/// Paths are absolute within the filesystem, begin with `/`, and have no empty names, no `.` and no
/// `..`. Methods that change the filesystem answer [`FsError::ReadOnly`] where they are not
/// implemented.
pub trait Filesystem: Sized + 'static {
    /// An open file or directory.
    type Node;

    /// Returns the name of the disk that the filesystem is on.
    fn disk() -> String;

    /// Finds the filesystem on its disk.
    ///
    /// # Errors
    /// [`Refusal::Invalid`](crate::Refusal::Invalid) if the disk has no filesystem of this format.
    fn mount(disk: BufferedDisk) -> Result<Self>;

    /// Describes the filesystem to the kernel.
    fn info(&mut self) -> FsInfo;

    /// Tells the size of the filesystem.
    fn space(&mut self) -> Outcome<Space>;

    /// Describes the file or directory at `path`.
    fn stat(&mut self, path: &str) -> Outcome<Stat>;

    /// Opens the file or directory at `path`. A file that is open already is not made empty
    /// ([`FsError::Busy`]), under whichever name.
    fn open(&mut self, path: &str, how: How) -> Outcome<(Self::Node, Stat)>;

    /// Closes a file or directory.
    fn close(&mut self, node: Self::Node) {
        drop(node);
    }

    /// Reads from the byte at `offset` on. Returns the number of bytes, which is less than `to` has
    /// only at the file's end.
    fn read(&mut self, node: &mut Self::Node, offset: u64, to: &mut [u8]) -> Outcome<usize>;

    /// Adds entries of a directory, from the position `from` on, as many as there is room for: 0 is
    /// the first position. Returns the position of the next entry, or 0 if there is none.
    fn list(&mut self, node: &mut Self::Node, from: u64, entries: &mut Entries<'_>) -> Outcome<u64>;

    /// Writes all of `from`, from the byte at `offset` on.
    fn write(&mut self, node: &mut Self::Node, offset: u64, from: &[u8]) -> Outcome<()> {
        let _ = (node, offset, from);
        Err(FsError::ReadOnly)
    }

    /// Makes the file `len_bytes` bytes long.
    fn truncate(&mut self, node: &mut Self::Node, len_bytes: u64) -> Outcome<()> {
        let _ = (node, len_bytes);
        Err(FsError::ReadOnly)
    }

    /// Makes a directory.
    fn make_directory(&mut self, path: &str) -> Outcome<()> {
        let _ = path;
        Err(FsError::ReadOnly)
    }

    /// Removes a file or an empty directory.
    fn remove(&mut self, path: &str) -> Outcome<()> {
        let _ = path;
        Err(FsError::ReadOnly)
    }

    /// Gives the file or directory at `from` the path `to`. A file that is there is replaced.
    fn rename(&mut self, from: &str, to: &str) -> Outcome<()> {
        let _ = (from, to);
        Err(FsError::ReadOnly)
    }

    /// Puts everything on the disk, and has the disk put it on its medium.
    fn sync(&mut self) -> Outcome<()> {
        Ok(())
    }
}

/// The class of filesystems.
pub struct Fs;

impl Rings for Fs {
    const RINGS: [Place; 2] = [SUBMIT, COMPLETE];
}

impl Protocol for Fs {
    type Info = FsInfo;
    type Request = FsRequest;
    type Outcome = FsOutcome;

    const QUEUE_BYTES: usize = QUEUE_BYTES;
    const NUMBERS: usize = FS_REQUESTS;

    fn read(memory: &impl Words, number: usize) -> Option<FsRequest> {
        read_request(memory, number)
    }

    fn data(request: &FsRequest) -> (u64, u32) {
        (request.data, request.data_len)
    }

    fn write(memory: &impl Words, number: usize, outcome: &FsOutcome) {
        write_outcome(memory, number, outcome);
    }
}

/// The driver of a [`Filesystem`].
pub struct FsDriver<F: Filesystem> {
    disk: BufferedDisk,
    /// The filesystem; `None` if a write has failed, until the next request.
    filesystem: Option<F>,
    channel: Requests<Fs>,
    /// The open files and directories, by the kernel's numbers.
    open: Vec<(u64, F::Node)>,
    /// Whether everything is written out for the next build.
    is_saved: bool,
}

impl<F: Filesystem> Driver for FsDriver<F> {
    fn init() -> Result<Self> {
        let disk = BufferedDisk::open(&F::disk())?;
        let mut filesystem = F::mount(disk.clone())?;
        let info = filesystem.info();
        disk.settle()?;
        let channel = Requests::offer(&info)?;
        Ok(FsDriver { disk, filesystem: Some(filesystem), channel, open: Vec::new(), is_saved: false })
    }

    fn poll(&mut self, _: Events) -> Reply {
        // The next build gets the requests that come after `save`.
        while !self.is_saved
            && let Some((ticket, request)) = self.channel.take()
        {
            let outcome = self.carry_out(&ticket, &request);
            let outcome = self.settled(outcome);
            let outcome = outcome.unwrap_or_else(|error| FsOutcome { status: error as u32, ..FsOutcome::default() });
            self.channel.complete(ticket, &outcome);
        }
        Reply::ACKNOWLEDGED
    }

    /// Keeps nothing, but leaves the disk as after an exit: the next build finds the filesystem as
    /// it is when nobody writes to it.
    fn save(&mut self) -> Vec<u8> {
        self.is_saved = true;
        self.write_out();
        Vec::new()
    }

    fn exit(&mut self) {
        if let Some(filesystem) = &mut self.filesystem {
            core::mem::take(&mut self.open).into_iter().for_each(|(_, node)| filesystem.close(node));
        }
        self.write_out();
    }
}

fn described(stat: Stat) -> FsOutcome {
    FsOutcome { kind: stat.kind as u32, value: stat.len_bytes, next: stat.modified, ..FsOutcome::default() }
}

impl<F: Filesystem> FsDriver<F> {
    fn write_out(&mut self) {
        let synced = self.filesystem.as_mut().map_or(Ok(()), Filesystem::sync);
        if let Err(error) = self.settled(synced) {
            log::error!("the last writes are not on the disk: {}", error.words());
        }
    }

    /// Waits until the kernel has all writes. Returns the outcome of the request that has made
    /// them.
    fn settled<T>(&mut self, outcome: Outcome<T>) -> Outcome<T> {
        if self.disk.settle().is_ok() {
            return outcome;
        }
        // The kernel opens its files again when their numbers are not known any more.
        (self.filesystem, self.open) = (None, Vec::new());
        self.disk.begin_again();
        outcome.and(Err(FsError::Device))
    }

    fn carry_out(&mut self, ticket: &class::Ticket<Fs>, request: &FsRequest) -> Outcome<FsOutcome> {
        let operation = Operation::of(request.operation).ok_or(FsError::Unsupported)?;
        let Self { disk, filesystem, channel, open, .. } = self;
        let filesystem = match filesystem {
            Some(filesystem) => filesystem,
            None => filesystem.insert(F::mount(disk.clone()).map_err(|_| FsError::Device)?),
        };
        let find = |open: &Vec<(u64, F::Node)>| open.iter().position(|(number, _)| *number == request.node);
        let at = || find(open).ok_or(FsError::Stale);
        // SAFETY: the data of files is in no device's reach: blocks are copied from it and to it.
        let data = unsafe { channel.data_mut(ticket) };
        disk.lend(Lent::In, &mut []);
        let path = || text_of(data).ok_or(FsError::Name);
        let done = FsOutcome::default();
        match operation {
            Operation::Stat => filesystem.stat(&path()?).map(described),
            Operation::Open => {
                let how = How { create: request.flags & FS_CREATE != 0, truncate: request.flags & FS_TRUNCATE != 0 };
                let path = path()?;
                let before = find(open);
                if before.is_none() && open.len() >= MOST_OPEN {
                    return Err(FsError::TooMany);
                }
                if let Some(before) = before {
                    filesystem.close(open.swap_remove(before).1);
                }
                let (node, stat) = filesystem.open(&path, how)?;
                open.push((request.node, node));
                Ok(described(stat))
            }
            Operation::Close => {
                if let Some(at) = find(open) {
                    filesystem.close(open.swap_remove(at).1);
                }
                Ok(done)
            }
            Operation::Read => {
                let at = at()?;
                disk.lend(Lent::In, data);
                let len_bytes = filesystem.read(&mut open[at].1, request.offset, data)?;
                Ok(FsOutcome { value: len_bytes as u64, ..done })
            }
            Operation::List => {
                let at = at()?;
                let mut bytes = Vec::new();
                let mut entries = Entries { bytes: &mut bytes, room: data.len() };
                let next = filesystem.list(&mut open[at].1, request.offset, &mut entries)?;
                data.get_mut(..bytes.len()).ok_or(FsError::TooLarge)?.copy_from_slice(&bytes);
                Ok(FsOutcome { value: bytes.len() as u64, next, ..done })
            }
            Operation::Write => {
                let at = at()?;
                disk.lend(Lent::Out, data);
                filesystem.write(&mut open[at].1, request.offset, data)?;
                Ok(FsOutcome { value: data.len() as u64, ..done })
            }
            Operation::Truncate => {
                let at = at()?;
                filesystem.truncate(&mut open[at].1, request.offset).map(|()| done)
            }
            Operation::MakeDirectory => filesystem.make_directory(&path()?).map(|()| done),
            Operation::Remove => filesystem.remove(&path()?).map(|()| done),
            Operation::Rename => {
                let both = path()?;
                let first = usize::try_from(request.offset).map_err(|_| FsError::Name)?;
                let (from, to) = both.split_at_checked(first).ok_or(FsError::Name)?;
                filesystem.rename(from, to).map(|()| done)
            }
            Operation::Sync => filesystem.sync().map(|()| done),
            Operation::Space => {
                let Space { total, free } = filesystem.space()?;
                Ok(FsOutcome { value: total, next: free, ..done })
            }
        }
    }
}

/// Returns `text`, cut off to at most `BYTES` bytes and padded with zeros, for an [`FsInfo`].
pub fn field<const BYTES: usize>(text: &str) -> [u8; BYTES] {
    let mut field = [0; BYTES];
    let end = text.floor_char_boundary(BYTES);
    field[..end].copy_from_slice(&text.as_bytes()[..end]);
    field
}
