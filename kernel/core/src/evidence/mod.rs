//! The evidence that admits a module file to ring 0, and the demands of a machine.
//!
//! * [`signed`]: files with signatures behind their content, and the keys
//! * [`policy`]: the demands of a machine
//! * [`record`]: the service of modules in ring 1, and their faults, in a chain that a machine
//!   signs
//! * [`report`]: the result of `cargo run -- verify NAME`
//!
//! A module file is identified by the hash of its content without signatures.

pub mod policy;
pub mod record;
pub mod report;
pub mod signed;

use alloc::format;
use alloc::string::String;
use sha2::{Digest, Sha256};

/// The SHA-256 of a file's content.
pub type Hash = [u8; 32];

/// Returns the hash of `bytes`.
pub fn hash(bytes: &[u8]) -> Hash {
    Sha256::digest(bytes).into()
}

/// Returns bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the `N` bytes that `text` has in hexadecimal digits; `None` if it is anything else.
pub fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // 'from_str_radix' takes a sign.
    if text.len() != 2 * N || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

/// Returns the first digits of a hash or of a key, by which a person tells it from others.
pub fn short(bytes: &[u8]) -> String {
    const SHOWN_BYTES: usize = 6;
    hex(bytes.get(..SHOWN_BYTES).unwrap_or(bytes))
}

/// Returns a number with a comma before every third digit.
pub fn grouped(number: u64) -> String {
    let digits = format!("{number}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        let expected = [(0, "0"), (999, "999"), (1000, "1,000"), (412_000, "412,000"), (1_234_567, "1,234,567")];
        for (number, text) in expected {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn hexadecimal_digits_come_back() {
        assert_eq!(from_hex::<3>(&hex(&[0, 0xab, 0xff])), Some([0, 0xab, 0xff]));
        for text in ["", "00", "00abf", "00abfg", "+0abff", "00abff0", "äb00f"] {
            assert_eq!(from_hex::<3>(text), None, "{text}");
        }
    }
}
