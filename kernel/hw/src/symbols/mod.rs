//! Addresses in words: the kernel's own symbols, from the ELF file that the loader left in memory,
//! for [`backtrace`]s; and [`map`], the layout of the kernel's half.

use crate::memory::{for_each_kernel_entry, for_each_kernel_word};
use core::fmt;
use core::fmt::Write;
use core::ops::Range;
use ringfence_core::module::symbol_at;
use spin::Once;

pub mod backtrace;
pub mod map;

static FILE: Once<&'static [u8]> = Once::new();

unsafe extern "C" {
    static __kernel_start: u8;
    static __kernel_end: u8;
    static __text_start: u8;
    static __text_end: u8;
    static __data_start: u8;
}

/// Stores the kernel's ELF file for later lookups.
pub fn init(file: &'static [u8]) {
    FILE.call_once(|| file);
}

/// Returns the address ranges of the kernel that must never change once it runs: read-only data,
/// text, entry text, descriptor tables.
fn constant_parts() -> [Range<u64>; 2] {
    use crate::arch::entry_area;
    [&raw const __kernel_start as u64..&raw const __text_end as u64, entry_area::BASE..entry_area::STACKS]
}

/// Returns a checksum (in the manner of FNV-1a, over words, with a rotation) of all parts of the
/// kernel that must never change: text, read-only data, descriptor tables and its part of the page
/// tables.
pub fn checksum() -> u64 {
    const START: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut sum = START;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(PRIME).rotate_left(29);
    constant_parts().into_iter().for_each(|part| for_each_kernel_word(part, &mut add));
    for_each_kernel_entry(&mut add);
    sum
}

/// Returns whether `address` lies in the kernel's text.
pub fn is_kernel_text(address: u64) -> bool {
    (&raw const __text_start as u64..&raw const __text_end as u64).contains(&address)
        || crate::arch::entry_area::is_text(address)
}

/// Returns the parts of the kernel's image: start, end, and name.
pub fn image_parts() -> [(u64, u64, &'static str); 3] {
    [
        (&raw const __kernel_start as u64, &raw const __text_start as u64, "kernel read-only data"),
        (&raw const __text_start as u64, &raw const __text_end as u64, "kernel text"),
        (&raw const __data_start as u64, &raw const __kernel_end as u64, "kernel data"),
    ]
}

/// A symbol's name as its author wrote it. A module file can hold any name. So a long name is cut
/// off, so that its text never begins a row of the terminal, and characters that are not printable
/// are replaced.
pub struct Demangled<'a>(pub &'a [u8]);

/// Longest name in bytes.
const MAX_NAME: usize = 64;

struct Limited<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    left: usize,
}

impl fmt::Write for Limited<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            // The error stops the demangler: a short mangled name can stand for a megabyte.
            self.left = self.left.checked_sub(c.len_utf8()).ok_or(fmt::Error)?;
            self.out.write_char(if c.is_ascii_graphic() || c == ' ' { c } else { '?' })?;
        }
        Ok(())
    }
}

impl fmt::Display for Demangled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut limited = Limited { out: f, left: MAX_NAME };
        let whole = match core::str::from_utf8(self.0) {
            Ok(name) => write!(limited, "{:#}", rustc_demangle::demangle(name)),
            Err(_) => write!(limited, "{}", self.0.escape_ascii()),
        };
        if whole.is_err() { f.write_str("...") } else { Ok(()) }
    }
}

/// Shows `function+0x12` for an address in the kernel, the bare address for others.
pub struct Location(pub u64);

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match FILE.get().and_then(|file| symbol_at(file, self.0)) {
            Some((name, into)) if is_kernel_text(self.0) => write!(f, "{}+{into:#x}", Demangled(name)),
            _ => write!(f, "{:#x}", self.0),
        }
    }
}
