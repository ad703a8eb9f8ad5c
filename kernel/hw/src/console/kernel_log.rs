//! The kernel's log: lines of the kernel itself, lines of the kernel about a driver, and lines of
//! drivers. The log is printed, and the last lines are kept.

use super::flood::{self, Allowed};
use super::screen;
use crate::arch::time;
use crate::lock::Lock;
use crate::println;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt::{self, Write};
use log::{Level, Log, Metadata, Record};
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// Lines that are kept; and how many of them, and of their bytes, can belong to one driver.
const LOG_LINES: usize = 512;
const DRIVER_LINES: usize = 64;
const DRIVER_BYTES: usize = 12 << 10;

static LOG: Lock<VecDeque<Line>> = Lock::new(VecDeque::new());

/// A line of the log.
#[derive(Clone)]
pub(super) struct Line {
    /// Time of the line.
    stamp: String,
    /// The driver that wrote the line or caused it.
    driver: Option<String>,
    manner: Manner,
    level: Level,
    text: String,
}

/// The author of a line, and its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// The kernel's words, after a word for the level.
    Plain,
    /// The kernel's words, a report that names its own kind.
    Report,
    /// A driver's words.
    Quote,
}

/// Separates a driver's name from its words. A name cannot contain it, and in the kernel's lines
/// about a driver a colon follows the name.
const QUOTE: char = '|';

