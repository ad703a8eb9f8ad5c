//! The console, which is the first serial port, and the kernel's log.
//!
//! Output is polled; input arrives by interrupt and waits in a ring for the shell. What is printed while a line is being
//! typed appears above that line.

use crate::arch::time;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicUsize, Ordering};
use core::task::Waker;
use embassy_sync::waitqueue::AtomicWaker;
use heapless::spsc::Queue;
use log::{Level, Log, Metadata, Record};
use ringfence_core::typed_line::TypedLine;
use spin::Mutex;
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::FifoTriggerLevel;
use uart_16550::spec::registers::IER;
use uart_16550::{BaudRate, Config, Uart16550};
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

/// COM1.
const BASE_PORT: u16 = 0x3f8;
/// Lines of the log that are kept, and how many of them can be any one driver's.
const LOG_LINES: usize = 512;
const DRIVER_LINES: usize = 64;
/// Bytes of input that can wait.
const INPUT_BYTES: usize = 1024;

static MUTED: AtomicUsize = AtomicUsize::new(0);
static UART: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
/// The same port, for the interrupt handler, which only receives: it must never wait for who is sending.
static RECEIVER: Mutex<Option<Uart16550<PioBackend>>> = Mutex::new(None);
static INPUT: Mutex<Queue<u8, INPUT_BYTES>> = Mutex::new(Queue::new());
static ON_INPUT: AtomicWaker = AtomicWaker::new();
static LOG: Mutex<VecDeque<Line>> = Mutex::new(VecDeque::new());

/// Target of log records that need no word before them.
pub const REPORT: &str = "report";

/// The line that is being typed, while one is.
static TYPED: Mutex<Option<Typed>> = Mutex::new(None);
/// Columns of the terminal, if they are known.
static COLUMNS: AtomicUsize = AtomicUsize::new(UNKNOWN);
const UNKNOWN: usize = 0;

struct Typed {
    line: TypedLine,
    /// Whether it is on the screen: not while something else is being printed.
    shown: bool,
}

/// A line of the log.
#[derive(Clone)]
struct Line {
    /// When it was said.
    stamp: String,
    /// The driver that said it or had it said.
    driver: Option<String>,
    /// Whether the driver chose the words.
    is_quote: bool,
    text: String,
}

/// Between a driver's name and its words. A name cannot have it, and what the kernel says about a driver has a colon there.
const QUOTE: char = '|';

impl fmt::Display for Line {
    /// What a driver says that is wider than the terminal is cut up, so that each row begins with whose it is.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { stamp, driver: Some(driver), is_quote: true, text } = self else {
            return write!(f, "{}{}", self.stamp, self.text);
        };
        let width = stamp.len();
        write!(f, "{stamp}{driver}{QUOTE} ")?;
        let fits = match COLUMNS.load(Ordering::Relaxed) {
            UNKNOWN => usize::MAX,
            columns => columns.saturating_sub(width + driver.len() + 2).max(8),
        };
        for (index, c) in text.chars().enumerate() {
            if index > 0 && index % fits == 0 {
                write!(f, "\n{:width$}{driver}{QUOTE} ", "")?;
            }
            f.write_char(c)?;
        }
        Ok(())
    }
}

struct Logger;
static LOGGER: Logger = Logger;

/// Opens the port and the log. Without a port all output is dropped.
pub fn init() {
    let config = Config {
        interrupts: IER::DATA_READY,
        fifo_trigger_level: Some(FifoTriggerLevel::One),
        baud_rate: BaudRate::Baud115200,
        ..Config::DEFAULT
    };
    // SAFETY: the port is the kernel's; the two handles use different registers (see `RECEIVER`).
    let open = || unsafe { Uart16550::new_port(BASE_PORT) }.ok();
    *UART.lock() = open().and_then(|mut uart| uart.init(config).is_ok().then_some(uart));
    *RECEIVER.lock() = open();
    // Fails only if there is a logger already.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
}

/// Nothing is written as long as this is there. The log is kept all the same.
pub struct Mute;

/// Holds back what is written until what is returned is dropped.
pub fn mute() -> Mute {
    MUTED.fetch_add(1, Ordering::Relaxed);
    Mute
}

