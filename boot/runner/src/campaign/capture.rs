//! What the guest sent, as QEMU's `filter-dump` writes it (libpcap's file format): for one question only.
//!
//! QEMU 7.2's user network takes no more frames once it was given one of no length, until QEMU is paused and continued: its
//! handler returns the length that it took, and 0 means "later". No driver can mend that, so it must be told apart from a
//! service that does not come back.

use std::ffi::OsString;
use std::path::Path;

/// QEMU's arguments that have it write the first bytes of each frame to `file`.
pub fn arguments(file: &Path) -> [OsString; 2] {
    let mut dump = OsString::from("filter-dump,id=capture0,netdev=net0,maxlen=64,file=");
    dump.push(file);
    ["-object".into(), dump]
}

/// Whether a frame of no length was sent.
pub fn has_empty_frame(file: &[u8]) -> bool {
    const HEADER: usize = 24;
    const RECORD: usize = 16;
    let word = |at: usize| file.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let mut at = HEADER;
    // Seconds, microseconds, bytes that are kept, bytes that there were.
    while let (Some(kept), Some(length)) = (word(at + 8), word(at + 12)) {
        if length == 0 {
            return true;
        }
        at += RECORD + kept as usize;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_frame_of_no_length_counts() {
        let record = |length: u32| {
            let mut bytes = vec![0; 16];
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            bytes.resize(16 + length as usize, 0);
            bytes
        };
        let file =
            |lengths: &[u32]| [vec![0; 24], lengths.iter().flat_map(|length| record(*length)).collect()].concat();
        assert!(!has_empty_frame(&file(&[60, 42])));
        assert!(has_empty_frame(&file(&[60, 0, 42])));
        assert!(!has_empty_frame(&[]));
        assert!(!has_empty_frame(&file(&[60])[..50]));
    }
}
