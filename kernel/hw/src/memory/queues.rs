//! The kernel's view of queues that it shares with a driver.

use super::frames::Lent;
use super::shared;
use core::marker::PhantomData;
use core::ptr::NonNull;
use core::sync::atomic::AtomicU64;
use ringfence_abi::queue::{HasQueues, Words};

/// Lent frames that hold the queues of `Q`.
pub struct QueueMemory<Q> {
    /// [`HasQueues::WORDS`] words of the frames.
    words: NonNull<AtomicU64>,
    memory: Lent,
    of: PhantomData<fn() -> Q>,
}

// SAFETY: the words are atomic, and are freed with the last owner of the frames. `Lent` is `Send`.
unsafe impl<Q> Send for QueueMemory<Q> {}

impl<Q: HasQueues> QueueMemory<Q> {
    /// Returns `None` if there are fewer words in `memory`.
    pub fn new(memory: Lent) -> Option<QueueMemory<Q>> {
        let words = memory.words().get(..Q::WORDS)?.as_ptr();
        Some(QueueMemory { words: NonNull::new(words.cast_mut())?, memory, of: PhantomData })
    }

    /// Returns the frames.
    pub fn memory(&self) -> &Lent {
        &self.memory
    }

    #[inline(always)]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `new` has seen so many words, and the frames live as long as this value.
        unsafe { core::slice::from_raw_parts(self.words.as_ptr(), Q::WORDS) }
    }
}

impl<Q: HasQueues> Words for QueueMemory<Q> {
    #[inline(always)]
    fn load(&self, index: usize) -> u64 {
        shared::load(self.words(), index)
    }

    #[inline(always)]
    fn store(&self, index: usize, value: u64) {
        shared::store(self.words(), index, value);
    }

    #[inline(always)]
    fn load_words<const N: usize>(&self, first: usize) -> [u64; N] {
        shared::load_words(self.words(), first)
    }

    #[inline(always)]
    fn store_bytes(&self, first: usize, bytes: &[u8]) {
        shared::store_bytes(self.words(), first, bytes);
    }
}
