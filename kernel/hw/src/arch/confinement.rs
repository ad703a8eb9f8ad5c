//! The code that a segmented domain runs to find out whether this machine keeps 32-bit code below
//! 4 GiB and out of 64-bit code. Emulators are not all alike there.

use core::arch::global_asm;
use ringfence_abi::layout::IMAGE;
use ringfence_core::descriptor;

global_asm!(
    include_str!("confinement.S"),
    there = const IMAGE + OFFSET,
    far = const FAR,
    offset = const OFFSET,
    value = const VALUE,
    driver_code = const descriptor::DRIVER_CODE,
    tables_bytes = const if descriptor::LDT_BYTES > descriptor::GDT_ENTRIES * 8 {
        descriptor::LDT_BYTES
    } else {
        descriptor::GDT_ENTRIES * 8
    },
);

/// The offset of that word in the code.
const OFFSET: u64 = 0x100;
/// The number that is added to addresses too low by that number: the sum is more than 4 GiB.
const FAR: u64 = 0x4000_0000;
/// A word that the code finds at the addresses that it makes. Its lowest bit is 1.
const VALUE: u32 = 0x5249_4e47;

unsafe extern "C" {
    static confinement_begin: u8;
    static confinement_end: u8;
}

/// The words for each failed check, in the order of the bits in the code's result.
pub const CHECKS: [&str; 7] = [
    "32-bit code is decoded as 64-bit code",
    "a base and a displacement are not cut off to 32 bits",
    "a base and an index are not cut off to 32 bits",
    "a scaled index is not cut off to 32 bits",
    "the place of a bit is not cut off to 32 bits",
    "the code segment is another one",
    "ring 1 can have a segment of 64-bit or conforming code",
];

/// Returns the code, which runs at the start of a segmented domain's image.
pub fn code() -> &'static [u8] {
    // SAFETY: the labels enclose bytes of the kernel's image that nobody writes.
    unsafe {
        let begin = &raw const confinement_begin;
        core::slice::from_raw_parts(begin, (&raw const confinement_end).offset_from_unsigned(begin))
    }
}
