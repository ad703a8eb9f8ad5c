//! What QEMU says on its standard error: passed on as it comes, but for what the guest says better,
//! and looked through for the signal that ended it.

use super::end::terminated_by;
use std::io::{BufRead, BufReader, Read};
use std::thread::JoinHandle;

/// What QEMU's IOMMU says when it stops an access, and a virtio device that could not read its
/// queue: the guest has a report that names the driver.
const TOLD_BY_GUEST: [&str; 7] = [
    ": vtd_iova_to_slpte: ",
    ": vtd_iommu_translate: ",
    ": vtd_irte_get: ",
    ": Interrupt Mask set, irq is not generated",
    ": New fault is not recorded due to compression of faults",
    ": Next Fault Recording Reg is used, new fault is not recorded",
    ": virtio: zero sized buffers are not allowed",
];

fn is_told_by_guest(line: &str) -> bool {
    TOLD_BY_GUEST.iter().any(|part| line.contains(part))
}

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
                if !is_told_by_guest(&text) {
                    crate::output::complain(text.trim_end());
                }
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
