//! A module file, wherever it is from.

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
    /// As it is in the ramdisk.
    Ramdisk(&'static [u8]),
    /// Made by the kernel.
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
