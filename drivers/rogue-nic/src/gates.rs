//! Calls of services with arguments that no driver would pass: every service with all extremes, and
//! with random values.

use core::arch::asm;
use ringfence_sdk::abi::layout::{DMA, HEAP, IMAGE, PAGE_SIZE, SLOT_SIZE, STACK_TOP};
use ringfence_sdk::abi::net::NetInfo;
use ringfence_sdk::service::raw;

/// The number of calls in one upcall, which must fit into the upcall's time budget.
const CALLS: u64 = 4000;

/// Names every service that a network driver may have, so that the module imports them all.
fn import_all() -> [u64; 19] {
    [
        raw::rf_null as *const () as u64,
        raw::rf_log as *const () as u64,
        raw::rf_panic as *const () as u64,
        raw::rf_heap_grow as *const () as u64,
        raw::rf_time_ns as *const () as u64,
        raw::rf_dma_alloc as *const () as u64,
        raw::rf_dma_free as *const () as u64,
        raw::rf_dma_address as *const () as u64,
        raw::rf_bar_map as *const () as u64,
        raw::rf_bar_len as *const () as u64,
        raw::rf_pci_read as *const () as u64,
        raw::rf_pci_write as *const () as u64,
        raw::rf_irq_enable as *const () as u64,
        raw::rf_irq_ack as *const () as u64,
        raw::rf_offer as *const () as u64,
        raw::rf_timer as *const () as u64,
        raw::rf_answer as *const () as u64,
        raw::rf_command as *const () as u64,
        raw::rf_sleep as *const () as u64,
    ]
}

/// Calls service `number` through its gate. The kernel defines the layout of the LDT; it is no
/// secret. All registers except RSP are set, not only the registers that could be arguments.
/// Registers that a call preserves must have their old values afterwards.
#[cfg(target_arch = "x86_64")]
fn call(number: u64, arguments: [u64; 3]) -> i64 {
    let target = [0u16, 0, ((6 + 2 * number) << 3 | 5) as u16];
    let [a, b, c] = arguments;
    let kept = [a, b, c, !a, !b, !c];
    let (result, changed): (i64, u64);
    // SAFETY: the services trust no argument.
    unsafe {
        asm!(
            "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15", "push r11",
            "mov rbx, [r11]", "mov rbp, [r11 + 8]", "mov r12, [r11 + 16]",
            "mov r13, [r11 + 24]", "mov r14, [r11 + 32]", "mov r15, [r11 + 40]",
            "mov r11, r9",
            ".byte 0xff, 0x18", // call far [rax]
            "pop r11",
            "xor rbx, [r11]", "xor rbp, [r11 + 8]", "xor r12, [r11 + 16]",
            "xor r13, [r11 + 24]", "xor r14, [r11 + 32]", "xor r15, [r11 + 40]",
            "mov rdi, rbx", "or rdi, rbp", "or rdi, r12", "or rdi, r13", "or rdi, r14", "or rdi, r15",
            "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
            inout("rax") target.as_ptr() as u64 => result,
            inout("rdi") a => changed, inout("rsi") b => _, inout("rdx") c => _, inout("rcx") !a => _,
            inout("r8") !b => _, inout("r9") !c => _, inout("r10") a ^ b => _, inout("r11") kept.as_ptr() => _,
        )
    };
    assert!(changed == 0, "service {number} changed a register");
    result
}

/// The same for 32-bit code: of the third argument the gate takes 32 bits, and a call preserves EDI
/// and EBP.
#[cfg(target_arch = "x86")]
fn call(number: u64, arguments: [u64; 3]) -> i64 {
    let [a, b, c] = arguments;
    let selector = (6 + 2 * number) << 3 | 5;
    let words = [0, selector, a, a >> 32, b, b >> 32, c, !a].map(|word| word as u32);
    let (low, high, changed): (u32, u32, u32);
    // SAFETY: the services trust no argument.
    unsafe {
        asm!(
            "push ebx", "push esi", "push edi", "push ebp", "push ecx",
            "mov ebp, ecx",
            "mov eax, [ebp + 8]", "mov ebx, [ebp + 12]", "mov edx, [ebp + 16]", "mov esi, [ebp + 20]",
            "mov ecx, [ebp + 24]", "mov edi, [ebp + 28]",
            ".byte 0xff, 0x5d, 0", // call far [ebp]
            "pop ecx",
            "xor edi, [ecx + 28]", "xor ecx, ebp", "or ecx, edi",
            "pop ebp", "pop edi", "pop esi", "pop ebx",
            inout("ecx") words.as_ptr() => changed, out("eax") low, out("edx") high,
        )
    };
    assert!(changed == 0, "service {number} changed a register");
    (u64::from(high) << 32 | u64::from(low)) as i64
}

