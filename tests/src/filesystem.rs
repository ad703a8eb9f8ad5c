//! Images of filesystems for tests ([`ringfence::images`]), and checks of them.

use ringfence::images::{self, Fat};
use std::path::{Path, PathBuf};

/// Makes an image of `kib` KiB in `directory`, with a FAT filesystem of `bits` bits.
pub fn fat(directory: &Path, kib: u64, bits: u32) -> Fat {
    Fat::new(directory, kib, bits).unwrap()
}

/// Makes an image of `kib` KiB with a filesystem of this kind that has everything in `content`.
pub fn ext(directory: &Path, kib: u64, kind: &str, content: &Path) -> PathBuf {
    images::ext(directory, kib, kind, content).unwrap()
}

/// Checks that `fsck.fat` finds the filesystem clean.
pub fn assert_clean(image: &Fat) {
    assert_eq!(image.faults().unwrap(), Vec::<String>::new());
}

/// Checks that there is nothing wrong that a power cut does not leave as well.
pub fn assert_as_after_a_power_cut(image: &Fat) {
    assert_eq!(images::sorted(image.faults().unwrap()).1, Vec::<String>::new());
}
