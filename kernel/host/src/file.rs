//! Module files, from the ramdisk or made by the kernel.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

/// A module file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its name without `.rfm`.
    pub name: String,
    /// The number of its build: pushed files are numbered from 1 as they come, and files of the
    /// ramdisk have 0.
    pub build: u32,
    /// Its content.
    pub bytes: Content,
}

/// The content of a module file.
#[derive(Debug, Clone)]
pub enum Content {
    /// A slice of the ramdisk.
    Ramdisk(&'static [u8]),
    /// A copy made by the kernel.
    Made(Arc<Vec<u8>>),
    /// A copy that was changed, to see the effect of the change.
    Changed(Arc<Vec<u8>>),
}

impl File {
    /// Returns whether `other` is the same build.
    pub fn is_same(&self, other: &File) -> bool {
        (&self.name, self.build) == (&other.name, other.build)
    }

    /// Returns whether `other` has the same bytes in memory. Comparing them would take longer.
    pub fn has_bytes_of(&self, other: &File) -> bool {
        core::ptr::eq(&*self.bytes, &*other.bytes)
    }

    /// Returns whether somebody else has the bytes as well, or they stay in any case.
    pub fn is_shared(&self) -> bool {
        match &self.bytes {
            Content::Ramdisk(_) => true,
            Content::Made(bytes) | Content::Changed(bytes) => Arc::strong_count(bytes) > 1,
        }
    }

    /// Returns the name by which addresses in the file are shown: with the build's number, as
    /// builds differ.
    pub fn label(&self) -> impl fmt::Display {
        fmt::from_fn(|f| match self.build {
            0 => f.write_str(&self.name),
            build => write!(f, "{}#{build}", self.name),
        })
    }
}

impl core::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Ramdisk(bytes) => bytes,
            Content::Made(bytes) | Content::Changed(bytes) => bytes,
        }
    }
}
