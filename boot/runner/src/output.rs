//! What the runner says: results on standard output, and how it goes on standard error.
//!
//! Who reads may stop reading (`| head -1`). Then there is nothing left to do: the runner ends as a
//! program does that SIGPIPE ends, and QEMU with it ([`crate::machine::qemu::command`]).

use std::fmt::Arguments;
use std::io::{ErrorKind, Write};

/// The status of a program that SIGPIPE has ended, as a shell tells it.
const BROKEN_PIPE: i32 = 128 + 13;
/// The runner's status for its own mistakes.
const MISTAKE: i32 = 4;

/// Writes a result as it is. If that cannot be done, the runner ends.
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

/// Says something that is no result. Nothing is lost but the words if nobody listens.
pub fn complain(text: &str) {
    progress(format_args!("{text}\n"));
}

/// Says how far it is, without a line end of its own.
pub fn progress(text: Arguments) {
    let mut out = std::io::stderr().lock();
    let _ = out.write_all(text.to_string().as_bytes());
    let _ = out.flush();
}

/// `text` without what a terminal would take for orders: names of files and functions are whatever
/// a compiler was given.
pub fn printable(text: &str) -> String {
    // Right-to-left marks and the like rearrange what is around them.
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
