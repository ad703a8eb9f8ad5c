//! Memory that the kernel shares with the driver: the queues and the mailbox page.

use crate::Result;
use alloc::string::String;
use alloc::vec::Vec;
use core::marker::PhantomData;
use ringfence_abi::layout::{MAILBOX, PAGE_SIZE, SLOT_SIZE};
use ringfence_abi::queue::{HasQueues, Words};
use ringfence_abi::service::Refusal;

/// Queue memory of `Q`, which the kernel has mapped.
pub(crate) struct QueueMemory<Q> {
    start: *mut u64,
    of: PhantomData<fn() -> Q>,
}

impl<Q> Clone for QueueMemory<Q> {
    #[inline]
    fn clone(&self) -> QueueMemory<Q> {
        *self
    }
}

impl<Q> Copy for QueueMemory<Q> {}

impl<Q: HasQueues> QueueMemory<Q> {
    /// # Safety
    /// The kernel must have mapped [`HasQueues::WORDS`] words at `start`, and must never unmap
    /// them.
    pub(crate) unsafe fn new(start: u64) -> QueueMemory<Q> {
        QueueMemory { start: start as *mut u64, of: PhantomData }
    }
}

impl<Q: HasQueues> Words for QueueMemory<Q> {
    #[inline]
    fn load(&self, index: usize) -> u64 {
        if index >= Q::WORDS {
            return 0;
        }
        // SAFETY: the word is inside the memory. The kernel may write it too, so the access is
        // volatile.
        unsafe { self.start.add(index).read_volatile() }
    }

    #[inline]
    fn store(&self, index: usize, value: u64) {
        if index < Q::WORDS {
            // SAFETY: as above.
            unsafe { self.start.add(index).write_volatile(value) };
        }
    }

    #[inline]
    fn load_half(&self, index: usize) -> u32 {
        if index >= Q::WORDS {
            return 0;
        }
        // SAFETY: as above.
        unsafe { self.start.add(index).cast::<u32>().read_volatile() }
    }

    #[inline]
    fn store_half(&self, index: usize, value: u32) {
        if index < Q::WORDS {
            // SAFETY: as above.
            unsafe { self.start.add(index).cast::<u32>().write_volatile(value) };
        }
    }
}

/// Returns the address of the mailbox page.
fn mailbox_page() -> *mut u8 {
    // The slot follows from any address of this module. That of a segmented driver begins at 0.
    let slot = mailbox_page as *const () as u64 & !(SLOT_SIZE - 1);
    (slot + MAILBOX) as *mut u8
}

/// Returns the first `len_bytes` bytes of the mailbox page. It is not inlined, so that a trace of
/// watched accesses to the page names it.
#[inline(never)]
pub(crate) fn mailbox(len_bytes: u64) -> Result<Vec<u8>> {
    if len_bytes > PAGE_SIZE {
        return Err(Refusal::Invalid);
    }
    let page = mailbox_page();
    // SAFETY: the kernel maps the page before it enters the driver.
    Ok((0..len_bytes as usize).map(|index| unsafe { page.add(index).read_volatile() }).collect())
}

/// Returns the first `len_bytes` bytes of the mailbox page, as text.
pub(crate) fn typed(len_bytes: u64) -> Result<String> {
    text_of(&mailbox(len_bytes)?).ok_or(Refusal::Invalid)
}

/// Writes `bytes` to the start of the mailbox page.
pub(crate) fn put_into_mailbox(bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > PAGE_SIZE {
        return Err(Refusal::Invalid);
    }
    let page = mailbox_page();
    for (index, byte) in bytes.iter().enumerate() {
        // SAFETY: the kernel maps the page before it enters the driver, and reads it afterwards.
        unsafe { page.add(index).write_volatile(*byte) };
    }
    Ok(())
}

/// Decodes UTF-8 (RFC 3629); `None` if the bytes are not valid. This does not use `from_utf8` or
/// any other decoder of `core`: their machine code happens to contain byte sequences that are
/// refused under QEMU 10.0 (docs/threat-model.md).
pub(crate) fn text_of(bytes: &[u8]) -> Option<String> {
    let mut text = String::new();
    let mut rest = bytes.iter().copied();
    while let Some(first) = rest.next() {
        let (more, bits) = match first.leading_ones() {
            0 => (0, first),
            2 => (1, first & 0x1f),
            3 => (2, first & 0x0f),
            4 => (3, first & 0x07),
            _ => return None,
        };
        let mut code = u32::from(bits);
        for _ in 0..more {
            code = code << 6 | u32::from(rest.next().filter(|byte| byte & 0xc0 == 0x80)? & 0x3f);
        }
        // An encoding that is longer than necessary is not valid UTF-8.
        let decoded = char::from_u32(code).filter(|decoded| decoded.len_utf8() == more + 1)?;
        text.push(decoded);
    }
    Some(text)
}
