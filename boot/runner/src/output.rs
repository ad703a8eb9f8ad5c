//! The runner's output: results on standard output, progress and errors on standard error.
//!
//! The reader of the output may stop reading (`| head -1`). Then the runner ends like a program
//! that SIGPIPE ends, and QEMU ends with it ([`crate::machine::qemu::command`]).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// The exit status that a shell reports for a program that SIGPIPE has ended.
const BROKEN_PIPE: i32 = 128 + 13;
/// The runner's status for its own mistakes.
const MISTAKE: i32 = 4;

/// Writes a result byte for byte. If the write fails, the runner ends.
pub fn bytes(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(bytes).and_then(|()| out.flush()) {
        if error.kind() == ErrorKind::BrokenPipe {
            std::process::exit(BROKEN_PIPE);
        }
        complain(&format!("ringfence: cannot write to standard output: {error}"));
        std::process::exit(MISTAKE);
    }
}

/// Writes a result.
pub fn text(text: Arguments) {
    bytes(text.to_string().as_bytes());
}

/// Writes a line of the result.
pub fn line(line: Arguments) {
    text(format_args!("{line}\n"));
}

/// Writes a message to standard error. A failed write is ignored: only the message is lost.
pub fn complain(text: &str) {
    progress(format_args!("{text}\n"));
}

/// Writes a progress message without a line end of its own.
pub fn progress(text: Arguments) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.to_string().as_bytes());
    let _ = out.flush();
}

/// Returns `text` with every character replaced that a terminal would take for a control sequence.
/// Compilers accept any characters in the names of files and functions.
pub fn printable(text: &str) -> String {
    // Right-to-left marks and similar characters rearrange the text around them.
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars().map(|c| if is_plain(c) { c } else { '?' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_a_terminal_no_orders() {
        assert_eq!(printable("a/\x1b[2Jb\u{202e}c\u{9b}d\n\u{e4}.rs"), "a/?[2Jb?c?d?\u{e4}.rs");
    }
}
