//! NAME: a filesystem. It has one file, `/first`: the first block of the disk. `mount disk0 /mnt -t
//! NAME` mounts it.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

extern crate alloc;

#[cfg(test)]
mod tests;

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use ringfence_sdk::block::BufferedDisk;
use ringfence_sdk::fs::{
    Entries, FS_READ_ONLY, FileKind, Filesystem, FsDriver, FsError, FsInfo, How, Outcome, Space, Stat, field,
};
use ringfence_sdk::{Kind, Manifest, Result, driver, parameters};

driver!(
    FsDriver<TYPE>,
    Manifest::new("NAME", env!("CARGO_PKG_VERSION")).kind(Kind::Fs).uses(Kind::Block).heap_kib(512).stack_kib(64).restart()
);

parameters! {
    DISK: Text("disk", "the disk that the filesystem is on", "disk0");
    READ_ONLY: Flag("ro", "whether it is only read, as it is in any case", true);
}

/// The name of the only file.
const FILE: &str = "first";

struct TYPE {
    first: Vec<u8>,
}

impl TYPE {
    /// Returns the root, or the only file.
    fn found(&self, path: &str) -> Outcome<Stat> {
        match path.strip_prefix('/') {
            Some("") => Ok(Stat { kind: FileKind::Directory, len_bytes: 0, modified: 0 }),
            Some(FILE) => Ok(Stat { kind: FileKind::File, len_bytes: self.first.len() as u64, modified: 0 }),
            _ => Err(FsError::NotFound),
        }
    }
}

impl Filesystem for TYPE {
    type Node = FileKind;

    fn disk() -> String {
        DISK.get()
    }

    /// A filesystem checks here that the disk has its format, and refuses another with
    /// `Refusal::Invalid`.
    fn mount(disk: BufferedDisk) -> Result<TYPE> {
        let mut first = vec![0; disk.info().block_bytes as usize];
        disk.read(0, &mut first)?;
        Ok(TYPE { first })
    }

    fn info(&mut self) -> FsInfo {
        FsInfo { format: field("NAME"), label: [0; 32], disk: field(&DISK.get()), flags: FS_READ_ONLY, reserved: 0 }
    }

    fn space(&mut self) -> Outcome<Space> {
        Ok(Space { total: self.first.len() as u64, free: 0 })
    }

    fn stat(&mut self, path: &str) -> Outcome<Stat> {
        self.found(path)
    }

    fn open(&mut self, path: &str, how: How) -> Outcome<(FileKind, Stat)> {
        let stat = self.found(path)?;
        if how.truncate { Err(FsError::ReadOnly) } else { Ok((stat.kind, stat)) }
    }

    fn read(&mut self, node: &mut FileKind, offset: u64, to: &mut [u8]) -> Outcome<usize> {
        if *node == FileKind::Directory {
            return Err(FsError::IsADirectory);
        }
        let rest = usize::try_from(offset).ok().and_then(|offset| self.first.get(offset..)).unwrap_or(&[]);
        let len_bytes = rest.len().min(to.len());
        to[..len_bytes].copy_from_slice(&rest[..len_bytes]);
        Ok(len_bytes)
    }

    /// All entries fit at once, so that the next position is always 0: there is no other.
    fn list(&mut self, node: &mut FileKind, _from: u64, entries: &mut Entries<'_>) -> Outcome<u64> {
        if *node != FileKind::Directory {
            return Err(FsError::NotADirectory);
        }
        let stat = self.found("/first")?;
        entries.add(FILE.as_bytes(), &stat);
        Ok(0)
    }
}
