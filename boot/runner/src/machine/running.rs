//! A machine whose console is in a pipe: for tests, benchmarks and scripts.

use super::end::FINAL_LINE;
use super::errors::Errors;
use super::files::RunFiles;
use super::qemu::Farewell;
use super::{End, Machine, start};
use crate::build::System;
use crate::source::Sources;
use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// What the kernel writes to take the line that is being typed off the screen.
const ERASED: &str = "\x1b[J";

/// What a run said.
#[derive(Debug)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// The console's lines.
    pub lines: Vec<String>,
}

impl Run {
    /// The console as one text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// A machine that was started, with files that must live as long as it does.
pub struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    seen: Vec<String>,
    /// The last line that was not empty.
    last: String,
    sources: Sources,
    deadline: Option<Instant>,
    errors: Errors,
    _files: RunFiles,
}

impl Machine {
    /// Boots it with its console in a pipe. It ends when the thread that calls this does, if not before.
    pub fn start(&self, system: &System) -> Result<Running> {
        self.check()?;
        let files = RunFiles::new()?;
        let mut qemu = self.command(system, &files, Farewell::Kill)?;
        qemu.args(["-serial", "stdio", "-monitor", "none"]);
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start(&mut qemu)?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let errors = Errors::listen(child.stderr.take().context("QEMU has no standard error")?);
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes);
                // What came before was taken off the screen again.
                let line = line.rsplit(ERASED).next().unwrap_or_default().trim_end_matches(['\r', '\n']).to_string();
                bytes.clear();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let sources = Sources::new(system, &self.contents.modules);
        Ok(Running {
            child,
            lines,
            seen: Vec::new(),
            last: String::new(),
            sources,
            deadline: self.deadline(),
            errors,
            _files: files,
        })
    }

    /// Boots it and waits for its end; `show` is called for each line as it comes.
    pub fn run(&self, system: &System, show: impl FnMut(&str)) -> Result<Run> {
        self.start(system)?.finish(show)
    }
}

impl Running {
    /// The next line; `None` when there are no more, or the time limit has passed.
    fn next_line(&mut self) -> Option<String> {
        self.line_until(self.deadline)
    }

    fn line_until(&mut self, deadline: Option<Instant>) -> Option<String> {
        let line = match deadline {
            None => self.lines.recv().ok(),
            Some(deadline) => self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok(),
        }?;
        let line = match self.sources.annotation(&line) {
            Some(annotation) => line + &annotation,
            None => line,
        };
        self.seen.push(line.clone());
        if !line.is_empty() {
            self.last.clone_from(&line);
        }
        Some(line)
    }

    /// The next line, if it comes within `limit`; `None` otherwise, and when there are no more.
    pub fn line_within(&mut self, limit: Duration) -> Option<String> {
        let limit = Instant::now().checked_add(limit);
        let line = self.line_until(self.deadline.into_iter().chain(limit).min());
        // Who reads line by line keeps what it needs.
        self.seen.clear();
        line
    }

    /// Waits for the end, at most for `limit`.
    pub fn finish_within(mut self, limit: Duration) -> Result<End> {
        self.deadline = Instant::now().checked_add(limit);
        Ok(self.finish(|_| ())?.end)
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        while let Some(line) = self.next_line() {
            if line.contains(text) {
                return Ok(line);
            }
        }
        let said = self.seen.join("\n");
        bail!("the console did not say '{text}'; it said:\n{said}")
    }

    /// Types `text` and the return key.
    pub fn type_line(&mut self, text: &str) -> Result<()> {
        self.type_text(&format!("{text}\r"))
    }

    /// Types `text`.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the console is closed")?;
        input.write_all(text.as_bytes())?;
        Ok(input.flush()?)
    }

    /// QEMU's process number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end; `show` is called for each line as it comes.
    pub fn finish(mut self, mut show: impl FnMut(&str)) -> Result<Run> {
        while let Some(line) = self.next_line() {
            show(&line);
        }
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break Some(status);
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break None;
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let good = self.last == FINAL_LINE;
        let end = match status {
            Some(status) => End::of(status, good, self.errors.signal()),
            None => End::TimeLimit,
        };
        Ok(Run { end, lines: std::mem::take(&mut self.seen) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
