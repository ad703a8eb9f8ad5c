//! A line editor for a terminal (ECMA-48): it takes bytes from the keyboard and returns bytes for
//! the screen. It has the usual keys of readline, a history that can be searched, and lines that
//! are wider than the terminal. The line can be taken off the screen and shown again, so that other
//! text can be printed in between.
//!
//! No crate that could be used here does this: `noline` 0.5 (MPL-2.0) comes nearest, and its
//! licence is not one of ours.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use unicode_width::UnicodeWidthChar;

/// Longest line in characters. A longer line is refused as a whole, because a part of it might do
/// something else.
pub const MAX_LINE: usize = 4096;
/// The most lines that are remembered.
const HISTORY: usize = 200;

/// The result of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A line is complete.
    Line(String),
    /// The line had more than [`MAX_LINE`] characters.
    TooLong,
    /// The line was given up (Ctrl-C).
    Cancelled,
    /// There is no more input (Ctrl-D in an empty line).
    End,
    /// The text before the cursor is to be completed (Tab).
    Complete,
    /// The terminal has so many columns; it has answered [`ASK_COLUMNS`].
    Columns(usize),
}

/// Asks a terminal for its width: moves the cursor to the last column, asks for the cursor's
/// position, and moves it back.
pub const ASK_COLUMNS: &[u8] = b"\x1b7\x1b[999C\x1b[6n\x1b8";

/// The position of the last byte within a key that is sent as several bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Sequence {
    #[default]
    None,
    Escape,
    /// A control sequence, with its numbers so far.
    Control([u16; 2], usize),
    /// ESC O, with which the keys of a keypad begin.
    Keypad,
    /// A character of several bytes (UTF-8): its bits so far, and the number of bytes that are
    /// missing.
    Character(u32, u8),
}

/// A search in the history.
#[derive(Debug, Clone)]
struct Search {
    query: String,
    /// Index of the line that was found, counted from the last one.
    found: usize,
    /// The text before the search.
    before: Vec<char>,
}

/// A line behind a prompt, the cursor's place in it, and the history.
#[derive(Debug)]
pub struct LineEditor {
    prompt: String,
    /// Columns of the terminal, at least 2.
    columns: usize,
    text: Vec<char>,
    cursor: usize,
    /// The text that was cut out last.
    cut: Vec<char>,
    sequence: Sequence,
    /// Whether the last byte was a carriage return: a line feed after it belongs to it.
    after_return: bool,
    is_too_long: bool,
    history: VecDeque<String>,
    /// How far back in the history the line is: 0 for a new line.
    back: usize,
    /// The new line, while a line of the history is shown.
    unsent: Vec<char>,
    search: Option<Search>,
}

/// The line as it is on the screen.
struct View {
    prompt: String,
    text: Vec<char>,
    cursor: usize,
}

impl LineEditor {
    /// Returns an editor without a history, for a terminal with so many columns.
    pub fn new(columns: usize) -> LineEditor {
        LineEditor {
            prompt: String::new(),
            columns: columns.max(2),
            text: Vec::new(),
            cursor: 0,
            cut: Vec::new(),
            sequence: Sequence::None,
            after_return: false,
            is_too_long: false,
            history: VecDeque::new(),
            back: 0,
            unsent: Vec::new(),
            search: None,
        }
    }

    /// Sets the number of the terminal's columns.
    pub fn set_columns(&mut self, columns: usize) {
        self.columns = columns.max(2);
    }

    /// Begins an empty line behind `prompt`; [`LineEditor::show`] shows it.
    pub fn begin(&mut self, prompt: &str) {
        self.prompt = prompt.to_string();
        self.text.clear();
        self.unsent.clear();
        (self.cursor, self.back, self.is_too_long, self.search) = (0, 0, false, None);
    }

    /// Returns the text before the cursor.
    pub fn typed(&self) -> String {
        self.text.iter().take(self.cursor).collect()
    }

    /// Inserts `text` before the cursor. Returns bytes for the terminal.
    pub fn insert(&mut self, text: &str) -> Vec<u8> {
        let before = self.view();
        text.chars().for_each(|c| self.put(c));
        self.update(&before)
    }

