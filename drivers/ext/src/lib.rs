//! ext2, ext3 and ext4 (`Documentation/filesystems/ext4` of Linux), for reading, by the crate
//! `ext4-view`: `insmod ext disk=disk0`, or `mount disk0 /mnt`. A journal that was not played back
//! is taken into account, and stays as it is.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod disk;

use alloc::boxed::Box;
use alloc::string::String;
use disk::Blocks;
use ext4_view::{Ext4, Ext4Error, File, FileType, Metadata};
use ringfence_sdk::block::BufferedDisk;
use ringfence_sdk::fs::{
    Entries, FS_READ_ONLY, FileKind, Filesystem, FsDriver, FsError, FsInfo, How, Outcome, Space, Stat, field,
};
use ringfence_sdk::{Kind, Manifest, Refusal, Result, driver, parameters};

driver!(
    FsDriver<Ext>,
    Manifest::new("ext", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Fs)
        .uses(Kind::Block)
        .heap_kib(4096)
        .stack_kib(256)
        .upcall_ms(1000)
        .restart()
);

parameters! {
    DISK: Text("disk", "the disk that the filesystem is on", "disk0");
    READ_ONLY: Flag("ro", "whether it is only read, as it is in any case", true);
}

struct Ext {
    filesystem: Ext4,
    /// The superblock's numbers of blocks: all, free, and the length of one in bytes.
    space: Space,
}

/// An open file, or the path of an open directory.
enum Node {
    File(Box<File>),
    Directory(String),
}

impl Filesystem for Ext {
    type Node = Node;

    fn disk() -> String {
        DISK.get()
    }

    fn mount(disk: BufferedDisk) -> Result<Ext> {
        let refused = |error: Ext4Error| {
            log::error!("{}: {error}", DISK.get());
            Refusal::Invalid
        };
        let mut blocks = Blocks::new(disk);
        let space = blocks.space()?;
        let filesystem = Ext4::load(Box::new(blocks)).map_err(refused)?;
        Ok(Ext { filesystem, space })
    }

    fn info(&mut self) -> FsInfo {
        // The bytes of a label come from the disk, and can have any value.
        let mut label = [0; 32];
        label.iter_mut().zip(self.filesystem.label().as_bytes()).for_each(|(to, byte)| *to = *byte);
        FsInfo { format: field("ext"), label, disk: field(&DISK.get()), flags: FS_READ_ONLY, reserved: 0 }
    }

    fn space(&mut self) -> Outcome<Space> {
        Ok(self.space)
    }

    fn stat(&mut self, path: &str) -> Outcome<Stat> {
        self.filesystem.metadata(path).map(|metadata| described(&metadata)).map_err(said)
    }

    fn open(&mut self, path: &str, how: How) -> Outcome<(Node, Stat)> {
        let stat = match self.stat(path) {
            Err(FsError::NotFound) if how.create => return Err(FsError::ReadOnly),
            stat => stat?,
        };
        match stat.kind {
            FileKind::Directory => Ok((Node::Directory(path.into()), stat)),
            FileKind::File if how.truncate => Err(FsError::ReadOnly),
            FileKind::File => Ok((Node::File(Box::new(self.filesystem.open(path).map_err(said)?)), stat)),
            FileKind::Link | FileKind::Other => Err(FsError::Unsupported),
        }
    }

    fn read(&mut self, node: &mut Node, offset: u64, to: &mut [u8]) -> Outcome<usize> {
        let Node::File(file) = node else { return Err(FsError::IsADirectory) };
        if file.position() != offset {
            if offset >= file.metadata().len() {
                return Ok(0);
            }
            file.seek_to(offset).map_err(said)?;
        }
        let mut done = 0;
        while done < to.len() {
            match file.read_bytes(&mut to[done..]).map_err(said)? {
                0 => break,
                len_bytes => done += len_bytes,
            }
        }
        Ok(done)
    }

    fn list(&mut self, node: &mut Node, from: u64, entries: &mut Entries<'_>) -> Outcome<u64> {
        let Node::Directory(path) = node else { return Err(FsError::NotADirectory) };
        let all = self.filesystem.read_dir(path.as_str()).map_err(said)?;
        for (number, entry) in all.enumerate().skip(usize::try_from(from).map_err(|_| FsError::Corrupt)?) {
            let entry = entry.map_err(said)?;
            let metadata = entry.metadata().map_err(said)?;
            if !entries.add(entry.file_name().as_ref(), &described(&metadata)) {
                return Ok(number as u64);
            }
        }
        Ok(0)
    }
}

fn described(metadata: &Metadata) -> Stat {
    Stat {
        kind: match metadata.file_type() {
            FileType::Regular => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink => FileKind::Link,
            _ => FileKind::Other,
        },
        len_bytes: metadata.len(),
        modified: metadata.modified().seconds().try_into().unwrap_or(0),
    }
}

/// Returns the kernel's word for an error of the crate. An error of the disk, or a damaged
/// filesystem, is logged in full.
fn said(error: Ext4Error) -> FsError {
    match error {
        Ext4Error::NotFound => FsError::NotFound,
        Ext4Error::NotADirectory => FsError::NotADirectory,
        Ext4Error::IsADirectory => FsError::IsADirectory,
        Ext4Error::FileTooLarge => FsError::TooLarge,
        Ext4Error::MalformedPath | Ext4Error::PathTooLong | Ext4Error::NotAbsolute => FsError::Name,
        Ext4Error::Io(_) => {
            log::error!("{}: {error}", DISK.get());
            FsError::Device
        }
        Ext4Error::Corrupt(_) => {
            log::error!("{}: {error}", DISK.get());
            FsError::Corrupt
        }
        _ => FsError::Unsupported,
    }
}
