//! The recording of a real run: the feature `record`, which `cargo run -- record NAME` builds a
//! driver with. The recording has the driver's upcalls, frames and requests, and its accesses to
//! the device. `fake::replay` has the driver do the same again, in a test on the host.
//! `fake::Script` describes the lines.
//!
//! The recording is kept in the driver's own memory until a person asks for it with `tell NAME
//! recording`. It ends when its memory is full.

use crate::Result;
use crate::service::safe::rf_answer;
use alloc::vec::Vec;
use core::cell::UnsafeCell;
use core::fmt::{self, Arguments, Write};

/// Room for a recording, in bytes.
pub(crate) const ROOM: usize = 192 << 10;
/// The last line of a recording that has filled its memory.
const FULL: &str = "\n# full";
/// The most bytes of a recording that one command answers with.
const PART: usize = 4000;
/// More BARs than a device has.
const BARS: usize = 8;

struct Recording {
    text: Vec<u8>,
    /// Whether the recording has ended.
    has_ended: bool,
    /// How many bytes were told.
    told: usize,
    /// The address of each BAR.
    starts: [u64; BARS],
    /// The last access, which an equal one continues.
    last: Option<(char, u64, u64, usize)>,
}

struct Kept(UnsafeCell<Recording>);

// SAFETY: a driver runs on one CPU at a time, and no function here calls another while it has the
// recording.
unsafe impl Sync for Kept {}

static RECORDING: Kept =
    Kept(UnsafeCell::new(Recording { text: Vec::new(), has_ended: false, told: 0, starts: [0; BARS], last: None }));

impl Write for Recording {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.text.capacity() == 0 {
            self.text.reserve_exact(ROOM);
        }
        if self.has_ended {
            return Ok(());
        }
        if self.text.len() + text.len() + FULL.len() > self.text.capacity() {
            // The line that does not fit is left out as a whole.
            let whole = self.text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
            self.text.truncate(whole);
            self.text.extend_from_slice(FULL.as_bytes());
            self.has_ended = true;
            return Ok(());
        }
        self.text.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn with(change: impl FnOnce(&mut Recording)) {
    // SAFETY: see `Sync`.
    change(unsafe { &mut *RECORDING.0.get() });
}

/// Begins a line.
pub(crate) fn line(text: Arguments) {
    with(|recording| {
        recording.last = None;
        let _ = write!(recording, "\n{text}");
    });
}

/// Begins a line that ends with bytes.
pub(crate) fn bytes(text: Arguments, bytes: &[u8]) {
    line(text);
    with(|recording| bytes.iter().for_each(|byte| _ = write!(recording, "{byte:02x}")));
}

/// Notes that a BAR was mapped.
pub(crate) fn bar(bar: u64, kind: &str, start: u64, len_bytes: u64) {
    line(format_args!("bar {bar:x} {kind} {len_bytes:x}"));
    with(|recording| {
        if let Some(kept) = recording.starts.get_mut(bar as usize) {
            *kept = start;
        }
    });
}

/// Notes the access to a register or a port at `address`.
pub(crate) fn access(way: char, bar: u64, address: u64, width_bytes: usize, value: u64) {
    with(|recording| {
        let start = recording.starts.get(bar as usize).copied().unwrap_or(0);
        let access = (way, bar, address.wrapping_sub(start), width_bytes);
        if recording.last.replace(access) != Some(access) {
            let _ = write!(recording, "\n{way} {bar:x} {:x} {width_bytes:x}", access.2);
        }
        let _ = write!(recording, " {value:x}");
    });
}

/// Tells the next part of the recording, which ends with the first part. Returns the number of
/// bytes that are left.
pub(crate) fn tell() -> Result<u64> {
    let mut left = 0;
    let mut result = Ok(0);
    with(|recording| {
        recording.has_ended = true;
        let rest = recording.text.get(recording.told..).unwrap_or(&[]);
        let part = rest.get(..PART).unwrap_or(rest);
        result = rf_answer(part);
        if result.is_ok() {
            recording.told += part.len();
        }
        left = (recording.text.len() - recording.told) as u64;
    });
    result.map(|_| left)
}
