//! Instructions that must be forbidden in ring 1, or must do no harm there. Each verb runs one of
//! them.

use super::attacks::Attack;
use core::arch::asm;

macro_rules! instructions {
    ($($verb:literal: $($line:literal),+;)*) => {
        /// Functions that each run one instruction, with RAX, RCX and RDX zero unless the
        /// instruction needs other values. Most functions never return. A value written to a
        /// control register is valid for that register and would disable a protection.
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
    "lmsw": "mov eax, 0xb", "lmsw ax";
    "lldt": "lldt ax";
    "ltr": "mov eax, 0x18", "ltr ax";
    "lgdt": "lgdt [rsp]";
    "invlpg": "invlpg [rsp]";
    "invpcid": "push 0", "push 0", "mov eax, 2", "invpcid rax, [rsp]";
    "swapgs": "swapgs";
    "sysretq": "sysretq";
    "sysretl": ".byte 0x0f, 0x07";
    "sysexit": "sysexit";
    "xsetbv": "mov eax, 3", "xsetbv";
    "wrmsr": "mov ecx, 0xc0000080", "mov eax, 0xd01", "wrmsr";
    "rdpmc": "rdpmc";
    "monitor": "monitor";
    "mwait": "mwait";
    "vmcall": "vmcall";
    "vmmcall": "vmmcall";
    "mov-cr0": "mov eax, 0x80000025", "mov cr0, rax";
    "mov-from-cr0": "mov rax, cr0";
    "mov-cr1": "mov cr1, rax";
    "mov-from-cr1": "mov rax, cr1";
    "mov-cr2": "mov cr2, rax";
    "mov-from-cr2": "mov rax, cr2";
    "mov-cr3": "mov cr3, rax";
    "mov-from-cr3": "mov rax, cr3";
    "mov-cr4": "mov eax, 0x20", "mov cr4, rax";
    "mov-from-cr4": "mov rax, cr4";
    "mov-cr5": "mov cr5, rax";
    "mov-from-cr5": "mov rax, cr5";
    "mov-cr6": "mov cr6, rax";
    "mov-from-cr6": "mov rax, cr6";
    "mov-cr7": "mov cr7, rax";
    "mov-from-cr7": "mov rax, cr7";
    "mov-cr8": "mov cr8, rax";
    "mov-from-cr8": "mov rax, cr8";
    "mov-dr0": "mov dr0, rax";
    "mov-from-dr0": "mov rax, dr0";
    "mov-dr1": "mov dr1, rax";
    "mov-from-dr1": "mov rax, dr1";
    "mov-dr2": "mov dr2, rax";
    "mov-from-dr2": "mov rax, dr2";
    "mov-dr3": "mov dr3, rax";
    "mov-from-dr3": "mov rax, dr3";
    "mov-dr4": "mov dr4, rax";
    "mov-from-dr4": "mov rax, dr4";
    "mov-dr5": "mov dr5, rax";
    "mov-from-dr5": "mov rax, dr5";
    "mov-dr6": "mov dr6, rax";
    "mov-from-dr6": "mov rax, dr6";
    "mov-dr7": "mov eax, 0x401", "mov dr7, rax";
    "mov-from-dr7": "mov rax, dr7";
    "in16": "in ax, dx";
    "in32": "in eax, dx";
    "in32-end": "mov edx, 0xffff", "in eax, dx";
    "out16": "out dx, ax";
    "out32": "out dx, eax";
    "insb": "lea rdi, [rsp - 64]", "insb";
    "insw": "lea rdi, [rsp - 64]", "insw";
    "insd": "lea rdi, [rsp - 64]", "insd";
    "rep-insb": "lea rdi, [rsp - 64]", "mov ecx, 16", "rep insb";
    "outsb": "mov rsi, rsp", "outsb";
    "outsw": "mov rsi, rsp", "outsw";
    "outsd": "mov rsi, rsp", "outsd";
    "rep-outsb": "mov rsi, rsp", "mov ecx, 16", "rep outsb";
    "wbnoinvd": ".byte 0xf3, 0x0f, 0x09";
    "rsm": ".byte 0x0f, 0xaa";
    "clac": "clac";
    "stac": "stac";
    "getsec": ".byte 0x0f, 0x37";
    "encls": ".byte 0x0f, 0x01, 0xcf";
    "vmxon": "push 0", ".byte 0xf3, 0x0f, 0xc7, 0x34, 0x24";
    "vmptrld": "push 0", ".byte 0x0f, 0xc7, 0x34, 0x24";
    "vmclear": "push 0", ".byte 0x66, 0x0f, 0xc7, 0x34, 0x24";
    "vmread": ".byte 0x0f, 0x78, 0xc0";
    "vmwrite": ".byte 0x0f, 0x79, 0xc0";
    "vmresume": ".byte 0x0f, 0x01, 0xc3";
    "invept": "push 0", "push 0", ".byte 0x66, 0x0f, 0x38, 0x80, 0x04, 0x24";
    "invvpid": "push 0", "push 0", ".byte 0x66, 0x0f, 0x38, 0x81, 0x04, 0x24";
    "vmxoff": ".byte 0x0f, 0x01, 0xc4";
    "vmlaunch": ".byte 0x0f, 0x01, 0xc2";
    "vmrun": ".byte 0x0f, 0x01, 0xd8";
    "vmload": ".byte 0x0f, 0x01, 0xda";
    "vmsave": ".byte 0x0f, 0x01, 0xdb";
    "stgi": ".byte 0x0f, 0x01, 0xdc";
    "clgi": ".byte 0x0f, 0x01, 0xdd";
    "skinit": ".byte 0x0f, 0x01, 0xde";
    "invlpga": ".byte 0x0f, 0x01, 0xdf";
    "monitorx": ".byte 0x0f, 0x01, 0xfa";
    "mwaitx": ".byte 0x0f, 0x01, 0xfb";
    // XSAVE components that only ring 0 may access.
    "xsaves": ".byte 0x0f, 0xc7, 0x6c, 0x24, 0xc0";
    "xrstors": ".byte 0x0f, 0xc7, 0x5c, 0x24, 0xc0";
    // Shadow stacks (CET).
    "wrssq": ".byte 0x48, 0x0f, 0x38, 0xf6, 0x04, 0x24";
    "wrussq": ".byte 0x66, 0x48, 0x0f, 0x38, 0xf5, 0x04, 0x24";
    "rstorssp": "push 0", ".byte 0xf3, 0x0f, 0x01, 0x2c, 0x24";
    "setssbsy": ".byte 0xf3, 0x0f, 0x01, 0xe8";
    "clrssbsy": "push 0", ".byte 0xf3, 0x0f, 0xae, 0x34, 0x24";
    "xgetbv": "xgetbv";
    "rdpkru": ".byte 0x0f, 0x01, 0xee";
    "wrpkru": ".byte 0x0f, 0x01, 0xef";
    "rdfsbase": "rdfsbase rax";
    "rdgsbase": "rdgsbase rax";
    "wrfsbase": "wrfsbase rax";
    "wrgsbase": "wrgsbase rax";
    "icebp": ".byte 0xf1";
    // Returns with 32-bit operands, to an address where nothing is mapped.
    "iretd": "sub rsp, 32", "mov dword ptr [rsp], 8", "mov [rsp + 4], cs", "mov dword ptr [rsp + 8], 2",
        "mov [rsp + 12], esp", "mov dword ptr [rsp + 16], 1", ".byte 0xcf";
    "retfd": "sub rsp, 8", "mov dword ptr [rsp], 8", "mov [rsp + 4], cs", ".byte 0xcb";
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
    "rdtscp": "rdtscp";
    "endbr64": "endbr64";
    "cpuid": "push rbx", "cpuid", "pop rbx";
    "prefetch-kernel": "mov rax, -0x80000000", "prefetcht0 [rax]";
}

/// Raises `int number`. Each number has an instruction of its own, because text is read-only.
#[inline(never)]
pub fn int_n(number: u64) -> u64 {
    // SAFETY: none. `int n; ret` has 3 bytes; each entry of the table has 4.
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
            /// Loads the segment register with `selector`.
            #[inline(never)]
            pub fn $name(selector: u64) -> u64 {
                // SAFETY: none.
                unsafe { asm!(concat!("mov ", $register, ", ax"), in("rax") selector) };
                0
            }
        )*
    };
}
segment_loads! { load_ds "ds"; load_es "es"; load_fs "fs"; load_gs "gs"; }

