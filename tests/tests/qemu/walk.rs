//! Follows the steps of docs/ne2k.md, which describes how to write a driver.

use ringfence::project;
use std::process::Command;

/// A code block of a document.
pub struct Block<'a> {
    /// Its language.
    pub language: &'a str,
    /// Its content.
    pub text: String,
    /// The offset of the content in the document.
    pub at: usize,
}

/// Returns the code blocks of the document.
pub fn blocks(document: &str) -> Vec<Block<'_>> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut inside, mut at) = (false, 0);
    for line in document.split_inclusive('\n') {
        at += line.len();
        match line.strip_prefix("```") {
            Some(language) if !inside => {
                blocks.push(Block { language: language.trim_end(), text: String::new(), at });
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => blocks.last_mut().unwrap().text += line,
            None => {}
        }
    }
    blocks
}

/// Returns a line without the parts that differ from run to run: numbers, addresses, amounts of
/// space, and the events that an upcall tells of together.
pub fn normal(line: &str) -> String {
    let after_poll = line.find("poll").map_or(line.len(), |at| at + "poll".len());
    let (before, rest) = line.split_at(after_poll);
    let events = rest.trim_start().strip_prefix('(').and_then(|rest| rest.split_once(')'));
    let line = events.map_or(line.to_string(), |(_, after)| before.to_string() + after);
    let hex = |rest: &str| rest.chars().take_while(char::is_ascii_hexdigit).count();
    let mut parts = line.split("0x");
    let mut plain = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let count = hex(part);
        plain += if count > 2 { "0" } else { "0x" };
        plain += if count > 2 { &part[count..] } else { part };
    }
    let without = plain.replace(|c: char| c.is_ascii_digit(), " 0 ");
    without.split_whitespace().fold(String::new(), |line, word| match line.ends_with('0') && word == "0" {
        true => line,
        false => line + word,
    })
}

/// Runs every command of the document; its output must have the lines that the document shows, in
/// order.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_walk_to_a_driver_is_as_it_is_written() {
    ringfence_tests::system();
    let document = std::fs::read_to_string(project().join("docs/ne2k.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("my-ne2k").display().to_string();
    let source = std::fs::read_to_string(project().join("drivers/ne2k-pci/src/lib.rs")).unwrap();
    let mut said = String::new();
    for Block { language, text, .. } in blocks(&document) {
        match language {
            "sh" => {
                let mut shell = Command::new("bash");
                shell.current_dir(project()).args(["-euo", "pipefail", "-c", &text.replace("../my-ne2k", &own)]);
                // Lets cargo build the folder's package in the folder for all builds.
                let output = shell.env("CARGO_TARGET_DIR", ringfence::target().parent().unwrap()).output().unwrap();
                said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
                assert!(output.status.success(), "{text}\nfailed: {said}");
            }
            "text" => {
                let mut lines = said.lines().map(normal);
                for wanted in text.lines() {
                    let is_there = lines.any(|line| line.contains(&normal(wanted)));
                    assert!(is_there, "'{wanted}' does not follow in\n{said}");
                }
            }
            "rust" => assert!(source.contains(&text), "this is not in the driver any more:\n{text}"),
            other => panic!("{other}: who reads that?"),
        }
    }
}
