//! The memory that the driver of a filesystem shares with the kernel: two rings of request numbers,
//! and the requests themselves.
//!
//! The kernel fills in request `n` and puts `n` into `submit`. The driver carries the request out,
//! writes its outcome beside the request and puts `n` into `complete`. Each request has its own
//! part of shared memory for its data: a path or a file's content on the way to the driver, a
//! file's content or the entries of a directory on the way back.
//!
//! **The kernel names open files by numbers of its own.** A driver that does not know a number, for
//! example because it has replaced the driver that did, answers [`FsError::Stale`]; the kernel then
//! opens the path again. So a driver has no state that its successor needs. It completes a request
//! when all changes of the request are with the disk's driver: then no change that was reported
//! done is lost with the filesystem's driver.

use crate::queue::{Place, Words, read_value, write_value};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Requests that can be under way at once.
pub const FS_REQUESTS: usize = 8;
/// Most data that one request can move, in bytes.
pub const FS_MAX_DATA: usize = 65536;
/// Most bytes of a path.
pub const FS_MAX_PATH: usize = 1024;
/// Most bytes of a name in a directory: 255 characters of UTF-16 in UTF-8.
pub const FS_MAX_NAME: usize = 765;

/// Requests to carry out: kernel to driver.
pub const SUBMIT: Place = Place::new(0, FS_REQUESTS);
/// Requests carried out: driver to kernel.
pub const COMPLETE: Place = Place::new(SUBMIT.end(), FS_REQUESTS);
/// Word where request 0 begins.
const FIRST_REQUEST: usize = COMPLETE.end();
/// Words of a request, and of its outcome.
const WORDS: usize = size_of::<FsRequest>() / 8;
const OUTCOME_WORDS: usize = size_of::<FsOutcome>() / 8;
/// Words from one request to the next: the request is followed by its outcome.
const REQUEST_WORDS: usize = WORDS + OUTCOME_WORDS;
/// Length of the queue memory in bytes.
pub const QUEUE_BYTES: usize = (FIRST_REQUEST + FS_REQUESTS * REQUEST_WORDS) * 8;

/// The operation that a request of the kernel asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// Describe the file or directory at the path in the data.
    Stat = 0,
    /// Open the file or directory at the path in the data under the number `node`: [`FS_CREATE`]
    /// and [`FS_TRUNCATE`] in `flags`. A number that is in use is opened anew.
    Open = 1,
    /// Forget the number `node`.
    Close = 2,
    /// Read from the file `node`, from `offset` on. The outcome's `value` is the number of bytes;
    /// fewer than asked for only at the file's end.
    Read = 3,
    /// Write the data to the file `node`, from `offset` on. The outcome's `value` is the number of
    /// bytes. The bytes between the file's end and `offset` become zeros.
    Write = 4,
    /// Make the file `node` `offset` bytes long.
    Truncate = 5,
    /// Fill the data with entries of the directory `node` ([`FsEntry`]), from the position `offset`
    /// on: 0, or the `next` of the outcome before. The outcome's `value` is the number of bytes,
    /// and its `next` is 0 behind the last entry.
    List = 6,
    /// Make a directory at the path in the data.
    MakeDirectory = 7,
    /// Remove the file or the empty directory at the path in the data.
    Remove = 8,
    /// Give the file or directory at one path another path. The data is both paths; `offset` is the
    /// length of the first. An existing file at the other path is replaced.
    Rename = 9,
    /// Put everything on the disk, and have the disk put it on its medium.
    Sync = 10,
    /// Tell the size of the filesystem: the outcome's `value` is its length in bytes, and its
    /// `next` the bytes that are free.
    Space = 11,
}

impl Operation {
    /// All operations, by number.
    pub const ALL: [Operation; 12] = [
        Operation::Stat,
        Operation::Open,
        Operation::Close,
        Operation::Read,
        Operation::Write,
        Operation::Truncate,
        Operation::List,
        Operation::MakeDirectory,
        Operation::Remove,
        Operation::Rename,
        Operation::Sync,
        Operation::Space,
    ];

    /// Returns the operation with this number.
    pub fn of(number: u32) -> Option<Operation> {
        Operation::ALL.get(number as usize).copied()
    }
}

/// Flag of [`Operation::Open`]: make an empty file if there is nothing.
pub const FS_CREATE: u32 = 1;
/// Flag of [`Operation::Open`]: make the file empty.
pub const FS_TRUNCATE: u32 = 2;

/// The request was carried out.
pub const FS_OK: u32 = 0;

macro_rules! define_errors {
    ($($error:ident = $number:literal $words:literal;)*) => {
        /// The reason why a filesystem has not carried out a request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u32)]
        pub enum FsError {
            $(
                #[doc = $words]
                $error = $number,
            )*
        }

        impl FsError {
            /// All errors.
            pub const ALL: &[FsError] = &[$(FsError::$error),*];

            /// Returns the error in words.
            pub const fn words(self) -> &'static str {
                match self {
                    $(FsError::$error => $words,)*
                }
            }
        }
    };
}

