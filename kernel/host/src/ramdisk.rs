//! The ramdisk: a tar archive with the kernel, the modules (`NAME.rfm`) and the runner's files
//! (`exec`, `options`).

use crate::file::{Content, File};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use spin::Once;
use tar_no_std::TarArchiveRef;

/// The names and contents of the files. They are looked up once, when the archive has been checked.
/// A device without a fence may overwrite the archive later, and damaged headers would then be
/// taken for valid ones.
static FILES: Once<Vec<(String, &'static [u8])>> = Once::new();

/// The suffix of a module file's name.
const MODULE_ENDING: &str = ".rfm";

/// Remembers the files of the ramdisk. If the archive is damaged, logs an error and goes on without
/// files.
pub fn init(bytes: &'static [u8]) {
    match TarArchiveRef::new(bytes) {
        Ok(archive) => {
            let named = archive.entries().filter_map(|entry| {
                let name = entry.filename();
                Some((name.as_str().ok()?.to_string(), entry.data()))
            });
            FILES.call_once(|| named.collect());
        }
        Err(error) => log::error!("the ramdisk is damaged: {error:?}"),
    }
}

/// Returns the names and contents of all files.
pub fn files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    FILES.get().into_iter().flatten().map(|(name, bytes)| (name.as_str(), *bytes))
}

/// Returns all module files.
pub fn modules() -> impl Iterator<Item = File> {
    files().filter_map(|(name, bytes)| {
        let name = name.strip_suffix(MODULE_ENDING)?.to_string();
        Some(File { name, build: 0, bytes: Content::Ramdisk(bytes) })
    })
}

/// Returns the text of file `name`.
pub fn text(name: &str) -> Option<&'static str> {
    let (_, bytes) = files().find(|(other, _)| *other == name)?;
    core::str::from_utf8(bytes).ok()
}
