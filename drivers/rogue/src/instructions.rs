//! Instructions that ring 1 must not have, or that must do no harm there: one function each, by verb.

use super::attacks::Attack;
use core::arch::asm;

macro_rules! instructions {
    ($($verb:literal: $($line:literal),+;)*) => {
        /// Each runs one instruction with RAX, RCX and RDX zero; most never return.
        pub static INSTRUCTIONS: &[(&str, Attack)] = &[$(($verb, {
            #[inline(never)]
            fn run(_: u64) -> u64 {
                let result: u64;
                // SAFETY: none; that is the point.
                unsafe {
                    asm!($($line),+, inout("rax") 0u64 => result, inout("rcx") 0u64 => _, inout("rdx") 0u64 => _,
                        clobber_abi("C"))
                };
                result
            }
            run
        })),*];
    };
}

instructions! {
    "sti": "sti";
    "clts": "clts";
    "invd": "invd";
    "wbinvd": "wbinvd";
    "lmsw": "lmsw ax";
    "lldt": "lldt ax";
    "ltr": "ltr ax";
    "lgdt": "lgdt [rsp]";
    "invlpg": "invlpg [rsp]";
    "invpcid": "invpcid rax, [rsp]";
    "swapgs": "swapgs";
    "sysretq": "sysretq";
    "sysexit": "sysexit";
    "xsetbv": "xsetbv";
    "wrmsr": "wrmsr";
    "rdpmc": "rdpmc";
    "monitor": "monitor";
    "mwait": "mwait";
    "vmcall": "vmcall";
    "vmmcall": "vmmcall";
    "mov-cr0": "mov cr0, rax";
    "mov-from-cr0": "mov rax, cr0";
    "mov-cr4": "mov cr4, rax";
    "mov-cr8": "mov cr8, rax";
    "mov-dr0": "mov dr0, rax";
    "mov-dr7": "mov dr7, rax";
    "mov-from-dr6": "mov rax, dr6";
    "in16": "in ax, dx";
    "in32": "in eax, dx";
    "out16": "out dx, ax";
    "out32": "out dx, eax";
    "insb": "lea rdi, [rsp - 64]", "insb";
    "outsb": "mov rsi, rsp", "outsb";
    "rdfsbase": "rdfsbase rax";
    "wrgsbase": "wrgsbase rax";
    "sgdt": "sgdt [rsp - 64]";
    "sidt": "sidt [rsp - 64]";
    "sldt": "sldt ax";
    "str": "str ax";
    "smsw": "smsw ax";
    "fninit": "fninit";
    "emms": ".byte 0x0f, 0x77";
    "avx": ".byte 0xc5, 0xf8, 0x57, 0xc0";
    "fxsave": "fxsave [rsp - 640]";
    "rdtsc": "rdtsc";
    "cpuid": "push rbx", "cpuid", "pop rbx";
    "prefetch-kernel": "mov rax, -0x80000000", "prefetcht0 [rax]";
}

/// Raises `int number`. There is one such instruction for each number, as text is read-only.
#[inline(never)]
pub fn int_n(number: u64) -> u64 {
    // SAFETY: none. `int n; ret` is 3 bytes; the table has 4 for each.
    unsafe {
        asm!(
            "lea rax, [rip + 2f]",
            "lea rax, [rax + 4 * rcx]",
            "call rax",
            "jmp 3f",
            "2:",
            ".set number, 0",
            ".rept 256",
            ".byte 0xcd, number, 0xc3, 0xcc",
            ".set number, number + 1",
            ".endr",
            "3:",
            in("rcx") number & 0xff, out("rax") _, clobber_abi("C")
        )
    };
    0
}

macro_rules! segment_loads {
    ($($name:ident $register:literal;)*) => {
        $(
            /// Loads the segment register with a selector.
            #[inline(never)]
            pub fn $name(selector: u64) -> u64 {
                // SAFETY: none.
                unsafe { asm!(concat!("mov ", $register, ", ax"), in("rax") selector) };
                0
            }
        )*
    };
}
segment_loads! { load_ds "ds"; load_es "es"; load_fs "fs"; load_gs "gs"; load_ss "ss"; }

/// Returns far to a selector.
#[inline(never)]
pub fn far_return(selector: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("push rax", "lea rcx, [rip + 2f]", "push rcx", "retfq", "2:", in("rax") selector, out("rcx") _) };
    0
}

/// Returns from an interrupt to a selector, with the stack segment that ring 1 has.
#[inline(never)]
pub fn interrupt_return(selector: u64) -> u64 {
    // SAFETY: none.
    unsafe {
        asm!("mov rcx, rsp", "push 1", "push rcx", "pushfq", "push rax", "lea rcx, [rip + 2f]", "push rcx", "iretq", "2:",
            in("rax") selector, out("rcx") _)
    };
    0
}

/// Jumps far to a selector.
#[inline(never)]
pub fn far_jump(selector: u64) -> u64 {
    let target = [0u16, 0, 0, 0, 0];
    // SAFETY: none. FF /5 with a 64-bit offset would be Intel's only; the offset of this one is 32 bits, which cannot reach
    // the slot: a jump that is let through goes to the address 0, and faults there.
    unsafe {
        asm!("mov word ptr [rcx + 4], ax", ".byte 0xff, 0x29", in("rax") selector, in("rcx") target.as_ptr());
    }
    0
}