    /// Takes a byte from the terminal. Returns bytes for the terminal, and the event, if there is
    /// one.
    pub fn press(&mut self, byte: u8) -> (Vec<u8>, Option<Event>) {
        let before = self.view();
        let event = self.take(byte);
        match event {
            // The line is finished, and stays on the screen.
            Some(Event::Line(_) | Event::TooLong | Event::Cancelled | Event::End) => {
                self.search = None;
                (self.update(&before), event)
            }
            event => (self.update(&before), event),
        }
    }

    fn take(&mut self, byte: u8) -> Option<Event> {
        const RETURN: u8 = b'\r';
        let after_return = core::mem::replace(&mut self.after_return, byte == RETURN);
        let sequence = core::mem::take(&mut self.sequence);
        match (sequence, byte) {
            (_, 0x1b) => self.sequence = Sequence::Escape,
            (Sequence::Escape, b'[') => self.sequence = Sequence::Control([0; 2], 0),
            (Sequence::Escape, b'O') => self.sequence = Sequence::Keypad,
            (Sequence::Escape, _) => return self.key(Key::Alt(byte)),
            (Sequence::Control(mut numbers, at), b'0'..=b'9') => {
                if let Some(number) = numbers.get_mut(at) {
                    *number = number.saturating_mul(10).saturating_add(u16::from(byte - b'0'));
                }
                self.sequence = Sequence::Control(numbers, at);
            }
            (Sequence::Control(numbers, at), b';') => self.sequence = Sequence::Control(numbers, at + 1),
            // Other parameters and intermediate bytes.
            (Sequence::Control(numbers, at), 0x20..=0x3f) => self.sequence = Sequence::Control(numbers, at.max(2)),
            (Sequence::Control(numbers, _), b'R') => return Some(Event::Columns(numbers[1].into())),
            (Sequence::Control(numbers, _), last) => return self.special(last, numbers),
            (Sequence::Keypad, last) => return self.special(last, [0; 2]),
            (Sequence::Character(bits, missing), 0x80..=0xbf) => {
                let bits = bits << 6 | u32::from(byte & 0x3f);
                match missing {
                    1 => return char::from_u32(bits).and_then(|c| self.key(Key::Character(c))),
                    missing => self.sequence = Sequence::Character(bits, missing - 1),
                }
            }
            (_, 0xc2..=0xdf) => self.sequence = Sequence::Character((byte & 0x1f).into(), 1),
            (_, 0xe0..=0xef) => self.sequence = Sequence::Character((byte & 0x0f).into(), 2),
            (_, 0xf0..=0xf4) => self.sequence = Sequence::Character((byte & 0x07).into(), 3),
            // No character begins with such a byte.
            (_, 0x80..) => {}
            (_, b'\n') if after_return => {}
            (_, RETURN | b'\n') => return self.key(Key::Enter),
            (_, 0x20..=0x7e) => return self.key(Key::Character(byte.into())),
            (_, 8 | 0x7f) => return self.key(Key::Backspace),
            (_, b'\t') => return self.key(Key::Tab),
            (_, control) => return self.key(Key::Control(control + b'@')),
        }
        None
    }

    /// Handles a key with a name, given the last byte of its sequence and its numbers.
    fn special(&mut self, last: u8, [number, modifiers]: [u16; 2]) -> Option<Event> {
        // xterm sends 1, and then the modifiers: 1 plus a bit each for Shift, Alt and Ctrl. rxvt
        // sends one number alone, or a small letter.
        let is_word = modifiers > 2 || matches!(number, 3 | 5) && modifiers == 0;
        let key = match (last, number) {
            (b'A', _) => Key::Up,
            (b'B', _) => Key::Down,
            (b'C', _) if is_word => Key::WordRight,
            (b'D', _) if is_word => Key::WordLeft,
            (b'c', _) => Key::WordRight,
            (b'd', _) => Key::WordLeft,
            (b'C', _) => Key::Right,
            (b'D', _) => Key::Left,
            (b'H', _) | (b'~', 1 | 7) => Key::Home,
            (b'F', _) | (b'~', 4 | 8) => Key::End,
            (b'~', 3) => Key::Delete,
            _ => return None,
        };
        self.key(key)
    }

