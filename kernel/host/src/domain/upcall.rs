//! Upcalls. Entering a driver is a call that returns the driver's answer, or the reason for having
//! none.

use super::cause::{Cause, Site, UpcallError};
use super::fault::{self, Fault};
use super::{Domain, Ring};
use super::{accesses, debug, trace};
use alloc::sync::Arc;
use hw::arch::frame::TrapFrame;
use hw::arch::handlers::{DriverTrap, Verdict};
use hw::arch::time::TICK_HZ;
use hw::arch::watch;
use hw::console;
use hw::upcall::{Current, Entry, Exit, Left, terminate};
use log::Level;
use ringfence_abi::layout::{MAILBOX, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{self, Events, POLL};
use ringfence_core::extent::Extent;
use ringfence_core::passed::Side;

/// The number of lines that a driver may log in one upcall.
const LOG_LINES: u32 = 64;

impl Domain {
    /// Enters the driver and returns its answer, 0 or more.
    pub fn upcall(&mut self, operation: u64, arguments: [u64; 3]) -> Result<u64, UpcallError> {
        if !self.life.is_running() {
            return Err(if self.is_alive() { UpcallError::Asleep } else { UpcallError::Ended });
        }
        self.upcall_running(operation, arguments)
    }

    /// Enters a driver that is known to run and not to sleep.
    #[inline(always)]
    pub(crate) fn upcall_running(&mut self, operation: u64, arguments: [u64; 3]) -> Result<u64, UpcallError> {
        self.log_left = LOG_LINES;
        self.upcall = operation;
        let [a, b, c] = arguments;
        self.events = if operation == POLL { Events::from_bits_truncate(a) } else { Events::empty() };
        self.upcalls = self.upcalls.wrapping_add(1);
        if self.trace.is_some() {
            trace::note_enter(self, operation, arguments);
        }
        let budget = self.budget;
        let entry = Entry { rip: self.entry, arguments: [operation, a, b, c], ticks: budget };
        let exit = CURRENT.enter(self, |domain| &domain.space, &entry);
        self.leave(exit, budget)
    }

    /// Lets a sleeping driver go on with its upcall, and returns its answer.
    pub fn wake(&mut self) -> Result<u64, UpcallError> {
        if !self.life.wake() {
            return Err(UpcallError::Ended);
        }
        let is_in_service = self.space.standing().is_none();
        if is_in_service {
            self.calls.end(0);
        }
        if self.trace.is_some() {
            trace::note_woken(self);
            if is_in_service {
                trace::note_call(self);
            }
        }
        let budget = self.sleep.ticks_left;
        let exit = CURRENT.wake(self, |domain| &domain.space, budget).ok_or(UpcallError::Ended)?;
        let result = self.leave(exit, budget);
        if result != Err(UpcallError::Asleep) {
            self.end_sleep();
        }
        result
    }

    /// Finds the result of an upcall that was entered with a budget of `budget` timer ticks.
    #[inline(always)]
    fn leave(&mut self, exit: Exit, budget: u32) -> Result<u64, UpcallError> {
        self.turn.count(exit.began, exit.tsc_ticks, || budget - exit.ticks_left);
        if self.log_dropped > 0 {
            let text = format_args!("{} more lines in one upcall were dropped", self.log_dropped);
            console::say_about(&self.source(), Level::Warn, text);
            self.log_dropped = 0;
        }
        let value = match exit.left {
            Left::Returned(value) => value,
            Left::Terminated => {
                if self.trace.is_some() {
                    trace::note_passed(self, Side::Driver);
                }
                fault::print_due();
                return Err(UpcallError::Ended);
            }
            Left::Asleep => {
                self.sleep.ticks_left = exit.ticks_left;
                if self.trace.is_some() {
                    trace::note_leave(self, Err(UpcallError::Asleep));
                }
                return Err(UpcallError::Asleep);
            }
        };
        let result = match u64::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => Err(Refusal::from_result(value).map_or(UpcallError::Nonsense(value), UpcallError::Refused)),
        };
        if self.trace.is_some() {
            trace::note_leave(self, result);
        }
        result
    }

    /// Hands `text` (at most a page; the rest is cut off) to the driver's command entry.
    pub fn command(&mut self, text: &str) -> Result<u64, UpcallError> {
        self.answer.clear();
        let bytes = text.as_bytes();
        let bytes = bytes.get(..PAGE_SIZE as usize).unwrap_or(bytes);
        self.space.write(self.base() + MAILBOX, bytes);
        self.upcall(upcall::COMMAND, [bytes.len() as u64, 0, 0])
    }

    /// Ends the driver from outside an upcall, without a report: it has done nothing wrong.
    pub fn end(&mut self, cause: Cause) {
        if self.is_alive() {
            self.witness();
            let fault = Arc::new(Fault::new(self, cause, Site::Nowhere));
            self.life.end(fault);
        }
    }

    /// Ends the driver from outside an upcall, with a report.
    pub fn condemn(&mut self, cause: Cause) {
        if self.is_alive() {
            let fault = Fault::new(self, cause, Site::Nowhere);
            self.life.end(fault.report(self.has_successor()));
            fault::print_due();
        }
    }
}

