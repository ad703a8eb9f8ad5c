//! Module files that came over the link while the system ran. A pushed file hides the ramdisk's
//! file of the same name, and a later file hides an earlier one.

use crate::file::{Content, File};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};
use hw::memory;
use spin::Mutex;

/// The most bytes of a file.
pub const MAX_BYTES: usize = 1 << 20;
/// The most files that are kept.
const MAX_FILES: usize = 32;
/// The most memory that stays in use for a moment while a file is kept.
const SPARE_BYTES: usize = 64 << 10;

static FILES: Mutex<Vec<File>> = Mutex::new(Vec::new());

/// The reason why a file is not kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The file is longer than [`MAX_BYTES`].
    TooLong,
    /// There are [`MAX_FILES`] files already.
    TooMany,
    /// The kernel's heap has no room for the file.
    NoMemory,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::TooLong => write!(f, "a module file may have {MAX_BYTES} bytes"),
            Refused::TooMany => write!(f, "{MAX_FILES} modules were pushed already"),
            Refused::NoMemory => f.write_str("there is no room for the file in the kernel's heap"),
        }
    }
}

/// Returns the number of the next build.
pub fn next_build() -> u32 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
}

/// Checks whether a file called `name` of `len_bytes` bytes can be kept, and whether there is
/// memory for one copy of it.
pub fn check(name: &str, len_bytes: usize) -> Result<(), Refused> {
    let files = FILES.lock();
    if len_bytes > MAX_BYTES {
        Err(Refused::TooLong)
    } else if files.len() >= MAX_FILES && files.iter().all(|file| file.name != name) {
        Err(Refused::TooMany)
    } else if !memory::has_room(len_bytes + SPARE_BYTES) {
        Err(Refused::NoMemory)
    } else {
        Ok(())
    }
}

/// Keeps a file that was [checked](check). It takes the place of an earlier one of its name.
pub fn keep(file: File) {
    let mut files = FILES.lock();
    files.retain(|other| other.name != file.name);
    files.push(file);
}

/// Brings `file` back in the place of a later file of its name. A file of the ramdisk needs no
/// place here.
pub fn go_back_to(file: &File) {
    match file.bytes {
        Content::Made(_) | Content::Changed(_) => keep(file.clone()),
        Content::Ramdisk(_) => FILES.lock().retain(|other| other.name != file.name),
    }
}

/// Forgets `file`: a file of the ramdisk that it hid is there again.
pub fn forget(file: &File) {
    FILES.lock().retain(|other| !other.is_same(file));
}

/// Returns the pushed file called `name`.
pub fn find(name: &str) -> Option<File> {
    FILES.lock().iter().find(|file| file.name == name).cloned()
}

/// Returns the names of all pushed files.
pub fn names() -> Vec<String> {
    FILES.lock().iter().map(|file| file.name.clone()).collect()
}
