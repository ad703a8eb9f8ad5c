//! Runs a machine with its console on the terminal, until the user or the kernel ends it.

use super::errors::Errors;
use super::files::RunFiles;
use super::link::Link;
use super::qemu::Farewell;
use super::{End, Machine, start};
use crate::build::System;
use crate::output;
use crate::source::Sources;
use anyhow::{Context, Result};
use std::io::{IsTerminal, Read, Write};
use std::process::{ChildStdin, Stdio};
use std::time::{Duration, Instant};

/// Ctrl-], QEMU's escape key here. People type it only to leave a remote terminal. The next key is
/// a command to QEMU; X quits.
const ESCAPE: &str = "0x1d";
/// Ctrl-D, which ends the input.
const END_OF_INPUT: &[u8] = b"\x04";

impl Machine {
    /// Boots the machine with its console on this terminal, until the user or the kernel ends it.
    /// Input from a file or a pipe is followed by Ctrl-D, as a user would type it.
    pub fn run_interactively(&self, system: &System) -> Result<End> {
        self.check()?;
        let files = RunFiles::new()?;
        let is_typed = std::io::stdin().is_terminal();
        let mut machine = self.clone();
        machine.contents.piped = !is_typed;
        let mut qemu = machine.command(system, &files, if is_typed { Farewell::Terminate } else { Farewell::Kill })?;
        let link = Link::listen(&files)?;
        // The guest gets Ctrl-C.
        qemu.args(["-serial", "mon:stdio", "-echr", ESCAPE]).stdout(Stdio::piped()).stderr(Stdio::piped());
        qemu.args(link.arguments());
        if !is_typed {
            qemu.stdin(Stdio::piped());
        }
        let mut child = start(&mut qemu)?;
        let end_link = link.read(|_| true);
        if let Some(to) = child.stdin.take() {
            std::thread::spawn(move || feed(to));
        }
        let mut errors = Errors::listen(child.stderr.take().context("QEMU has no standard error")?);
        let from = child.stdout.take().context("QEMU has no output")?;
        let sources = self.sources(system, &files);
        let shown = std::thread::spawn(move || show(from, sources));
        let deadline = self.deadline();
        let end = loop {
            if let Some(status) = child.try_wait()? {
                // The last line of the console; empty if the thread that shows the console has
                // panicked.
                let last = shown.join().unwrap_or_default();
                // QEMU exits with status 0 after a triple fault, too. The last line tells whether
                // the user left or typed 'quit' at QEMU's monitor.
                let left = status.code() == Some(0) && (last.contains("QEMU: Terminated") || last.contains("(qemu)"));
                break if left { End::Left } else { End::of(status, true, errors.signal()) };
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                child.kill()?;
                child.wait()?;
                break End::TimeLimit;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        end_link();
        Ok(end)
    }
}

/// Copies standard input to QEMU.
fn feed(mut to: ChildStdin) {
    let mut from = std::io::stdin().lock();
    let (mut bytes, mut last) = ([0; 4096], b'\n');
    // If QEMU is gone, there is nobody to report an error to.
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let Some(read) = bytes.get(..count) else { break };
        last = read.last().copied().unwrap_or(last);
        if to.write_all(read).is_err() {
            break;
        }
    }
    // The last line counts even if it has no line end.
    let end = if matches!(last, b'\n' | b'\r') { &b""[..] } else { b"\n" };
    let _ = to.write_all(end).and_then(|()| to.write_all(END_OF_INPUT));
    // The pipe stays open until QEMU ends: QEMU writes nothing more to a console that is closed.
    std::mem::forget(to);
}

/// Copies the console's output as it comes, and appends source lines to the lines that have some.
/// Returns the last line that is not empty.
fn show(mut from: impl Read, mut sources: Sources) -> String {
    let (mut line, mut last) = (Vec::new(), Vec::new());
    let mut bytes = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut out = Vec::with_capacity(count);
        for byte in &bytes[..count] {
            if matches!(byte, b'\r' | b'\n') {
                if let Some(annotation) = sources.annotation(&String::from_utf8_lossy(&line)) {
                    out.extend_from_slice(annotation.as_bytes());
                }
                if !line.is_empty() {
                    last = std::mem::take(&mut line);
                }
            } else if line.len() < 1024 {
                line.push(*byte);
            }
            out.push(*byte);
        }
        output::bytes(&out);
    }
    String::from_utf8_lossy(if line.is_empty() { &last } else { &line }).into_owned()
}