    fn key(&mut self, key: Key) -> Option<Event> {
        if self.search.is_some() {
            return self.search_key(key);
        }
        match key {
            Key::Character(c) => self.put(c),
            Key::Enter => return Some(self.enter()),
            Key::Tab => return Some(Event::Complete),
            Key::Backspace => self.remove(self.cursor.saturating_sub(1), self.cursor),
            Key::Delete => self.remove(self.cursor, (self.cursor + 1).min(self.text.len())),
            Key::Left | Key::Control(b'B') => self.cursor = self.cursor.saturating_sub(1),
            Key::Right | Key::Control(b'F') => self.cursor = (self.cursor + 1).min(self.text.len()),
            Key::Home | Key::Control(b'A') => self.cursor = 0,
            Key::End | Key::Control(b'E') => self.cursor = self.text.len(),
            Key::WordLeft | Key::Alt(b'b') => self.cursor = self.word_left(),
            Key::WordRight | Key::Alt(b'f') => self.cursor = self.word_right(),
            Key::Up | Key::Control(b'P') => self.recall(self.back + 1),
            Key::Down | Key::Control(b'N') => self.recall(self.back.wrapping_sub(1)),
            Key::Control(b'C') => {
                self.is_too_long = false;
                return Some(Event::Cancelled);
            }
            Key::Control(b'D') if self.text.is_empty() => return Some(Event::End),
            Key::Control(b'D') => self.remove(self.cursor, (self.cursor + 1).min(self.text.len())),
            Key::Control(b'K') => self.cut(self.cursor, self.text.len()),
            Key::Control(b'U') => self.cut(0, self.cursor),
            Key::Control(b'W') => self.cut(self.blank_left(), self.cursor),
            Key::Alt(8 | 0x7f) => self.cut(self.word_left(), self.cursor),
            Key::Alt(b'd') => self.cut(self.cursor, self.word_right()),
            Key::Control(b'Y') => self.cut.clone().into_iter().for_each(|c| self.put(c)),
            Key::Control(b'R') => {
                self.search = Some(Search { query: String::new(), found: 0, before: self.text.clone() });
            }
            Key::Control(_) | Key::Alt(_) => {}
        }
        None
    }

    fn enter(&mut self) -> Event {
        self.cursor = self.text.len();
        if core::mem::take(&mut self.is_too_long) {
            return Event::TooLong;
        }
        let line: String = self.text.iter().collect();
        let line = line.trim().to_string();
        if !line.is_empty() && self.history.back() != Some(&line) {
            if self.history.len() == HISTORY {
                self.history.pop_front();
            }
            self.history.push_back(line.clone());
        }
        Event::Line(line)
    }

    fn put(&mut self, c: char) {
        if self.text.len() >= MAX_LINE {
            self.is_too_long = true;
            return;
        }
        self.text.insert(self.cursor, c);
        self.cursor += 1;
    }

    fn remove(&mut self, from: usize, to: usize) {
        self.text.drain(from..to);
        self.cursor = from;
    }

    /// Removes characters, and keeps them for Ctrl-Y.
    fn cut(&mut self, from: usize, to: usize) {
        if from < to {
            self.cut = self.text.drain(from..to).collect();
            self.cursor = from;
        }
    }

    /// Returns where the word before the cursor begins; a word consists of letters and digits.
    fn word_left(&self) -> usize {
        let before = self.text.get(..self.cursor).unwrap_or(&[]);
        let rest = before.iter().rposition(|c| c.is_alphanumeric()).map_or(0, |last| last + 1);
        before.get(..rest).unwrap_or(&[]).iter().rposition(|c| !c.is_alphanumeric()).map_or(0, |at| at + 1)
    }

    /// Returns where the next word ends.
    fn word_right(&self) -> usize {
        let behind = self.text.get(self.cursor..).unwrap_or(&[]);
        let first = behind.iter().position(|c| c.is_alphanumeric()).unwrap_or(behind.len());
        let word = behind.get(first..).unwrap_or(&[]);
        self.cursor + first + word.iter().position(|c| !c.is_alphanumeric()).unwrap_or(word.len())
    }

