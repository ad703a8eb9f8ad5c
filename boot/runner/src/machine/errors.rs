//! What QEMU says on its standard error: passed on as it comes, and looked through for the signal that ended it.

use super::end::terminated_by;
use std::io::{BufRead, BufReader, Read};
use std::thread::JoinHandle;

/// A thread that listens until QEMU is gone.
pub(super) struct Errors(Option<JoinHandle<Option<i32>>>);

impl Errors {
    /// Listens to `from`.
    pub(super) fn listen(from: impl Read + Send + 'static) -> Errors {
        Errors(Some(std::thread::spawn(move || {
            let mut signal = None;
            let mut reader = BufReader::new(from);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line);
                signal = terminated_by(&text).or(signal);
                crate::output::complain(text.trim_end());
                line.clear();
            }
            signal
        })))
    }

    /// The signal that it said has ended it, once it has ended.
    pub(super) fn signal(&mut self) -> Option<i32> {
        self.0.take()?.join().ok()?
    }
}
