//! Frames: a payload on a channel, with a number and a checksum.
//!
//! On the line a frame is its header, payload and checksum, encoded so that no byte is 0
//! (Consistent Overhead Byte Stuffing, Cheshire and Baker 1999), followed by a 0. **A receiver that
//! begins in the middle of a frame, or misses a byte, is synchronized again from the next 0 on.**
//! The numbers tell it how many frames are missing.

use alloc::vec::Vec;
use crc::{CRC_32_ISO_HDLC, Crc};

/// Most bytes of a payload.
pub const MAX_PAYLOAD: usize = 8192;
/// Bytes of the header: the channel, and the frame's number.
const HEADER: usize = 1 + 4;
const CHECKSUM: usize = 4;
/// Most bytes of a frame before it is encoded.
const MAX_PLAIN: usize = HEADER + MAX_PAYLOAD + CHECKSUM;
/// Most bytes of a frame on the line, including the 0 at its end.
pub const MAX_ENCODED: usize = cobs::max_encoding_length(MAX_PLAIN) + 1;
/// The byte that ends a frame.
const END: u8 = 0;

static CRC: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);

/// Encodes frames in its own buffers, so that no frame needs an allocation.
pub struct Encoder {
    plain: [u8; MAX_PLAIN],
    encoded: [u8; MAX_ENCODED],
    next: u32,
}

impl Encoder {
    /// Makes an encoder. Frames are numbered from 0.
    pub const fn new() -> Encoder {
        Encoder { plain: [0; MAX_PLAIN], encoded: [0; MAX_ENCODED], next: 0 }
    }

    /// Returns the next frame on `channel`, as it goes on the line. `fill` writes the payload and
    /// returns its length. If it returns `None`, or more than there is room for, no frame is made;
    /// its number stays used, so that the receiver sees a frame missing.
    pub fn frame(&mut self, channel: u8, fill: impl FnOnce(&mut [u8]) -> Option<usize>) -> Option<&[u8]> {
        let number = self.skip();
        let len = HEADER + self.plain.get_mut(HEADER..HEADER + MAX_PAYLOAD).and_then(fill)?;
        let end = len + CHECKSUM;
        let plain = self.plain.get_mut(..end)?;
        plain.first_mut().map(|first| *first = channel)?;
        plain.get_mut(1..HEADER)?.copy_from_slice(&number.to_le_bytes());
        let sum = CRC.checksum(plain.get(..len)?);
        plain.get_mut(len..)?.copy_from_slice(&sum.to_le_bytes());
        let count = cobs::encode(plain, &mut self.encoded);
        *self.encoded.get_mut(count)? = END;
        self.encoded.get(..=count)
    }

    /// Uses up a number without a frame; the receiver sees a frame missing.
    pub fn skip(&mut self) -> u32 {
        let number = self.next;
        self.next = number.wrapping_add(1);
        number
    }
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new()
    }
}

/// A frame that was received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Its channel.
    pub channel: u8,
    /// How many frames before it are missing.
    pub missing: u32,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// The bytes received are not a valid frame: some are missing or were changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Damaged;

/// Decodes frames from bytes.
#[derive(Default)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// Whether the bytes up to the next 0 are dropped: there are more of them than a frame can
    /// have.
    is_too_long: bool,
    next: u32,
}

impl Decoder {
    /// Takes the next byte. Returns the frame that ends with this byte, if one does.
    pub fn push(&mut self, byte: u8) -> Option<Result<Frame, Damaged>> {
        if byte != END {
            self.is_too_long |= self.bytes.len() == MAX_ENCODED;
            if !self.is_too_long {
                self.bytes.push(byte);
            }
            return None;
        }
        let frame = match (core::mem::take(&mut self.is_too_long), self.bytes.is_empty()) {
            (true, _) => Some(Err(Damaged)),
            // A sender may begin with a 0.
            (false, true) => None,
            (false, false) => Some(self.decode().ok_or(Damaged)),
        };
        self.bytes.clear();
        frame
    }