    /// Returns where the word before the cursor begins; any characters but blanks are a word here.
    fn blank_left(&self) -> usize {
        let before = self.text.get(..self.cursor).unwrap_or(&[]);
        let rest = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |last| last + 1);
        before.get(..rest).unwrap_or(&[]).iter().rposition(|c| c.is_whitespace()).map_or(0, |at| at + 1)
    }

    /// Recalls the line so far back in the history; 0 is the line that was typed.
    fn recall(&mut self, back: usize) {
        if back > self.history.len() {
            return;
        }
        if self.back == 0 {
            self.unsent = self.text.clone();
        }
        self.text = match back {
            0 => self.unsent.clone(),
            back => self.history.get(self.history.len() - back).map_or(Vec::new(), |line| line.chars().collect()),
        };
        (self.back, self.cursor) = (back, self.text.len());
    }

    fn search_key(&mut self, key: Key) -> Option<Event> {
        let Some(search) = &mut self.search else { return None };
        let from = match key {
            Key::Character(c) => {
                search.query.push(c);
                search.found
            }
            Key::Backspace => {
                search.query.pop();
                0
            }
            Key::Control(b'R') => search.found + 1,
            Key::Control(b'G' | b'C') => {
                self.text = core::mem::take(&mut search.before);
                self.cursor = self.text.len();
                self.search = None;
                return None;
            }
            // Any other key ends the search, and acts on the line that was found.
            other => {
                self.search = None;
                self.cursor = self.text.len();
                return self.key(other);
            }
        };
        let found = self.history.iter().rev().enumerate().skip(from).find(|(_, line)| line.contains(&search.query));
        match found {
            Some((index, line)) if !search.query.is_empty() => {
                search.found = index;
                self.text = line.chars().collect();
            }
            // No line further back matches: the last match stays.
            _ if !search.query.is_empty() => {}
            _ => self.text = search.before.clone(),
        }
        self.cursor = self.text.len();
        None
    }

    fn view(&self) -> View {
        let prompt = match &self.search {
            Some(search) => format!("(search '{}') ", search.query.chars().map(shown).collect::<String>()),
            None => self.prompt.clone(),
        };
        View { prompt, text: self.text.iter().copied().map(shown).collect(), cursor: self.cursor }
    }

    /// Returns the bytes that change the screen from `before` to the present line.
    fn update(&self, before: &View) -> Vec<u8> {
        let now = self.view();
        let fits = before.end() < self.columns && now.end() < self.columns && before.prompt == now.prompt;
        let same = before.text == now.text && before.prompt == now.prompt;
        if same && before.cursor == now.cursor {
            return Vec::new();
        }
        let appended = now.text.len() == before.text.len() + 1
            && before.cursor == before.text.len()
            && now.text.starts_with(&before.text)
            && now.cursor == now.text.len()
            && before.prompt == now.prompt;
        if appended && !fits {
            let mut out: Vec<u8> = now.text.iter().skip(before.text.len()).collect::<String>().into_bytes();
            if now.end().is_multiple_of(self.columns) {
                out.extend(b"\r\n");
            }
            return out;
        }
        if !fits {
            return [before.hide(self.columns), now.show(self.columns)].concat();
        }
        let common =
            if same { before.cursor } else { before.text.iter().zip(&now.text).take_while(|(a, b)| a == b).count() };
        let common = common.min(before.cursor.max(common)).min(now.text.len());
        let mut out = String::new();
        let mut at = before.cursor;
        let mut go = |out: &mut String, to: usize| {
            match to as isize - at as isize {
                0 => {}
                right @ 1.. => *out += &format!("\x1b[{right}C"),
                left => *out += &format!("\x1b[{}D", -left),
            }
            at = to;
        };
        if !same {
            go(&mut out, common);
            out.extend(now.text.iter().skip(common));
            if now.text.len() < before.text.len() {
                out += "\x1b[K";
            }
            at = now.text.len();
            let left = at - now.cursor;
            if left > 0 {
                out += &format!("\x1b[{left}D");
            }
            return out.into_bytes();
        }
        go(&mut out, now.cursor);
        out.into_bytes()
    }

    /// Returns the bytes that take the line off the terminal. The cursor is then where the prompt
    /// began.
    pub fn hide(&self) -> Vec<u8> {
        self.view().hide(self.columns)
    }

    /// Returns the bytes that show the line, from the first column of a row on.
    pub fn show(&self) -> Vec<u8> {
        self.view().show(self.columns)
    }

    /// Returns the bytes that move the cursor to the line's last row.
    pub fn leave(&self) -> Vec<u8> {
        let view = self.view();
        match view.end() / self.columns - view.at() / self.columns {
            0 => Vec::new(),
            rows => format!("\x1b[{rows}B").into_bytes(),
        }
    }
}

