//! The last rows of the log on a screen. Input comes through the serial port; the first row says
//! so.
//!
//! A screen is a VGA in text mode, as BIOS firmware leaves it, or a frame buffer from the loader. A
//! task draws it, so that no caller of the log waits for it. When the machine ends badly, all
//! output goes to the screen as well.

use super::kernel_log;

use alloc::string::String;
use alloc::vec::Vec;
use bootloader_api::info::{FrameBuffer, FrameBufferInfo};

use crate::arch::port::IoPort;
use crate::lock::Lock;
use core::future::poll_fn;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::Timer;
use spleen_font::FONT_8X16;

const TITLE: &str =
    concat!("Ringfence ", env!("CARGO_PKG_VERSION"), ": type at the first serial port (COM1, 115200 8N1). Its log:");
const NO_PORT: &str =
    concat!("Ringfence ", env!("CARGO_PKG_VERSION"), ": there is no serial port (COM1) to type at. Its log:");
/// Milliseconds between two looks at the log.
const PAUSE_MS: u64 = 50;

static SCREEN: Lock<Option<Screen>> = Lock::new(None);
static IS_OLD: AtomicBool = AtomicBool::new(false);
static ON_OLD: AtomicWaker = AtomicWaker::new();

struct Screen {
    surface: Surface,
    /// In characters.
    columns: usize,
    rows: usize,
    /// The text of each row.
    shown: Vec<String>,
    /// Column and row of the next character, while all output goes to the screen.
    cursor: Option<(usize, usize)>,
}

/// The memory that a screen shows.
enum Surface {
    /// 80 by 25 characters, each with its colours in the upper byte.
    Text(*mut u16),
    Pixels {
        bytes: &'static mut [u8],
        info: FrameBufferInfo,
    },
}

// SAFETY: there is no other copy of the pointer.
unsafe impl Send for Surface {}

/// Width and height of a character in pixels.
const FONT: (usize, usize) = (8, 16);

/// Returns the rows of a character, with the leftmost pixel in the highest bit. The file has them
/// after a header of four bytes (PC screen font, version 1).
fn glyph(byte: u8) -> &'static [u8] {
    const HEADER_BYTES: usize = 4;
    let first = HEADER_BYTES + usize::from(byte) * FONT.1;
    FONT_8X16.get(first..first + FONT.1).unwrap_or_default()
}

/// Finds the screen, if there is one. Physical memory is mapped from `physical_offset` on.
pub(crate) fn init(physical_offset: u64, frame_buffer: Option<FrameBuffer>) {
    let pixels = frame_buffer.map(|buffer| {
        let info = buffer.info();
        let (columns, rows) = (info.width / FONT.0, info.height / FONT.1);
        Screen::new(Surface::Pixels { bytes: buffer.into_buffer(), info }, columns, rows)
    });
    let text = || is_in_text_mode().then(|| Screen::new(Surface::Text((physical_offset + TEXT) as *mut u16), 80, 25));
    let Some(mut screen) =
        pixels.or_else(text).filter(|screen| screen.columns >= super::LEAST_COLUMNS && screen.rows > 1)
    else {
        return;
    };
    let title = if super::has_port() { TITLE } else { NO_PORT };
    (0..screen.rows).for_each(|row| screen.draw(row, if row == 0 { title } else { "" }));
    *SCREEN.lock() = Some(screen);
}

/// Physical address of a VGA's characters.
const TEXT: u64 = 0xb8000;

/// Returns whether there is a VGA in text mode (IBM VGA Technical Reference, miscellaneous register
/// of the graphics controller: bit 0, graphics; bits 2 and 3, the place of its memory).
fn is_in_text_mode() -> bool {
    const INDEX: u16 = 0x3ce;
    const MISCELLANEOUS: u8 = 6;
    IoPort::<u8>::new(INDEX).write(MISCELLANEOUS);
    IoPort::<u8>::new(INDEX + 1).read() & 0b1101 == 0b1100
}

/// Notes that the log has another line.
pub fn changed() {
    IS_OLD.store(true, Ordering::Release);
    ON_OLD.wake();
}

