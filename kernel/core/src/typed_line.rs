//! What a terminal shows of a line that is being edited, from what the line editor writes: so that something else can be
//! printed in between, and the line shown again below it; and so that a line may be wider than the terminal, which the editor
//! does not know about.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

const BACKSPACE: u8 = 8;
const BELL: u8 = 7;
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

/// A line behind a prompt, and the place of the cursor in it.
#[derive(Debug)]
pub struct TypedLine {
    prompt: &'static str,
    /// Columns of the terminal, at least 2.
    columns: usize,
    text: Vec<u8>,
    cursor: usize,
    saved: usize,
    sequence: Sequence,
    /// The last two bytes: a space between two backspaces deletes the last character.
    last: [u8; 2],
}

impl TypedLine {
    /// An empty line behind `prompt` on a terminal with so many columns.
    pub fn new(prompt: &'static str, columns: usize) -> TypedLine {
        TypedLine {
            prompt,
            columns: columns.max(2),
            text: Vec::new(),
            cursor: 0,
            saved: 0,
            sequence: Sequence::None,
            last: [0; 2],
        }
    }

    /// Takes a byte that the editor writes; returns what the terminal is to be sent.
    pub fn edit(&mut self, byte: u8) -> Vec<u8> {
        if byte == BELL {
            return [byte].to_vec();
        }
        let (fitted, hide, before) = (self.fits(), self.hide(), (self.text.len(), self.cursor));
        let is_character = self.sequence == Sequence::None && byte != ESCAPE;
        self.write(byte);
        let after = (self.text.len(), self.cursor);
        match fitted && self.fits() {
            true if is_character => [byte].to_vec(),
            // Control sequences are sent when they are complete: what one saves, another may restore on another row.
            true => {
                let moved = match after.1 as isize - before.1 as isize {
                    0 => String::new(),
                    right @ 1.. => format!("\x1b[{right}C"),
                    left => format!("\x1b[{}D", -left),
                };
                let erased = if after.0 < before.0 { "\x1b[K" } else { "" };
                (moved + erased).into_bytes()
            }
            false if before == after => Vec::new(),
            // One more at the end.
            false if is_character && before.0 == before.1 && after == (before.0 + 1, before.1 + 1) => {
                let wrap: &[u8] = if self.end().is_multiple_of(self.columns) { b"\r\n" } else { b"" };
                [&[byte], wrap].concat()
            }
            false => [hide, self.show()].concat(),
        }
    }

