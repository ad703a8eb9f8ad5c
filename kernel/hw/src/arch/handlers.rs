//! Functions of the layers above, which this layer calls. It cannot import those layers, so they
//! pass their functions to [`install`] once, before anything else.
//!
//! Each trap and each tick costs an indirect call. A gate takes its service's address from the page
//! of constants, into which [`super::entry_area`] has copied it.

use super::frame::TrapFrame;
use ringfence_abi::service::SERVICE_COUNT;
use spin::Once;

/// The reason why a trap may end a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DriverTrap {
    /// The CPU raised an exception; `address` is the address that a page fault names.
    Exception {
        /// CR2, for a page fault.
        address: Option<u64>,
    },
    /// The upcall has used up its ticks.
    Overrun,
}

/// The fate of a driver that an exception has hit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The exception ends it.
    Ends,
    /// It goes on, with the registers in the frame.
    GoesOn,
    /// It stands still, and its upcall is left. Not for a trap that hit a gate.
    Stands,
}

/// The function behind a service's gate. It takes the driver's RDI, RSI and RDX, and returns the
/// driver's RAX.
pub type Service = extern "C" fn(u64, u64, u64) -> i64;
/// The function for each service, by number.
pub type Services = [Service; SERVICE_COUNT];

/// Functions of the layers above. Interrupts are off when they are called.
pub struct Handlers {
    /// The functions behind the gates.
    pub services: &'static Services,
    /// Called when the timer has ticked.
    pub timer_tick: fn(),
    /// Called when the first serial port has input.
    pub serial_input: fn(),
    /// Called when the second serial port has input.
    pub link_input: fn(),
    /// Called when watched memory was read or written, by the instruction before this address.
    pub watchpoint_hit: fn(u64),
    /// Called when a trap may end the driver whose upcall is under way. It hit the driver, or the
    /// entry code while the driver's root was loaded. It may change the frame.
    pub driver_trapped: fn(DriverTrap, &mut TrapFrame) -> Verdict,
    /// Called when a trap hit ring 0 while the upcall of a trusted driver is under way. Returns
    /// whether the driver's own code is on top of the stack, so that the driver is to blame.
    pub trusted_is_to_blame: fn(DriverTrap, &TrapFrame) -> bool,
    /// Called when the trap ends that driver.
    pub driver_ends: fn(DriverTrap, TrapFrame) -> !,
    /// Called when the driver stands still, with the registers with which it is to go on.
    pub driver_stands: fn(TrapFrame) -> !,
    /// Called when an exception of this name hit the kernel, with CR2 for a page fault.
    pub kernel_trapped: fn(&'static str, &TrapFrame, Option<u64>) -> !,
    /// Called when the machine is about to end.
    pub before_power_off: fn(),
}

static HANDLERS: Once<&Handlers> = Once::new();

/// Installs the functions, before the first call of one.
pub fn install(handlers: &'static Handlers) {
    HANDLERS.call_once(|| handlers);
}

/// Returns the functions, once they are installed.
pub(super) fn installed() -> Option<&'static Handlers> {
    HANDLERS.get().copied()
}

/// Halts for ever.
pub(super) fn halt() -> ! {
    loop {
        x86_64::instructions::hlt();
    }
}

/// Decides about the driver whose upcall is under way, which a trap has hit. Returns if the driver
/// goes on.
pub(super) fn decide(why: DriverTrap, frame: &mut TrapFrame) {
    let Some(handlers) = installed() else { halt() };
    match (handlers.driver_trapped)(why, frame) {
        Verdict::GoesOn => {}
        // The way back to where it stands is one for paged drivers.
        Verdict::Stands if frame.is_in_driver() && super::cpu::this().lift.get() == 0 => {
            (handlers.driver_stands)(*frame)
        }
        Verdict::Ends | Verdict::Stands => (handlers.driver_ends)(why, *frame),
    }
}

/// Ends the trusted driver whose upcall is under way if it is to blame for a trap. Returns if it is
/// not.
pub(super) fn blame_trusted(why: DriverTrap, frame: &TrapFrame) {
    if let Some(handlers) = installed()
        && (handlers.trusted_is_to_blame)(why, frame)
    {
        (handlers.driver_ends)(why, *frame)
    }
}

/// Ends the kernel, because of an exception of this name.
pub(super) fn end_kernel(name: &'static str, frame: &TrapFrame, address: Option<u64>) -> ! {
    match installed() {
        Some(handlers) => (handlers.kernel_trapped)(name, frame, address),
        None => halt(),
    }
}