/// Returns the budget in timer ticks, with one tick more than asked for: the first tick may come at
/// once.
///
/// Ticks are counted, not time: when the host stalls, a driver that did not run is not to blame.
/// The time of a service is counted as far as [`time::charged`] does so.
pub fn budget_ticks(milliseconds: u32) -> u32 {
    (u64::from(milliseconds) * u64::from(TICK_HZ)).div_ceil(1000) as u32 + 1
}

/// The domain whose upcall is under way.
static CURRENT: Current<Domain> = Current::new();

/// Runs `then` with the domain whose upcall is under way. Returns `None` if no upcall is under way,
/// or if a service already holds the domain.
#[inline]
pub fn with_current<T>(then: impl FnOnce(&mut Domain) -> T) -> Option<T> {
    CURRENT.with(then)
}

/// Leaves the upcall that is under way for now: [`Domain::upcall`] returns [`UpcallError::Asleep`].
/// A trusted driver continues after this call when it is woken.
pub fn put_current_to_sleep() {
    CURRENT.sleep(|domain| &domain.space);
}

/// Ends the driver whose upcall is under way: [`Domain::upcall`] returns [`UpcallError::Ended`].
fn end_current(fault: impl FnOnce(&mut Domain) -> Fault) -> ! {
    let recorded = with_current(|domain| {
        let fault = fault(domain);
        domain.life.end(fault.report(domain.has_successor()));
    });
    assert!(recorded.is_some(), "a driver was to be ended, but none runs");
    terminate()
}

/// Decides about the driver whose upcall is under way, which a trap has hit.
pub fn judge(why: DriverTrap, frame: &mut TrapFrame) -> Verdict {
    let judge = |domain: &mut Domain| {
        if let DriverTrap::Exception { address } = why
            && accesses::judge(domain, frame, address) == Verdict::GoesOn
            && !watch::is_met()
        {
            return Verdict::GoesOn;
        }
        debug::judge(domain, why, frame)
    };
    with_current(judge).unwrap_or(Verdict::Ends)
}

/// Leaves the upcall of a driver that stands still for a debugger, until [`Domain::wake`].
pub fn stand(frame: TrapFrame) -> ! {
    with_current(|domain| domain.life.sleep(u64::MAX));
    CURRENT.stand(|domain| &domain.space, frame)
}

/// Ends the driver whose upcall is under way, because of the service that it has called; or has it
/// stand for a debugger instead.
#[cold]
#[inline(never)]
pub fn end_in_call(cause: Cause) -> ! {
    if let Some(frame) = with_current(|domain| debug::judge_call(domain, cause)).flatten() {
        stand(frame)
    }
    end_current(|domain| Fault::at_gate(domain, cause))
}

/// Returns whether the driver whose upcall is under way runs in ring 0, and its own code was on top
/// of the stack when a trap hit: at the instruction, or right below it, after a jump to an address
/// that cannot be executed. **In a service that it has called, the kernel's code is on top.**
pub fn is_trusted_to_blame(why: DriverTrap, frame: &TrapFrame) -> bool {
    let judge = |domain: &mut Domain| {
        let is_own = |address: u64| domain.slot_extent().encloses(Extent::new(address, 1));
        let jumped_to = DriverTrap::Exception { address: Some(frame.rip) };
        if domain.ring() != Ring::Trusted || is_own(frame.rip) {
            return domain.ring() == Ring::Trusted;
        }
        let mut caller = [0; size_of::<u64>()];
        why == jumped_to && domain.space.read(frame.rsp, &mut caller) && is_own(u64::from_le_bytes(caller))
    };
    with_current(judge).unwrap_or(false)
}

/// Ends the driver whose upcall is under way, because of a trap.
pub fn end_by_trap(why: DriverTrap, frame: TrapFrame) -> ! {
    let cause = match why {
        DriverTrap::Exception { address } => Cause::Exception { address },
        DriverTrap::Overrun => Cause::Overrun,
    };
    end_current(|domain| Fault::new(domain, cause, Site::Trap(&frame)))
}
