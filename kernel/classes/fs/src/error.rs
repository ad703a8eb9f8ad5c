//! The reasons why something about a file is not done.

use alloc::string::String;
use core::fmt;
use ringfence_abi::fs::FsError;
use ringfence_core::path::BadPath;

/// Why something about a file is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The filesystem says so.
    Said(FsError),
    /// The filesystem is gone: its driver was unloaded, or given up.
    Gone,
    /// The driver has given an impossible answer.
    Nonsense,
    /// There is no filesystem at the path.
    NotMounted,
    /// The two paths are on different filesystems.
    Across,
    /// The text is no path.
    Path(BadPath),
    /// The kernel has no memory for it now.
    Memory(String),
}

impl From<FsError> for Error {
    fn from(error: FsError) -> Error {
        Error::Said(error)
    }
}

impl From<BadPath> for Error {
    fn from(bad: BadPath) -> Error {
        Error::Path(bad)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Said(error) => f.write_str(error.words()),
            Error::Gone => f.write_str("the filesystem is gone"),
            Error::Nonsense => f.write_str("the filesystem's driver gave an answer that cannot be"),
            Error::NotMounted => f.write_str("no filesystem is mounted there; 'mount' lists them"),
            Error::Across => f.write_str("the two are on different filesystems"),
            Error::Path(bad) => write!(f, "{bad}"),
            Error::Memory(why) => f.write_str(why),
        }
    }
}

/// A result about a file.
pub type Outcome<T> = Result<T, Error>;
