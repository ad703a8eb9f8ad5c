//! Accesses memory and ports beyond the ends of the ranges that the driver was given (registers,
//! ports, DMA memory, queues), or executes such memory.

use core::arch::asm;
use ringfence_sdk::abi::layout::PAGE_SIZE;
use ringfence_sdk::service::raw;

/// BARs of the e1000: the registers, and the ports.
const REGISTERS: u64 = 0;
const PORTS: u64 = 1;
/// The selector of the gate of `rf_time_ns`, service 4.
const TIME_GATE: u16 = (6 + 2 * 4) << 3 | 5;

/// Carries out `verb`, if it is one of this file's verbs. If the attack returns, its result is
/// shown.
pub fn reach(verb: &str, queues: u64) -> Option<u64> {
    let dma = || unsafe { raw::rf_dma_alloc(PAGE_SIZE) } as u64;
    let registers = || unsafe { raw::rf_bar_map(REGISTERS) } as u64;
    let ends = |start: u64, bar: u64| start + unsafe { raw::rf_bar_len(bar) } as u64;
    let first_port = || unsafe { raw::rf_bar_map(PORTS) } as u64;
    Some(match verb {
        "execute-dma" => execute(dma()),
        "execute-queues" => execute(queues),
        "execute-registers" => execute(registers()),
        // Each access has eight bytes, half of them outside.
        "over-dma" => read(dma() + PAGE_SIZE - 4),
        "over-registers" => read(ends(registers(), REGISTERS) - 4),
        "before-registers" => read(registers() - 4),
        // An access to four ports, the last of which is outside; then accesses to a single port
        // outside.
        "over-ports" => port_in32(ends(first_port(), PORTS) - 3),
        "before-ports" => port_in8(first_port() - 1),
        "behind-ports" => port_in8(ends(first_port(), PORTS)),
        // A driver with ports of its own still has no other ports, and must not be able to write
        // the I/O bitmap.
        "other-ports" => {
            first_port();
            port_in8(0x60)
        }
        "open-ports" => {
            const IO_BITMAP: u64 = 0xffff_ffff_c000_5000;
            first_port();
            write(IO_BITMAP)
        }
        "step-registers" => step(registers()),
        "call-registers" => call_through(registers()),
        _ => return None,
    })
}

#[inline(never)]
fn read(address: u64) -> u64 {
    unsafe { (address as *const u64).read_unaligned() }
}

/// Reads a register while the trap flag is set.
#[inline(never)]
fn step(address: u64) -> u64 {
    const TRAP_FLAG: u32 = 1 << 8;
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!("pushfq", "or qword ptr [rsp], {flag}", "popfq", "mov eax, [{address}]",
            flag = const TRAP_FLAG, address = in(reg) address, out("eax") _);
    }
    #[cfg(target_arch = "x86")]
    unsafe {
        asm!("pushfd", "or dword ptr [esp], {flag}", "popfd", "mov eax, [ecx]",
            flag = const TRAP_FLAG, in("ecx") address as u32, out("eax") _);
    }
    0
}

/// Calls the gate of `rf_time_ns` through a far pointer that lies in two of the device's registers.
#[inline(never)]
fn call_through(registers: u64) -> u64 {
    const RECEIVE_RING_LOW: u64 = 0x2800;
    let time: usize;
    unsafe {
        let pointer = (registers + RECEIVE_RING_LOW) as *mut u32;
        pointer.write_volatile(0);
        pointer.add(1).write_volatile(TIME_GATE.into());
        #[cfg(target_arch = "x86_64")]
        asm!("lcall fword ptr [{pointer}]", pointer = in(reg) pointer, out("rax") time, clobber_abi("C"));
        #[cfg(target_arch = "x86")]
        asm!("lcall fword ptr [{pointer}]", pointer = in(reg) pointer, out("eax") time, clobber_abi("C"));
    }
    u64::from(time == 0)
}

#[inline(never)]
fn write(address: u64) -> u64 {
    unsafe { (address as *mut u64).write_volatile(0) };
    0
}

#[inline(never)]
fn execute(address: u64) -> u64 {
    unsafe { asm!("call {}", in(reg) address as usize, clobber_abi("C")) };
    0
}

#[inline(never)]
fn port_in8(port: u64) -> u64 {
    let value: u8;
    unsafe { asm!("in al, dx", in("dx") port as u16, out("al") value) };
    value.into()
}

#[inline(never)]
fn port_in32(port: u64) -> u64 {
    let value: u32;
    unsafe { asm!("in eax, dx", in("dx") port as u16, out("eax") value) };
    value.into()
}
