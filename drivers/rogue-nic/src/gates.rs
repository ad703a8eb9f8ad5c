//! Calls of services with arguments that no driver would pass: every one at every extreme, and at
//! random.

use core::arch::asm;
use ringfence_sdk::abi::layout::{DMA, HEAP, IMAGE, PAGE_SIZE, SLOT_SIZE, STACK_TOP};
use ringfence_sdk::abi::net::NetInfo;
use ringfence_sdk::service::raw;

/// Calls made in one upcall: they must fit into its time budget.
const CALLS: u64 = 4000;

/// Names every service that a network driver may have, so that it is asked for.
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

/// Calls service `number` through its gate (the layout of the LDT is the kernel's; it is no secret)
/// with every register that could be an argument set, and every other one but RSP. Those that a
/// call keeps must be what they were.
fn call(number: u64, arguments: [u64; 3]) -> i64 {
    let target = [0u16, 0, ((6 + 2 * number) << 3 | 5) as u16];
    let [a, b, c] = arguments;
    let kept = [a, b, c, !a, !b, !c];
    let (result, changed): (i64, u64);
    // SAFETY: the services believe nothing.
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

/// What arguments are at their extremes: numbers, and addresses of all kinds.
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
        // What the second driver has there, in the slot before.
        slot - SLOT_SIZE + IMAGE,
    ]
}

/// Calls service `number` with all extremes in all its arguments; returns how many calls were not
/// refused.
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

/// Calls service `number` at random; `state` is where the random numbers begin and go on. What
/// takes a pointer gets one of its own, as another ends the driver, to something that changes; what
/// takes a region's address gets one now and then.
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
        let random = random() as usize;
        match number {
            LOG => arguments[1] = text.as_ptr() as u64,
            ANSWER | COMMAND => {
                arguments[0] = text.as_ptr() as u64;
                arguments[1] %= text.len() as u64;
            }
            OFFER => {
                let at = random % (text.len() - INFO_BYTES);
                let bytes = (random >> 16).to_le_bytes();
                // Half of them have nothing in their reserved bytes.
                let (info, rest) = match random & 1 << 63 {
                    0 => (bytes, bytes),
                    _ => ([0x52, bytes[0], 0, 0, 0, 1, 0, 0], [0; 8]),
                };
                text[at..at + 8].copy_from_slice(&info);
                text[at + 8..at + INFO_BYTES].copy_from_slice(&rest);
                arguments[0] = text[at..].as_ptr() as u64;
                // Some have another length.
                if random & 3 != 0 {
                    arguments[1] = INFO_BYTES as u64;
                }
            }
            DMA_FREE | DMA_ADDRESS if random.is_multiple_of(4) => {
                // When it has all of its budget, the last one is as good.
                if let another @ 0.. = unsafe { raw::rf_dma_alloc(PAGE_SIZE) } {
                    region = another as u64;
                }
                arguments[0] = region + if random & 4 == 0 { 0 } else { random as u64 >> 3 & (PAGE_SIZE - 1) };
            }
            _ => {}
        }
        call(number, core::hint::black_box(arguments));
    }
    CALLS
}
