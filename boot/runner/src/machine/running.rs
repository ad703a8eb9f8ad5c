//! A machine whose console is in a pipe: for tests, benchmarks and scripts.

use super::end::FINAL_LINE;
use super::errors::Errors;
use super::files::RunFiles;
use super::link::{Link, Told};
use super::qemu::Farewell;
use super::{End, Machine, start};
use crate::build::System;
use crate::source::Sources;
use anyhow::{Context, Result, bail};
use ringfence_link::event::Event;
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
    /// What the kernel told programs.
    pub events: Vec<Event<'static>>,
    /// How much of that was lost or damaged on the way.
    pub lost: u32,
}

impl Run {
    /// The console as one text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// What comes from a machine.
#[derive(Debug)]
pub enum Said {
    /// A line of the console.
    Line(String),
    /// What the kernel tells programs.
    Event(Event<'static>),
}

/// What a thread hands over.
enum Heard {
    Line(String),
    Told(Told),
}

/// A machine that was started, with files that must live as long as it does.
pub struct Running {
    child: Child,
    heard: mpsc::Receiver<Heard>,
    seen: Vec<String>,
    events: Vec<Event<'static>>,
    lost: u32,
    /// The last line that was not empty.
    last: String,
    sources: Sources,
    deadline: Option<Instant>,
    errors: Errors,
    _files: RunFiles,
}

impl Machine {
    /// Boots it with its console in a pipe. It ends when the thread that calls this does, if not
    /// before.
    pub fn start(&self, system: &System) -> Result<Running> {
        self.check()?;
        let files = RunFiles::new()?;
        let mut qemu = self.command(system, &files, Farewell::Kill)?;
        let link = Link::listen(&files)?;
        qemu.args(["-serial", "stdio", "-monitor", "none"]).args(link.arguments());
        qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start(&mut qemu)?;
        let output = child.stdout.take().context("QEMU has no output")?;
        let errors = Errors::listen(child.stderr.take().context("QEMU has no standard error")?);
        let (sender, heard) = mpsc::channel();
        let told = sender.clone();
        let end_link = link.read(move |what| told.send(Heard::Told(what)).is_ok());
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut bytes = Vec::new();
            while reader.read_until(b'\n', &mut bytes).is_ok_and(|count| count > 0) {
                let line = String::from_utf8_lossy(&bytes);
                // What came before was taken off the screen again.
                let line = line.rsplit(ERASED).next().unwrap_or_default().trim_end_matches(['\r', '\n']).to_string();
                bytes.clear();
                if sender.send(Heard::Line(line)).is_err() {
                    break;
                }
            }
            end_link();
        });
        let sources = self.sources(system);
        Ok(Running {
            child,
            heard,
            seen: Vec::new(),
            events: Vec::new(),
            lost: 0,
            last: String::new(),
            sources,
            deadline: self.deadline(),
            errors,
            _files: files,
        })
    }

    /// Boots it and waits for its end; `show` is called for all that is said, as it comes.
    pub fn run(&self, system: &System, show: impl FnMut(&Said)) -> Result<Run> {
        self.start(system)?.finish(show)
    }
}

impl Running {
    /// The next thing that is said; `None` when there are no more, or the time limit has passed.
    fn next_until(&mut self, deadline: Option<Instant>) -> Option<Said> {
        loop {
            let heard = match deadline {
                None => self.heard.recv().ok(),
                // One that talks without end is not waited for, either.
                Some(deadline) => {
                    let left = deadline.checked_duration_since(Instant::now())?;
                    self.heard.recv_timeout(left).ok()
                }
            }?;
            match heard {
                Heard::Line(line) => {
                    let line = match self.sources.annotation(&line) {
                        Some(annotation) => line + &annotation,
                        None => line,
                    };
                    self.seen.push(line.clone());
                    if !line.is_empty() {
                        self.last.clone_from(&line);
                    }
                    return Some(Said::Line(line));
                }
                Heard::Told(Told::Event(event)) => {
                    self.events.push(event.clone());
                    return Some(Said::Event(event));
                }
                Heard::Told(Told::Missing(count)) => self.lost = self.lost.saturating_add(count),
                Heard::Told(Told::Damaged) => self.lost = self.lost.saturating_add(1),
            }
        }
    }

    /// The next thing that is said, if it is within `limit`; `None` otherwise, and when there are
    /// no more.
    pub fn next_within(&mut self, limit: Duration) -> Option<Said> {
        let limit = Instant::now().checked_add(limit);
        let said = self.next_until(self.deadline.into_iter().chain(limit).min());
        // Who takes one thing after the other keeps what it needs.
        self.seen.clear();
        self.events.clear();
        said
    }

    /// Waits for the end, at most for `limit`.
    pub fn finish_within(mut self, limit: Duration) -> Result<End> {
        self.deadline = Instant::now().checked_add(limit);
        Ok(self.finish(|_| ())?.end)
    }

    /// Waits for a line that contains `text`.
    pub fn wait_for(&mut self, text: &str) -> Result<String> {
        while let Some(said) = self.next_until(self.deadline) {
            if let Said::Line(line) = said
                && line.contains(text)
            {
                return Ok(line);
            }
        }
        let said = self.seen.join("\n");
        bail!("the console did not say '{text}'; it said:\n{said}")
    }

    /// Waits for an event for which `wanted` has a value; `what` says what that is. An event may
    /// come later than a line that was printed after it, and lines that come meanwhile are passed
    /// over.
    pub fn wait_for_event<T>(&mut self, what: &str, mut wanted: impl FnMut(Event<'static>) -> Option<T>) -> Result<T> {
        while let Some(said) = self.next_until(self.deadline) {
            if let Said::Event(event) = said
                && let Some(value) = wanted(event)
            {
                return Ok(value);
            }
        }
        let said = self.seen.join("\n");
        bail!("the kernel did not tell of {what}; the console said:\n{said}")
    }

    /// Types a command and waits for its end; why it failed, if it did.
    pub fn command(&mut self, line: &str) -> Result<Option<String>> {
        self.type_line(line)?;
        self.wait_for_event(&format!("the end of '{line}'"), |event| match event {
            Event::Command { line: ended, error } if ended == line => Some(error.map(Into::into)),
            _ => None,
        })
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

    /// Waits for the end; `show` is called for all that is said, as it comes.
    pub fn finish(mut self, mut show: impl FnMut(&Said)) -> Result<Run> {
        while let Some(said) = self.next_until(self.deadline) {
            show(&said);
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
        let (lines, events) = (std::mem::take(&mut self.seen), std::mem::take(&mut self.events));
        Ok(Run { end, lines, events, lost: self.lost })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
