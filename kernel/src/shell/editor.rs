//! The line editor (ushell) on the console: editing, history, completion of what a command's usage names.

use super::commands;
use crate::{console, println};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::convert::Infallible;
use core::future::poll_fn;
use core::str::FromStr;
use core::task::Poll;
use ringfence_core::command_line;
use ringfence_core::keys::Keys;
use ushell::autocomplete::Autocomplete;
use ushell::history::LRUHistory;
use ushell::{Input, Read, ShellError, UShell, Write};

/// Longest line in bytes.
const LINE_BYTES: usize = 256;
/// Lines that are remembered.
const HISTORY_LINES: usize = 32;
const CTRL_C: u8 = 3;

/// What was typed.
pub enum Line {
    /// A line, without white space at its ends.
    Command(String),
    /// Ctrl-C.
    Cancelled,
}

/// Reads lines from the console.
pub struct LineEditor(UShell<Serial, Completion, LRUHistory<LINE_BYTES, HISTORY_LINES>, LINE_BYTES>);

impl LineEditor {
    /// An editor with no history.
    pub fn new() -> LineEditor {
        LineEditor(UShell::new(Serial { keys: Keys::new(), hidden: false }, Completion, LRUHistory::default()))
    }

    /// Reads a line behind `prompt`.
    pub async fn read_line(&mut self, prompt: &'static str) -> Line {
        console::begin_line(prompt);
        let line = poll_fn(|context| {
            // Registers who is to be woken; the editor itself takes the bytes.
            console::wake_on_input(context.waker());
            loop {
                match self.0.poll() {
                    Ok(Some(Input::Command((command, arguments)))) => {
                        let mut line = command.to_string();
                        line.push(' ');
                        line.push_str(arguments);
                        return Poll::Ready(Line::Command(line.trim().to_string()));
                    }
                    Ok(Some(Input::Control(CTRL_C))) => {
                        self.0.reset();
                        return Poll::Ready(Line::Cancelled);
                    }
                    Ok(_) => {}
                    Err(ShellError::WouldBlock) => return Poll::Pending,
                    // Not UTF-8: the line is dropped.
                    Err(_) => {
                        self.0.reset();
                        return Poll::Ready(Line::Cancelled);
                    }
                }
            }
        })
        .await;
        console::end_line();
        line
    }
}

struct Serial {
    keys: Keys,
    /// Whether the line is off the screen until the editor has read all of a key that is said in several.
    hidden: bool,
}

impl Read<u8> for Serial {
    type Error = Infallible;

    fn read(&mut self) -> nb::Result<u8, Infallible> {
        loop {
            if let Some(byte) = self.keys.take() {
                return Ok(byte);
            }
            // The editor has shown all that it was told before.
            if core::mem::take(&mut self.hidden) {
                console::show_line();
            }
            let (cursor, len) = console::position_in_line();
            self.keys.press(console::read_byte().ok_or(nb::Error::WouldBlock)?, cursor, len);
            if self.keys.are_several() {
                console::hide_line();
                self.hidden = true;
            }
        }
    }
}

impl Write<u8> for Serial {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> nb::Result<(), Infallible> {
        console::edit_line(byte);
        Ok(())
    }

    fn flush(&mut self) -> nb::Result<(), Infallible> {
        Ok(())
    }
}

struct Completion;

impl Autocomplete<LINE_BYTES> for Completion {
    fn suggest(&self, typed: &str) -> Option<heapless::String<LINE_BYTES>> {
        let (before, word) = command_line::last_word(typed);
        let candidates = commands::words_behind(before);
        let candidates: Vec<&str> =
            candidates.iter().map(String::as_str).filter(|name| name.starts_with(word)).collect();
        let suffix = command_line::completion(word, &candidates)?;
        if suffix.is_empty() {
            println!("{}", candidates.join("  "));
        }
        // The editor copies it behind what is typed, and does not check that there is room.
        let fits = !suffix.is_empty() && typed.len() + suffix.len() < LINE_BYTES;
        fits.then(|| heapless::String::from_str(&suffix).ok()).flatten()
    }
}
