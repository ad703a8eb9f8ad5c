//! Entering a driver: the only way from safe code into `entry.S`, and out of it again.
//!
//! [`Current`] remembers for the time of an upcall whose it is, so that services and traps find
//! that.

use crate::arch::gates::{self, UpcallFrame};
use crate::arch::{cpu, power};
use crate::space::{Ring, Space};
use core::cell::Cell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;
use ringfence_abi::layout::slot_of;

/// How a driver is entered.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Address of the first instruction.
    pub rip: u64,
    /// Arguments in RDI, RSI, RDX, RCX.
    pub arguments: [u64; 4],
    /// Timer ticks that it may see.
    pub ticks: u32,
}

/// How it came back.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// What it returned; nothing that means anything if it was terminated.
    pub value: i64,
    /// Whether it was terminated ([`terminate`]).
    pub is_terminated: bool,
    /// Timer ticks that it did not see.
    pub ticks_left: u32,
    /// What it took, in TSC ticks.
    pub tsc_ticks: u64,
}

/// The `T` whose upcall is under way.
pub struct Current<T> {
    /// Null while [`Current::with`] has handed it out.
    value: Cell<*mut T>,
    /// The same, handed out or not.
    entered: Cell<*mut T>,
}

// SAFETY: there is one CPU. Interrupt handlers do not use this, but where a driver's upcall ends
// with them.
unsafe impl<T: Send> Sync for Current<T> {}

impl<T: Send> Current<T> {
    /// None's.
    pub const fn new() -> Current<T> {
        Current { value: Cell::new(null_mut()), entered: Cell::new(null_mut()) }
    }

    /// Runs `then` with the one whose upcall is under way; `None` if none is, or if this is called
    /// from within `then`.
    ///
    /// After a panic that does not count: who has it then never goes on.
    #[inline]
    pub fn with<R>(&self, then: impl FnOnce(&mut T) -> R) -> Option<R> {
        let mut value = match NonNull::new(self.value.replace(null_mut())) {
            Some(value) => value,
            None => NonNull::new(self.entered.get()).filter(|_| power::has_panicked())?,
        };
        // SAFETY: set by `enter` from a `&mut T` that lies idle until the driver comes back, and
        // handed out once at a time.
        let result = then(unsafe { value.as_mut() });
        self.value.set(value.as_ptr());
        Some(result)
    }

    /// Enters a driver, in the ring of its address space, until it returns or is terminated.
    /// Interrupts are on meanwhile.
    ///
    /// Panics if an upcall is under way: the address space of that one would not be known to be in
    /// use; and if the first instruction is not in the slot.
    #[inline]
    pub fn enter(&self, value: &mut T, space: impl FnOnce(&T) -> &Space, entry: &Entry) -> Exit {
        let space = space(value);
        let is_own = slot_of(entry.rip) == Some(space.slot());
        let [cr3, stacks, rsp] = [space.cr3(), space.stacks_alias(), space.first_rsp()];
        let enter = match space.ring() {
            Ring::Sandboxed => {
                space.set_return();
                gates::enter_sandboxed
            }
            // The domain is trusted, so the kernel's root may execute its slot.
            Ring::Trusted => gates::enter_trusted,
        };
        let frame = UpcallFrame { cr3, rip: entry.rip, rsp, args: entry.arguments };
        let cpu = cpu::this();
        assert!(cpu.domain_cr3.get() == 0, "a driver was to be entered while one runs");
        assert!(is_own, "a driver was to be entered where it is not");
        let value: *mut T = value;
        self.value.set(value);
        self.entered.set(value);
        cpu.domain_cr3.set(cr3);
        cpu.domain_stacks.set(stacks);
        cpu.ticks_left.store(entry.ticks, Ordering::Relaxed);
        let began = crate::latency::tsc();
        // SAFETY: frame and CPU state are of one address space, which maps the entry area as each
        // does.
        let end = unsafe { enter(&frame) };
        let tsc_ticks = crate::latency::tsc().wrapping_sub(began);
        let ticks_left = cpu.ticks_left.load(Ordering::Relaxed);
        cpu.domain_cr3.set(0);
        cpu.domain_stacks.set(0);
        cpu.ticks_left.store(0, Ordering::Relaxed);
        self.value.set(null_mut());
        self.entered.set(null_mut());
        Exit { value: end.value, is_terminated: end.ended != 0, ticks_left, tsc_ticks }
    }
}

impl<T: Send> Default for Current<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Terminates the upcall that is under way: [`Current::enter`] returns. **What lies on the kernel's
/// stack above that is not dropped.**
pub fn terminate() -> ! {
    assert!(cpu::this().upcall_rsp.get() != 0, "a driver was to be terminated, but none runs");
    // SAFETY: an upcall is under way. That nothing is dropped is like `core::mem::forget`, which is
    // safe: what this crate has lent out in between, `Current::enter` takes back.
    unsafe { gates::abort_upcall() }
}