impl Line {
    /// Writes the line for a terminal with so many columns, if the number is known. A driver's line
    /// that is wider is cut up, so that each row begins with the driver's name.
    fn write(&self, f: &mut dyn Write, columns: Option<usize>) -> fmt::Result {
        let Line { stamp, driver, manner, level, text } = self;
        let level = level_name(*level);
        let driver = match (manner, driver) {
            (Manner::Quote, Some(driver)) => driver,
            (Manner::Report, _) => return write!(f, "{stamp}{text}"),
            _ => return write!(f, "{stamp}{level}{text}"),
        };
        let width = stamp.len();
        write!(f, "{stamp}{driver}{QUOTE} ")?;
        let fits = columns.map_or(usize::MAX, |columns| columns.saturating_sub(width + driver.len() + 2).max(8));
        for (index, c) in level.chars().chain(text.chars()).enumerate() {
            if index > 0 && index % fits == 0 {
                write!(f, "\n{:width$}{driver}{QUOTE} ", "")?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.write(f, super::known_columns())
    }
}

struct Logger;
static LOGGER: Logger = Logger;

/// Receives the records of the `log` crate from now on.
pub(super) fn init() {
    // Fails only if there is a logger already.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

impl Log for Logger {
    /// A library's lines are shown only if they are warnings.
    fn enabled(&self, line: &Metadata) -> bool {
        line.level() <= Level::Warn || line.target().starts_with("ringfence")
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            add(None, Manner::Plain, record.level(), record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::Error => "error: ",
        Level::Warn => "warning: ",
        Level::Info | Level::Debug | Level::Trace => "",
    }
}

/// Adds a driver's line. It is quoted, so that no part of it looks like the kernel's own words.
/// Returns the line as it is shown, unless it is kept from view: for its level, or because the
/// driver says too much.
pub fn quote(source: impl FnOnce() -> Source, level: Level, text: &str) -> Option<String> {
    if level > log::max_level() {
        return None;
    }
    let text = printable(text);
    add(Some(source()), Manner::Quote, level, text.clone()).then_some(text)
}

/// Returns the text with only printable ASCII: other characters could control a terminal.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// Adds a line of the kernel about a driver. The line counts against the driver, as the driver, a
/// disk or a peer may cause it again and again.
pub fn say_about(source: &Source, level: Level, text: fmt::Arguments) {
    add(Some(source.clone()), Manner::Plain, level, format!("{}: {text}", source.driver));
}

/// Adds a line of the kernel that a driver has caused but that does not begin with its name.
pub fn say_because_of(source: &Source, level: Level, text: fmt::Arguments) {
    add(Some(source.clone()), Manner::Plain, level, text.to_string());
}

/// Adds the report of a driver's end, which names its own kind.
pub fn report(driver: &str, by_itself: bool, text: String) {
    let source = Source { driver: driver.to_string(), by_itself };
    add(Some(source), Manner::Report, Level::Error, text);
}

/// The driver that a line counts against.
#[derive(Debug, Clone)]
pub struct Source {
    driver: String,
    /// Whether no person at the console has asked the driver for anything.
    by_itself: bool,
}

impl Source {
    /// Names a driver, for lines that a person at the console has asked for.
    pub fn asked(driver: &str) -> Source {
        Source { driver: driver.to_string(), by_itself: false }
    }

    /// Names a driver, for lines that no person has asked for.
    pub fn by_itself(driver: &str) -> Source {
        Source { driver: driver.to_string(), by_itself: true }
    }
}

/// Prints a line and keeps it. Of each driver only the last lines are kept, so that no driver takes
/// more than its share. Lines that no person has asked for are printed only as fast as a person can
/// read them. Returns whether this one may be printed.
fn add(source: Option<Source>, manner: Manner, level: Level, text: String) -> bool {
    let micros = time::uptime_ns() / 1000;
    let stamp = format!("[{:4}.{:06}] ", micros / 1_000_000, micros % 1_000_000);
    let driver = source.as_ref().map(|source| source.driver.clone());
    let line = Line { stamp, driver, manner, level, text };
    let is_watched = WATCHED.lock().as_ref().is_none_or(|wanted| wanted.has(&line));
    let rows = line.text.lines().count();
    let allowed = source.filter(|source| source.by_itself).map(|source| flood::allow(&source.driver, rows));
    let may_be_shown = matches!(allowed, None | Some(Allowed::Yes | Allowed::AfterSilence(_)));
    match allowed {
        _ if !is_watched => {}
        None | Some(Allowed::Yes) => println!("{line}"),
        Some(Allowed::AfterSilence(rows)) => {
            println!(
                "{}{}: {rows} rows were not shown ('dmesg' has the last)",
                line.stamp,
                line.driver.as_deref().unwrap_or("")
            );
            println!("{line}");
        }
        Some(Allowed::Last) => {
            println!(
                "{}{}: says more than can be read; it is not shown for now",
                line.stamp,
                line.driver.as_deref().unwrap_or("")
            );
        }
        Some(Allowed::No) => {}
    }
    without_interrupts(|| {
        let mut lines = LOG.lock();
        let is_its = |other: &Line| line.driver.is_some() && other.driver == line.driver;
        let (mut its, mut bytes) = (0, line.text.len());
        lines.iter().filter(|line| is_its(line)).for_each(|line| (its, bytes) = (its + 1, bytes + line.text.len()));
        while its >= DRIVER_LINES || its > 0 && bytes > DRIVER_BYTES {
            let Some(oldest) = lines.iter().position(is_its).and_then(|oldest| lines.remove(oldest)) else { break };
            (its, bytes) = (its - 1, bytes - oldest.text.len());
        }
        if lines.len() == LOG_LINES {
            lines.pop_front();
        }
        lines.push_back(line);
    });
    screen::changed();
    may_be_shown
}

/// Returns the last `count` rows of the log on a screen with so many columns, oldest first.
pub(super) fn last_rows(count: usize, columns: usize) -> VecDeque<String> {
    let mut rows = VecDeque::new();
    let mut index = LOG.lock().len();
    while rows.len() < count && index > 0 {
        index -= 1;
        // Lines are copied one at a time: interrupts may add some meanwhile.
        let line = LOG.lock().get(index).cloned();
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = line.map(|line| line.write(&mut text, Some(columns)));
        for row in text.lines().rev() {
            let characters: alloc::vec::Vec<char> = row.chars().collect();
            characters.chunks(columns).rev().for_each(|row| rows.push_front(row.iter().collect()));
        }
    }
    rows.drain(..rows.len().saturating_sub(count));
    rows
}

/// A choice of lines of the log.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only lines of this level and of worse ones.
    pub level: Option<Level>,
    /// Only lines that this driver wrote or caused.
    pub driver: Option<String>,
}

impl Wanted {
    fn has(&self, line: &Line) -> bool {
        self.level.is_none_or(|level| line.level <= level) && (self.driver.is_none() || self.driver == line.driver)
    }
}

/// Prints the kept lines of the log that are wanted, oldest first. Returns how many there were.
pub fn print_log(wanted: &Wanted) -> usize {
    let mut printed = 0;
    let count = LOG.lock().len();
    for index in 0..count {
        // Lines are copied one at a time, as printing must not happen under the lock.
        let line = LOG.lock().get(index).filter(|line| wanted.has(line)).cloned();
        if let Some(line) = line {
            println!("{line}");
            printed += 1;
        }
    }
    printed
}

/// While this exists, only the wanted lines of the log are printed.
pub struct Watch;

/// The lines that are printed, while the log is filtered.
static WATCHED: Mutex<Option<Wanted>> = Mutex::new(None);

/// Prints only the wanted lines of the log, until the returned value is dropped.
pub fn watch(wanted: Wanted) -> Watch {
    *WATCHED.lock() = Some(wanted);
    Watch
}

impl Drop for Watch {
    fn drop(&mut self) {
        *WATCHED.lock() = None;
    }
}
