//! Entry into a driver: the only way from safe code into `entry.S`, and out of it again.
//!
//! During an upcall, [`Current`] remembers the domain that was entered, so that services and traps
//! find it.

use crate::arch::frame::TrapFrame;
use crate::arch::gates::{self, Asleep, Caller, UpcallEnd, UpcallFrame};
use crate::arch::{cpu, power};
use crate::space::{Ring, Space};
use core::cell::Cell;
use core::ptr::{NonNull, null_mut};
use core::sync::atomic::Ordering;

/// The arguments of an entry into a driver.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Address of the first instruction.
    pub rip: u64,
    /// Arguments in RDI, RSI, RDX, RCX.
    pub arguments: [u64; 4],
    /// Timer ticks that the upcall may use.
    pub ticks: u32,
}

/// The way in which a driver left its upcall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// The driver returned this value.
    Returned(i64),
    /// The driver was terminated ([`terminate`]).
    Terminated,
    /// The driver sleeps ([`Current::sleep`]), or stands ([`Current::stand`]).
    Asleep,
}

/// The result of an upcall, and its cost.
#[derive(Debug, Clone, Copy)]
pub struct Exit {
    /// The way in which the driver left.
    pub left: Left,
    /// Timer ticks that the upcall has not used.
    pub ticks_left: u32,
    /// The TSC when the upcall began.
    pub began: u64,
    /// Duration of the upcall, in TSC ticks.
    pub tsc_ticks: u64,
}

/// A way into a driver.
enum Way {
    /// At the first instruction that the frame names.
    Start(Ring, UpcallFrame),
    /// Back into the service in which a sandboxed driver fell asleep, with its root.
    ResumeSandboxed(Caller, u64),
    /// Back to the instruction at which a sandboxed driver stands, by the frame at this address.
    ResumeTrapped(u64),
    /// Back into the service in which a trusted driver fell asleep, with its RSP.
    ResumeTrusted(u64),
}

/// The `T` whose upcall is under way.
pub struct Current<T> {
    /// Null while [`Current::with`] has handed out the value.
    value: Cell<*mut T>,
    /// The same pointer, whether the value is handed out or not.
    entered: Cell<*mut T>,
}

// SAFETY: there is one CPU. Interrupt handlers do not use this, except when they end a driver's
// upcall.
unsafe impl<T: Send> Sync for Current<T> {}

impl<T: Send> Current<T> {
    /// Makes a `Current` without an upcall.
    pub const fn new() -> Current<T> {
        Current { value: Cell::new(null_mut()), entered: Cell::new(null_mut()) }
    }

    /// Runs `then` with the value whose upcall is under way. Returns `None` if no upcall is under
    /// way, or if this is called from within `then`.
    ///
    /// After a panic, a call from within `then` gets the value as well, as the code that has it
    /// never goes on.
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
    /// Panics if an upcall is under way, as its address space would not be known to be in use any
    /// more. Panics also if the first instruction is not in the slot, and if the driver sleeps.
    #[inline(always)]
    pub fn enter(&self, value: &mut T, space: impl Fn(&T) -> &Space, entry: &Entry) -> Exit {
        let of = space(value);
        let can_be_entered = of.can_be_entered(entry.rip);
        let (cr3, stacks) = (of.cr3(), of.stacks_alias());
        let frame = UpcallFrame { cr3, rip: entry.rip, rsp: of.first_rsp(), args: entry.arguments };
        let ring = of.ring();
        if ring == Ring::Sandboxed {
            of.set_return();
        }
        assert!(can_be_entered, "a driver was to be entered where it is not, or while it sleeps");
        self.run(value, space, [cr3, stacks], entry.ticks, &Way::Start(ring, frame))
    }

    /// Resumes a driver that sleeps: the service in which it fell asleep returns 0. The driver may
    /// use `ticks` more timer ticks. Returns `None` if the driver does not sleep.
    ///
    /// Panics if an upcall is under way, and if the driver fell asleep in the other ring.
    pub fn wake(&self, value: &mut T, space: impl Fn(&T) -> &Space, ticks: u32) -> Option<Exit> {
        let of = space(value);
        let (cr3, stacks, ring) = (of.cr3(), of.stacks_alias(), of.ring());
        let resume = of.wake()?;
        if ring == Ring::Sandboxed {
            of.set_return();
        }
        let way = match (resume, ring) {
            (Asleep::Sandboxed(caller), Ring::Sandboxed) => Way::ResumeSandboxed(caller, cr3),
            (Asleep::Trapped(frame), Ring::Sandboxed) => Way::ResumeTrapped(of.place_frame(frame)),
            (Asleep::Trusted(rsp), Ring::Trusted) => Way::ResumeTrusted(rsp),
            _ => panic!("a driver was moved between rings while it slept"),
        };
        Some(self.run(value, space, [cr3, stacks], ticks, &way))
    }

