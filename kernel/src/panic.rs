//! The kernel panic: message, registers, backtrace, and an exit status that no orderly end has.

use core::fmt::{self, Write};
use host::domain::whose::Owner;
use hw::arch::frame::TrapFrame;
use hw::panic::end_kernel;
use hw::symbols::Location;
use hw::symbols::backtrace;
use hw::{link, println};
use ringfence_abi::layout::slot_of;
use ringfence_link::event::Event;

/// The maximum number of frames in a backtrace.
const MAX_FRAMES: usize = 32;

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    end_kernel(|| report(info))
}

fn report(info: &core::panic::PanicInfo) {
    println!("\nkernel panic: {}", info.message());
    tell(format_args!("{}", info.message()));
    if let Some(location) = info.location() {
        println!("    at {location}");
    }
    let (rbp, rsp) = backtrace::here();
    // The other registers already hold values of the panic itself.
    use x86_64::registers::control::{Cr0, Cr2, Cr3, Cr4};
    println!("    rsp={rsp:016x} rbp={rbp:016x} flg={:016x}", x86_64::registers::rflags::read_raw());
    println!("    cr0={:016x} cr2={:016x} cr4={:016x}", Cr0::read_raw(), Cr2::read_raw(), Cr4::read_raw());
    println!("    cr3={:016x}", Cr3::read_raw().0.start_address());
    print_backtrace(rbp);
}

/// Handles an exception that hit the kernel, or a driver that the kernel trusts.
pub fn exception(name: &str, frame: &TrapFrame, address: Option<u64>) -> ! {
    end_kernel(|| {
        print_headline(name, frame, address);
        tell(format_args!("{name} at {:#x}", frame.rip));
        println!("{frame}");
        print_backtrace(frame.rbp);
    })
}

/// Sends the panic to programs. Allocates nothing: the heap's lock may be held for good.
fn tell(message: fmt::Arguments) {
    const MOST: usize = 512;
    let mut text = heapless::String::<MOST>::new();
    // Text that does not fit here is still on the console.
    let _ = text.write_fmt(message);
    link::tell_last(&Event::Panic { message: text.as_str().into() });
}

fn print_headline(name: &str, frame: &TrapFrame, address: Option<u64>) {
    println!("\nkernel panic: {name}, error code {:#x}, at {}", frame.error_code, Location(frame.rip));
    if let Some(address) = address {
        println!("    address {address:#x} ({})", hw::symbols::map::describe(address));
    }
    if address == Some(frame.rip) && slot_of(frame.rip).is_some() {
        println!("    the kernel does not execute what is a driver's ({})", Owner(frame.rip));
    } else if slot_of(frame.rip).is_some() {
        println!("    in a driver in ring 0, which did not run ({})", Owner(frame.rip));
    }
}

fn print_backtrace(rbp: u64) {
    println!("    backtrace:");
    for return_address in backtrace::from(rbp).take(MAX_FRAMES) {
        // The call may be a function's last instruction, so look up the byte before the return
        // address.
        let at = return_address - 1;
        match slot_of(at) {
            Some(_) => println!("        {} ({})", Location(at), Owner(at)),
            None => println!("        {}", Location(at)),
        }
    }
}
