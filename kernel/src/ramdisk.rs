//! The ramdisk: a tar archive with the kernel, the modules (`NAME.rfm`) and what the runner wants said (`exec`,
//! `options`).

use crate::file::{Content, File};
use alloc::string::{String, ToString};
use spin::Once;
use tar_no_std::TarArchiveRef;

static ARCHIVE: Once<TarArchiveRef<'static>> = Once::new();

/// Ending of a module file's name.
const MODULE_ENDING: &str = ".rfm";

/// Takes the ramdisk. One that is damaged is as good as none, and that is said.
pub fn init(bytes: &'static [u8]) {
    match TarArchiveRef::new(bytes) {
        Ok(archive) => {
            ARCHIVE.call_once(|| archive);
        }
        Err(error) => log::error!("the ramdisk is damaged: {error:?}"),
    }
}

/// Names and contents of all files.
pub fn files() -> impl Iterator<Item = (String, &'static [u8])> {
    ARCHIVE.get().into_iter().flat_map(TarArchiveRef::entries).filter_map(|entry| {
        let name = entry.filename();
        Some((name.as_str().ok()?.to_string(), entry.data()))
    })
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
    let (_, bytes) = files().find(|(other, _)| other == name)?;
    core::str::from_utf8(bytes).ok()
}
