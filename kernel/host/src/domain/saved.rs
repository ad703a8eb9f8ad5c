//! The state that a driver keeps over a reload. Its bytes are between the builds of the driver: the
//! kernel only carries them, from one mailbox page to the other.

use super::cause::UpcallError;
use super::{Handle, sleep};
use alloc::vec;
use alloc::vec::Vec;
use hw::console;
use log::Level;
use ringfence_abi::layout::{MAILBOX, PAGE_SIZE};
use ringfence_abi::upcall::{RESTORE, SAVE, length_and_version};

/// A driver's state.
#[derive(Debug)]
pub struct SavedState {
    version: u32,
    bytes: Vec<u8>,
}

impl SavedState {
    /// Asks a driver for its state. Returns `None` if it has none, or is ended meanwhile.
    pub async fn of(handle: &Handle) -> Option<SavedState> {
        let saved = sleep::upcall(handle, SAVE).await.ok()?;
        let (len_bytes, version) = length_and_version(saved);
        if len_bytes == 0 {
            return None;
        }
        let domain = handle.lock();
        let mut bytes = vec![0; len_bytes.min(PAGE_SIZE) as usize];
        if len_bytes > PAGE_SIZE || !domain.space.read(domain.base() + MAILBOX, &mut bytes) {
            let text = format_args!("its state is not kept: it has {len_bytes} bytes, and {PAGE_SIZE} are the most");
            console::say_about(&domain.source(), Level::Warn, text);
            return None;
        }
        Some(SavedState { version, bytes })
    }

    /// Gives the state to a new build. A build that refuses it starts afresh, with a line in the
    /// log.
    ///
    /// # Errors
    /// If the build is ended meanwhile.
    pub async fn restore(&self, handle: &Handle) -> Result<(), UpcallError> {
        let arguments = [self.bytes.len() as u64, self.version.into(), 0];
        let restored = sleep::finish(handle, |domain| {
            domain.space.write(domain.base() + MAILBOX, &self.bytes);
            domain.upcall(RESTORE, arguments)
        });
        match restored.await.0 {
            Ok(_) => Ok(()),
            Err(UpcallError::Ended) => Err(UpcallError::Ended),
            Err(error) => {
                let domain = handle.lock();
                let text = format_args!("starts afresh, without the state of the build before: {error}");
                console::say_about(&domain.source(), Level::Warn, text);
                Ok(())
            }
        }
    }
}
