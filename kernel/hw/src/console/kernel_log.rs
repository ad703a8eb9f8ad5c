//! The kernel's log: what it says itself, what it says because of a driver, and what drivers say.
//! It is printed, and the last of it is kept.

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

/// Lines that are kept, and how many of them, and of their bytes, can be any one driver's.
const LOG_LINES: usize = 512;
const DRIVER_LINES: usize = 64;
const DRIVER_BYTES: usize = 12 << 10;

static LOG: Lock<VecDeque<Line>> = Lock::new(VecDeque::new());

/// A line of the log.
#[derive(Clone)]
pub(super) struct Line {
    /// When it was said.
    stamp: String,
    /// The driver that said it or had it said.
    driver: Option<String>,
    manner: Manner,
    level: Level,
    text: String,
}

/// Whose words a line has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// The kernel's, behind a word for the level.
    Plain,
    /// The kernel's, which say themselves what they are.
    Report,
    /// A driver's.
    Quote,
}

/// Between a driver's name and its words. A name cannot have it, and what the kernel says about a
/// driver has a colon there.
const QUOTE: char = '|';

impl Line {
    /// Writes it for a terminal with so many columns, if that is known. What a driver says that is
    /// wider than that is cut up, so that each row begins with whose it is.
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

/// Takes what the `log` crate is given from now on.
pub(super) fn init() {
    // Fails only if there is a logger already.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        add(None, Manner::Plain, record.level(), record.args().to_string());
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

/// A driver says something. It is quoted, so that nothing in it looks like the kernel's own words.
pub fn quote(source: impl FnOnce() -> Source, level: Level, text: &str) {
    if level <= log::max_level() {
        add(Some(source()), Manner::Quote, level, printable(text));
    }
}

/// What others wrote, without what a terminal would take for more than a character.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect()
}

/// The kernel says something about a driver, which counts against that: what a driver does, a disk
/// or a peer, may have it say so again and again.
pub fn say_about(source: &Source, level: Level, text: fmt::Arguments) {
    add(Some(source.clone()), Manner::Plain, level, format!("{}: {text}", source.driver));
}

/// The same for a line that does not begin with the driver's name.
pub fn say_because_of(source: &Source, level: Level, text: fmt::Arguments) {
    add(Some(source.clone()), Manner::Plain, level, text.to_string());
}

/// The report of a driver's end, which says itself what it is.
pub fn report(driver: &str, by_itself: bool, text: String) {
    let source = Source { driver: driver.to_string(), by_itself };
    add(Some(source), Manner::Report, Level::Error, text);
}

/// Because of whom a line is said.
#[derive(Debug, Clone)]
pub struct Source {
    driver: String,
    /// Whether nobody at the console has asked for anything of it.
    by_itself: bool,
}

impl Source {
    /// A driver, for what somebody at the console has asked of it.
    pub fn asked(driver: &str) -> Source {
        Source { driver: driver.to_string(), by_itself: false }
    }

    /// A driver, for what goes on beside whatever a person does.
    pub fn by_itself(driver: &str) -> Source {
        Source { driver: driver.to_string(), by_itself: true }
    }
}

/// Prints a line and keeps it. Of each driver only the last ones are kept: no driver takes more
/// than those places. What is not asked for is printed as long as a person can read it.
fn add(source: Option<Source>, manner: Manner, level: Level, text: String) {
    let micros = time::uptime_ns() / 1000;
    let stamp = format!("[{:4}.{:06}] ", micros / 1_000_000, micros % 1_000_000);
    let driver = source.as_ref().map(|source| source.driver.clone());
    let line = Line { stamp, driver, manner, level, text };
    let is_watched = WATCHED.lock().as_ref().is_none_or(|wanted| wanted.has(&line));
    match source.filter(|source| source.by_itself).map(|source| flood::allow(&source.driver, line.text.lines().count()))
    {
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
}

/// The last `count` rows of the log on a screen with so many columns, oldest first.
pub(super) fn last_rows(count: usize, columns: usize) -> VecDeque<String> {
    let mut rows = VecDeque::new();
    let mut index = LOG.lock().len();
    while rows.len() < count && index > 0 {
        index -= 1;
        // One at a time: interrupts may add some meanwhile.
        let line = LOG.lock().get(index).cloned();
        let mut text = String::new();
        // A string takes all.
        let _ = line.map(|line| line.write(&mut text, Some(columns)));
        for row in text.lines().rev() {
            let characters: alloc::vec::Vec<char> = row.chars().collect();
            characters.chunks(columns).rev().for_each(|row| rows.push_front(row.iter().collect()));
        }
    }
    rows.drain(..rows.len().saturating_sub(count));
    rows
}

/// Which lines of the log are wanted.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Only those of this level and of worse ones.
    pub level: Option<Level>,
    /// Only those that this driver said or had said.
    pub driver: Option<String>,
}

impl Wanted {
    fn has(&self, line: &Line) -> bool {
        self.level.is_none_or(|level| line.level <= level) && (self.driver.is_none() || self.driver == line.driver)
    }
}

/// Prints the lines of the log that are kept and wanted, oldest first; returns how many those were.
pub fn print_log(wanted: &Wanted) -> usize {
    let mut printed = 0;
    let count = LOG.lock().len();
    for index in 0..count {
        // One at a time: printing one must not happen under the lock.
        let line = LOG.lock().get(index).filter(|line| wanted.has(line)).cloned();
        if let Some(line) = line {
            println!("{line}");
            printed += 1;
        }
    }
    printed
}

/// Only what is wanted is printed of the log as long as this is there.
pub struct Watch;

/// Which lines are watched, while some are.
static WATCHED: Mutex<Option<Wanted>> = Mutex::new(None);

/// Has only those lines of the log printed that are wanted, until what is returned is dropped.
pub fn watch(wanted: Wanted) -> Watch {
    *WATCHED.lock() = Some(wanted);
    Watch
}

impl Drop for Watch {
    fn drop(&mut self) {
        *WATCHED.lock() = None;
    }
}
