//! Reads the arguments of a command, and makes the messages for wrong arguments.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::str::FromStr;

/// The words after a command's name. A word between quotes (`"A Long Name.txt"`) may have spaces.
pub struct Arguments<'a> {
    rest: &'a str,
    usage: &'static str,
}

impl<'a> Arguments<'a> {
    /// Returns the words of `text`. Errors show `usage`.
    pub fn new(text: &'a str, usage: &'static str) -> Arguments<'a> {
        Arguments { rest: text.trim_start(), usage }
    }

    fn next(&mut self) -> Option<&'a str> {
        let quoted = self.rest.strip_prefix('"').and_then(|after| after.split_once('"'));
        let (word, rest) = match quoted {
            // Quotes in the middle of a word are a part of it.
            Some((word, rest)) if rest.is_empty() || rest.starts_with(char::is_whitespace) => (word, rest),
            _ => self.rest.split_once(char::is_whitespace).unwrap_or((self.rest, "")),
        };
        if self.rest.is_empty() {
            return None;
        }
        self.rest = rest.trim_start();
        Some(word)
    }

    /// Returns the next word; it is an error if there is none.
    pub fn word(&mut self, what: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("{what} is missing; usage: {}", self.usage))
    }

    /// Returns the next word, if there is one.
    pub fn optional(&mut self) -> Option<&'a str> {
        self.next()
    }

    /// Returns the next word as a number (decimal, or hexadecimal with 0x); it is an error if there
    /// is none.
    pub fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, String> {
        let word = self.word(what)?;
        self.as_number(what, word)
    }

    /// Returns the next word as milliseconds, at most a day.
    pub fn milliseconds(&mut self, what: &str) -> Result<u64, String> {
        const DAY: u64 = 24 * 60 * 60 * 1000;
        let value = self.number(what)?;
        if value > DAY { Err(format!("{what} is longer than a day")) } else { Ok(value) }
    }

    /// Returns `word` as a number.
    pub fn as_number<T: TryFrom<u64>>(&self, what: &str, word: &str) -> Result<T, String> {
        let parsed = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => u64::from_str(word),
        };
        let number = parsed.map_err(|_| format!("{what} must be a number, not '{word}'; usage: {}", self.usage))?;
        T::try_from(number).map_err(|_| format!("{what} {word} is too large"))
    }

    /// Returns the rest of the text, as it was typed.
    pub fn rest(self) -> &'a str {
        self.rest
    }

    /// Checks that no word is left.
    pub fn end(mut self) -> Result<(), String> {
        match self.next() {
            None => Ok(()),
            Some(word) => Err(format!("'{word}' is one too many; usage: {}", self.usage)),
        }
    }

    /// Returns an error with the message `what`, and the usage.
    pub fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{what}; usage: {}", self.usage))
    }
}

/// A change of bytes at an offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patch {
    /// Offset in bytes.
    pub at: usize,
    /// The bytes to put there.
    pub bytes: Vec<u8>,
}

impl Patch {
    /// Reads a change of the form `OFFSET:BYTES`, both in hexadecimal.
    pub fn parse(text: &str) -> Option<Patch> {
        let (at, hex) = text.split_once(':')?;
        let at = usize::from_str_radix(at, 16).ok()?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let byte = |[high, low]: &[u8; 2]| Some((digit(*high)? << 4 | digit(*low)?) as u8);
        let (pairs, half) = hex.as_bytes().as_chunks::<2>();
        let bytes = pairs.iter().map(byte).collect::<Option<Vec<u8>>>()?;
        (!bytes.is_empty() && half.is_empty()).then_some(Patch { at, bytes })
    }

    /// Returns `content` with the change; `None` if the change does not lie inside.
    pub fn apply(&self, content: &[u8]) -> Option<Vec<u8>> {
        let mut bytes = content.to_vec();
        bytes.get_mut(self.at..self.at.checked_add(self.bytes.len())?)?.copy_from_slice(&self.bytes);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_between_quotes_have_spaces() {
        let mut arguments = Arguments::new("  \"A Long Name.txt\"  b \"\" \"c d\"e  \"open f", "usage");
        let words: Vec<&str> = core::iter::from_fn(|| arguments.optional()).collect();
        assert_eq!(words, ["A Long Name.txt", "b", "", "\"c", "d\"e", "\"open", "f"]);
        let mut arguments = Arguments::new("name  the \"rest\" as typed", "usage");
        assert_eq!(arguments.optional(), Some("name"));
        assert_eq!(arguments.rest(), "the \"rest\" as typed");
    }

    #[test]
    fn words_numbers_and_the_rest_are_told_apart() {
        let mut arguments = Arguments::new(" disk0 0x10  12 and  so on ", "usage");
        assert_eq!(arguments.word("the disk"), Ok("disk0"));
        assert_eq!(arguments.number::<u64>("the block"), Ok(16));
        assert_eq!(arguments.number::<u8>("the count"), Ok(12));
        assert_eq!(arguments.rest(), "and  so on ");
    }

    #[test]
    fn what_is_wrong_is_said() {
        let mut arguments = Arguments::new("x 300", "blkread DISK");
        assert_eq!(
            arguments.number::<u64>("the block").unwrap_err(),
            "the block must be a number, not 'x'; usage: blkread DISK"
        );
        assert_eq!(arguments.number::<u8>("the count").unwrap_err(), "the count 300 is too large");
        assert_eq!(
            Arguments::new("99999999999", "usage").milliseconds("the limit").unwrap_err(),
            "the limit is longer than a day"
        );
        assert_eq!(arguments.word("the seed").unwrap_err(), "the seed is missing; usage: blkread DISK");
        let left = Arguments::new("one", "usage").end();
        assert_eq!(left.unwrap_err(), "'one' is one too many; usage: usage");
    }

    #[test]
    fn changes_are_read_and_applied() {
        let patch = Patch::parse("2:90cc").unwrap();
        assert_eq!(patch, Patch { at: 2, bytes: vec![0x90, 0xcc] });
        assert_eq!(["2:", "2:9", "2:90c", "2:+f", "x:90", "90"].map(Patch::parse), [const { None }; 6]);
        assert_eq!(patch.apply(&[0; 4]), Some(vec![0, 0, 0x90, 0xcc]));
        assert_eq!(patch.apply(&[0; 3]), None);
        assert_eq!(Patch { at: usize::MAX, bytes: vec![0] }.apply(&[0]), None);
        for wrong in ["", "2", "2:", "x:90", "2:9g"] {
            assert_eq!(Patch::parse(wrong), None, "{wrong}");
        }
    }
}
