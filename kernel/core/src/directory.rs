//! The entries of a directory, as a filesystem's driver passes them
//! ([`ringfence_abi::fs::FsEntry`]). Driver and disk may have written anything.

use alloc::string::String;
use alloc::vec::Vec;
use ringfence_abi::fs::{FS_DIRECTORY, FS_FILE, FS_LINK, FS_MAX_NAME, FsEntry};
use zerocopy::FromBytes;

/// The kind of object that a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// None of the others.
    Other,
}

impl FileKind {
    /// Returns the kind with this number; unknown numbers are none of the others.
    pub fn of(number: u32) -> FileKind {
        match number {
            FS_DIRECTORY => FileKind::Directory,
            FS_FILE => FileKind::File,
            FS_LINK => FileKind::Link,
            _ => FileKind::Other,
        }
    }
}

/// The description of a file or a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its kind.
    pub kind: FileKind,
    /// Its length in bytes.
    pub len_bytes: u64,
    /// When it was changed last, in seconds since 1970.
    pub modified: u64,
}

/// An entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, as it is on the disk: not harmless for a terminal ([`crate::path::shown`]).
    pub name: String,
    /// Its description.
    pub stat: Stat,
}

/// The bytes are no entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// Returns the entries in `bytes`. Bytes of a name that are not UTF-8 are replaced.
pub fn entries(mut bytes: &[u8]) -> Result<Vec<Entry>, Malformed> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = FsEntry::read_from_prefix(bytes).map_err(|_| Malformed)?;
        let len_bytes = usize::try_from(head.name_len).ok().filter(|len| (1..=FS_MAX_NAME).contains(len));
        let len_bytes = len_bytes.ok_or(Malformed)?;
        let (name, _) = rest.split_at_checked(len_bytes).ok_or(Malformed)?;
        bytes = rest.get(len_bytes.next_multiple_of(8)..).ok_or(Malformed)?;
        let stat = Stat { kind: FileKind::of(head.kind), len_bytes: head.len_bytes, modified: head.modified };
        let mut name = String::from_utf8_lossy(name).into_owned();
        // A replacement character may be longer than the bytes that it replaces.
        name.truncate(name.floor_char_boundary(FS_MAX_NAME));
        entries.push(Entry { name, stat });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    fn entry(name: &[u8], name_len: u32) -> Vec<u8> {
        let head = FsEntry { len_bytes: 7, modified: 9, kind: FS_FILE, name_len };
        let mut bytes = [head.as_bytes(), name].concat();
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = [entry(b"a.txt", 5), entry(b"eight888", 8), entry(b"\xff", 1)].concat();
        let names: Vec<String> = entries(&bytes).unwrap().into_iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["a.txt", "eight888", "\u{fffd}"]);
        assert_eq!(entries(&bytes).unwrap()[0].stat, Stat { kind: FileKind::File, len_bytes: 7, modified: 9 });
        assert_eq!(entries(&[]), Ok(Vec::new()));
    }

    #[test]
    fn lengths_that_cannot_be_are_refused() {
        assert_eq!(entries(&entry(b"a", 0)), Err(Malformed));
        assert_eq!(entries(&entry(b"a", 9)), Err(Malformed));
        assert_eq!(entries(&entry(b"a", u32::MAX)), Err(Malformed));
        assert_eq!(entries(&entry(&[b'a'; 800], FS_MAX_NAME as u32 + 1)), Err(Malformed));
        assert_eq!(entries(&entry(b"a", 1)[..25]), Err(Malformed));
        assert_eq!(entries(&[0; 23]), Err(Malformed));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = entries(&bytes);
        }
    }
}