/// Returns extreme values for arguments: numbers, and addresses of all kinds.
fn extremes(slot: u64) -> [u64; 22] {
    [
        0,
        1,
        2,
        4,
        7,
        4095,
        4096,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 4095,
        u64::MAX,
        0x0000_8000_0000_0000,
        0xffff_7fff_ffff_ffff,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_c000_8000,
        slot,
        slot + DMA,
        slot + HEAP,
        slot + STACK_TOP - 4,
        slot + SLOT_SIZE - 8,
        // The image of the second driver, which is in the preceding slot.
        slot.wrapping_sub(SLOT_SIZE) + IMAGE,
    ]
}

/// Calls service `number` with all combinations of extremes. Returns the number of calls that the
/// kernel did not refuse.
pub fn all_extremes(slot: u64, number: u64) -> u64 {
    core::hint::black_box(import_all());
    let values = extremes(slot);
    let mut allowed = 0;
    for a in values {
        for b in values {
            for c in values {
                allowed += u64::from(call(number, [a, b, c]) >= 0);
            }
        }
    }
    allowed
}

/// Calls service `number` with random arguments; `state` is the state of the random numbers. Some
/// services end the driver for an invalid pointer. They get pointers to the driver's own memory,
/// whose contents change. Services that take the address of a region sometimes get a valid one.
pub fn at_random(slot: u64, number: u64, state: &mut u64) -> u64 {
    const LOG: u64 = 1;
    const DMA_FREE: u64 = 6;
    const DMA_ADDRESS: u64 = 7;
    const OFFER: u64 = 14;
    const ANSWER: u64 = 18;
    const COMMAND: u64 = 19;
    const INFO_BYTES: usize = size_of::<NetInfo>();
    core::hint::black_box(import_all());
    let values = extremes(slot);
    let mut text = [b'x'; 512];
    let mut region = 0;
    let mut random = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    for _ in 0..CALLS {
        let mut argument = || {
            let number = random();
            match number % 4 {
                0 => number >> 2,
                1 => (number >> 2) % 300,
                _ => values.get((number >> 2) as usize % values.len()).copied().unwrap_or(0),
            }
        };
        let mut arguments = [argument(), argument(), argument()];
        let random = random();
        match number {
            LOG => arguments[1] = text.as_ptr() as u64,
            ANSWER | COMMAND => {
                arguments[0] = text.as_ptr() as u64;
                arguments[1] %= text.len() as u64;
            }
            OFFER => {
                let at = random as usize % (text.len() - INFO_BYTES);
                let bytes = (random >> 16).to_le_bytes();
                // Half of the descriptions have a valid Ethernet address and an empty `can_hear`.
                let (info, rest) = match random & 1 << 63 {
                    0 => (bytes, bytes),
                    _ => ([0x52, bytes[0], 0, 0, 0, 1, 0, 0], [0; 8]),
                };
                text[at..at + 8].copy_from_slice(&info);
                text[at + 8..at + INFO_BYTES].copy_from_slice(&rest);
                arguments[0] = text[at..].as_ptr() as u64;
                // Some calls pass another length.
                if random & 3 != 0 {
                    arguments[1] = INFO_BYTES as u64;
                }
            }
            DMA_FREE | DMA_ADDRESS if random.is_multiple_of(4) => {
                // When the budget is used up, the last region is used again.
                if let another @ 0.. = unsafe { raw::rf_dma_alloc(PAGE_SIZE) } {
                    region = another as u64;
                }
                arguments[0] = region + if random & 4 == 0 { 0 } else { random >> 3 & (PAGE_SIZE - 1) };
            }
            _ => {}
        }
        call(number, core::hint::black_box(arguments));
    }
    CALLS
}
