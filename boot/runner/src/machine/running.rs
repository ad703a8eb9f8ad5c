//! A machine whose console is connected to a pipe, for tests, benchmarks and scripts.

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
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// The sequence with which the kernel erases the line that is being typed from the screen.
const ERASED: &str = "\x1b[J";

/// The output of a run, and its end.
#[derive(Debug)]
pub struct Run {
    /// How the run ended.
    pub end: End,
    /// The console's lines.
    pub lines: Vec<String>,
    /// The events that the kernel told programs.
    pub events: Vec<Event<'static>>,
    /// Number of events that were lost or damaged on the way.
    pub lost: u32,
}

impl Run {
    /// Returns the console's output as one text.
    pub fn text(&self) -> String {
        self.lines.join("\n")
    }
}

/// A line or an event from a machine.
#[derive(Debug)]
pub enum Said {
    /// A line of the console.
    Line(String),
    /// An event that the kernel told programs.
    Event(Event<'static>),
}

/// A message from one of the reading threads.
enum Heard {
    Line(String),
    Told(Told),
}

/// A running machine, with the files that must live as long as it does.
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
    files: RunFiles,
}

impl Machine {
    /// Boots the machine with its console connected to a pipe. The machine ends at the latest when
    /// the thread that calls this ends.
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
                // The text before the sequence was erased from the screen.
                let line = line.rsplit(ERASED).next().unwrap_or_default().trim_end_matches(['\r', '\n']).to_string();
                bytes.clear();
                if sender.send(Heard::Line(line)).is_err() {
                    break;
                }
            }
            end_link();
        });
        let sources = self.sources(system, &files);
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
            files,
        })
    }

    /// Boots the machine and waits for its end; calls `show` for each line and event as it comes.
    pub fn run(&self, system: &System, show: impl FnMut(&Said)) -> Result<Run> {
        self.start(system)?.finish(show)
    }
}

impl Running {
    /// Returns the socket for programs that send requests ([`crate::session`]).
    pub fn session(&self) -> PathBuf {
        self.files.path().join(super::SESSION)
    }

    /// Returns the next line or event; `None` when there are no more or `deadline` has passed.
    fn next_until(&mut self, deadline: Option<Instant>) -> Option<Said> {
        loop {
            let heard = match deadline {
                None => self.heard.recv().ok(),
                // The deadline also holds for a machine that talks without end.
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

    /// Returns the next line or event; `None` if none comes within `limit`, or when there are no
    /// more.
    pub fn next_within(&mut self, limit: Duration) -> Option<Said> {
        let limit = Instant::now().checked_add(limit);
        let said = self.next_until(self.deadline.into_iter().chain(limit).min());
        // A caller of this function keeps the messages that it needs, so they are not stored here
        // as well.
        self.seen.clear();
        self.events.clear();
        said
    }

    /// Waits for the end of the machine, at most for `limit`.
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

    /// Waits for an event for which `wanted` returns a value; `what` describes it in the error.
    /// Events and lines come on two ports: an event may arrive after a line that was printed later.
    /// Lines that come meanwhile are skipped.
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

    /// Types a command and waits for its end; returns the error, if it failed.
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

    /// Returns the ID of QEMU's process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end of the machine; calls `show` for each line and event as it comes.
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
        // QEMU may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
