//! Watches an instruction, or some memory, by the CPU's debug registers, which work in every ring
//! (SDM vol. 3B, 17.2).
//!
//! * Breakpoint 0: whether one instruction is ever executed, for trials. It ends with the first
//!   execution.
//! * Breakpoint 1: which instructions read or write up to eight bytes, for traces.
//! * Breakpoints 2 and 3: the same for a debugger, or only for writes.

use super::handlers;
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use x86_64::registers::debug::{DebugAddressRegister, Dr0, Dr1, Dr2, Dr3, Dr6, Dr7};

/// DR7 without breakpoints: bit 10 is always 1.
const NONE: u64 = 1 << 10;
/// DR7: breakpoint 0 is on (globally), for execution; so is breakpoint 1, for reads and writes.
const INSTRUCTION: u64 = 1 << 1;
const ACCESS: u64 = 1 << 3 | 0b11 << 20;
/// DR7: the position of the length of breakpoint 1.
const ACCESS_LENGTH: u32 = 22;
/// DR6: breakpoint 0 or 1 was met; the trap flag was set.
const MET_0: u64 = 1;
const MET_1: u64 = 1 << 1;
const MET_2: u64 = 1 << 2;
const MET_3: u64 = 1 << 3;
const SINGLE_STEP: u64 = 1 << 14;
/// DR6 as it is written back: no breakpoint was met (SDM vol. 3B, 17.2.3).
const DR6_CLEAR: u64 = 0xffff_0ff0;

static EXECUTED: AtomicBool = AtomicBool::new(false);
/// The breakpoints of the debugger that were met, as bits of DR6.
static MET: AtomicU64 = AtomicU64::new(0);

/// How many breakpoints a debugger has.
pub const FOR_DEBUGGER: usize = 2;

fn dr7() -> u64 {
    Dr7::read_raw()
}

fn set_dr7(value: u64) {
    Dr7::write_raw(value);
}

/// Writes the debug status register, for which the `x86_64` crate has no function.
fn set_dr6(value: u64) {
    // SAFETY: the register only reports which breakpoints were met.
    unsafe { asm!("mov dr6, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

/// Turns off the breakpoint with these bits in DR7, and leaves the other one as it is.
fn turn_off(bits: u64) {
    set_dr7(dr7() & !bits | NONE);
}

/// Watches the instruction at `address`, and no other.
pub fn set(address: u64) {
    EXECUTED.store(false, Ordering::Relaxed);
    turn_off(INSTRUCTION);
    Dr0::write(address);
    set_dr7(dr7() | INSTRUCTION);
}

/// Ends the watch of an instruction. Returns whether the instruction was executed.
pub fn take() -> bool {
    turn_off(INSTRUCTION);
    EXECUTED.swap(false, Ordering::Relaxed)
}

/// Returns the bits of DR7 that describe breakpoint 1 (SDM vol. 3B, 17.2.4), for a length of 1, 2,
/// 4 or 8 bytes.
fn access_bits(len_bytes: u64) -> u64 {
    let length = match len_bytes {
        1 => 0b00,
        2 => 0b01,
        8 => 0b10,
        _ => 0b11,
    };
    ACCESS | length << ACCESS_LENGTH
}

/// Watches the word of `len_bytes` bytes (1, 2, 4 or 8) at `address`, a multiple of its length.
pub fn set_access(address: u64, len_bytes: u64) {
    end_access();
    Dr1::write(address);
    set_dr7(dr7() | access_bits(len_bytes));
}

/// The bit of DR7 that turns breakpoint `2 + number` on, and all its bits.
fn debugger_bits(number: usize) -> (u64, u64) {
    let number = 2 + (number & 1);
    (1 << (2 * number + 1), 1 << (2 * number + 1) | 0b1111 << (16 + 4 * number))
}

/// Watches the word of `len_bytes` bytes (1, 2, 4 or 8) at `address`, a multiple of its length, for
/// a debugger: breakpoint `number` of [`FOR_DEBUGGER`]. `reads` says whether reads count as well.
pub fn set_for_debugger(number: usize, address: u64, len_bytes: u64, reads: bool) {
    end_for_debugger(number);
    match number {
        0 => Dr2::write(address),
        _ => Dr3::write(address),
    }
    let (on, _) = debugger_bits(number);
    // Kind and length are where those of breakpoint 1 are, further left.
    let kind = access_bits(len_bytes) & !(1 << 3) & if reads { u64::MAX } else { !(0b10 << 20) };
    set_dr7(dr7() | on | kind << (4 * (1 + (number & 1))));
}

/// Ends a watch for a debugger.
pub fn end_for_debugger(number: usize) {
    let (_, all) = debugger_bits(number);
    turn_off(all);
}

/// Returns whether a breakpoint of a debugger was met that nobody has taken.
pub fn is_met() -> bool {
    MET.load(Ordering::Relaxed) != 0
}

/// Returns the breakpoint of a debugger that was met since the last call, if one was.
pub fn take_met() -> Option<usize> {
    match MET.swap(0, Ordering::Relaxed) {
        0 => None,
        met => Some(usize::from(met & MET_2 == 0)),
    }
}

/// Ends all watches, as a panic reads memory that may be watched.
pub fn end_all() {
    set_dr7(NONE);
}

/// Ends the watch of memory.
pub fn end_access() {
    turn_off(access_bits(4));
}

/// Handles a debug exception at `rip`. Returns whether a watch was its only cause. If the watched
/// instruction was met, its watch ends.
pub fn noticed(rip: u64) -> bool {
    let (met, on) = (Dr6::read_raw(), dr7());
    // The CPU does not clear DR6; the handler must.
    set_dr6(DR6_CLEAR);
    let instruction = met & MET_0 != 0 && on & INSTRUCTION != 0;
    if instruction {
        turn_off(INSTRUCTION);
        EXECUTED.store(true, Ordering::Relaxed);
    }
    let access = met & MET_1 != 0 && on & ACCESS != 0;
    if access && let Some(handlers) = handlers::installed() {
        (handlers.watchpoint_hit)(rip);
    }
    let on_for_debugger = |number| on & debugger_bits(number).0 != 0;
    let for_debugger = (met & MET_2 != 0 && on_for_debugger(0), met & MET_3 != 0 && on_for_debugger(1));
    let bits = [(for_debugger.0, MET_2), (for_debugger.1, MET_3)].map(|(is_met, bit)| if is_met { bit } else { 0 });
    let bits = bits[0] | bits[1];
    MET.fetch_or(bits, Ordering::Relaxed);
    (instruction || access) && met & SINGLE_STEP == 0 && bits == 0
}
