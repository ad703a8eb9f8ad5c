//! Running a driver: a call that returns a reason.

use super::cause::{Cause, Site, UpcallError};
use super::fault::{self, Fault};
use super::trace::{self, What};
use super::{Domain, Ring};
use crate::arch::cpu;
use crate::arch::frame::TrapFrame;
use crate::arch::gates::{self, UpcallFrame};
use crate::arch::handlers::DriverTrap;
use crate::arch::time::{self, TICK_HZ};
use crate::console;
use alloc::sync::Arc;
use core::sync::atomic::Ordering;
use log::Level;
use ringfence_abi::layout::{IMAGE, MAILBOX, PAGE_SIZE};
use ringfence_abi::service::Refusal;
use ringfence_abi::upcall::{self, Events, POLL};

/// Lines that a driver may log in one upcall.
const LOG_LINES: u32 = 64;

impl Domain {
    /// Enters the driver and returns what it answers, 0 or more.
    pub fn upcall(&mut self, operation: u64, arguments: [u64; 3]) -> Result<u64, UpcallError> {
        if !self.is_alive() {
            return Err(UpcallError::Ended);
        }
        self.log_left = LOG_LINES;
        self.upcall = operation;
        let [a, b, c] = arguments;
        self.events = if operation == POLL { Events::from_bits_truncate(a) } else { Events::empty() };
        self.upcalls += 1;
        trace::note(self, || What::Enter(operation, arguments));
        let frame = UpcallFrame {
            cr3: self.space.cr3(),
            rip: self.base() + IMAGE + self.entry,
            rsp: self.space.first_rsp(),
            args: [operation, a, b, c],
        };
        let cpu = cpu::this();
        let outer =
            (cpu.domain.get(), cpu.domain_cr3.get(), cpu.domain_stacks.get(), cpu.ticks_left.load(Ordering::Relaxed));
        cpu.domain.set(core::ptr::from_mut(self).cast());
        cpu.domain_cr3.set(frame.cr3);
        cpu.domain_stacks.set(self.space.stacks_alias());
        let budget = budget_ticks(self.manifest.upcall_ms);
        cpu.ticks_left.store(budget, Ordering::Relaxed);
        let began = time::tsc();
        let enter = match self.ring() {
            Ring::Sandboxed => {
                self.space.set_return();
                gates::enter_sandboxed
            }
            // The domain is trusted, so the kernel's root may execute its slot.
            Ring::Trusted => gates::enter_trusted,
        };
        // SAFETY: frame and CPU state are this domain's.
        let end = unsafe { enter(&frame) };
        self.turn.count(time::tsc().wrapping_sub(began), || budget - cpu.ticks_left.load(Ordering::Relaxed));
        let (domain, cr3, stacks, ticks) = outer;
        cpu.domain.set(domain);
        cpu.domain_cr3.set(cr3);
        cpu.domain_stacks.set(stacks);
        cpu.ticks_left.store(ticks, Ordering::Relaxed);
        if self.log_dropped > 0 {
            let text = format_args!("{} more lines in one upcall were dropped", self.log_dropped);
            console::say_about(&self.source(), Level::Warn, text);
            self.log_dropped = 0;
        }
        if end.ended != 0 {
            fault::print_due();
            return Err(UpcallError::Ended);
        }
        let result = match u64::try_from(end.value) {
            Ok(value) => Ok(value),
            Err(_) => {
                Err(Refusal::from_result(end.value).map_or(UpcallError::Nonsense(end.value), UpcallError::Refused))
            }
        };
        trace::note(self, || What::Leave(result, self.turn.last_ticks));
        result
    }

    /// Hands `text` (at most a page; the rest is cut off) to the driver's command entry.
    pub fn command(&mut self, text: &str) -> Result<u64, UpcallError> {
        let bytes = text.as_bytes();
        let bytes = bytes.get(..PAGE_SIZE as usize).unwrap_or(bytes);
        self.space.write(self.base() + MAILBOX, bytes);
        self.upcall(upcall::COMMAND, [bytes.len() as u64, 0, 0])
    }

    /// Ends the driver from outside an upcall, without a report: it has done nothing wrong.
    pub fn end(&mut self, cause: Cause) {
        if self.is_alive() {
            self.fault = Some(Arc::new(Fault::new(self, cause, Site::Nowhere)));
        }
    }

    /// Ends the driver from outside an upcall, with a report.
    pub fn condemn(&mut self, cause: Cause) {
        if self.is_alive() {
            let fault = Fault::new(self, cause, Site::Nowhere);
            self.fault = Some(fault.report(self.restarts()));
            fault::print_due();
        }
    }
}

/// At least one whole tick more than asked for: the first one may come at once.
///
/// Ticks are counted, not time: when the host stalls, a driver that did not run is not to blame. What a service takes is
/// counted as far as that goes ([`time::charged`]).
fn budget_ticks(milliseconds: u32) -> u32 {
    (u64::from(milliseconds) * u64::from(TICK_HZ)).div_ceil(1000) as u32 + 1
}

/// Runs `then` with the domain whose upcall is under way.
///
/// For services, and for what ends the driver: both run while [`Domain::upcall`] waits for the driver and uses `self` no further.
/// A panic may look as well: nobody goes on after one.
pub fn with_current<T>(then: impl FnOnce(&mut Domain) -> T) -> Option<T> {
    let domain = cpu::this().domain.get().cast::<Domain>();
    // SAFETY: set by `Domain::upcall` from its `&mut self`, which lies idle until the driver returns; services are
    // never entered twice at a time by one domain, and a driver that is ended from within a service never goes on in it.
    unsafe { domain.as_mut() }.map(then)
}

/// Ends the driver whose upcall is under way: its `upcall` returns [`UpcallError::Ended`].
pub fn end_current(fault: impl FnOnce(&mut Domain) -> Fault) -> ! {
    let recorded = with_current(|domain| {
        let fault = fault(domain);
        domain.fault = Some(fault.report(domain.restarts()));
    });
    assert!(recorded.is_some(), "a driver was to be ended, but none runs");
    // SAFETY: a driver runs; callers hold nothing that needs to be dropped.
    unsafe { gates::abort_upcall() }
}

/// Ends the driver whose upcall is under way because of a trap.
pub fn end_by_trap(why: DriverTrap, frame: TrapFrame) -> ! {
    let cause = match why {
        DriverTrap::Exception { address } => Cause::Exception { address },
        DriverTrap::Overrun => Cause::Overrun,
    };
    end_current(|domain| Fault::new(domain, cause, Site::Trap(&frame)))
}