define_errors! {
    Stale = 1 "the file is not open";
    NotFound = 2 "no such file or directory";
    Exists = 3 "there is one of this name already";
    NotADirectory = 4 "not a directory";
    IsADirectory = 5 "is a directory";
    NotEmpty = 6 "the directory is not empty";
    NoSpace = 7 "no space left";
    ReadOnly = 8 "the filesystem cannot be written";
    Name = 9 "the filesystem cannot have such a name";
    Device = 10 "the disk failed";
    Corrupt = 11 "the filesystem is damaged";
    Busy = 12 "it is in use";
    Unsupported = 13 "the filesystem cannot do that";
    TooLarge = 14 "too large for the filesystem";
    TooMany = 15 "too many files are open";
}

impl FsError {
    /// Returns the error with this number.
    pub fn of(number: u32) -> Option<FsError> {
        FsError::ALL.iter().copied().find(|error| *error as u32 == number)
    }
}

/// A request of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsRequest {
    /// Address of the data as the driver sees it.
    pub data: u64,
    /// Length of the data in bytes.
    pub data_len: u32,
    /// The number of an [`Operation`].
    pub operation: u32,
    /// The number of an open file.
    pub node: u64,
    /// A position or a length in bytes, by the operation.
    pub offset: u64,
    /// Flags, by the operation.
    pub flags: u32,
    /// Zero.
    pub reserved: u32,
}

/// A directory.
pub const FS_DIRECTORY: u32 = 1;
/// A regular file.
pub const FS_FILE: u32 = 2;
/// None of the others.
pub const FS_OTHER: u32 = 3;
/// A symbolic link: in a directory only, as a path leads on to the link's target.
pub const FS_LINK: u32 = 4;

/// The driver's answer to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsOutcome {
    /// [`FS_OK`], or the number of an [`FsError`].
    pub status: u32,
    /// [`FS_DIRECTORY`], [`FS_FILE`] or [`FS_OTHER`]: the kind of the file that was opened or
    /// described.
    pub kind: u32,
    /// The file's length in bytes, or another value by the operation.
    pub value: u64,
    /// When the file was changed last, in seconds since 1970; or another value by the operation.
    pub next: u64,
}

/// The description of a filesystem that its driver passes to `rf_offer`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsInfo {
    /// The name of the format in ASCII, filled up with zeros: `FAT32`.
    pub format: [u8; 16],
    /// The name of the volume in UTF-8, filled up with zeros.
    pub label: [u8; 32],
    /// The disk that it is on, in ASCII, filled up with zeros.
    pub disk: [u8; 32],
    /// [`FS_READ_ONLY`], or 0.
    pub flags: u32,
    /// Must be zero.
    pub reserved: u32,
}

/// Flag of a filesystem: it cannot be written.
pub const FS_READ_ONLY: u32 = 1;

/// The head of an entry of a directory. Its name follows, in UTF-8; the next entry begins at the
/// next multiple of eight bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct FsEntry {
    /// The file's length in bytes.
    pub len_bytes: u64,
    /// When the file was changed last, in seconds since 1970.
    pub modified: u64,
    /// [`FS_DIRECTORY`], [`FS_FILE`], [`FS_LINK`] or [`FS_OTHER`].
    pub kind: u32,
    /// Length of the name in bytes, at most [`FS_MAX_NAME`].
    pub name_len: u32,
}

/// Returns the word where request `number` begins. Panics if there is no such request: callers
/// check the numbers they are given.
const fn request_at(number: usize) -> usize {
    assert!(number < FS_REQUESTS);
    FIRST_REQUEST + number * REQUEST_WORDS
}

/// Writes request `number` (below [`FS_REQUESTS`]) into shared memory.
pub fn write_request(words: &impl Words, number: usize, request: &FsRequest) {
    write_value(words, request_at(number), request, WORDS);
}

/// Copies request `number` (below [`FS_REQUESTS`]) out of shared memory.
pub fn read_request(words: &impl Words, number: usize) -> Option<FsRequest> {
    read_value::<WORDS, FsRequest>(words, request_at(number))
}

/// Writes the outcome of request `number` (below [`FS_REQUESTS`]) into shared memory.
pub fn write_outcome(words: &impl Words, number: usize, outcome: &FsOutcome) {
    write_value(words, request_at(number) + WORDS, outcome, OUTCOME_WORDS);
}

/// Copies the outcome of request `number` (below [`FS_REQUESTS`]) out of shared memory.
pub fn read_outcome(words: &impl Words, number: usize) -> Option<FsOutcome> {
    read_value::<OUTCOME_WORDS, FsOutcome>(words, request_at(number) + WORDS)
}