/// Executes a far return to `selector`.
#[inline(never)]
pub fn far_return(selector: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("push rax", "lea rcx, [rip + 2f]", "push rcx", "retfq", "2:", in("rax") selector, out("rcx") _) };
    0
}

/// Executes an interrupt return to `selector`, with ring 1's own stack segment.
#[inline(never)]
pub fn interrupt_return(selector: u64) -> u64 {
    // SAFETY: none.
    unsafe {
        asm!("mov rcx, rsp", "push 1", "push rcx", "pushfq", "push rax", "lea rcx, [rip + 2f]", "push rcx", "iretq", "2:",
            in("rax") selector, out("rcx") _)
    };
    0
}

/// Executes an interrupt return to this code with `selector` as the stack segment, and reads CR3,
/// which only ring 0 may do.
#[inline(never)]
pub fn interrupt_return_stack(selector: u64) -> u64 {
    let cr3: u64;
    // SAFETY: none.
    unsafe {
        asm!("mov rcx, rsp", "push rax", "push rcx", "pushfq", "mov ecx, cs", "push rcx", "lea rcx, [rip + 2f]", "push rcx",
            "iretq", "2:", "mov rax, cr3", inout("rax") selector => cr3, out("rcx") _)
    };
    cr3
}

/// Asks for a segment's access rights, its limit, and whether it may be read or written. Returns 0
/// if the CPU reveals nothing.
#[inline(never)]
pub fn ask_segment(selector: u64) -> u64 {
    let (rights, limit, flags): (u64, u64, u64);
    // SAFETY: none.
    unsafe {
        asm!("lar {0:e}, eax", "lsl {1:e}, eax", "verr ax", "setz cl", "verw ax", "setz ch", "movzx ecx, cx",
            inout(reg) 0u64 => rights, inout(reg) 0u64 => limit, in("rax") selector, out("rcx") flags)
    };
    rights | limit | flags
}

/// Executes a far jump to `selector`.
#[inline(never)]
pub fn far_jump(selector: u64) -> u64 {
    let target = [0u16, 0, 0, 0, 0];
    // SAFETY: none. FF /5 with a 64-bit offset exists only on Intel CPUs. This jump has a 32-bit
    // offset, which cannot reach the slot. A jump that the CPU permits goes to address 0 and faults
    // there.
    unsafe {
        asm!("mov word ptr [rcx + 4], ax", ".byte 0xff, 0x29", in("rax") selector, in("rcx") target.as_ptr());
    }
    0
}