impl Drop for Mute {
    fn drop(&mut self) {
        MUTED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Writes bytes as they are.
pub fn write_bytes(bytes: &[u8]) {
    if MUTED.load(Ordering::Relaxed) > 0 {
        return;
    }
    without_interrupts(|| {
        if let Some(uart) = UART.lock().as_mut() {
            uart.send_bytes_exact(bytes);
        }
    });
}

/// Waits until all that was written is out. A port that never says so is not waited for.
pub fn drain() {
    const LINE_STATUS: u16 = BASE_PORT + 5;
    const TRANSMITTER_EMPTY: u8 = 1 << 6;
    for _ in 0..1_000_000 {
        // SAFETY: reading the line status has no effect on what is sent.
        if unsafe { Port::<u8>::new(LINE_STATUS).read() } & TRANSMITTER_EMPTY != 0 {
            break;
        }
    }
}

/// Breaks whatever lock a panic may have hit, so that it can still speak.
///
/// # Safety
/// Only a panic may call it: nothing else runs afterwards.
pub unsafe fn break_locks() {
    MUTED.store(0, Ordering::Relaxed);
    // SAFETY: as the caller promises.
    unsafe {
        UART.force_unlock();
        TYPED.force_unlock();
        // Not dropped: that takes the heap's lock. Nor is it shown again, which may allocate.
        core::mem::forget(TYPED.lock().take());
        LOG.force_unlock();
    }
}

/// The terminal has so many columns.
pub fn set_columns(columns: usize) {
    COLUMNS.store(columns, Ordering::Relaxed);
}

fn columns() -> usize {
    const USUAL: usize = 80;
    match COLUMNS.load(Ordering::Relaxed) {
        UNKNOWN => USUAL,
        columns => columns,
    }
}

/// A line is going to be typed behind `prompt`, which is printed.
pub fn begin_line(prompt: &'static str) {
    let line = TypedLine::new(prompt, columns());
    write_bytes(&line.show());
    *TYPED.lock() = Some(Typed { line, shown: true });
}

/// The line editor writes a byte.
pub fn edit_line(byte: u8) {
    if let Some(typed) = TYPED.lock().as_mut() {
        let sent = typed.line.edit(byte);
        if typed.shown {
            write_bytes(&sent);
        }
    }
}

/// Where the cursor is in the line that is being typed: characters before it, and in all.
pub fn position_in_line() -> (usize, usize) {
    TYPED.lock().as_ref().map_or((0, 0), |typed| typed.line.position())
}

/// The line has been typed; it stays where it is.
pub fn end_line() {
    if let Some(typed) = TYPED.lock().take() {
        write_bytes(&typed.line.leave());
    }
}

/// Takes the line that is being typed off the screen.
pub fn hide_line() {
    // Whoever has the lock is busy with the line.
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| typed.shown)
    {
        write_bytes(&typed.line.hide());
        typed.shown = false;
    }
}

/// Shows it again, from the first column of a row.
pub fn show_line() {
    if let Some(mut typed) = TYPED.try_lock()
        && let Some(typed) = typed.as_mut().filter(|typed| !typed.shown)
    {
        write_bytes(&typed.line.show());
        typed.shown = true;
    }
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.is_empty() {
            return Ok(());
        }
        hide_line();
        for (index, line) in text.split('\n').enumerate() {
            if index > 0 {
                write_bytes(b"\r\n");
            }
            write_bytes(line.as_bytes());
        }
        if text.ends_with('\n') {
            show_line();
        }
        Ok(())
    }
}

/// Writes formatted text to the console.
pub fn print(arguments: fmt::Arguments) {
    // The console itself does not fail; a Display that does has printed what it could.
    let _ = Console.write_fmt(arguments);
}

/// Writes formatted text to the console.
#[macro_export]
macro_rules! print {
    ($($argument:tt)*) => { $crate::console::print(format_args!($($argument)*)) };
}

/// Writes formatted text and a line end to the console.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($argument:tt)*) => { $crate::console::print(format_args!("{}\n", format_args!($($argument)*))) };
}

/// The serial interrupt: moves input into the ring. What does not fit is lost.
pub fn receive() {
    if let (Some(mut receiver), Some(mut input)) = (RECEIVER.try_lock(), INPUT.try_lock())
        && let Some(receiver) = receiver.as_mut()
    {
        while let Ok(byte) = receiver.try_receive_byte() {
            let _ = input.enqueue(byte);
        }
    }
    ON_INPUT.wake();
}

/// Whether Ctrl-C waits in the input: it is taken out, with all that was typed before it. `waker` is woken at the next
/// input.
pub fn take_interrupt(waker: &Waker) -> bool {
    const CTRL_C: u8 = 3;
    ON_INPUT.register(waker);
    without_interrupts(|| {
        let mut input = INPUT.lock();
        let Some(place) = input.iter().position(|byte| *byte == CTRL_C) else { return false };
        (0..=place).for_each(|_| {
            input.dequeue();
        });
        true
    })
}

/// Has `waker` woken when there is input.
pub fn wake_on_input(waker: &Waker) {
    ON_INPUT.register(waker);
}

/// The next byte of input.
pub fn read_byte() -> Option<u8> {
    without_interrupts(|| INPUT.lock().dequeue())
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata) -> bool {
        true
    }

    fn log(&self, record: &Record) {
        // A report says itself what it is.
        let level = if record.target() == REPORT { "" } else { level_name(record.level()) };
        add(None, false, format!("{level}{}", record.args()));
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
pub fn quote(driver: &str, level: Level, text: &str) {
    if level <= log::max_level() {
        let text = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' });
        add(Some(driver), true, level_name(level).chars().chain(text).collect());
    }
}

/// The kernel says something about a driver that the driver can have it say as often as it likes.
pub fn warn_about(driver: &str, text: fmt::Arguments) {
    add(Some(driver), false, format!("{}{driver}: {text}", level_name(Level::Warn)));
}

/// The same, about what is no fault.
pub fn say_about(driver: &str, text: fmt::Arguments) {
    add(Some(driver), false, format!("{text}"));
}

/// Prints a line and keeps it. Of each driver only the last ones are kept: no driver takes more than those places.
fn add(driver: Option<&str>, is_quote: bool, text: String) {
    let micros = time::uptime_ns() / 1000;
    let stamp = format!("[{:4}.{:06}] ", micros / 1_000_000, micros % 1_000_000);
    let line = Line { stamp, driver: driver.map(String::from), is_quote, text };
    println!("{line}");
    without_interrupts(|| {
        let mut lines = LOG.lock();
        let is_its = |line: &Line| driver.is_some() && line.driver.as_deref() == driver;
        let its = lines.iter().filter(|line| is_its(line)).count();
        let oldest = if its < DRIVER_LINES { 0 } else { lines.iter().position(is_its).unwrap_or(0) };
        if its == DRIVER_LINES || lines.len() == LOG_LINES {
            lines.remove(oldest);
        }
        lines.push_back(line);
    });
}

/// Prints the lines of the log that are kept, oldest first.
pub fn print_log() {
    let count = LOG.lock().len();
    for index in 0..count {
        // One at a time: printing one must not happen under the lock.
        let line = LOG.lock().get(index).cloned();
        if let Some(line) = line {
            println!("{line}");
        }
    }
}
