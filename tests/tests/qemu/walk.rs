//! Follows the steps of docs/ne2k.md, which describes how to write a driver.

use ringfence::project;
use std::process::Command;

/// Returns the code blocks of the document: their languages and contents.
fn blocks(document: &str) -> Vec<(&str, String)> {
    let mut blocks: Vec<(&str, String)> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        match line.strip_prefix("```") {
            Some(language) if !inside => {
                blocks.push((language, String::new()));
                inside = true;
            }
            Some(_) => inside = false,
            None if inside => {
                let (_, text) = blocks.last_mut().unwrap();
                *text += &format!("{line}\n");
            }
            None => {}
        }
    }
    blocks
}

/// Returns a line without the parts that differ from run to run: numbers and amounts of space.
fn normal(line: &str) -> String {
    let without = line.replace(|c: char| c.is_ascii_digit(), " 0 ");
    without.split_whitespace().fold(String::new(), |line, word| match line.ends_with('0') && word == "0" {
        true => line,
        false => line + word,
    })
}

/// Runs every command of the document; its output must have the lines that the document shows, in
/// order.
#[test]
fn the_walk_to_a_driver_is_as_it_is_written() {
    ringfence_tests::system();
    let document = std::fs::read_to_string(project().join("docs/ne2k.md")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("my-ne2k").display().to_string();
    let source = std::fs::read_to_string(project().join("drivers/ne2k-pci/src/lib.rs")).unwrap();
    let mut said = String::new();
    for (language, text) in blocks(&document) {
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
