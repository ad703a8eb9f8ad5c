//! FAT12, FAT16 and FAT32 (Microsoft's "FAT File System Specification" 1.03), with long names, by
//! the crate `hadris-fat`: `insmod fat disk=disk0`, or `mount disk0 /mnt`.
//!
//! The crate orders its writes so that an end between two of them leaves the same faults as a power
//! cut: clusters that belong to no file, or a file under two names. Everything it changes is
//! written in the request, except the length of an open file; [`Fat::write`] has it written as
//! well. **A file that grows gets its data at once, and its clusters and length a moment later**
//! ([`Writes`]): in their order, and once for many pieces.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

mod disk;

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::Cell;
use disk::{Blocks, Failed, Writes};
use hadris_fat::sync::FatFs;
use hadris_fat::{CacheOptions, FatKind};
use hadris_fs::{
    DirCursor, Error, ErrorKind, FileType, Metadata, MountOptions, Name, NodeId, OpenMode, RenameMode, Resolve, SetAttr,
};
use ringfence_sdk::block::BufferedDisk;
use ringfence_sdk::fs::{
    Entries, FS_READ_ONLY, FileKind, Filesystem, FsDriver, FsError, FsInfo, How, Outcome, Space, Stat, field,
};
use ringfence_sdk::{Kind, Manifest, Refusal, Result, driver, parameters};

driver!(
    FsDriver<Fat>,
    Manifest::new("fat", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Fs)
        .uses(Kind::Block)
        .heap_kib(1024)
        .stack_kib(256)
        .upcall_ms(1000)
        .restart()
);

parameters! {
    DISK: Text("disk", "the disk that the filesystem is on", "disk0");
    READ_ONLY: Flag("ro", "whether it is only read", false);
}

/// The most files and directories that the crate keeps in memory.
const MOST_NODES: usize = 512;
/// The parts of the disk that the crate remembers: blocks of the FAT and of directories, places in
/// the chains of clusters, and names of the directory that was searched last, until something is
/// written.
const CACHE: CacheOptions = CacheOptions::new().with_chain_positions(64).with_blocks(32).with_directory_entries(256);

struct Fat {
    volume: FatFs<Blocks>,
    /// The files that are open, each as often as it is. A file has several names for FAT, which
    /// does not tell `a` from `A`.
    open: Vec<NodeId>,
    writes: Rc<Cell<Writes>>,
}

impl Filesystem for Fat {
    type Node = NodeId;

    fn disk() -> String {
        DISK.get()
    }

    fn mount(disk: BufferedDisk) -> Result<Fat> {
        let mut options = MountOptions::new().with_node_limit(MOST_NODES);
        if READ_ONLY.get() {
            options = options.read_only();
        }
        let writes = Rc::new(Cell::new(Writes::Anything));
        match FatFs::mount(Blocks::new(disk, writes.clone())?, options) {
            Ok(volume) => Ok(Fat { volume: volume.with_cache(CACHE), open: Vec::new(), writes }),
            Err(error) => {
                log::error!("{}: {error}", DISK.get());
                Err(Refusal::Invalid)
            }
        }
    }

    fn info(&mut self) -> FsInfo {
        let format = match self.volume.info().kind() {
            FatKind::Fat12 => "FAT12",
            FatKind::Fat16 => "FAT16",
            _ => "FAT32",
        };
        let mut label = [0; 384];
        let label = self.volume.label(&mut label).ok().flatten().unwrap_or("");
        FsInfo {
            format: field(format),
            label: field(label),
            disk: field(&DISK.get()),
            flags: if self.volume.is_read_only() { FS_READ_ONLY } else { 0 },
            reserved: 0,
        }
    }

    fn space(&mut self) -> Outcome<Space> {
        let space = self.volume.statfs().map_err(said)?;
        Ok(Space { total: space.total_bytes(), free: space.free_bytes() })
    }

    fn stat(&mut self, path: &str) -> Outcome<Stat> {
        let node = self.find(path)?;
        let stat = self.volume.stat(node).map_err(said);
        self.volume.forget(node, 1);
        Ok(described(&stat?))
    }

