//! Locks that the kernel's end breaks: a panic has to speak, whoever holds what it needs.

use crate::arch::power;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::{Mutex, MutexGuard};

/// A spin lock that is broken, once, when the kernel has panicked.
pub struct Lock<T> {
    mutex: Mutex<T>,
    is_broken: AtomicBool,
}

impl<T> Lock<T> {
    /// A lock around `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock { mutex: Mutex::new(value), is_broken: AtomicBool::new(false) }
    }

    /// Waits until nobody has it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.break_after_panic();
        self.mutex.lock()
    }

    /// The value, if nobody has it.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.break_after_panic();
        self.mutex.try_lock()
    }

    #[inline]
    fn break_after_panic(&self) {
        if power::has_panicked() && !self.is_broken.swap(true, Ordering::Relaxed) {
            // SAFETY: nothing that was under way goes on when the kernel has panicked, and
            // interrupts are off for good: who had it has used it for the last time. What the panic
            // itself locks from here on is not broken again.
            unsafe { self.mutex.force_unlock() };
        }
    }
}
