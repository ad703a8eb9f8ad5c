//! Which filesystem is on a disk, from its first bytes.

/// How many bytes [`format`] looks at.
pub const BYTES: usize = 2048;

/// Returns the name of the module for the filesystem that begins with `bytes`: `ext` or `fat`.
///
/// * ext2, ext3 and ext4 have the number 0xef53 at byte 56 of their superblock, which is at 1024.
/// * FAT has a jump, a sector length and a cluster length at its beginning, and 0x55, 0xaa at byte
///   510 (FAT specification, 3.1). A partition table has the same end, and no such beginning.
pub fn format(bytes: &[u8]) -> Option<&'static str> {
    let at = |place: usize| bytes.get(place).copied().unwrap_or(0);
    if (at(1080), at(1081)) == (0x53, 0xef) {
        return Some("ext");
    }
    let begins_with_a_jump = at(0) == 0xe9 || at(0) == 0xeb && at(2) == 0x90;
    let sector = u16::from_le_bytes([at(11), at(12)]);
    let has_lengths = matches!(sector, 512 | 1024 | 2048 | 4096) && at(13).is_power_of_two();
    // NTFS begins like FAT.
    let is_ntfs = bytes.get(3..8) == Some(b"NTFS ");
    (begins_with_a_jump && has_lengths && !is_ntfs && (at(510), at(511)) == (0x55, 0xaa)).then_some("fat")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_known_and_nothing_else() {
        let mut ext = [0; BYTES];
        ext[1080..1082].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(format(&ext), Some("ext"));
        let mut fat = [0; BYTES];
        fat[..14].copy_from_slice(&[0xeb, 0x58, 0x90, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 8]);
        assert_eq!(format(&fat), None);
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(format(&fat), Some("fat"));
        fat[3..8].copy_from_slice(b"NTFS ");
        assert_eq!(format(&fat), None);
        fat[3..8].fill(0);
        fat[13] = 3;
        assert_eq!(format(&fat), None);
        assert_eq!(format(&[0xff; BYTES]), None);
        assert_eq!(format(&[]), None);
    }
}
