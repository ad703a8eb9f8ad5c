//! What keys mean to the line editor, which knows characters, Backspace, Tab and the arrows, and nothing else: Home, End and
//! Delete are said in those, and so are Ctrl-A (on QEMU's console Ctrl-A A), -E, -U and -K. A key that means nothing is left out whole.

use alloc::collections::VecDeque;

const CTRL_A: u8 = 1;
const CTRL_E: u8 = 5;
const CTRL_K: u8 = 11;
const CTRL_U: u8 = 21;
const BACKSPACE: u8 = 8;
const ESCAPE: u8 = 0x1b;
const RIGHT: &[u8] = b"\x1b[C";
const LEFT: &[u8] = b"\x1b[D";

/// Where in a control sequence (ECMA-48, 5.4; ESC O is the keypad's) the last byte was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    Escape,
    /// With the first number so far, and whether there was more than a number.
    Parameter(u16, bool),
    Keypad,
}

/// Keys on their way from the terminal to the line editor.
#[derive(Debug, Default)]
pub struct Keys {
    sequence: Sequence,
    out: VecDeque<u8>,
}

impl Keys {
    /// Nothing was pressed yet.
    pub const fn new() -> Keys {
        Keys { sequence: Sequence::None, out: VecDeque::new() }
    }

    /// Whether the editor has more than one key to read: those of one that is said in several.
    pub fn are_several(&self) -> bool {
        self.out.len() > RIGHT.len()
    }

    /// The next byte for the editor.
    pub fn take(&mut self) -> Option<u8> {
        self.out.pop_front()
    }

    /// Takes a byte from the terminal. The cursor is behind `cursor` of `len` characters, once [`Keys::take`] has given all.
    pub fn press(&mut self, byte: u8, cursor: usize, len: usize) {
        self.sequence = match (self.sequence, byte) {
            (_, ESCAPE) => Sequence::Escape,
            (Sequence::Escape, b'[') => Sequence::Parameter(0, false),
            (Sequence::Escape, b'O') => Sequence::Keypad,
            (Sequence::Escape, _) => Sequence::None,
            (Sequence::Parameter(number, false), b'0'..=b'9') => {
                Sequence::Parameter(number.saturating_mul(10).saturating_add(u16::from(byte - b'0')), false)
            }
            // Parameter and intermediate bytes; what modifiers were held is not looked at.
            (Sequence::Parameter(number, _), 0x20..=0x3f) => Sequence::Parameter(number, true),
            (Sequence::Parameter(number, more), _) => {
                if !more {
                    self.special(byte, number, cursor, len);
                }
                Sequence::None
            }
            (Sequence::Keypad, _) => {
                self.special(byte, 0, cursor, len);
                Sequence::None
            }
            (Sequence::None, CTRL_A) => self.repeat(LEFT, cursor),
            (Sequence::None, CTRL_E) => self.repeat(RIGHT, len - cursor.min(len)),
            (Sequence::None, CTRL_U) => self.repeat(&[BACKSPACE], cursor),
            (Sequence::None, CTRL_K) => {
                let right = len - cursor.min(len);
                self.repeat(RIGHT, right);
                self.repeat(&[BACKSPACE], right)
            }
            // What is piped in ends its lines so; Enter does not.
            (Sequence::None, b'\n') => self.repeat(b"\r", 1),
            (Sequence::None, byte) => self.repeat(&[byte], 1),
        };
    }

    /// A key whose sequence ends with `last`, with a number before it.
    fn special(&mut self, last: u8, number: u16, cursor: usize, len: usize) {
        let right = len - cursor.min(len);
        match (last, number) {
            (b'A'..=b'D', _) => self.out.extend([ESCAPE, b'[', last]),
            (b'H', _) | (b'~', 1 | 7) => drop(self.repeat(LEFT, cursor)),
            (b'F', _) | (b'~', 4 | 8) => drop(self.repeat(RIGHT, right)),
            (b'~', 3) if right > 0 => {
                self.out.extend(RIGHT);
                self.out.push_back(BACKSPACE);
            }
            _ => {}
        }
    }

    fn repeat(&mut self, bytes: &[u8], count: usize) -> Sequence {
        (0..count).for_each(|_| self.out.extend(bytes));
        Sequence::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the editor is told when `pressed` comes, with the cursor behind 2 of 5 characters.
    fn told(pressed: &[u8]) -> Vec<u8> {
        let mut keys = Keys::new();
        pressed.iter().for_each(|byte| keys.press(*byte, 2, 5));
        core::iter::from_fn(|| keys.take()).collect()
    }

    #[test]
    fn keys_are_said_in_what_the_editor_knows() {
        assert_eq!(told(b"a\t\x7f\r\x03"), b"a\t\x7f\r\x03");
        assert_eq!(told(b"lsmod\n"), b"lsmod\r");
        assert_eq!(told(b"\x1b[A\x1bOB"), b"\x1b[A\x1b[B");
        for home in [&b"\x1b[H"[..], b"\x1b[1~", b"\x1b[7~", b"\x1bOH", b"\x01"] {
            assert_eq!(told(home), b"\x1b[D\x1b[D", "{home:?}");
        }
        for end in [&b"\x1b[F"[..], b"\x1b[4~", b"\x1b[8~", b"\x1bOF", b"\x05"] {
            assert_eq!(told(end), b"\x1b[C\x1b[C\x1b[C", "{end:?}");
        }
        assert_eq!(told(b"\x1b[3~"), b"\x1b[C\x08");
        assert_eq!(told(b"\x15"), b"\x08\x08");
        assert_eq!(told(b"\x0b"), b"\x1b[C\x1b[C\x1b[C\x08\x08\x08");
        // Page up, F5, Ctrl and an arrow, Alt and a letter: nothing, and nothing of them is left.
        assert_eq!(told(b"\x1b[5~\x1b[15~\x1b[1;5C\x1bxa"), b"a");
    }

    proptest! {
        #[test]
        fn whatever_is_pressed_takes_little_memory(pressed in proptest::collection::vec(any::<u8>(), 0..100), cursor in 0..300usize, len in 0..300usize) {
            let mut keys = Keys::new();
            for byte in pressed {
                keys.press(byte, cursor, len);
                prop_assert!(keys.out.len() <= 4 * cursor.max(len) + 4);
                keys.out.clear();
            }
        }
    }
}
