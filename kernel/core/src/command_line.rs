//! The shell's grammar: splits a text into commands, and a command into a name and its arguments
//! ([`crate::arguments`]).
//!
//! ```text
//! text        command ; command ; ...            also a line each
//! command     name arguments                     with & behind it: beside those that follow;
//!                                                with > FILE or >> FILE: its output goes there
//! arguments   words, @PART among them            for repeat and trial, commands and commas
//! ```

use crate::extent::Extent;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Returns the commands in a text.
pub fn commands(text: &str) -> impl Iterator<Item = &str> {
    text.split([';', '\n']).map(str::trim).filter(|command| !command.is_empty())
}

/// Returns the command without the `&` after it, if there is one: the command then runs beside the
/// commands after it.
pub fn in_background(command: &str) -> Option<&str> {
    command.strip_suffix('&').map(str::trim)
}

/// Returns the command before `> PATH` or `>> PATH`, the path, and whether the output goes behind
/// the file's content; `None` if the command does not end with that.
pub fn into_file(command: &str) -> Option<(&str, &str, bool)> {
    let (rest, path) = command.trim_end().rsplit_once(char::is_whitespace)?;
    let (command, arrow) = rest.trim_end().rsplit_once(char::is_whitespace)?;
    matches!(arrow, ">" | ">>").then_some((command.trim_end(), path, arrow == ">>"))
}

/// Returns a command's name and its arguments.
pub fn name_and_arguments(command: &str) -> (&str, &str) {
    command.split_once(char::is_whitespace).unwrap_or((command, ""))
}

/// Returns the commands in a list.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim)
}

/// Returns three lists of commands that are separated by `|`; text after a third `|` is ignored.
pub fn three_lists(text: &str) -> Option<[&str; 3]> {
    let mut lists = text.split('|').map(str::trim);
    Some([lists.next()?, lists.next()?, lists.next()?])
}

/// Returns `text` with an address in place of each word that names a part: `@kernel-text`, or with
/// `%` for the part's physical address, to which a number may be added. The error is the name that
/// `find` or `find_physical` does not know.
pub fn with_addresses(
    text: &str,
    find: impl Fn(&str) -> Option<u64>,
    find_physical: impl Fn(&str) -> Option<u64>,
) -> Result<String, &str> {
    let mut result = String::new();
    for (index, word) in text.split(' ').enumerate() {
        if index > 0 {
            result.push(' ');
        }
        let at = match (word.strip_prefix('@'), word.strip_prefix('%')) {
            (Some(name), _) => find(name).ok_or(name)?,
            (_, Some(sum)) => {
                let (name, offset) = sum.split_once('+').unwrap_or((sum, "0x0"));
                let offset = offset.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
                find_physical(name).zip(offset).and_then(|(at, offset)| at.checked_add(offset)).ok_or(sum)?
            }
            _ => {
                result += word;
                continue;
            }
        };
        result += &format!("{at:#x}");
    }
    Ok(result)
}

/// Reads `ADDRESS` or `ADDRESS:LENGTH`: a word of 1, 2, 4 or (without a length) 8 bytes at a
/// multiple of its length.
pub fn watched(word: &str) -> Option<Extent> {
    let (address, len_bytes) = word.split_once(':').unwrap_or((word, "8"));
    let address = u64::from_str_radix(address.strip_prefix("0x")?, 16).ok()?;
    let len_bytes: u64 = len_bytes.parse().ok()?;
    ([1, 2, 4, 8].contains(&len_bytes) && address.is_multiple_of(len_bytes)).then_some(Extent::new(address, len_bytes))
}

/// All offsets that a BAR can have.
pub const WHOLE_BAR: Extent = Extent::new(0, u32::MAX as u64 + 1);

/// Reads `BAR` or `BAR:FROM-TO`: the number of a region of registers, and the offsets in it from
/// FROM to TO, in hexadecimal. `None` if `word` does not begin like that.
pub fn bar(word: &str) -> Option<Result<(u8, Extent), String>> {
    let (number, part) = word.split_once(':').map_or((word, None), |(number, part)| (number, Some(part)));
    let number: u8 = number.parse().ok()?;
    let offset = |word: &str| u32::from_str_radix(word.strip_prefix("0x")?, 16).ok().map(u64::from);
    let read = |part: &str| {
        let (from, to) = part.split_once('-')?;
        let (from, to) = (offset(from)?, offset(to)?);
        (from <= to).then(|| Extent::new(from, to - from + 1))
    };
    Some(match part {
        _ if number > 5 => Err(format!("there are BARs 0 to 5, and not {number}")),
        None => Ok((number, WHOLE_BAR)),
        Some(part) => match read(part) {
            Some(part) => Ok((number, part)),
            None => Err(format!("'{part}' is no first and last offset, as in 0x0-0x1f")),
        },
    })
}

/// Splits typed text for the Tab key: returns the last command up to its last word, and that word,
/// as far as it is typed.
pub fn last_word(typed: &str) -> (&str, &str) {
    let command = typed.rsplit(';').next().unwrap_or(typed);
    command.rsplit_once(' ').unwrap_or(("", command))
}

