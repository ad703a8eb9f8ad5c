//! Talks to QEMU through its machine protocol (QMP). The campaign asks where the CPU of a silent
//! machine is, and makes QEMU's network take frames again.
//!
//! If the guest loops, QEMU still tells its registers. If QEMU's own device model loops, QEMU does
//! not answer at all.

use serde_json::{Value, json};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long QEMU may take to answer.
const LIMIT: Duration = Duration::from_secs(3);

/// Returns QEMU's arguments that have it listen at `socket`.
pub fn arguments(socket: &Path) -> [OsString; 2] {
    let mut address = OsString::from("unix:");
    address.push(socket);
    address.push(",server=on,wait=off");
    ["-qmp".into(), address]
}

/// Returns the place of the guest's CPU in words, or says that QEMU does not answer.
pub fn place(socket: &Path) -> String {
    let ask = json!({"execute": "human-monitor-command", "arguments": {"command-line": "info registers"}});
    match carry_out(socket, &[ask]).as_deref() {
        Some([.., Value::String(text)]) => {
            let word =
                |name: &str| text.split_whitespace().find(|word| word.starts_with(name)).unwrap_or("").to_string();
            format!("the CPU is at {} {} {}", word("RIP="), word("CPL="), word("CR3="))
        }
        _ => "QEMU itself does not answer".to_string(),
    }
}

/// Stops and continues the machine twice, after which QEMU's network takes frames again
/// ([`super::capture`]). Returns whether QEMU carried out the commands.
pub fn pause_twice(socket: &Path) -> bool {
    let commands = ["stop", "cont", "stop", "cont"].map(|command| json!({"execute": command}));
    carry_out(socket, &commands).is_some()
}

/// Returns QEMU's answer to each command; `None` if QEMU does not answer or refuses a command.
fn carry_out(socket: &Path, commands: &[Value]) -> Option<Vec<Value>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    stream.set_read_timeout(Some(LIMIT)).ok()?;
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    // QEMU sends a greeting first.
    lines.next()?.ok()?;
    let first = json!({"execute": "qmp_capabilities"});
    let mut answers = Vec::new();
    for command in std::iter::once(&first).chain(commands) {
        writeln!(stream, "{command}").ok()?;
        // Events may come before the answer.
        let answer = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let answer: Value = serde_json::from_str(&line).ok()?;
            (!answer["return"].is_null() || !answer["error"].is_null()).then_some(answer)
        })?;
        answers.push(answer.get("return")?.clone());
    }
    Some(answers)
}
