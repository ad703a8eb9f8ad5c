//! Where a machine is that says no more: asked of QEMU itself, through its machine protocol (QMP).
//!
//! A guest that loops has registers; a QEMU whose device model loops does not answer at all.

use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// QEMU's arguments that have it listen at `socket`.
pub fn arguments(socket: &Path) -> [OsString; 2] {
    let mut address = OsString::from("unix:");
    address.push(socket);
    address.push(",server=on,wait=off");
    ["-qmp".into(), address]
}

/// Where the guest's CPU is, or that QEMU does not answer.
pub fn place(socket: &Path) -> String {
    match registers(socket) {
        Some(text) => {
            let word =
                |name: &str| text.split_whitespace().find(|word| word.starts_with(name)).unwrap_or("").to_string();
            format!("the CPU is at {} {} {}", word("RIP="), word("CPL="), word("CR3="))
        }
        None => "QEMU itself does not answer".to_string(),
    }
}

fn registers(socket: &Path) -> Option<String> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    // It greets first.
    lines.next()?.ok()?;
    let ask = json!({"execute": "human-monitor-command", "arguments": {"command-line": "info registers"}});
    for command in [json!({"execute": "qmp_capabilities"}), ask] {
        writeln!(stream, "{command}").ok()?;
    }
    lines.map_while(Result::ok).find_map(|line| {
        let answer: Value = serde_json::from_str(&line).ok()?;
        answer["return"].as_str().map(str::to_string)
    })
}
