//! SYSCALL, by which the upcalls of segmented drivers end where the CPU has it in compatibility
//! mode: AMD's do (APM vol. 3, SYSCALL), and so does what QEMU emulates by itself. On Intel's it is
//! #UD (SDM vol. 2, SYSCALL), and upcalls end at the return gate.
//!
//! A gate is a far call, for which a CPU reads two descriptors and pushes four words. SYSCALL does
//! neither. It ignores privilege levels, so it may lead to one place only, and does nothing there
//! that the return gate would not do. Services stay behind gates, which the LDT grants one by one.
//!
//! EFER.SCE is 1 only while the kernel goes on with the root of a segmented domain
//! ([`super::cpu::Cpu::root`]). For a paged or a trusted driver SYSCALL is #UD. Only `bench` has it
//! lead elsewhere, and enters no segmented driver meanwhile.

use super::cpu::{self, EFER};
use super::gates;
use core::arch::x86_64::{__cpuid, CpuidResult};
use ringfence_core::descriptor::KERNEL_CODE;
use x86_64::VirtAddr;
use x86_64::registers::control::EferFlags;
use x86_64::registers::model_specific::{LStar, Msr, SFMask, Star};
use x86_64::registers::rflags::RFlags;

/// The MSR with the address to which SYSCALL leads in compatibility mode (APM vol. 2, 6.1.1).
const CSTAR: u32 = 0xc000_0083;
/// The vendors, by CPUID 0, whose CPUs have SYSCALL in compatibility mode.
const VENDORS: [&[u8]; 2] = [b"AuthenticAMD", b"HygonGenuine"];
/// The bit of CPUID 8000_0001, EDX, that says that there is SYSCALL.
const SYSCALL: u32 = 1 << 11;

/// Has SYSCALL end upcalls, if the CPU has it for 32-bit code. Whether that holds is seen when
/// the first segmented domain runs ([`super::confinement`]).
pub fn init() {
    let CpuidResult { ebx, ecx, edx, .. } = __cpuid(0);
    let vendor = [ebx, edx, ecx].map(u32::to_le_bytes);
    if VENDORS.contains(&vendor.as_flattened()) && __cpuid(0x8000_0001).edx & SYSCALL != 0 {
        lead_to_end();
        cpu::this().segment_efer.set((EFER | EferFlags::SYSTEM_CALL_EXTENSIONS).bits());
    }
}

/// Has SYSCALL lead to the end of an upcall.
fn lead_to_end() {
    let end = gates::syscall_entry();
    // All but IF, which is 1: among them TF, DF, NT, AC, IOPL and VM.
    SFMask::write(RFlags::all() - RFlags::INTERRUPT_FLAG);
    // No 64-bit code has SYSCALL. Address 0 would be the driver's own.
    LStar::write(VirtAddr::new_truncate(end));
    // SAFETY: the code there takes any state of a segmented driver, and needs the kernel's code
    // segment. The segment behind that one is the kernel's data. SYSRET is not used.
    unsafe {
        Star::write_raw(0, KERNEL_CODE);
        Msr::new(CSTAR).write(end);
    }
}

/// Returns whether the upcalls of segmented drivers end by SYSCALL.
pub fn ends_upcalls() -> bool {
    cpu::this().segment_efer.get() != EFER.bits()
}
