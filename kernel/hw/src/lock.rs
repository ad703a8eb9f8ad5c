//! Locks that a kernel panic breaks: the panic must print its report even if the locks are held.

use crate::arch::power;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::{Mutex, MutexGuard};

/// A spin lock that is broken, once, when the kernel has panicked.
pub struct Lock<T> {
    mutex: Mutex<T>,
    is_broken: AtomicBool,
}

impl<T> Lock<T> {
    /// Makes a lock around `value`.
    pub const fn new(value: T) -> Lock<T> {
        Lock { mutex: Mutex::new(value), is_broken: AtomicBool::new(false) }
    }

    /// Waits until the lock is free, and takes it.
    #[inline]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.break_after_panic();
        self.mutex.lock()
    }

    /// Takes the lock, if it is free.
    #[inline]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.break_after_panic();
        self.mutex.try_lock()
    }

    #[inline]
    fn break_after_panic(&self) {
        if power::has_panicked() && !self.is_broken.swap(true, Ordering::Relaxed) {
            // SAFETY: when the kernel has panicked, no work that was under way goes on, and
            // interrupts are off for good. So the holder has used the value for the last time. A
            // lock that the panic itself takes from here on is not broken again.
            unsafe { self.mutex.force_unlock() };
        }
    }
}
