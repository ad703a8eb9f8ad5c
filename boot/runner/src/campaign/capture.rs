//! The frames that the guest sent, captured by QEMU's `filter-dump` in the file format of libpcap.
//! The campaign only counts the empty frames in them.
//!
//! After a frame of length 0, the user network of QEMU 7.2 takes no more frames until QEMU is
//! paused and continued: its handler returns the length that it took, and 0 means "later". No
//! driver can repair that, so the campaign pauses QEMU when it finds such a frame.

use std::ffi::OsString;
use std::path::Path;

/// Returns QEMU's arguments that have it write the first bytes of each frame to `file`.
pub fn arguments(file: &Path) -> [OsString; 2] {
    let mut dump = OsString::from("filter-dump,id=capture0,netdev=net0,maxlen=64,file=");
    dump.push(file);
    ["-object".into(), dump]
}

/// Counts the frames of length 0 in a capture.
pub fn empty_frames(file: &[u8]) -> usize {
    const HEADER: usize = 24;
    const RECORD: usize = 16;
    let word = |at: usize| file.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    let (mut at, mut empty) = (HEADER, 0);
    // A record's header: seconds, microseconds, the number of bytes kept, the frame's length.
    while let (Some(kept), Some(length)) = (word(at + 8), word(at + 12)) {
        empty += usize::from(length == 0);
        at += RECORD + kept as usize;
    }
    empty
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_frames_of_no_length_count() {
        let record = |length: u32| {
            let mut bytes = vec![0; 16];
            bytes[8..12].copy_from_slice(&length.to_le_bytes());
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            bytes.resize(16 + length as usize, 0);
            bytes
        };
        let file =
            |lengths: &[u32]| [vec![0; 24], lengths.iter().flat_map(|length| record(*length)).collect()].concat();
        assert_eq!(empty_frames(&file(&[60, 42])), 0);
        assert_eq!(empty_frames(&file(&[60, 0, 42, 0])), 2);
        assert_eq!(empty_frames(&[]), 0);
        assert_eq!(empty_frames(&file(&[60])[..50]), 0);
    }
}