/// Returns the candidate that is most like `word`, if their edit distance (Levenshtein) is at most
/// 2; at most 1 for a word of up to three letters.
pub fn most_like<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.chars().take(32).collect();
    let distance = |candidate: &str| {
        let mut row: Vec<usize> = (0..=word.len()).collect();
        for (index, c) in candidate.chars().enumerate() {
            let mut before = core::mem::replace(&mut row[0], index + 1);
            for (at, other) in word.iter().enumerate() {
                let replaced = before + usize::from(c != *other);
                before = row[at + 1];
                row[at + 1] = replaced.min(before + 1).min(row[at] + 1);
            }
        }
        row[word.len()]
    };
    let most = if word.len() < 4 { 1 } else { 2 };
    let found = candidates.into_iter().map(|candidate| (distance(candidate), candidate)).min();
    found.filter(|(distance, _)| *distance <= most).map(|(_, candidate)| candidate)
}

/// Returns the command before `| more`, if the text ends with that: its output is then shown a page
/// at a time.
pub fn in_pages(command: &str) -> Option<&str> {
    command.strip_suffix("more")?.trim_end().strip_suffix('|').map(str::trim)
}

/// Returns the text that Tab adds to `word`: the common part of `candidates`, which begin with
/// `word`, and a space if there is only one candidate. Empty if the candidates differ at once;
/// `None` if there are none.
pub fn completion(word: &str, candidates: &[&str]) -> Option<String> {
    let (first, others) = candidates.split_first()?;
    let common = others.iter().fold(first.len(), |common, other| {
        first.bytes().zip(other.bytes()).take(common).take_while(|(a, b)| a == b).count()
    });
    let mut suffix = first.get(word.len()..common)?.to_string();
    if others.is_empty() {
        suffix.push(' ');
    }
    Some(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_goes_into_a_file() {
        assert_eq!(into_file("ls -l /mnt > /mnt/list"), Some(("ls -l /mnt", "/mnt/list", false)));
        assert_eq!(into_file("echo  a >>  b "), Some(("echo  a", "b", true)));
        for other in ["", ">", "> a", "a > ", "a >b", "a > b c", "echo a>b"] {
            assert_eq!(into_file(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_meant_is_found() {
        let names = ["lsmod", "lspci", "insmod", "rmmod", "ip", "ping"];
        let like = |word| most_like(word, names);
        assert_eq!(like("lsmdo"), Some("lsmod"));
        assert_eq!(like("pnig"), Some("ping"));
        assert_eq!(like("insmodd"), Some("insmod"));
        assert_eq!(like("ls"), None);
        assert_eq!(like("nonsense"), None);
        assert_eq!(like(""), None);
        assert_eq!(most_like("x", []), None);
    }

    #[test]
    fn pages_are_asked_for_at_the_end() {
        assert_eq!(in_pages("dmesg | more"), Some("dmesg"));
        assert_eq!(in_pages("dmesg|more"), Some("dmesg"));
        assert_eq!(in_pages("trial a b | c | more"), Some("trial a b | c"));
        assert_eq!(in_pages("more"), None);
        assert_eq!(in_pages("help more"), None);
    }

    #[test]
    fn a_text_becomes_commands() {
        assert_eq!(commands("a b; c ;;\n d").collect::<Vec<_>>(), ["a b", "c", "d"]);
        assert_eq!(in_background("blkread disk0 0 1 &"), Some("blkread disk0 0 1"));
        assert_eq!(in_background("blkread disk0 0 1"), None);
        assert_eq!(name_and_arguments("tell rogue read 0"), ("tell", "rogue read 0"));
        assert_eq!(name_and_arguments("help"), ("help", ""));
        assert_eq!(list("a 1, b").collect::<Vec<_>>(), ["a 1", "b"]);
        assert_eq!(three_lists("a, b | c | d"), Some(["a, b", "c", "d"]));
        assert_eq!(three_lists("a | b"), None);
    }

    #[test]
    fn parts_have_addresses() {
        let find = |name: &str| (name == "gdt").then_some(0x1000);
        let physical = |name: &str| (name == "gdt").then_some(0x2000);
        assert_eq!(with_addresses("read @gdt  x", find, physical).as_deref(), Ok("read 0x1000  x"));
        assert_eq!(with_addresses("read %gdt %gdt+0x10", find, physical).as_deref(), Ok("read 0x2000 0x2010"));
        assert_eq!(with_addresses("read @nothing", find, physical), Err("nothing"));
        assert_eq!(with_addresses("read %nothing", find, physical), Err("nothing"));
        assert_eq!(with_addresses("read %gdt+x", find, physical), Err("gdt+x"));
    }

    #[test]
    fn what_is_watched_is_a_word() {
        assert_eq!(watched("0x1000"), Some(Extent::new(0x1000, 8)));
        assert_eq!(watched("0x1002:2"), Some(Extent::new(0x1002, 2)));
        for wrong in ["1000", "0x", "0x1001:2", "0x1000:3", "0x1000:", "0x1000:16"] {
            assert_eq!(watched(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn tab_completes_the_last_word() {
        assert_eq!(last_word("insmod ro"), ("insmod", "ro"));
        assert_eq!(last_word("lsmod;ins"), ("", "ins"));
        assert_eq!(last_word("lsmod; insmod ro"), (" insmod", "ro"));
        assert_eq!(completion("ro", &["rogue-nic", "rogue-scsi"]).as_deref(), Some("gue-"));
        assert_eq!(completion("rogue-", &["rogue-nic", "rogue-scsi"]).as_deref(), Some(""));
        assert_eq!(completion("tem", &["template"]).as_deref(), Some("plate "));
        assert_eq!(completion("x", &[]), None);
    }
}
