//! What a terminal shows of a line that is being edited, from what the line editor writes: so that something else can be
//! printed in between, and the line shown again below it.

use alloc::vec::Vec;

const BACKSPACE: u8 = 8;
const ESCAPE: u8 = 0x1b;

/// Where in a control sequence (ECMA-48, 5.4) the last byte was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    Escape,
    /// With the number so far.
    Parameter(usize),
}

/// A line and the place of the cursor in it.
#[derive(Debug, Default)]
pub struct TypedLine {
    text: Vec<u8>,
    cursor: usize,
    saved: usize,
    sequence: Sequence,
}

impl TypedLine {
    /// An empty line.
    pub const fn new() -> TypedLine {
        TypedLine { text: Vec::new(), cursor: 0, saved: 0, sequence: Sequence::None }
    }

    /// Does what a terminal does with `byte`: characters, backspace, and the sequences that move the cursor in its line
    /// (CUB, CUF), save and restore it, and erase to the end (EL). Any other has no effect.
    pub fn write(&mut self, byte: u8) {
        self.sequence = match (self.sequence, byte) {
            (_, ESCAPE) => Sequence::Escape,
            (Sequence::Escape, b'[') => Sequence::Parameter(0),
            (Sequence::Escape, _) => Sequence::None,
            (Sequence::Parameter(number), b'0'..=b'9') => {
                Sequence::Parameter(number.saturating_mul(10).saturating_add(usize::from(byte - b'0')))
            }
            (Sequence::Parameter(number), _) => {
                self.control(byte, number);
                Sequence::None
            }
            (Sequence::None, _) => {
                self.character(byte);
                Sequence::None
            }
        };
    }

    fn character(&mut self, byte: u8) {
        match byte {
            BACKSPACE => self.cursor = self.cursor.saturating_sub(1),
            0x20..=0x7e | 0x80.. => {
                match self.text.get_mut(self.cursor) {
                    Some(place) => *place = byte,
                    None => {
                        self.text.resize(self.cursor, b' ');
                        self.text.push(byte);
                    }
                }
                self.cursor += 1;
            }
            _ => {}
        }
    }

    fn control(&mut self, last: u8, number: usize) {
        match last {
            b'D' => self.cursor = self.cursor.saturating_sub(number.max(1)),
            // No further than the text: the editor never goes there, and nothing must grow without end.
            b'C' => self.cursor = self.cursor.saturating_add(number.max(1)).min(self.text.len()),
            b'K' => self.text.truncate(self.cursor),
            b's' => self.saved = self.cursor,
            b'u' => self.cursor = self.saved,
            _ => {}
        }
    }

    /// The text, and how many places to its left the cursor is.
    pub fn shown(&self) -> (&[u8], usize) {
        (&self.text, self.text.len().saturating_sub(self.cursor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown(written: &[u8]) -> (String, usize) {
        let mut line = TypedLine::new();
        written.iter().for_each(|byte| line.write(*byte));
        let (text, left) = line.shown();
        (String::from_utf8_lossy(text).trim_end().to_string(), left)
    }

    #[test]
    fn what_a_terminal_shows_is_known() {
        assert_eq!(shown(b"lsmod"), ("lsmod".into(), 0));
        // Backspace at the end; a character put in, and one taken out, in the middle; another line from the history.
        assert_eq!(shown(b"lsx\x08 \x08mod"), ("lsmod".into(), 0));
        assert_eq!(shown(b"lmod\x1b[D\x1b[D\x1b[Ds\x1b[s\x1b[Kmod\x1b[u"), ("lsmod".into(), 3));
        assert_eq!(shown(b"lsxmod\x1b[D\x1b[D\x1b[D\x1b[D\x1b[s\x1b[Kmod\x1b[u"), ("lsmod".into(), 3));
        assert_eq!(shown(b"help insmod\x1b[11D\x1b[Kip\x07"), ("ip".into(), 0));
    }

    proptest! {
        #[test]
        fn the_cursor_stays_in_the_line(written in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut line = TypedLine::new();
            for byte in &written {
                line.write(*byte);
                prop_assert!(line.text.len() <= written.len());
                prop_assert!(line.shown().1 <= line.text.len());
            }
        }
    }
}
