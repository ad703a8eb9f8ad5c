//! Memory that the kernel shares with the driver: queues and the mailbox page.

use crate::Result;
use alloc::string::String;
use alloc::vec::Vec;
use ringfence_abi::layout::{MAILBOX, PAGE_SIZE, SLOT_SIZE};
use ringfence_abi::queue::Words;
use ringfence_abi::service::Refusal;

/// Queue memory that the kernel mapped.
#[derive(Clone, Copy)]
pub(crate) struct QueueMemory {
    start: *mut u64,
    words: usize,
}

impl QueueMemory {
    /// # Safety
    /// The kernel must have mapped `len_bytes` bytes at `start`, for good.
    pub(crate) unsafe fn new(start: u64, len_bytes: usize) -> QueueMemory {
        QueueMemory { start: start as *mut u64, words: len_bytes / 8 }
    }
}

impl Words for QueueMemory {
    fn load(&self, index: usize) -> u64 {
        if index >= self.words {
            return 0;
        }
        // SAFETY: inside the memory; the kernel may write it too, hence volatile.
        unsafe { self.start.add(index).read_volatile() }
    }

    fn store(&self, index: usize, value: u64) {
        if index < self.words {
            // SAFETY: as above.
            unsafe { self.start.add(index).write_volatile(value) };
        }
    }
}

/// The first `len_bytes` bytes of the mailbox page, as text.
pub(crate) fn mailbox(len_bytes: u64) -> Result<String> {
    if len_bytes > PAGE_SIZE {
        return Err(Refusal::Invalid);
    }
    // Any address of this module tells which slot it is in.
    let slot = mailbox as *const () as u64 & !(SLOT_SIZE - 1);
    let page = (slot + MAILBOX) as *const u8;
    // SAFETY: the kernel maps the page before it enters the driver.
    let bytes: Vec<u8> = (0..len_bytes as usize).map(|index| unsafe { page.add(index).read_volatile() }).collect();
    // Not `from_utf8`: its code happens to look like what is refused under QEMU 10.0 (docs/threat-model.md).
    match bytes.utf8_chunks().next() {
        None => Ok(String::new()),
        Some(chunk) if chunk.valid().len() == bytes.len() => Ok(chunk.valid().into()),
        Some(_) => Err(Refusal::Invalid),
    }
}
