//! Entering a driver: the only way from safe code into `entry.S`, and out of it again.
//!
//! [`Current`] remembers for the time of an upcall whose it is, so that services and traps find
//! that.

use crate::arch::gates::{self, Asleep, UpcallEnd, UpcallFrame};
use crate::arch::{cpu, power};
use crate::space::{Ring, Space};
use core::cell::Cell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// It returned this.
    Returned(i64),
    /// It was terminated ([`terminate`]).
    Terminated,
    /// It sleeps ([`Current::sleep`]).
    Asleep,
}

/// How it came back, and what it took.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// How it came back.
    pub left: Left,
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

    /// Enters a driver, in the ring of its address space, until it returns, is terminated or falls
    /// asleep. Interrupts are on meanwhile.
    ///
    /// Panics if an upcall is under way: the address space of that one would not be known to be in
    /// use; if the first instruction is not in the slot; and if the driver sleeps.
    #[inline]
    pub fn enter(&self, value: &mut T, space: impl Fn(&T) -> &Space, entry: &Entry) -> Exit {
        let of = space(value);
        let can_be_entered = of.can_be_entered(entry.rip);
        let frame = UpcallFrame { cr3: of.cr3(), rip: entry.rip, rsp: of.first_rsp(), args: entry.arguments };
        let enter = match of.ring() {
            Ring::Sandboxed => {
                of.set_return();
                gates::enter_sandboxed
            }
            // The domain is trusted, so the kernel's root may execute its slot.
            Ring::Trusted => gates::enter_trusted,
        };
        assert!(can_be_entered, "a driver was to be entered where it is not, or while it sleeps");
        // SAFETY: frame and CPU state are of one address space, which maps the entry area as each
        // does.
        self.run(value, space, entry.ticks, || unsafe { enter(&frame) })
    }

    /// Has a driver go on that sleeps: the service in which it fell asleep returns 0. `None` if it
    /// does not sleep. It may see so many more timer ticks.
    ///
    /// Panics if an upcall is under way; and if the driver fell asleep in the other ring.
    pub fn wake(&self, value: &mut T, space: impl Fn(&T) -> &Space, ticks: u32) -> Option<Exit> {
        let of = space(value);
        let (cr3, ring) = (of.cr3(), of.ring());
        let resume = of.wake()?;
        if ring == Ring::Sandboxed {
            of.set_return();
        }
        Some(self.run(value, space, ticks, || match (&resume, ring) {
            // SAFETY: it fell asleep in this address space, with these registers.
            (Asleep::Sandboxed(caller), Ring::Sandboxed) => unsafe { gates::resume_sandboxed(caller, cr3) },
            // SAFETY: the same; its memory is the space's still, and its stack is its own.
            (Asleep::Trusted(rsp), Ring::Trusted) => unsafe { gates::resume_trusted(*rsp) },
            _ => panic!("a driver was moved between rings while it slept"),
        }))
    }

    /// Runs what enters a driver with its address space.
    #[inline(always)]
    fn run(&self, value: &mut T, space: impl Fn(&T) -> &Space, ticks: u32, enter: impl FnOnce() -> UpcallEnd) -> Exit {
        let [cr3, stacks] = [space(value).cr3(), space(value).stacks_alias()];
        let cpu = cpu::this();
        assert!(cpu.domain_cr3.get() == 0, "a driver was to be entered while one runs");
        let entered: *mut T = value;
        self.value.set(entered);
        self.entered.set(entered);
        cpu.domain_cr3.set(cr3);
        cpu.domain_stacks.set(stacks);
        cpu.ticks_left.store(ticks, Ordering::Relaxed);
        let began = crate::latency::tsc();
        let end = enter();
        let tsc_ticks = crate::latency::tsc().wrapping_sub(began);
        let ticks_left = cpu.ticks_left.load(Ordering::Relaxed);
        cpu.domain_cr3.set(0);
        cpu.domain_stacks.set(0);
        cpu.ticks_left.store(0, Ordering::Relaxed);
        self.value.set(null_mut());
        self.entered.set(null_mut());
        let left = match end.ended {
            0 => Left::Returned(end.value),
            1 => Left::Terminated,
            _ => {
                let space = space(value);
                if space.ring() == Ring::Trusted {
                    space.fall_asleep(Asleep::Trusted(end.value as u64));
                }
                Left::Asleep
            }
        };
        Exit { left, ticks_left, tsc_ticks }
    }

    /// Puts the driver whose upcall is under way to sleep, in the service that it has called:
    /// [`Current::enter`] returns, or [`Current::wake`]. **What lies on the kernel's stack above
    /// that is not dropped**, if the driver is sandboxed; if it is trusted, this returns when it is
    /// woken, if it ever is.
    pub fn sleep(&self, space: impl FnOnce(&T) -> &Space) {
        let ring = self.with(|value| {
            let space = space(value);
            if let Some(caller) = gates::caller().filter(|_| space.ring() == Ring::Sandboxed) {
                space.fall_asleep(Asleep::Sandboxed(caller));
            }
            space.ring()
        });
        match ring {
            // SAFETY: an upcall is under way: it was handed out. As for `terminate`.
            Some(Ring::Sandboxed) => unsafe { gates::leave_asleep() },
            // SAFETY: the same. This stack is the driver's, and stays as it is until it goes on.
            Some(Ring::Trusted) => unsafe { gates::sleep_trusted() },
            None => panic!("a driver was to be put to sleep, but none runs"),
        }
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