    fn decode(&mut self) -> Option<Frame> {
        let len = cobs::decode_in_place(&mut self.bytes).ok()?;
        let plain = self.bytes.get(..len)?;
        let (said, sum) = plain.split_at_checked(len.checked_sub(CHECKSUM)?)?;
        if CRC.checksum(said).to_le_bytes() != sum {
            return None;
        }
        let (header, payload) = said.split_at_checked(HEADER)?;
        let (channel, number) = header.split_first()?;
        let number = u32::from_le_bytes(number.try_into().ok()?);
        let missing = number.wrapping_sub(self.next);
        self.next = number.wrapping_add(1);
        Some(Frame { channel: *channel, missing, payload: payload.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put(payload: &[u8]) -> impl FnOnce(&mut [u8]) -> Option<usize> {
        move |room| {
            room.get_mut(..payload.len())?.copy_from_slice(payload);
            Some(payload.len())
        }
    }

    fn decoded(bytes: &[u8]) -> Vec<Result<Frame, Damaged>> {
        let mut decoder = Decoder::default();
        bytes.iter().filter_map(|byte| decoder.push(*byte)).collect()
    }

    #[test]
    fn what_is_missing_is_counted() {
        let mut encoder = Encoder::new();
        let mut line = encoder.frame(0, put(b"a")).unwrap().to_vec();
        encoder.frame(0, put(b"b")).unwrap();
        assert!(encoder.frame(0, |_| None).is_none());
        encoder.skip();
        line.extend(encoder.frame(7, put(b"c")).unwrap());
        let frame = |channel, missing, payload: &[u8]| Ok(Frame { channel, missing, payload: payload.to_vec() });
        assert_eq!(decoded(&line), [frame(0, 0, b"a"), frame(7, 3, b"c")]);
    }

    #[test]
    fn too_much_is_no_frame_on_either_side() {
        let mut encoder = Encoder::new();
        assert!(encoder.frame(0, put(&[1; MAX_PAYLOAD + 1])).is_none());
        let largest = encoder.frame(0, put(&[1; MAX_PAYLOAD])).unwrap().to_vec();
        assert!(largest.len() <= MAX_ENCODED);
        assert_eq!(decoded(&largest).len(), 1);
        let mut endless = [1; 3 * MAX_ENCODED].to_vec();
        endless.push(END);
        let next = encoder.frame(0, put(b"next")).unwrap();
        endless.extend(next);
        assert_eq!(decoded(&endless)[0], Err(Damaged));
        assert_eq!(decoded(&endless)[1].as_ref().unwrap().payload, b"next");
    }

    proptest! {
        #[test]
        fn what_is_sent_comes(payloads in prop::collection::vec((any::<u8>(), prop::collection::vec(any::<u8>(), 0..600)), 0..8)) {
            let mut encoder = Encoder::new();
            let mut line = alloc::vec![END];
            for (channel, payload) in &payloads {
                let bytes = encoder.frame(*channel, put(payload)).unwrap();
                prop_assert!(bytes.iter().rposition(|byte| *byte == END) == bytes.iter().position(|byte| *byte == END));
                line.extend(bytes);
            }
            let came: Vec<(u8, Vec<u8>)> =
                decoded(&line).into_iter().map(|frame| frame.unwrap()).map(|frame| (frame.channel, frame.payload)).collect();
            prop_assert_eq!(came, payloads);
        }

        #[test]
        fn a_byte_that_is_another_is_noticed(payload in prop::collection::vec(any::<u8>(), 0..200), at: usize, other: u8) {
            let mut encoder = Encoder::new();
            let mut line = encoder.frame(3, put(&payload)).unwrap().to_vec();
            let at = at % line.len();
            prop_assume!(line[at] != other);
            line[at] = other;
            line.extend(encoder.frame(4, put(b"good")).unwrap());
            let came = decoded(&line);
            // A 0 that was changed merges the frame with the next one.
            prop_assert!(came.iter().all(|frame| frame.as_ref().map_or(true, |frame| frame.channel == 4)));
            prop_assert!(came.iter().any(|frame| frame.is_err() || frame.as_ref().is_ok_and(|frame| frame.missing == 1)));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            decoded(&bytes);
        }
    }
}
