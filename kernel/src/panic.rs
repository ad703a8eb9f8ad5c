//! The kernel's own end: message, registers, backtrace, and a status that no orderly end has.

use crate::arch::frame::TrapFrame;
use crate::arch::power::{self, Ending};
use crate::domain::whose::Owner;
use crate::memory::shared::SharedMemory;
use crate::memory::{is_ram, kernel_root, tables};
use crate::println;
use crate::symbols::Location;
use core::sync::atomic::{AtomicBool, Ordering};
use ringfence_abi::layout::slot_of;
use ringfence_abi::queue::Words;
use ringfence_core::extent::Extent;

static PANICKING: AtomicBool = AtomicBool::new(false);

/// Most frames of a backtrace.
const MAX_FRAMES: usize = 32;

fn begin() {
    x86_64::instructions::interrupts::disable();
    if PANICKING.swap(true, Ordering::SeqCst) {
        // A panic in a panic: the console or the symbols are what is broken.
        power::end(Ending::Panic);
    }
    crate::arch::watch::end_all();
    // SAFETY: nothing else runs any more.
    unsafe { crate::console::break_locks() };
    crate::console::screen::take_over();
}

fn end() -> ! {
    println!("ringfence: kernel panic");
    power::end(Ending::Panic)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    begin();
    println!("\nkernel panic: {}", info.message());
    if let Some(location) = info.location() {
        println!("    at {location}");
    }
    let (rbp, rsp): (u64, u64);
    // SAFETY: reads registers.
    unsafe {
        core::arch::asm!("mov {}, rbp", "mov {}, rsp", out(reg) rbp, out(reg) rsp, options(nomem, nostack, preserves_flags));
    }
    // What is in the others is the panic's own by now.
    use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};
    println!("    rsp={rsp:016x} rbp={rbp:016x} flg={:016x}", x86_64::registers::rflags::read_raw());
    println!("    cr0={:016x} cr2={:016x} cr4={:016x}", Cr0::read_raw(), Cr2::read_raw(), Cr4::read_raw());
    println!("    cr3={:016x}", Cr3::read_raw().0.start_address());
    backtrace(rbp);
    end()
}

/// Calls `address` as the kernel's own code would be called: to see what stops it.
pub fn call(address: u64) {
    // SAFETY: none: a person has asked for it, and to see that it faults.
    unsafe { core::arch::asm!("call {}", in(reg) address, clobber_abi("C")) };
}

/// An exception that hit the kernel, or a driver that the kernel trusts.
pub fn exception(name: &str, frame: &TrapFrame, address: Option<u64>) -> ! {
    begin();
    print_headline(name, frame, address);
    println!("{frame}");
    backtrace(frame.rbp);
    end()
}

fn print_headline(name: &str, frame: &TrapFrame, address: Option<u64>) {
    println!("\nkernel panic: {name}, error code {:#x}, at {}", frame.error_code, Location(frame.rip));
    if let Some(address) = address {
        println!("    address {address:#x} ({})", crate::symbols::map::describe(address));
    }
    if address == Some(frame.rip) && slot_of(frame.rip).is_some() {
        println!("    the kernel does not execute what is a driver's ({})", Owner(frame.rip));
    } else if slot_of(frame.rip).is_some() {
        println!("    in a driver that runs trusted in ring 0 ({})", Owner(frame.rip));
    }
}

/// The word at `address`, if that is mapped.
fn word(address: u64) -> Option<u64> {
    let (pa, _) = tables::translate(kernel_root(), address)?;
    // Registers may lie where the kernel does not see physical memory.
    is_ram(Extent::new(pa, size_of::<u64>() as u64)).then(|| SharedMemory::new(pa, size_of::<u64>()).load(0))
}

fn backtrace(mut rbp: u64) {
    println!("    backtrace:");
    for _ in 0..MAX_FRAMES {
        // Frame pointers lie on the kernel's stacks or on a trusted driver's; a broken one is not followed.
        if !rbp.is_multiple_of(8) || !x86_64::VirtAddr::try_new(rbp).is_ok_and(|address| address.as_u64() == rbp) {
            break;
        }
        let Some((next, return_address)) = word(rbp).zip(rbp.checked_add(8).and_then(word)) else { break };
        if return_address == 0 {
            break;
        }
        // A call at a function's very end returns behind it.
        let at = return_address - 1;
        match slot_of(at) {
            Some(_) => println!("        {} ({})", Location(at), Owner(at)),
            None => println!("        {}", Location(at)),
        }
        if next <= rbp {
            break;
        }
        rbp = next;
    }
}
