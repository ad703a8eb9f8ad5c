//! Files that the kernel sends on channel [`FILES`](crate::FILES), in pieces, for the runner to
//! keep: core files.

use crate::event::Text;
use alloc::borrow::Cow;
use serde::{Deserialize, Serialize};

/// The most bytes of a piece.
pub const PIECE_BYTES: usize = 4096;

/// A piece of a file. Pieces come in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece<'a> {
    /// The file's name.
    pub name: Text<'a>,
    /// The file's length in bytes.
    pub len_bytes: u32,
    /// The offset of the first byte in the file.
    pub offset: u32,
    /// The bytes, at most [`PIECE_BYTES`].
    pub bytes: Cow<'a, [u8]>,
}

impl Piece<'_> {
    /// Writes the piece into `room`. Returns the number of bytes written, or `None` if `room` is
    /// too small.
    pub fn write(&self, room: &mut [u8]) -> Option<usize> {
        crate::write(self, room)
    }
}

impl Piece<'static> {
    /// Reads the piece that a payload holds; `None` if it holds none.
    pub fn read(payload: &[u8]) -> Option<Piece<'static>> {
        crate::read(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::MAX_PAYLOAD;

    #[test]
    fn the_longest_piece_fits_a_frame() {
        let bytes = [0xa5; PIECE_BYTES];
        let name = core::str::from_utf8(&[b'a'; 255]).unwrap();
        let piece = Piece { name: name.into(), len_bytes: u32::MAX, offset: u32::MAX, bytes: (&bytes[..]).into() };
        let mut room = [0; MAX_PAYLOAD];
        let len = piece.write(&mut room).unwrap();
        assert_eq!(Piece::read(&room[..len]), Some(piece));
        assert_eq!(Piece::read(&room[..=len]), None, "one with something behind it");
    }
}
