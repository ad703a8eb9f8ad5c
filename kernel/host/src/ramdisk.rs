//! The ramdisk: a tar archive with the kernel, the modules (`NAME.rfm`) and what the runner wants
//! said (`exec`, `options`).

use crate::file::{Content, File};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use spin::Once;
use tar_no_std::TarArchiveRef;

/// Names and contents. They are looked up once, when the archive has been checked: where nothing
/// fences devices, one may write to it later, and headers that are not what they were would be read
/// as such.
static FILES: Once<Vec<(String, &'static [u8])>> = Once::new();

/// Ending of a module file's name.
const MODULE_ENDING: &str = ".rfm";

/// Remembers the files of the ramdisk. If that is damaged, it has none, and an error is logged.
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

/// Names and contents of all files.
pub fn files() -> impl Iterator<Item = (&'static str, &'static [u8])> {
    FILES.get().into_iter().flatten().map(|(name, bytes)| (name.as_str(), *bytes))
}

/// All module files.
pub fn modules() -> impl Iterator<Item = File> {
    files().filter_map(|(name, bytes)| {
        let name = name.strip_suffix(MODULE_ENDING)?.to_string();
        Some(File { name, bytes: Content::Ramdisk(bytes) })
    })
}

/// The text of file `name`.
pub fn text(name: &str) -> Option<&'static str> {
    let (_, bytes) = files().find(|(other, _)| *other == name)?;
    core::str::from_utf8(bytes).ok()
}
