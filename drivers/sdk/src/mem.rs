//! The functions on bytes that the compiler calls by name: those of the 64-bit target come with its
//! `compiler_builtins`, those of the 32-bit one from a C library, which drivers do not have.

use core::arch::asm;

/// Bytes that one step of the string instructions moves here. QEMU's TCG takes as long for a step
/// as for several other instructions.
const WORD: usize = size_of::<u32>();

/// Copies `len` bytes that do not overlap.
///
/// # Safety
/// As for `memcpy` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    // SAFETY: the caller's ranges are valid; DF is clear by the calling convention. ESI is the
    // compiler's own, so it is exchanged.
    unsafe {
        asm!(
            "xchg esi, {from}",
            "rep movsd",
            "mov ecx, edx",
            "rep movsb",
            "mov esi, {from}",
            from = inout(reg) from => _,
            in("edx") len % WORD,
            inout("ecx") len / WORD => _,
            inout("edi") to => _,
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Copies `len` bytes that may overlap.
///
/// # Safety
/// As for `memmove` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= len {
        // SAFETY: `to` is not inside the bytes that are still to be read.
        return unsafe { memcpy(to, from, len) };
    }
    // SAFETY: as for `memcpy`, from the last byte to the first. DF is clear again behind it.
    unsafe {
        asm!(
            "xchg esi, {from}",
            "std",
            "rep movsb",
            "cld",
            "mov esi, {from}",
            from = inout(reg) from.add(len).wrapping_sub(1) => _,
            inout("ecx") len => _,
            inout("edi") to.add(len).wrapping_sub(1) => _,
            options(nostack),
        );
    }
    to
}

/// Fills `len` bytes with the lowest byte of `value`.
///
/// # Safety
/// As for `memset` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
    // SAFETY: the caller's range is valid; DF is clear by the calling convention.
    unsafe {
        asm!(
            "rep stosd",
            "mov ecx, edx",
            "rep stosb",
            in("edx") len % WORD,
            inout("ecx") len / WORD => _,
            inout("edi") to => _,
            in("eax") u32::from_ne_bytes([value as u8; WORD]),
            options(nostack, preserves_flags),
        );
    }
    to
}

/// Compares `len` bytes; returns the difference of the first two that differ.
///
/// # Safety
/// As for `memcmp` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    let mut index = 0;
    while index < len {
        // SAFETY: the caller's ranges are valid. Volatile, or the compiler would make a call of
        // this function of the loop.
        let (a, b) = unsafe { (one.add(index).read_volatile(), other.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
        index += 1;
    }
    0
}

/// Returns whether `len` bytes differ.
///
/// # Safety
/// As for `bcmp` in C.
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(one: *const u8, other: *const u8, len: usize) -> i32 {
    // SAFETY: the caller's ranges are valid.
    unsafe { memcmp(one, other, len) }
}
