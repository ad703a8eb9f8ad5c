//! QEMU's standard error. Each line is passed on, unless the guest reports the same event better.
//! The lines are also searched for the signal that ended QEMU.

use super::end::terminated_by;
use std::io::{BufRead, BufReader, Read};
use std::thread::JoinHandle;

/// Parts of the messages that QEMU's IOMMU writes when it stops an access, and that a virtio device
/// writes when it cannot read its queue. They are not passed on: the guest's own report names the
/// driver.
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

/// A thread that reads QEMU's standard error until QEMU ends.
pub(super) struct Errors(Option<JoinHandle<Option<i32>>>);

impl Errors {
    /// Starts a thread that reads `from`.
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

    /// Waits for QEMU's end; returns the signal that ended QEMU, if QEMU named one.
    pub(super) fn signal(&mut self) -> Option<i32> {
        self.0.take()?.join().ok()?
    }
}
