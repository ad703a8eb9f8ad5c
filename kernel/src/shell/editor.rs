//! Reads lines from the console, and completes the words that a command's usage names.

use super::commands;
use alloc::string::String;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use hw::{console, println};
use ringfence_core::command_line;
use ringfence_core::line_editor::{Event, MAX_LINE};

/// The input of a person.
pub enum Line {
    /// A line, without white space at its ends.
    Command(String),
    /// A line that is longer than allowed.
    TooLong,
    /// Ctrl-C.
    Cancelled,
    /// Ctrl-D: there is no more input.
    End,
}

impl Line {
    /// Returns the reason why the line is not run, if it is refused.
    pub fn refusal(&self) -> Option<String> {
        matches!(self, Line::TooLong)
            .then(|| alloc::format!("the line was not run: it has more than {MAX_LINE} characters"))
    }
}

/// Prints `prompt` and reads a line.
pub async fn read_line(prompt: &str) -> Line {
    console::begin_line(prompt);
    let line = poll_fn(|context| {
        console::wake_on_input(context.waker());
        while let Some(byte) = console::read_byte() {
            const CTRL_L: u8 = 12;
            if byte == CTRL_L {
                console::clear();
                continue;
            }
            match console::press(byte) {
                Some(Event::Line(line)) => return Poll::Ready(Line::Command(line)),
                Some(Event::TooLong) => return Poll::Ready(Line::TooLong),
                Some(Event::Cancelled) => return Poll::Ready(Line::Cancelled),
                Some(Event::End) => return Poll::Ready(Line::End),
                Some(Event::Complete) => complete(),
                Some(Event::Columns(_)) | None => {}
            }
        }
        Poll::Pending
    })
    .await;
    console::end_line();
    line
}

/// Completes the word that is being typed as far as it is certain, or prints the candidates.
fn complete() {
    let typed = console::typed();
    let (before, word) = command_line::last_word(&typed);
    let candidates = commands::words_behind(before);
    let candidates: Vec<&str> = candidates.iter().map(String::as_str).filter(|name| name.starts_with(word)).collect();
    match command_line::completion(word, &candidates) {
        Some(suffix) if suffix.is_empty() => println!("{}", candidates.join("  ")),
        Some(suffix) => console::insert(&suffix),
        None => {}
    }
}
