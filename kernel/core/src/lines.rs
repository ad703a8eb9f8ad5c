//! Tables of source lines, which the runner makes of modules' debug information and the kernel has
//! no other use for than to name a place to a person.
//!
//! A table has the names of the files, each with a newline behind it, a zero byte, and entries of 8
//! bytes in ascending order: the offset of code in the image (4 bytes), the number of the file, and
//! the line (2 each), little-endian. File 0xffff stands for code without a line.

use alloc::vec::Vec;

/// The number of no file.
const NONE: u16 = u16::MAX;
const ENTRY_BYTES: usize = 8;

/// Makes a table of places: offsets in ascending order, and the file and line from there on, if
/// they are known. An offset that does not fit into a table is left out. A file or line that does
/// not fit counts as unknown.
pub fn table<'a>(places: impl Iterator<Item = (u64, Option<(&'a str, u32)>)>) -> Vec<u8> {
    let (mut files, mut entries): (Vec<&str>, Vec<u8>) = (Vec::new(), Vec::new());
    let mut last = None;
    for (offset, place) in places {
        let Ok(offset) = u32::try_from(offset) else { continue };
        let place = place.and_then(|(file, line)| {
            let number = files.iter().position(|known| *known == file).unwrap_or_else(|| {
                files.push(file);
                files.len() - 1
            });
            Some((u16::try_from(number).ok().filter(|number| *number != NONE)?, u16::try_from(line).ok()?))
        });
        if last == Some(place) {
            continue;
        }
        last = Some(place);
        let (file, line) = place.unwrap_or((NONE, 0));
        entries.extend(offset.to_le_bytes());
        entries.extend(file.to_le_bytes());
        entries.extend(line.to_le_bytes());
    }
    let mut table: Vec<u8> = files.iter().flat_map(|file| file.bytes().chain([b'\n'])).collect();
    table.push(0);
    table.extend(entries);
    table
}

/// Returns the file and the line of the code at `offset`.
pub fn find(table: &[u8], offset: u64) -> Option<(&str, u16)> {
    let end = table.iter().position(|byte| *byte == 0)?;
    let (names, entries) = table.split_at_checked(end)?;
    let (entries, _) = entries.get(1..)?.as_chunks::<ENTRY_BYTES>();
    let start = |entry: &[u8; ENTRY_BYTES]| u64::from(u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]));
    let place = entries.partition_point(|entry| start(entry) <= offset).checked_sub(1)?;
    let [.., a, b, c, d] = *entries.get(place)?;
    let (file, line) = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
    Some((core::str::from_utf8(names).ok()?.split_terminator('\n').nth(file.into())?, line))
}

/// Returns the module and the offset at the end of a report's line, as in ` at function+0x12
/// (module+0x3456)`.
pub fn address_in(line: &str) -> Option<(&str, u64)> {
    let (_, inner) = line.strip_prefix("    ")?.strip_suffix(')')?.rsplit_once('(')?;
    let (name, offset) = inner.rsplit_once("+0x")?;
    Some((name, u64::from_str_radix(offset, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_reaches_to_the_next_one() {
        let places = [(0x10, Some(("a.rs", 1))), (0x14, Some(("b.rs", 2))), (0x18, Some(("b.rs", 2))), (0x20, None)];
        let table = table(places.into_iter());
        let expected = [
            (0xf, None),
            (0x10, Some(("a.rs", 1))),
            (0x13, Some(("a.rs", 1))),
            (0x1f, Some(("b.rs", 2))),
            (0x20, None),
        ];
        for (offset, place) in expected {
            assert_eq!(find(&table, offset), place, "{offset:#x}");
        }
        // The place at 0x18 is the one before.
        assert_eq!(table.len(), "a.rs\nb.rs\n\0".len() + 3 * ENTRY_BYTES);
    }

    #[test]
    fn only_places_of_reports_are_looked_up() {
        assert_eq!(address_in("    at read+0x4 (rogue+0x3f84)"), Some(("rogue", 0x3f84)));
        assert_eq!(address_in("        a::b+0x4 (virtio-scsi+0x10)"), Some(("virtio-scsi", 0x10)));
        assert_eq!(address_in("at read+0x4 (rogue+0x3f84)"), None);
        assert_eq!(address_in("    at 0x0 (null)"), None);
        assert_eq!(address_in("    at 0x0 (null+0xzz)"), None);
    }

    proptest! {
        #[test]
        fn nothing_read_panics(table in prop::collection::vec(any::<u8>(), 0..64), offset in any::<u64>()) {
            let _ = find(&table, offset);
        }
    }
}