    /// Does what a terminal does with `byte`: characters, backspace, and the sequences that move the cursor in its line
    /// (CUB, CUF), save and restore it, and erase to the end (EL). Any other has no effect.
    fn write(&mut self, byte: u8) {
        let deletes = self.last == [BACKSPACE, b' '] && byte == BACKSPACE && self.cursor == self.text.len();
        self.last = [self.last[1], byte];
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
        if deletes {
            self.text.truncate(self.cursor);
        }
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
            b'u' => self.cursor = self.saved.min(self.text.len()),
            _ => {}
        }
    }

    /// Whether it leaves the last column of its row free: a terminal that has written there waits for the next character
    /// before it goes on to the next row.
    fn fits(&self) -> bool {
        self.end() < self.columns
    }

    /// Characters before the cursor, and in all.
    pub fn position(&self) -> (usize, usize) {
        (self.cursor, self.text.len())
    }

    /// Columns from the start of the prompt to the end of the text, and to the cursor.
    fn end(&self) -> usize {
        self.prompt.len() + self.text.len()
    }

    fn at(&self) -> usize {
        self.prompt.len() + self.cursor
    }

    /// What takes the line off the terminal: the cursor is where the prompt began then.
    pub fn hide(&self) -> Vec<u8> {
        match self.at() / self.columns {
            0 => b"\r\x1b[J".to_vec(),
            rows => format!("\r\x1b[{rows}A\x1b[J").into_bytes(),
        }
    }

    /// What shows it, from the first column of a row.
    pub fn show(&self) -> Vec<u8> {
        let (end, at) = (self.end(), self.at());
        let mut out = self.prompt.as_bytes().to_vec();
        out.extend(&self.text);
        if end.is_multiple_of(self.columns) {
            out.extend(b"\r\n");
        }
        match (end / self.columns - at / self.columns, end - at) {
            (0, 0) => {}
            (0, left) => out.extend(format!("\x1b[{left}D").bytes()),
            (rows, _) => {
                out.extend(format!("\x1b[{rows}A\r").bytes());
                if let column @ 1.. = at % self.columns {
                    out.extend(format!("\x1b[{column}C").bytes());
                }
            }
        }
        out
    }

    /// What moves the cursor to its last row.
    pub fn leave(&self) -> Vec<u8> {
        match self.end() / self.columns - self.at() / self.columns {
            0 => Vec::new(),
            rows => format!("\x1b[{rows}B").into_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROMPT: &str = "> ";

    fn shown(written: &[u8]) -> (String, usize) {
        let mut line = TypedLine::new(PROMPT, 80);
        written.iter().for_each(|byte| drop(line.edit(*byte)));
        (String::from_utf8_lossy(&line.text).to_string(), line.end() - line.at())
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

    /// Something that an editor does.
    #[derive(Debug, Clone)]
    enum Edit {
        Type(String),
        Left(usize),
        Right(usize),
        Backspace,
        Insert,
        Erase,
        Bell,
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            4 => "[a-z ]{1,12}".prop_map(Edit::Type),
            1 => (1..20usize).prop_map(Edit::Left),
            1 => (1..20usize).prop_map(Edit::Right),
            1 => Just(Edit::Backspace),
            1 => Just(Edit::Insert),
            1 => Just(Edit::Erase),
            1 => Just(Edit::Bell),
        ]
    }

    impl Edit {
        /// What an editor writes for it, which never leaves the line.
        fn written(&self, line: &TypedLine) -> String {
            match self {
                Edit::Type(text) => text.clone(),
                Edit::Left(count) if line.cursor > 0 => format!("\x1b[{}D", count.min(&line.cursor)),
                Edit::Right(count) if line.cursor < line.text.len() => {
                    format!("\x1b[{}C", count.min(&(line.text.len() - line.cursor)))
                }
                Edit::Backspace if line.cursor > 0 => "\x08 \x08".into(),
                Edit::Insert => "\x1b[s\x1b[Kab\x1b[u".into(),
                Edit::Erase => "\x1b[K".into(),
                Edit::Bell => "\x07".into(),
                _ => String::new(),
            }
        }
    }

    proptest! {
        #[test]
        fn the_cursor_stays_in_the_line(written in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut line = TypedLine::new(PROMPT, 10);
            for byte in &written {
                line.edit(*byte);
                prop_assert!(line.text.len() <= written.len());
                prop_assert!(line.at() <= line.end());
            }
        }

        /// However wide the line, a terminal shows it below what was printed in between.
        #[test]
        fn a_terminal_shows_the_line(edits in proptest::collection::vec(edit(), 0..30), columns in 4..40usize) {
            const ROWS: usize = 100;
            let mut terminal = vt100::Parser::new(ROWS as u16, columns as u16, 0);
            let mut line = TypedLine::new(PROMPT, columns);
            terminal.process(&line.show());
            for (index, edit) in edits.iter().enumerate() {
                edit.written(&line).bytes().for_each(|byte| terminal.process(&line.edit(byte)));
                if index % 4 == 3 {
                    terminal.process(&line.hide());
                    terminal.process(b"log\r\n");
                    terminal.process(&line.show());
                }
            }
            let above = edits.len() / 4;
            let all: Vec<u8> = PROMPT.bytes().chain(line.text.iter().copied()).collect();
            let mut expected = vec!["log".to_string(); above];
            expected.extend(all.chunks(columns).map(|row| String::from_utf8_lossy(row).trim_end().to_string()));
            let rows: Vec<String> = terminal.screen().rows(0, columns as u16).map(|row| row.trim_end().to_string()).collect();
            prop_assert_eq!(&rows[..expected.len()], &expected[..]);
            prop_assert!(rows[expected.len()..].iter().all(String::is_empty));
            let (row, column) = terminal.screen().cursor_position();
            prop_assert_eq!((row as usize, column as usize), (above + line.at() / columns, line.at() % columns));
            terminal.process(&line.leave());
            prop_assert_eq!(terminal.screen().cursor_position().0 as usize, above + line.end() / columns);
        }
    }
}
