//! Follows docs/tutorial.md: its commands for the project's folder, for the console and for gdb, in
//! their order, in one running system after the other.

use crate::walk::{Block, blocks, normal};
use ringfence::machine::{Running, Said};
use ringfence::project;
use ringfence_link::event::Event;
use ringfence_tests::gdb::Gdb;
use ringfence_tests::{TIME_LIMIT, at_prompt, leave, machine, paged};
use std::process::Command;
use std::time::Instant;

const PROMPT: &str = "ringfence> ";
const GDB: &str = "(gdb) ";
const DOCUMENT: &str = "docs/tutorial.md";

/// Types a command, and returns the lines that the console says until it has ended, or at once if
/// it runs beside others.
fn console(running: &mut Running, line: &str) -> String {
    let end = Instant::now() + TIME_LIMIT;
    let mut said = String::new();
    let mut read = |running: &mut Running, until: &dyn Fn(&Said) -> bool| loop {
        let next = running.next_within(end.saturating_duration_since(Instant::now()));
        let next = next.unwrap_or_else(|| panic!("'{line}' has not ended:\n{said}"));
        let is_end = until(&next);
        if let Said::Line(line) = next {
            said += &line;
            said.push('\n');
        }
        if is_end {
            return;
        }
    };
    running.type_line(line).unwrap();
    if !line.ends_with('&') {
        let is_end = |next: &Said| matches!(next, Said::Event(Event::Command { line: ended, .. }) if ended == line);
        read(running, &is_end);
    }
    // Lines and events come on two ports.
    running.type_line("echo <<end>>").unwrap();
    read(running, &|next| matches!(next, Said::Line(line) if line == "<<end>>"));
    said
}

/// Returns the commands in a block, each with the output that the document shows.
fn commands<'a>(text: &'a str, prompt: &str) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    for line in text.lines() {
        match (line.strip_prefix(prompt), found.last_mut()) {
            (Some(command), _) => found.push((command, Vec::new())),
            (None, Some((_, output))) => output.push(line),
            (None, None) => {}
        }
    }
    found
}

/// Asserts that `said` has the lines that the document shows after a command, in order. A driver
/// that rests for a moment, as it does on a slow host, runs ([`ringfence_tests::serves`]).
fn assert_shown(command: &str, shown: &[&str], said: &str) {
    let mut lines = said.lines().map(|line| normal(line).replace("resting", "running"));
    for wanted in shown {
        let is_there = lines.any(|line| line.contains(&normal(wanted)));
        assert!(is_there, "after '{command}', '{wanted}' does not follow in\n{said}");
    }
}

/// The first block boots. With `RINGFENCE_BLESS=1` the document gets the outputs of this run, for a
/// person to cut.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_tutorial_is_as_it_is_written() {
    let path = project().join(DOCUMENT);
    let document = std::fs::read_to_string(&path).unwrap();
    let is_blessed = std::env::var_os("RINGFENCE_BLESS").is_some();
    let folder = tempfile::tempdir().unwrap();
    // The files and folders that the document keeps beside the project.
    let own = format!("{}/", folder.path().display());
    let with_own = |text: &str| {
        ["my-card", "files.img", "big", "copy"]
            .iter()
            .fold(text.to_string(), |text, name| text.replace(&format!("../{name}"), &format!("{own}{name}")))
    };
    let mut machine_of_the_first = paged(machine(""));
    machine_of_the_first.nic = "rtl8139".to_string();
    assert!(document.contains("$ cargo run -q -- --nic rtl8139\n"), "the machine that is booted");
    let mut running = at_prompt(machine_of_the_first);
    let (mut blessed, mut said) = (document.clone(), String::new());
    for Block { language, text, at } in blocks(&document) {
        let mut made = String::new();
        let first = text.lines().next().unwrap_or_default();
        if language == "sh" {
            // Tests run side by side.
            let system = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
            let script = with_own(&text).replace("push ", &format!("push --system {system} "));
            let mut shell = Command::new("bash");
            let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
            shell.env("PATH", path);
            shell.current_dir(project()).args(["-euo", "pipefail", "-c", &script]);
            let output = shell.env("CARGO_TARGET_DIR", ringfence::target().parent().unwrap()).output().unwrap();
            said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
            said = said.replace(&own, "../");
            // A build that does not serve is told by the exit status.
            assert!(output.status.code().is_some_and(|code| code <= 1), "{text}\nfailed: {said}");
            continue;
        } else if text.contains(GDB) {
            let name = first.strip_prefix("$ cargo run -q -- gdb ").expect("gdb for one driver");
            let mut gdb = Gdb::start(&running, Some(name));
            for (command, shown) in commands(&text, GDB) {
                let said = gdb.run(command);
                assert_shown(command, if is_blessed { &[] } else { &shown }, &said);
                made += &format!("{GDB}{command}\n{}", said.trim_start_matches('\n'));
            }
            gdb.leave();
            made = format!("{first}\n{made}");
        } else if text.contains(PROMPT) {
            if first == "$ cargo run -q -- --disk ../files.img" {
                let mut machine = paged(machine(""));
                machine.disks = vec![folder.path().join("files.img").into()];
                leave(std::mem::replace(&mut running, at_prompt(machine)));
            }
            for (command, shown) in commands(&text, PROMPT) {
                let said = console(&mut running, command).replace(&own, "../");
                assert_shown(command, if is_blessed { &[] } else { &shown }, &said);
                let output = said.lines().filter(|line| !line.contains(PROMPT) && *line != "<<end>>");
                made += &format!("{PROMPT}{command}\n{}", output.map(|line| format!("{line}\n")).collect::<String>());
            }
            if !first.starts_with(PROMPT) {
                made = format!("{first}\n{made}");
            }
        } else {
            let shown: Vec<&str> = text.lines().filter(|_| !is_blessed).collect();
            assert_shown("the commands before", &shown, &said);
            made.clone_from(&said);
        }
        let (before, after) = (document.len() - at, text.len());
        let place = blessed.len() - before;
        blessed.replace_range(place..place + after, &made);
    }
    leave(running);
    if is_blessed {
        std::fs::write(&path, blessed).unwrap();
    }
}
