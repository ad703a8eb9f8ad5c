//! What a command makes of its arguments, and what it says when they are wrong.

use super::Outcome;
use alloc::format;
use alloc::string::String;
use core::str::{FromStr, SplitWhitespace};

/// The words behind a command.
pub struct Arguments<'a> {
    text: &'a str,
    words: SplitWhitespace<'a>,
    usage: &'static str,
}

impl<'a> Arguments<'a> {
    /// The words of `text`; `usage` is shown when they are wrong.
    pub fn new(text: &'a str, usage: &'static str) -> Arguments<'a> {
        Arguments { text, words: text.split_whitespace(), usage }
    }

    /// The next word, which there must be.
    pub fn word(&mut self, what: &str) -> Result<&'a str, String> {
        self.words.next().ok_or_else(|| format!("{what} is missing; usage: {}", self.usage))
    }

    /// The next word, if there is one.
    pub fn optional(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    /// The next word as a number (decimal, or hexadecimal with 0x), which there must be.
    pub fn number<T: TryFrom<u64>>(&mut self, what: &str) -> Result<T, String> {
        let word = self.word(what)?;
        self.as_number(what, word)
    }

    /// `word` as a number.
    pub fn as_number<T: TryFrom<u64>>(&self, what: &str, word: &str) -> Result<T, String> {
        let parsed = match word.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => u64::from_str(word),
        };
        let number = parsed.map_err(|_| format!("{what} must be a number, not '{word}'; usage: {}", self.usage))?;
        T::try_from(number).map_err(|_| format!("{what} {word} is too large"))
    }

    /// All that is left, as it was typed.
    pub fn rest(self) -> &'a str {
        match self.words.clone().next() {
            // The next word is a part of `text`: what begins with it is the rest.
            Some(word) => self.text.get(word.as_ptr() as usize - self.text.as_ptr() as usize..).unwrap_or(word),
            None => "",
        }
    }

    /// That there is nothing left.
    pub fn end(mut self) -> Outcome {
        match self.words.next() {
            None => Ok(()),
            Some(word) => Err(format!("'{word}' is one too many; usage: {}", self.usage)),
        }
    }

    /// That an argument is wrong.
    pub fn wrong<T>(&self, what: &str) -> Result<T, String> {
        Err(format!("{what}; usage: {}", self.usage))
    }
}