    fn open(&mut self, path: &str, how: How) -> Outcome<(NodeId, Stat)> {
        let node = if how.create { self.found_or_created(path) } else { self.find(path) }?;
        match self.opened(node, how) {
            Ok(stat) => {
                self.open.push(node);
                Ok((node, stat))
            }
            Err(error) => {
                self.volume.forget(node, 1);
                Err(error)
            }
        }
    }

    fn close(&mut self, node: NodeId) {
        if let Some(at) = self.open.iter().position(|open| *open == node) {
            self.open.swap_remove(at);
        }
        // Its length was written when it changed.
        let _ = self.volume.close(node);
        self.volume.forget(node, 1);
    }

    fn read(&mut self, node: &mut NodeId, offset: u64, to: &mut [u8]) -> Outcome<usize> {
        self.volume.read(*node, offset, to).map_err(said)
    }

    fn list(&mut self, node: &mut NodeId, from: u64, entries: &mut Entries<'_>) -> Outcome<u64> {
        let mut cursor = DirCursor::from_raw(from);
        while let Some(entry) = self.volume.readdir(*node, cursor).map_err(said)? {
            if !entries.add(entry.name().as_bytes(), &described(entry.metadata())) {
                return Ok(cursor.into_raw());
            }
            cursor = entry.next_cursor();
        }
        Ok(0)
    }

    fn write(&mut self, node: &mut NodeId, offset: u64, from: &[u8]) -> Outcome<()> {
        let len_bytes = self.volume.stat(*node).map_err(said)?.len();
        if offset < len_bytes {
            self.write_all(*node, offset, from)?;
            return self.publish(*node);
        }
        self.writes.set(Writes::Data(self.volume.info().data_start()));
        let written = self.write_all(*node, offset, from);
        self.writes.set(Writes::Length);
        let written = written.and_then(|()| self.publish(*node));
        self.writes.set(Writes::Anything);
        written
    }

    fn truncate(&mut self, node: &mut NodeId, len_bytes: u64) -> Outcome<()> {
        self.volume.truncate(*node, len_bytes).map_err(said)?;
        self.publish(*node)
    }

    fn make_directory(&mut self, path: &str) -> Outcome<()> {
        let node = self.within(path, |volume, parent, name| volume.mkdir(parent, name, &SetAttr::new()))?;
        self.volume.forget(node, 1);
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Outcome<()> {
        self.within(path, |volume, parent, name| match volume.unlink(parent, name) {
            Err(error) if error.kind() == ErrorKind::IsADirectory => volume.rmdir(parent, name),
            done => done,
        })
    }

    fn rename(&mut self, from: &str, to: &str) -> Outcome<()> {
        let (to_parent, to_name) = split(to)?;
        let to_parent = self.find(to_parent)?;
        let done = self.within(from, |volume, parent, name| {
            volume.rename(parent, name, to_parent, Name::new(to_name), RenameMode::Replace)
        });
        self.volume.forget(to_parent, 1);
        done
    }

    fn sync(&mut self) -> Outcome<()> {
        self.volume.sync().map_err(said)
    }
}

impl Fat {
    /// Returns the node at `path`, which is pinned and must be forgotten.
    fn find(&mut self, path: &str) -> Outcome<NodeId> {
        self.volume.resolve(path.as_bytes(), Resolve::Lexical).map_err(said)
    }

    /// Returns the node at `path`, as [`Fat::find`] does, and makes a file if there is none. It
    /// tries that first: either search reads the whole directory if the name is new.
    fn found_or_created(&mut self, path: &str) -> Outcome<NodeId> {
        let created = self.within(path, |volume, parent, name| volume.create(parent, name, &SetAttr::new()));
        let Err(error) = created else { return created };
        match self.find(path) {
            Err(FsError::NotFound) => Err(error),
            found => found,
        }
    }

