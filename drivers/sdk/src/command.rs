//! Commands that a person gives a driver, and the driver's answers. [`crate::timer`] has an
//! example.

use crate::Result;
use crate::service::LineBuffer;
use crate::service::safe::{rf_answer, rf_command};
use core::fmt::{self, Write};

/// A command that a driver understands ([`crate::Driver::COMMANDS`]): `tell NAME` lists it, and Tab
/// completes it.
#[derive(Debug, Clone, Copy)]
pub struct Command {
    usage: &'static str,
    what: &'static str,
}

impl Command {
    /// Describes a command. `usage` is the text to type: a word, followed by its arguments in
    /// capital letters. `what` is the purpose of the command. Panics if either text is empty or
    /// both are too long; in a constant, the panic is a compile error.
    pub const fn new(usage: &'static str, what: &'static str) -> Command {
        const MOST: usize = 160;
        assert!(!usage.is_empty() && !what.is_empty(), "a command has a name, and is for something");
        assert!(usage.len() + 1 + what.len() <= MOST, "a command is described in 160 bytes");
        assert!(begins_with_name(usage.as_bytes()), "a command begins with a word of letters, digits, - and _");
        assert!(are_printable(usage.as_bytes()) && are_printable(what.as_bytes()), "a command is described in ASCII");
        Command { usage, what }
    }
}

const fn begins_with_name(mut text: &[u8]) -> bool {
    if let [b' ', ..] = text {
        return false;
    }
    while let [first, rest @ ..] = text {
        match first {
            b' ' => return true,
            b'-' | b'_' => {}
            other if other.is_ascii_alphanumeric() => {}
            _ => return false,
        }
        text = rest;
    }
    true
}

const fn are_printable(mut text: &[u8]) -> bool {
    while let [first, rest @ ..] = text {
        if !matches!(first, 0x20..0x7f) {
            return false;
        }
        text = rest;
    }
    true
}

/// Registers commands with the kernel. Inlined, so that a driver without commands does not
/// reference the service.
#[inline]
pub(crate) fn register(commands: &[Command]) -> Result<()> {
    for command in commands {
        let mut line = LineBuffer::new();
        // The line has room: `Command::new` has checked the lengths.
        let _ = write!(line, "{}\t{}", command.usage, command.what);
        rf_command(line.text())?;
    }
    Ok(())
}

/// Prints a line to the person who typed the current command: `answer!("{} frames", count)`. Lines
/// beyond 4096 bytes in total are not shown.
#[macro_export]
macro_rules! answer {
    ($($argument:tt)*) => {
        $crate::command::say(::core::format_args!($($argument)*))
    };
}

#[doc(hidden)]
pub fn say(line: fmt::Arguments) {
    let mut answer = Answer(LineBuffer::new());
    // Writing to an `Answer` never fails.
    let _ = answer.write_fmt(line);
    let _ = answer.write_char('\n');
    answer.flush();
}

/// An answer. It is collected in a buffer, so that the service is called only a few times.
struct Answer(LineBuffer);

impl Answer {
    fn flush(&mut self) {
        // No caller could be told that the kernel has no more room.
        let _ = rf_answer(self.0.text());
        self.0 = LineBuffer::new();
    }
}

impl Write for Answer {
    fn write_str(&mut self, mut text: &str) -> fmt::Result {
        while !text.is_empty() {
            let fits = text.floor_char_boundary(self.0.room());
            if fits == 0 {
                self.flush();
                continue;
            }
            let (first, rest) = text.split_at(fits);
            self.0.write_str(first)?;
            text = rest;
        }
        Ok(())
    }
}
