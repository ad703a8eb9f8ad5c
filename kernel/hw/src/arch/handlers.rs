//! What the CPU's part of the kernel asks of the parts above it. It cannot import them, so
//! [`install`] is told once, first of all.
//!
//! An indirect call for each trap and each tick; none on the path of gates.

use super::frame::TrapFrame;
use ringfence_abi::service::SERVICE_COUNT;
use spin::Once;

/// Why a driver's trap ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverTrap {
    /// The CPU raised an exception; `address` is the one that a page fault names.
    Exception {
        /// CR2, for a page fault.
        address: Option<u64>,
    },
    /// The ticks of its upcall are used up.
    Overrun,
}

/// The function behind a service's gate: what the driver passed in RDI, RSI and RDX, and what it
/// gets in RAX.
pub type Service = extern "C" fn(u64, u64, u64) -> i64;
/// One for each service, by number.
pub type Services = [Service; SERVICE_COUNT];

/// Functions of the parts above. Interrupts are off when they are called.
pub struct Handlers {
    /// Behind the gates.
    pub services: &'static Services,
    /// The timer has ticked.
    pub timer_tick: fn(),
    /// The serial port has input.
    pub serial_input: fn(),
    /// What a breakpoint watches was read or written, by the instruction before this address.
    pub watchpoint_hit: fn(u64),
    /// A trap ends the driver whose upcall is under way.
    pub driver_trapped: fn(DriverTrap, TrapFrame) -> !,
    /// An exception of this name hit the kernel, with CR2 for a page fault.
    pub kernel_trapped: fn(&'static str, &TrapFrame, Option<u64>) -> !,
    /// The machine is about to end.
    pub before_power_off: fn(),
}

static HANDLERS: Once<&Handlers> = Once::new();

/// Installs the functions, before anything that calls them.
pub fn install(handlers: &'static Handlers) {
    HANDLERS.call_once(|| handlers);
}

/// The functions, once they are installed.
pub(super) fn installed() -> Option<&'static Handlers> {
    HANDLERS.get().copied()
}

/// Does nothing any more.
pub(super) fn halt() -> ! {
    loop {
        x86_64::instructions::hlt();
    }
}

/// Ends the driver whose upcall is under way.
pub(super) fn end_driver(why: DriverTrap, frame: TrapFrame) -> ! {
    match installed() {
        Some(handlers) => (handlers.driver_trapped)(why, frame),
        None => halt(),
    }
}

/// Ends the kernel.
pub(super) fn end_kernel(name: &'static str, frame: &TrapFrame, address: Option<u64>) -> ! {
    match installed() {
        Some(handlers) => (handlers.kernel_trapped)(name, frame, address),
        None => halt(),
    }
}
