//! Behaviour of TCG, QEMU's own emulation of a CPU, that no CPU has. The kernel tests which of it
//! is present on the CPU that it runs on.

use super::{entry_area, vector};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering};
use ringfence_core::descriptor;
use ringfence_core::tcg::Hole;

static IS_TCG: AtomicBool = AtomicBool::new(false);
static LOADS_NO_SEGMENT: AtomicBool = AtomicBool::new(false);

global_asm!(
    // #UD pushes no error code: RIP is on top of the stack. The tested instruction has two bytes.
    "tcg_undefined:",
    "add qword ptr [rsp], 2",
    "xor ecx, ecx",
    "iretq",
);

unsafe extern "C" {
    fn tcg_undefined();
}

/// Runs the tests. Called once, with interrupts off, when the entry area is loaded.
pub fn init() {
    const HYPERVISOR: u32 = 0x4000_0000;
    let leaf = core::arch::x86_64::__cpuid(HYPERVISOR);
    let is_tcg = [leaf.ebx, leaf.ecx, leaf.edx].map(u32::to_le_bytes).concat() == b"TCGTCGTCGTCG";
    IS_TCG.store(is_tcg, Ordering::Relaxed);
    if !is_tcg {
        return;
    }
    const UNDEFINED: u8 = vector::INVALID_OPCODE as u8;
    entry_area::set_vector(UNDEFINED, Some(tcg_undefined as *const () as u64));
    let loaded: u64;
    // SAFETY: this is a MOV to segment register 6, with 0 in AX. Either it is undefined, and the
    // handler above skips it; or it loads LDTR, which is then restored at once.
    unsafe {
        asm!(
            "mov ecx, 1",
            "xor eax, eax",
            ".byte 0x8e, 0xf0",
            "lldt {ldt:x}",
            ldt = in(reg) descriptor::LDT,
            out("rax") _, out("rcx") loaded
        );
    }
    entry_area::set_vector(UNDEFINED, None);
    LOADS_NO_SEGMENT.store(loaded != 0, Ordering::Relaxed);
}

/// Returns whether the CPU is TCG.
pub fn is_there() -> bool {
    IS_TCG.load(Ordering::Relaxed)
}

/// Returns whether the CPU has, or may have, this hole. A hole that would end the machine cannot be
/// tested.
pub fn has(hole: Hole) -> bool {
    match hole {
        Hole::LoadsSs | Hole::LocksBitTest => IS_TCG.load(Ordering::Relaxed),
        Hole::LoadsNoSegment => LOADS_NO_SEGMENT.load(Ordering::Relaxed),
    }
}
