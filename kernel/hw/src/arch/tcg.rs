//! What QEMU's own emulation of a CPU, TCG, does that no CPU does; which of that, is asked of the
//! one that is there.

use super::{entry_area, vector};
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, Ordering};
use ringfence_core::descriptor;
use ringfence_core::tcg::Hole;

static IS_TCG: AtomicBool = AtomicBool::new(false);
static LOADS_NO_SEGMENT: AtomicBool = AtomicBool::new(false);

global_asm!(
    // #UD pushes no error code: what is on the stack is RIP. The instruction that is tried has two
    // bytes.
    "tcg_undefined:",
    "add qword ptr [rsp], 2",
    "xor ecx, ecx",
    "iretq",
);

unsafe extern "C" {
    fn tcg_undefined();
}

/// Asks. Called once, with interrupts off, when the entry area is loaded.
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
    // SAFETY: MOV to segment register 6, with nothing in AX. It is undefined, and passed over by
    // the handler above; or it loads LDTR, which is loaded with what it had at once.
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

/// Whether the CPU is TCG's.
pub fn is_there() -> bool {
    IS_TCG.load(Ordering::Relaxed)
}

/// Whether the CPU that is there has, or may have, this hole. Those that would end the machine
/// cannot be tried.
pub fn has(hole: Hole) -> bool {
    match hole {
        Hole::LoadsSs | Hole::LocksBitTest => IS_TCG.load(Ordering::Relaxed),
        Hole::LoadsNoSegment => LOADS_NO_SEGMENT.load(Ordering::Relaxed),
    }
}