/// Redraws the screen whenever the log has changed.
pub async fn run() {
    let Some((columns, rows)) = SCREEN.lock().as_ref().map(|screen| (screen.columns, screen.rows)) else { return };
    loop {
        poll_fn(|context| {
            ON_OLD.register(context.waker());
            if IS_OLD.swap(false, Ordering::Acquire) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        for (row, text) in (1..rows).zip(kernel_log::last_rows(rows - 1, columns)) {
            if let Some(screen) = SCREEN.lock().as_mut() {
                screen.update(row, text);
            }
            yield_now().await;
        }
        Timer::after_millis(PAUSE_MS).await;
    }
}

/// Clears the screen and shows all output from now on: the machine ends.
pub fn take_over() {
    if let Some(screen) = SCREEN.lock().as_mut() {
        screen.cursor.get_or_insert((0, 1));
        (1..screen.rows).for_each(|row| screen.draw(row, ""));
    }
}

/// Prints text on the screen, if the screen shows all output.
pub(super) fn mirror(text: &str) {
    if let Some(screen) = SCREEN.try_lock().as_mut().and_then(|screen| screen.as_mut())
        && screen.cursor.is_some()
    {
        screen.print(text);
    }
}

impl Screen {
    fn new(surface: Surface, columns: usize, rows: usize) -> Screen {
        Screen { surface, columns, rows, shown: Vec::new(), cursor: None }
    }

    /// Makes a row show `text`, if it does not yet.
    fn update(&mut self, row: usize, text: String) {
        if self.shown.len() <= row {
            self.shown.resize(self.rows, String::new());
        }
        if let Some(shown) = self.shown.get_mut(row).filter(|shown| **shown != text) {
            *shown = text;
            // The text is taken out, as drawing needs the rest of the screen.
            let text = core::mem::take(shown);
            self.draw(row, &text);
            if let Some(shown) = self.shown.get_mut(row) {
                *shown = text;
            }
        }
    }

    /// Fills a row with `text` and blanks.
    fn draw(&mut self, row: usize, text: &str) {
        let blanks = core::iter::repeat(' ');
        text.chars().chain(blanks).take(self.columns).enumerate().for_each(|(column, c)| self.put(column, row, c));
    }

    /// Prints as a terminal does; when the screen is full, printing goes on at the top.
    fn print(&mut self, text: &str) {
        for c in text.chars() {
            let (column, row) = self.cursor.unwrap_or((0, 1));
            let next = (0, if row + 1 < self.rows { row + 1 } else { 1 });
            self.cursor = Some(if c == '\n' {
                next
            } else {
                self.put(column, row, c);
                if column + 1 < self.columns { (column + 1, row) } else { next }
            });
        }
    }

    /// Draws one character; a character that is not ASCII becomes a question mark.
    fn put(&mut self, column: usize, row: usize, c: char) {
        const LIGHT_GREY: u16 = 7 << 8;
        let byte = if c.is_ascii_graphic() || c == ' ' { c as u8 } else { b'?' };
        if column >= self.columns || row >= self.rows {
            return;
        }
        match &mut self.surface {
            // SAFETY: the place is within the screen, whose memory is mapped.
            Surface::Text(first) => unsafe {
                first.add(row * self.columns + column).write_volatile(LIGHT_GREY | u16::from(byte));
            },
            Surface::Pixels { bytes, info } => {
                let bytes_per_pixel = info.bytes_per_pixel;
                for (line, bits) in glyph(byte).iter().enumerate() {
                    let first = ((row * FONT.1 + line) * info.stride + column * FONT.0) * bytes_per_pixel;
                    let pixels = bytes.get_mut(first..first + FONT.0 * bytes_per_pixel).unwrap_or_default();
                    for (pixel, bit) in pixels.chunks_exact_mut(bytes_per_pixel).zip((0..FONT.0).rev()) {
                        pixel.fill(if bits >> bit & 1 != 0 { 0xc0 } else { 0 });
                    }
                }
            }
        }
    }
}
