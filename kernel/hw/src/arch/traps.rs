//! Exceptions and interrupts, after `entry.S` has saved the registers and found out whether the
//! kernel or a driver was interrupted.
//!
//! **The rule of blame:** a trap with a paged domain's root in CR3 belongs to that domain, even in
//! ring 0 (entry code runs there until the kernel's root is loaded). With a segmented
//! domain's root, a word of the kernel's tells ([`super::cpu::Cpu::in_segment`]). Any other trap
//! belongs to the kernel. A trusted driver is part of the kernel by choice: it is ended for a trap
//! only if its own code was on top of the stack, so that nothing of the kernel's was under way.
//! Its earlier writes to the kernel's memory are unknown.

use super::cpu;
use super::entry_area;
use super::frame::{SEGMENT, TrapFrame};
use super::handlers::{DriverTrap, blame_trusted, decide, end_kernel};
use super::interrupts;
use super::vector;
use super::watch;
use core::sync::atomic::{AtomicU64, Ordering};
use heapless::FnvIndexMap;
use ringfence_abi::service::SERVICE_COUNT;
use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;

/// Handles a trap that hit the kernel, or a trusted driver.
pub(super) extern "C" fn trap_from_kernel(frame: &TrapFrame) {
    // Copy the frame: another trap of the same kind reuses its place.
    let frame = *frame;
    match frame.vector {
        vector::FIRST_INTERRUPT.. => {
            interrupts::handle(frame.vector as u8);
            let cpu = cpu::this();
            if cpu.domain_cr3.get() != 0 && cpu.ticks_left.load(Ordering::Relaxed) == 0 {
                blame_trusted(DriverTrap::Overrun, &frame);
            }
        }
        // The kernel never sends an NMI, and an NMI can come while any lock is held: it is not even
        // logged.
        vector::NMI => {}
        // A trusted driver hit the watch, or a service that it called: the service runs on the
        // driver's stack.
        vector::DEBUG if watch::noticed(frame.rip) || watch::take_met().is_some() => {}
        vector => {
            let address = fault_address(vector);
            // After a double fault or a machine check, the frame may be wrong.
            let is_sure = ![vector::DOUBLE_FAULT, vector::MACHINE_CHECK].contains(&vector);
            if is_sure && cpu::this().domain_cr3.get() != 0 {
                blame_trusted(DriverTrap::Exception { address }, &frame);
            }
            end_kernel(vector::name(vector), &frame, address)
        }
    }
}

/// Handles a trap that came while a domain's root was loaded. `frame` is in the domain's stacks'
/// page, seen through physical memory: `entry.S` computed its address. Nothing else uses that page
/// while the driver does not run.
pub(super) extern "C" fn trap_from_driver(frame: &mut TrapFrame) {
    let mut copy = *frame;
    // The kernel and the report name a segmented driver's memory by the addresses of its slot. The
    // driver's registers hold addresses without that of the slot.
    let lift = cpu::this().lift.get();
    if lift != 0 && copy.is_outside_ring_0() {
        copy.rip = copy.rip & SEGMENT | lift;
        copy.rsp = copy.rsp & SEGMENT | lift;
    }
    match copy.vector {
        vector::FIRST_INTERRUPT.. => {
            if copy.is_in_virtual_8086_mode() {
                IN_VIRTUAL_8086.fetch_add(1, Ordering::Relaxed);
            }
            interrupts::handle(copy.vector as u8);
            if cpu::this().ticks_left.load(Ordering::Relaxed) == 0 {
                decide(DriverTrap::Overrun, &mut copy);
            }
        }
        vector::NMI => {}
        vector::DEBUG if watch::noticed(copy.rip) => {}
        vector::MACHINE_CHECK => end_kernel(vector::name(vector::MACHINE_CHECK), &copy, None),
        vector => {
            let address =
                fault_address(vector).map(|address| if address <= SEGMENT { address | lift } else { address });
            decide(DriverTrap::Exception { address }, &mut copy)
        }
    }
    // The driver goes on. Its frame is written anew from values that are known to be right, as the
    // driver may have changed the frame in its page.
    let at_gate = !copy.is_outside_ring_0() && entry_area::is_text(copy.rip);
    if at_gate {
        let mut on_gates = ON_GATES.lock();
        match on_gates.get_mut(&copy.rip) {
            Some(count) => *count += 1,
            // There is room for all instructions that can be hit.
            None => drop(on_gates.insert(copy.rip, 1)),
        }
    } else {
        IN_DRIVERS.fetch_add(1, Ordering::Relaxed);
        copy.sanitize(lift != 0);
    }
    *frame = copy;
}

static IN_DRIVERS: AtomicU64 = AtomicU64::new(0);
static IN_VIRTUAL_8086: AtomicU64 = AtomicU64::new(0);
/// Counts, for each instruction of the entry code, the interrupts that hit it while a domain's root
/// was loaded.
type OnGates = FnvIndexMap<u64, u64, GATE_PLACES>;
/// Room for the first two instructions of each gate, of both kinds, and for the last one on the way
/// into a segment. The map needs a power of two.
const GATE_PLACES: usize = (4 * (SERVICE_COUNT + 2)).next_power_of_two();
static ON_GATES: Mutex<OnGates> = Mutex::new(OnGates::new());

/// Returns how many interrupts hit drivers in ring 1, and how many hit each instruction of the
/// entry code while a domain's root was loaded.
pub fn interrupt_counts() -> (u64, OnGates) {
    without_interrupts(|| (IN_DRIVERS.load(Ordering::Relaxed), ON_GATES.lock().clone()))
}

/// Returns how many interrupts hit a driver in virtual-8086 mode. No CPU has it in long mode.
pub fn in_virtual_8086_mode() -> u64 {
    IN_VIRTUAL_8086.load(Ordering::Relaxed)
}

fn fault_address(vector: u64) -> Option<u64> {
    (vector == vector::PAGE_FAULT).then(x86_64::registers::control::Cr2::read_raw)
}