/// A key of the keyboard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    Character(char),
    Enter,
    Tab,
    Backspace,
    Delete,
    Left,
    Right,
    Up,
    Down,
    Home,
    End,
    WordLeft,
    WordRight,
    Control(u8),
    Alt(u8),
}

impl View {
    /// Returns the columns from the start of the prompt to the end of the text.
    fn end(&self) -> usize {
        self.prompt.chars().count() + self.text.len()
    }

    /// Returns the columns from the start of the prompt to the cursor.
    fn at(&self) -> usize {
        self.prompt.chars().count() + self.cursor
    }

    fn hide(&self, columns: usize) -> Vec<u8> {
        match self.at() / columns {
            0 => b"\r\x1b[J".to_vec(),
            rows => format!("\r\x1b[{rows}A\x1b[J").into_bytes(),
        }
    }

    fn show(&self, columns: usize) -> Vec<u8> {
        let (end, at) = (self.end(), self.at());
        let mut out = self.prompt.clone();
        out.extend(&self.text);
        // A terminal that has written its last column goes on to the next row only with the next
        // character.
        if end.is_multiple_of(columns) {
            out += "\r\n";
        }
        match (end / columns - at / columns, end - at) {
            (0, 0) => {}
            (0, left) => out += &format!("\x1b[{left}D"),
            (rows, _) => {
                out += &format!("\x1b[{rows}A\r");
                if let column @ 1.. = at % columns {
                    out += &format!("\x1b[{column}C");
                }
            }
        }
        out.into_bytes()
    }
}

/// The character that stands for others: a white square.
const STAND_IN: char = '\u{25a1}';