    /// Enters a driver by `way`, with the CPU state of the driver's address space: its root, and
    /// where the kernel sees its stacks' page.
    #[inline(always)]
    fn run(&self, value: &mut T, space: impl Fn(&T) -> &Space, [cr3, stacks]: [u64; 2], ticks: u32, way: &Way) -> Exit {
        let cpu = cpu::this();
        assert!(cpu.domain_cr3.get() == 0, "a driver was to be entered while one runs");
        let lift = space(value).lift();
        let entered: *mut T = value;
        self.value.set(entered);
        self.entered.set(entered);
        cpu.domain_cr3.set(cr3);
        cpu.domain_stacks.set(stacks);
        cpu.lift.set(lift);
        cpu.ticks_left.store(ticks, Ordering::Relaxed);
        let began = crate::latency::tsc();
        // SAFETY: the frame, or the driver that sleeps, and the CPU state belong to one address
        // space, and every address space maps the entry area. A trusted domain's slot may be
        // executed in the kernel's root. A driver that sleeps has the memory and the stack that it
        // fell asleep with.
        let end = unsafe {
            match way {
                Way::Start(ring, frame) => {
                    // One call, so that what follows is the same code in each ring, at the same
                    // address: where two blocks lie decides whether QEMU finds both at once.
                    let enter: unsafe extern "C" fn(*const UpcallFrame) -> UpcallEnd = match (ring, lift) {
                        (Ring::Sandboxed, 0) => gates::enter_sandboxed,
                        (Ring::Sandboxed, _) => gates::enter_segmented,
                        (Ring::Trusted, _) => gates::enter_trusted,
                    };
                    enter(frame)
                }
                Way::ResumeSandboxed(caller, cr3) if lift == 0 => gates::resume_sandboxed(caller, *cr3),
                Way::ResumeSandboxed(caller, cr3) => gates::resume_segmented(caller, *cr3),
                Way::ResumeTrapped(frame) => gates::resume_trapped(*frame),
                Way::ResumeTrusted(rsp) => gates::resume_trusted(*rsp),
            }
        };
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
        Exit { left, ticks_left, began, tsc_ticks }
    }

    /// Puts the driver whose upcall is under way to sleep, in the service that it has called:
    /// [`Current::enter`] or [`Current::wake`] returns. **For a sandboxed driver, the values on the
    /// kernel's stack above are not dropped.** For a trusted driver, this function returns when the
    /// driver is woken, if it ever is.
    pub fn sleep(&self, space: impl FnOnce(&T) -> &Space) {
        let ring = self.with(|value| {
            let space = space(value);
            if let Some(caller) = gates::caller().filter(|_| space.ring() == Ring::Sandboxed) {
                space.fall_asleep(Asleep::Sandboxed(caller));
            }
            space.ring()
        });
        let Some(ring) = ring else { panic!("a driver was to be put to sleep, but none runs") };
        // SAFETY: an upcall is under way, as its value was handed out. For a sandboxed driver, as
        // for `terminate`. For a trusted driver, this stack is the driver's, and stays unchanged
        // until the driver goes on.
        unsafe {
            match ring {
                Ring::Sandboxed => gates::leave_asleep(),
                Ring::Trusted => gates::sleep_trusted(),
            }
        }
    }
}

impl<T: Send> Current<T> {
    /// Leaves the upcall that is under way, of a sandboxed driver which a trap has hit:
    /// [`Current::enter`] or [`Current::wake`] returns, and [`Current::wake`] goes on with `frame`.
    /// **The values on the kernel's stack above are not dropped.**
    pub fn stand(&self, space: impl FnOnce(&T) -> &Space, frame: TrapFrame) -> ! {
        let kept = self.with(|value| space(value).fall_asleep(Asleep::Trapped(frame)));
        assert!(kept.is_some(), "a driver was to stand still, but none runs");
        // SAFETY: an upcall is under way, as its value was handed out; and as for `terminate`.
        unsafe { gates::leave_asleep() }
    }
}

impl<T: Send> Default for Current<T> {
    fn default() -> Self {
        Self::new()
    }
}

/// Terminates the upcall that is under way: [`Current::enter`] returns. **The values on the
/// kernel's stack above are not dropped.**
pub fn terminate() -> ! {
    assert!(cpu::this().upcall_rsp.get() != 0, "a driver was to be terminated, but none runs");
    // SAFETY: an upcall is under way. Dropping nothing is like `core::mem::forget`, which is safe:
    // `Current::run` takes back the value that this crate has lent out meanwhile.
    unsafe { gates::abort_upcall() }
}