    /// Does something with the name that `path` ends with, in the directory where it is.
    fn within<T>(
        &mut self,
        path: &str,
        act: impl FnOnce(&mut FatFs<Blocks>, NodeId, &Name) -> core::result::Result<T, Error<Failed>>,
    ) -> Outcome<T> {
        let (parent, name) = split(path)?;
        let parent = self.find(parent)?;
        let done = act(&mut self.volume, parent, Name::new(name));
        self.volume.forget(parent, 1);
        done.map_err(said)
    }

    fn write_all(&mut self, node: NodeId, offset: u64, from: &[u8]) -> Outcome<()> {
        let mut done = 0;
        while done < from.len() {
            match self.volume.write(node, offset + done as u64, &from[done..]).map_err(said)? {
                0 => return Err(FsError::TooLarge),
                len_bytes => done += len_bytes,
            }
        }
        Ok(())
    }

    /// Opens a node, and describes it.
    fn opened(&mut self, node: NodeId, how: How) -> Outcome<Stat> {
        let stat = described(&self.volume.stat(node).map_err(said)?);
        if stat.kind != FileKind::File {
            return if how.truncate { Err(FsError::IsADirectory) } else { Ok(stat) };
        }
        if how.truncate && self.open.contains(&node) {
            return Err(FsError::Busy);
        }
        self.volume.open(node, self.mode()).map_err(said)?;
        if !how.truncate || stat.len_bytes == 0 {
            return Ok(stat);
        }
        if let Err(error) = self.volume.truncate(node, 0).map_err(said).and_then(|()| self.publish(node)) {
            let _ = self.volume.close(node);
            return Err(error);
        }
        Ok(Stat { len_bytes: 0, ..stat })
    }

    fn mode(&self) -> OpenMode {
        if self.volume.is_read_only() { OpenMode::Read } else { OpenMode::Write }
    }

    /// Has the length and the time of an open file written, which the crate does when it is closed.
    fn publish(&mut self, node: NodeId) -> Outcome<()> {
        self.volume.close(node).map_err(said)?;
        self.volume.open(node, self.mode()).map_err(said)
    }
}

/// Splits a path into the directory and the name in it.
fn split(path: &str) -> Outcome<(&str, &str)> {
    match path.rsplit_once('/') {
        Some((_, "")) | None => Err(FsError::Busy),
        Some(("", name)) => Ok(("/", name)),
        Some(parts) => Ok(parts),
    }
}

fn described(metadata: &Metadata) -> Stat {
    Stat {
        kind: match metadata.file_type() {
            FileType::File => FileKind::File,
            FileType::Dir => FileKind::Directory,
            _ => FileKind::Other,
        },
        len_bytes: metadata.len(),
        modified: metadata.modified().map_or(0, |time| time.unix_seconds().unsigned_abs()),
    }
}

/// Returns the kernel's word for an error of the crate. An error of the disk, or a damaged
/// filesystem, is logged in full.
fn said(error: Error<Failed>) -> FsError {
    match error.kind() {
        ErrorKind::NotFound => FsError::NotFound,
        ErrorKind::AlreadyExists => FsError::Exists,
        ErrorKind::NotADirectory => FsError::NotADirectory,
        ErrorKind::IsADirectory => FsError::IsADirectory,
        ErrorKind::DirectoryNotEmpty => FsError::NotEmpty,
        ErrorKind::NoSpace => FsError::NoSpace,
        ErrorKind::ReadOnly => FsError::ReadOnly,
        ErrorKind::InvalidInput | ErrorKind::NameTooLong => FsError::Name,
        ErrorKind::LimitExceeded => FsError::TooMany,
        ErrorKind::FileTooLarge => FsError::TooLarge,
        ErrorKind::Busy => FsError::Busy,
        ErrorKind::InvalidHandle => FsError::Stale,
        ErrorKind::Corrupt | ErrorKind::NotRecognized => {
            log::error!("{}: {error}", DISK.get());
            FsError::Corrupt
        }
        ErrorKind::Io => {
            log::error!("{}: {error}", DISK.get());
            FsError::Device
        }
        _ => FsError::Unsupported,
    }
}