/// Returns the character that the terminal shows for `c`. It has one column; with another width the
/// cursor would not be where the editor takes it to be.
fn shown(c: char) -> char {
    if c.width() == Some(1) { c } else { STAND_IN }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PROMPT: &str = "> ";

    /// Types `keys` into an editor that remembers `history`. Returns the line, the cursor and the
    /// events.
    fn typed(history: &[&str], keys: &[u8]) -> (String, usize, Vec<Event>) {
        let mut editor = LineEditor::new(80);
        editor.history = history.iter().map(|line| line.to_string()).collect();
        editor.begin(PROMPT);
        let events = keys.iter().filter_map(|byte| editor.press(*byte).1).collect();
        (editor.text.iter().collect(), editor.cursor, events)
    }

    fn line(keys: &[u8]) -> String {
        typed(&[], keys).0
    }

    #[test]
    fn keys_do_what_they_do_elsewhere() {
        assert_eq!(typed(&[], b"abc\x1b[D\x01"), ("abc".into(), 0, vec![]));
        assert_eq!(line(b"bc\x01a\x05d"), "abcd");
        assert_eq!(line(b"ac\x02b"), "abc");
        assert_eq!(line(b"ab\x02\x06c"), "abc");
        assert_eq!(line(b"abc\x08\x7f"), "a");
        assert_eq!(line(b"abc\x1b[H\x1b[3~"), "bc");
        assert_eq!(line(b"abc\x01\x04"), "bc");
        assert_eq!(line(b"abc def\x15"), "");
        assert_eq!(line(b"abc def\x01\x0b"), "");
        // Words that end at a blank, and words of letters and digits.
        assert_eq!(line(b"ls a/b c/d \x17"), "ls a/b ");
        assert_eq!(line(b"ls a/b\x1b\x7f"), "ls a/");
        assert_eq!(typed(&[], b"one two-three\x1bb\x1bb").1, 4);
        assert_eq!(typed(&[], b"one two\x01\x1bf\x1bf").1, 7);
        assert_eq!(line(b"one two\x01\x1bd"), " two");
        for (left, right) in
            [("\x1b[1;5D", "\x1b[1;5C"), ("\x1b[5D", "\x1b[5C"), ("\x1bOd", "\x1bOc"), ("\x1b[1;3D", "\x1b[1;3C")]
        {
            assert_eq!(typed(&[], format!("one two{left}").as_bytes()).1, 4, "{left:?}");
            assert_eq!(typed(&[], format!("one two\x01{right}").as_bytes()).1, 3, "{right:?}");
        }
        // Ctrl-Y brings back the text that was cut.
        assert_eq!(line(b"abc def\x17\x01\x19 "), "def abc ");
        for home in ["\x1b[H", "\x1b[1~", "\x1b[7~", "\x1bOH"] {
            assert_eq!(typed(&[], format!("abc{home}").as_bytes()).1, 0, "{home:?}");
        }
        for end in ["\x1b[F", "\x1b[4~", "\x1b[8~", "\x1bOF"] {
            assert_eq!(typed(&[], format!("abc\x01{end}").as_bytes()).1, 3, "{end:?}");
        }
        // Sequences of unknown keys are ignored as a whole. A character of several bytes counts as
        // one.
        assert_eq!(line(b"a\x1b[15~\x1b[2;5Pb\x1bOP\x1bxc"), "abc");
        assert_eq!(typed(&[], "\u{e4}\u{20ac}\u{1f600}".as_bytes()).1, 3);
        assert_eq!(line("\u{e4}\u{20ac}\x08x".as_bytes()), "\u{e4}x");
        assert_eq!(line(b"a\xff\x80\xc3(b"), "a(b");
    }

    #[test]
    fn lines_end_as_they_do_elsewhere() {
        let line = |text: &str| Event::Line(text.into());
        assert_eq!(typed(&[], b" ls \r").2, [line("ls")]);
        let ends = |keys: &[u8]| {
            let mut editor = LineEditor::new(80);
            let mut lines = Vec::new();
            editor.begin(PROMPT);
            for byte in keys {
                if let Some(event) = editor.press(*byte).1 {
                    lines.push(event);
                    editor.begin(PROMPT);
                }
            }
            lines
        };
        assert_eq!(ends(b"a\nb\r\nc\r\r"), [line("a"), line("b"), line("c"), line("")]);
        assert_eq!(ends(b"abc\x03\x04x\x04"), [Event::Cancelled, Event::End]);
        assert_eq!(ends(b"a\tb"), [Event::Complete]);
        assert_eq!(ends(b"\x1b[24;132R"), [Event::Columns(132)]);
        // A line of the greatest length is accepted. A longer one is refused as a whole, and does
        // not affect the next one.
        let long = vec![b'x'; MAX_LINE];
        assert_eq!(ends(&[&long[..], b"\r"].concat()), [line(&"x".repeat(MAX_LINE))]);
        assert_eq!(ends(&[&long[..], b"; panic\rhelp\r"].concat()), [Event::TooLong, line("help")]);
        assert_eq!(ends(&[&long[..], b"x\x03help\r"].concat()), [Event::Cancelled, line("help")]);
    }

    #[test]
    fn lines_are_remembered_and_found() {
        let history = ["insmod null", "lsmod", "insmod e1000"];
        let text = |keys: &[u8]| typed(&history, keys).0;
        assert_eq!(text(b"\x1b[A"), "insmod e1000");
        assert_eq!(text(b"\x10\x10\x10\x10\x10"), "insmod null");
        assert_eq!(text(b"he\x10\x10\x0e\x0e\x0e"), "he");
        // The last line that matches, the one before it, and no other.
        assert_eq!(text(b"\x12ins"), "insmod e1000");
        assert_eq!(text(b"\x12ins\x12"), "insmod null");
        assert_eq!(text(b"\x12ins\x12\x12\x12"), "insmod null");
        assert_eq!(text(b"\x12lsx\x7f"), "lsmod");
        // A search that is given up, one whose line is entered, and one whose line is edited.
        assert_eq!(text(b"he\x12ins\x07lp"), "help");
        assert_eq!(typed(&history, b"\x12null\r").2, [Event::Line("insmod null".into())]);
        assert_eq!(text(b"\x12null\x01x"), "xinsmod null");
        // A line that is entered twice in a row is remembered once.
        let mut editor = LineEditor::new(80);
        for keys in ["a\r", "a\r", "b\r"] {
            editor.begin(PROMPT);
            keys.bytes().for_each(|byte| drop(editor.press(byte)));
        }
        assert_eq!(editor.history, ["a", "b"]);
    }

    #[test]
    fn what_is_put_in_the_middle_is_shown_at_once() {
        let mut editor = LineEditor::new(80);
        editor.begin(PROMPT);
        b"help xx\x1b[D\x1b[D".iter().for_each(|byte| drop(editor.press(*byte)));
        assert_eq!(editor.show(), b"> help xx\x1b[2D");
        assert_eq!(editor.press(b'i').0, b"ixx\x1b[2D");
        assert_eq!(editor.press(8).0, b"\x1b[1Dxx\x1b[K\x1b[2D");
    }

    /// A character that a terminal shows in two columns, or in none, stays in the line, and is
    /// shown as one square.
    #[test]
    fn wide_characters_have_one_column() {
        let (mut editor, mut sent) = (LineEditor::new(80), Vec::new());
        editor.begin(PROMPT);
        let mut event = None;
        for byte in "\u{1f600}x\r".bytes() {
            let (out, came) = editor.press(byte);
            sent.extend(out);
            event = came.or(event);
        }
        assert_eq!(String::from_utf8(sent).unwrap(), "\u{25a1}x");
        assert_eq!(event, Some(Event::Line("\u{1f600}x".into())));
    }

    /// Returns keys that a person may press.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let key = prop_oneof![
            8 => (0x20u8..0x7f).prop_map(|byte| vec![byte]),
            4 => (1u8..27).prop_filter("a line that is over", |byte| !matches!(byte, 3 | 4 | 10 | 13)).prop_map(|byte| vec![byte]),
            4 => prop_oneof!["\x1b\\[[ABCDHF]", "\x1b\\[3~", "\x1b[bfd]", "\x1b\\[1;5[CD]"].prop_map(String::into_bytes),
            1 => "[\u{e4}\u{20ac}\u{4e16}\u{1f600}\u{301}]".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(key, 0..60).prop_map(|keys| keys.concat())
    }

    proptest! {
        /// A terminal shows the line as it is, with the cursor in the right place, on however many
        /// rows. Nothing is left of the line when it is taken off.
        #[test]
        fn the_screen_shows_what_is_there(keys in keys(), columns in 12usize..60) {
            const ROWS: usize = 60;
            let mut terminal = vt100::Parser::new(ROWS as u16, columns as u16, 0);
            let mut editor = LineEditor::new(columns);
            editor.history = ["insmod null", "x", "a line that is wider than the terminal by far, and goes on"].map(String::from).into();
            editor.begin(PROMPT);
            terminal.process(b"above\r\n");
            terminal.process(&editor.show());
            for byte in keys {
                terminal.process(&editor.press(byte).0);
                let view = editor.view();
                let (row, column) = terminal.screen().cursor_position();
                prop_assert_eq!((row as usize, column as usize), (1 + view.at() / columns, view.at() % columns));
                let wanted: String = view.prompt.chars().chain(view.text.iter().copied()).collect();
                let rows: String = terminal.screen().rows(0, columns as u16).skip(1).map(|row| format!("{row:columns$}")).collect();
                prop_assert_eq!(rows.trim_end(), wanted.trim_end());
            }
            terminal.process(&editor.hide());
            let left = terminal.screen().contents();
            prop_assert_eq!(left.trim_end(), "above");
            terminal.process(&editor.show());
            let (row, column) = terminal.screen().cursor_position();
            prop_assert_eq!((row as usize, column as usize), (1 + editor.view().at() / columns, editor.view().at() % columns));
        }

        #[test]
        fn nothing_panics(keys in proptest::collection::vec(any::<u8>(), 0..300), columns in 0usize..20) {
            let mut editor = LineEditor::new(columns);
            editor.begin(PROMPT);
            for byte in keys {
                if let (_, Some(Event::Line(_) | Event::Cancelled | Event::End)) = editor.press(byte) {
                    editor.begin(PROMPT);
                }
            }
        }
    }
}
