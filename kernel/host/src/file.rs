//! Module files, from the ramdisk or made by the kernel.

use alloc::string::String;
use alloc::sync::Arc;

/// A module file.
#[derive(Debug, Clone)]
pub struct File {
    /// Its name without `.rfm`.
    pub name: String,
    /// Its content.
    pub bytes: Content,
}

/// The content of a module file.
#[derive(Debug, Clone)]
pub enum Content {
    /// A slice of the ramdisk.
    Ramdisk(&'static [u8]),
    /// A copy made by the kernel.
    Made(Arc<[u8]>),
}

impl core::ops::Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Ramdisk(bytes) => bytes,
            Content::Made(bytes) => bytes,
        }
    }
}
