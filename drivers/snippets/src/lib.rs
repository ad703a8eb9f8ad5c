//! Machine code that no compiler would emit, to see its effect in ring 1: `tell snippets N` jumps
//! to snippet N. As built, each snippet is only invalid instructions. `cargo run -- snippets` makes
//! copies of the module's file with other snippets in their place.
#![no_std]

use core::arch::asm;
use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(Snippets, Manifest::new("snippets", env!("CARGO_PKG_VERSION")).stack_kib(16).upcall_ms(20));

/// The number of snippets in a module, and the bytes of each. The runner finds the snippets by
/// their first bytes, and relies on both values.
const COUNT: usize = 512;
const BYTES: usize = 64;
/// The first bytes of the first snippet, as built.
const MARK: [u8; 16] = *b"RF-SNIPPETS-HERE";

#[repr(C, align(64))]
struct Code {
    snippets: [[u8; BYTES]; COUNT],
}

/// UD2 repeated, except for the mark.
#[unsafe(link_section = ".text.snippets")]
#[used]
static CODE: Code = {
    let mut snippets = [[0; BYTES]; COUNT];
    let mut index = 0;
    while index < COUNT * BYTES {
        snippets[index / BYTES][index % BYTES] = if index % 2 == 0 { 0x0f } else { 0x0b };
        index += 1;
    }
    let mut index = 0;
    while index < MARK.len() {
        snippets[0][index] = MARK[index];
        index += 1;
    }
    Code { snippets }
};

/// Memory that the snippets may overwrite.
static mut SCRATCH: [u64; 64] = [0; 64];

struct Snippets;

impl Driver for Snippets {
    fn init() -> Result<Snippets> {
        Ok(Snippets)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let number: usize = text.parse().map_err(|_| Refusal::Invalid)?;
        let code = CODE.snippets.get(number).ok_or(Refusal::NotFound)?.as_ptr();
        // SAFETY: none; that is the point. The registers hold small numbers, addresses of the
        // driver's own memory, and addresses of memory that is not the driver's.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "mov rax, 1",
                "mov rcx, 2",
                "mov rdx, 0x60",
                "mov rbp, rsp",
                "lea r8, [rsp - 128]",
                "mov r9, 0xffffffff80000000",
                "mov r10, 0x8000000000000000",
                "mov r12, 0xffffffffc0008800",
                "mov r13, -1",
                "xor r14d, r14d",
                "lea r15, [rsi + 64]",
                "lea rbx, [rsi + 128]",
                "jmp r11",
                in("r11") code,
                in("rsi") &raw mut SCRATCH,
                in("rdi") &raw mut SCRATCH,
                options(noreturn)
            )
        }
        // SAFETY: none here either.
        #[cfg(target_arch = "x86")]
        unsafe {
            asm!(
                "mov esi, edx",
                "mov edi, edx",
                "lea ebx, [edx + 128]",
                "mov edx, 0x60",
                "mov ebp, esp",
                "push ecx",
                "mov ecx, 2",
                "mov eax, 1",
                "ret",
                in("ecx") code,
                in("edx") &raw mut SCRATCH,
                options(noreturn)
            )
        }
    }
}
