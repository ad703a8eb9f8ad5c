//! The attacks, by verb. Each attack takes a number. If it returns, its result is shown.

use crate::instructions;
use alloc::vec::Vec;
use core::arch::asm;
use core::sync::atomic::{AtomicU8, Ordering};
use ringfence_sdk::abi::layout::SLOT_SIZE;
use ringfence_sdk::service::raw;

/// An attack.
pub type Attack = fn(u64) -> u64;

/// All attacks and their verbs.
pub static ATTACKS: &[(&str, Attack)] = &[
    ("list", list),
    // memory
    ("read", read),
    ("write", write),
    ("execute", execute),
    ("write-text", write_text),
    ("execute-data", execute_data),
    ("execute-static", execute_static),
    ("write-relro", write_relro),
    ("recurse", recurse),
    ("big-frame", big_frame),
    // instructions
    ("cli", cli),
    ("hlt", hlt),
    ("lidt", lidt),
    ("rdmsr", rdmsr),
    ("in", port_in),
    ("out", port_out),
    ("int", int_0x80),
    ("int3", int3),
    ("syscall", syscall),
    ("sysenter", sysenter),
    ("ud2", ud2),
    ("sse", sse),
    ("divide", divide),
    // control flow
    ("far-call", far_call),
    ("far-jump-ring0", far_jump_ring0),
    ("iret-ring0", iret_ring0),
    ("int-n", instructions::int_n),
    ("load-ds", instructions::load_ds),
    ("load-es", instructions::load_es),
    ("load-fs", instructions::load_fs),
    ("load-gs", instructions::load_gs),
    ("far-return", instructions::far_return),
    ("interrupt-return", instructions::interrupt_return),
    ("far-jump", instructions::far_jump),
    ("iret-stack", instructions::interrupt_return_stack),
    ("ask-segment", instructions::ask_segment),
    ("trap-flag-gate", trap_flag_gate),
    ("trap-flag-return", trap_flag_return),
    ("hidden", hidden),
    ("middle-of-stub", middle_of_stub),
    ("bad-stack-gate", bad_stack_gate),
    ("bad-stack", bad_stack),
    ("bad-stack-fault", bad_stack_fault),
    ("bad-stack-push", bad_stack_push),
    ("gate-at-page-end", gate_at_page_end),
    ("gate-offset", gate_offset),
    ("flags", flags),
    ("clear-flag", clear_flag),
    ("iret-flags", iret_flags),
    ("return-gate-flags", return_gate_flags),
    ("flag", flag),
    ("leaks", leaks),
    // services
    ("log-pointer", log_pointer),
    ("log-pointer-quiet", log_pointer_quiet),
    ("log-registers", log_registers),
    ("log-elsewhere", log_elsewhere),
    ("log-length", log_length),
    ("log-forged", log_forged),
    ("panic", panic),
    ("panic-random", panic_random),
    ("heap", heap),
    ("stale", stale),
    ("loop", endless),
    ("loop-df", endless_df),
    ("gate-flood", gate_flood),
];

fn list(_: u64) -> u64 {
    let names: Vec<&str> = ATTACKS.iter().chain(instructions::INSTRUCTIONS).map(|(name, _)| *name).collect();
    // A line for each name would exceed the number of lines that an upcall may log.
    names.chunks(4).for_each(|names| log::info!("{}", names.join(" ")));
    names.len() as u64
}

#[inline(never)]
fn read(address: u64) -> u64 {
    let value: u64;
    // SAFETY: none; that is the point, here and below.
    unsafe { asm!("mov {}, [{}]", out(reg) value, in(reg) address) };
    value
}

#[inline(never)]
fn write(address: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("mov qword ptr [{}], 0x41", in(reg) address) };
    0
}

#[inline(never)]
fn execute(address: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("call {}", in(reg) address, clobber_abi("C")) };
    0
}

fn write_text(_: u64) -> u64 {
    write(write_text as *const () as u64)
}

fn execute_data(_: u64) -> u64 {
    let code = [0xc3u8; 16];
    execute(code.as_ptr() as u64)
}

/// Executes memory that is writable.
fn execute_static(_: u64) -> u64 {
    static CODE: AtomicU8 = AtomicU8::new(0);
    const RET: u8 = 0xc3;
    CODE.store(RET, Ordering::Relaxed);
    execute(CODE.as_ptr() as u64)
}

/// Writes to the table of attacks. The table holds pointers, so the loader relocated it and then
/// made it read-only.
fn write_relro(_: u64) -> u64 {
    write(ATTACKS.as_ptr() as u64)
}

#[inline(never)]
fn deeper(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    if depth == u64::MAX { 0 } else { deeper(depth + 1) + core::hint::black_box(frame)[0] }
}

fn recurse(_: u64) -> u64 {
    deeper(0)
}

/// Writes far below the stack in one step, which would skip a guard of a single page.
fn big_frame(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("mov qword ptr [rsp - 0x40000], 1") };
    0
}

fn cli(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("cli") };
    0
}

fn hlt(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("hlt") };
    0
}

fn lidt(_: u64) -> u64 {
    let pointer = [0u8; 10];
    // SAFETY: none.
    unsafe { asm!("lidt [{}]", in(reg) &pointer) };
    0
}

fn rdmsr(number: u64) -> u64 {
    let low: u32;
    // SAFETY: none.
    unsafe { asm!("rdmsr", in("ecx") number as u32, out("eax") low, out("edx") _) };
    low.into()
}

fn port_in(port: u64) -> u64 {
    let value: u8;
    // SAFETY: none.
    unsafe { asm!("in al, dx", in("dx") port as u16, out("al") value) };
    value.into()
}

fn port_out(port: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("out dx, al", in("dx") port as u16, in("al") 0u8) };
    0
}

fn int_0x80(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("int 0x80") };
    0
}

fn int3(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("int3") };
    0
}

fn syscall(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("syscall", out("rcx") _, out("r11") _) };
    0
}

fn sysenter(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("sysenter") };
    0
}

fn ud2(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("ud2") };
    0
}

fn sse(_: u64) -> u64 {
    // SAFETY: none. The instruction is written as bytes, because the target has SSE disabled in the
    // assembler: xorps %xmm0, %xmm0.
    unsafe { asm!(".byte 0x0f, 0x57, 0xc0") };
    0
}

fn divide(divisor: u64) -> u64 {
    let quotient: u64;
    // SAFETY: none.
    unsafe { asm!("div {}", in(reg) divisor, inout("rax") 1u64 => quotient, inout("rdx") 0u64 => _) };
    quotient
}

/// Executes a far call to any selector, without arguments.
fn far_call(selector: u64) -> u64 {
    call_far([0, 0, selector as u16])
}

/// Calls a gate with any offset in the far pointer.
fn gate_offset(offset: u64) -> u64 {
    call_far([offset as u16, (offset >> 16) as u16, selector_of(0)])
}

/// Executes a far call to a 32-bit offset and a selector.
fn call_far(target: [u16; 3]) -> u64 {
    let result: u64;
    // SAFETY: none. FF /3 without REX.W, as call gates require: call far [rax].
    unsafe {
        asm!(
            ".byte 0xff, 0x18",
            inout("rax") target.as_ptr() as u64 => result, inout("rdi") 0u64 => _, inout("rsi") 0u64 => _,
            inout("rdx") 0u64 => _, clobber_abi("C")
        )
    };
    result
}

fn far_jump_ring0(_: u64) -> u64 {
    let target = [0u16, 0, 8];
    // SAFETY: none. FF /5: jmp far [rax].
    unsafe { asm!(".byte 0xff, 0x28", in("rax") target.as_ptr()) };
    0
}

fn iret_ring0(_: u64) -> u64 {
    // SAFETY: none.
    unsafe {
        asm!(
            "mov {0}, rsp",
            "push 0x10",
            "push {0}",
            "push 2",
            "push 8",
            "lea {0}, [rip + 2f]",
            "push {0}",
            "iretq",
            "2:",
            out(reg) _
        )
    };
    0
}

/// Jumps into the middle of an instruction whose constant hides another instruction: MOV from CR3,
/// WRMSR, CLI, or OUT.
#[inline(never)]
fn hidden(number: u64) -> u64 {
    // SAFETY: none. MOV RAX, imm64 has 10 bytes; the constant begins with the third.
    unsafe {
        asm!(
            "lea rax, [rip + 2f]",
            "lea rax, [rax + 4 * rcx + 2]",
            "lea rax, [rax + 2 * rcx]",
            "lea rax, [rax + 4 * rcx]",
            "xor ecx, ecx",
            "jmp rax",
            "2:",
            ".byte 0x48, 0xb8, 0x0f, 0x20, 0xd8, 0x90, 0x90, 0x90, 0x90, 0x90",
            ".byte 0x48, 0xb8, 0x0f, 0x30, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90",
            ".byte 0x48, 0xb8, 0xfa, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90",
            ".byte 0x48, 0xb8, 0xee, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90, 0x90",
            in("rcx") number & 3, out("rax") _, out("rdx") _
        )
    };
    0
}

/// Jumps into the middle of the stub for a service: the far call without its first byte.
fn middle_of_stub(_: u64) -> u64 {
    execute(raw::rf_null as *const () as u64 + 1)
}

/// Single-steps into a gate. The debug exception arrives in ring 0, on the gate's first
/// instruction.
fn trap_flag_gate(_: u64) -> u64 {
    single_step_into(selector_of(0))
}

/// Single-steps into the gate that ends an upcall.
fn trap_flag_return(_: u64) -> u64 {
    single_step_into(RETURN_GATE)
}

fn single_step_into(selector: u16) -> u64 {
    let target = [0u16, 0, selector];
    let result: u64;
    // SAFETY: none.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], 0x100",
            "popfq",
            ".byte 0xff, 0x18", // call far [rax]
            inout("rax") target.as_ptr() as u64 => result, clobber_abi("C")
        )
    };
    result
}

/// Calls a gate with an invalid stack pointer. The call works, because the kernel does not use the
/// driver's stack.
fn bad_stack_gate(stack: u64) -> u64 {
    let target = [0u16, 0, selector_of(0)];
    let result: u64;
    // SAFETY: none.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, rcx",
            ".byte 0xff, 0x18", // call far [rax]
            "mov rsp, r12",
            inout("rax") target.as_ptr() as u64 => result, in("rcx") stack, out("r12") _, clobber_abi("C")
        )
    };
    result
}

/// Waits for interrupts with an invalid stack pointer. Interrupts have stacks of their own.
fn bad_stack(stack: u64) -> u64 {
    // SAFETY: none.
    unsafe {
        asm!(
            "mov r12, rsp",
            "mov rsp, {0}",
            "mov rcx, 100000000",
            "2: dec rcx",
            "jnz 2b",
            "mov rsp, r12",
            in(reg) stack, out("rcx") _, out("r12") _
        )
    };
    0
}

/// Faults with an invalid stack pointer. Exceptions have stacks of their own.
fn bad_stack_fault(stack: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("mov rsp, {0}", "ud2", in(reg) stack, options(noreturn)) }
}

/// Executes PUSH with an invalid stack pointer.
#[inline(never)]
fn bad_stack_push(stack: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("mov rsp, {0}", "push 1", in(reg) stack, options(noreturn)) }
}

/// Calls a gate with an instruction that crosses a page boundary after its first byte.
fn gate_at_page_end(_: u64) -> u64 {
    let target = [0u16, 0, selector_of(0)];
    let result: u64;
    // SAFETY: none.
    unsafe {
        asm!(
            "jmp 2f",
            ".balign 4096",
            ".skip 4094, 0x90",
            "2: nop",
            ".byte 0xff, 0x18", // call far [rax]
            inout("rax") target.as_ptr() as u64 => result, clobber_abi("C")
        )
    };
    result
}

/// TF, IF, DF, IOPL, NT, RF, VM, AC, VIF, VIP and ID. After a gate call, only IF of these flags is
/// set, even if the driver has changed them.
const NOT_THE_DRIVERS: u64 = 0x3f_7700;

/// IF, IOPL, VM, VIF, VIP.
const PRIVILEGED: u64 = 1 << 9 | 3 << 12 | 1 << 17 | 1 << 19 | 1 << 20;

/// Sets one flag, calls a gate, and returns the flags that the driver must not be able to set.
fn flag(bit: u64) -> u64 {
    pop_flags(1 << (bit & 63), 0)
}

/// Does the same with every flag that POPF lets the driver set.
fn flags(_: u64) -> u64 {
    // TF is left out, because it has an attack of its own.
    pop_flags(0x24_7ed5, 0)
}

/// Clears one flag, calls a gate, and returns the flags that the driver must not be able to change.
fn clear_flag(bit: u64) -> u64 {
    pop_flags(0, 1 << (bit & 63))
}

/// Changes flags, and returns the flags that the driver must not be able to change: their values
/// right away, and after a gate call.
fn pop_flags(set: u64, cleared: u64) -> u64 {
    let (at_once, after): (u64, u64);
    // SAFETY: none.
    unsafe {
        asm!(
            "pushfq",
            "or qword ptr [rsp], {set}",
            "and qword ptr [rsp], {kept}",
            "popfq",
            "pushfq",
            "pop {at_once}",
            set = in(reg) set, kept = in(reg) !cleared, at_once = out(reg) at_once
        );
        raw::rf_null();
        asm!("pushfq", "pop {}", out(reg) after);
    }
    at_once & PRIVILEGED | after & NOT_THE_DRIVERS
}

/// Ends the upcall at the return gate with these flags set. The value is 1.
fn return_gate_flags(flags: u64) -> u64 {
    let target = [0u16, 0, RETURN_GATE];
    // SAFETY: none. FF /3 without REX.W, as call gates require: call far [rcx].
    unsafe {
        asm!(
            "pushfq", "or qword ptr [rsp], {flags}", "popfq", ".byte 0xff, 0x19",
            flags = in(reg) flags, in("rcx") target.as_ptr(), in("rax") 1u64, options(noreturn)
        )
    }
}

/// Loads flags with IRETQ, which returns to the same ring.
fn iret_flags(flags: u64) -> u64 {
    let at_once: u64;
    // SAFETY: none. Bit 1 is always set.
    unsafe {
        asm!(
            "mov {scratch}, rsp",
            "mov ecx, ss",
            "push rcx",
            "push {scratch}",
            "push {flags}",
            "mov ecx, cs",
            "push rcx",
            "lea rcx, [rip + 2f]",
            "push rcx",
            "iretq",
            "2: pushfq",
            "pop {at_once}",
            flags = in(reg) flags | 2, scratch = out(reg) _, at_once = out(reg) at_once, out("rcx") _
        );
    }
    at_once & PRIVILEGED
}

/// Calls a gate `calls` times plus once. Before the last call, no register holds an address in the
/// kernel's half. Returns the number of registers that hold one afterwards, plus the number of
/// words in the entry stacks that are such addresses. A gate or an interrupt would have left them
/// there. Addresses in the entry area are no secret and do not count.
fn leaks(calls: u64) -> u64 {
    for _ in 0..calls {
        // SAFETY: the service does nothing.
        unsafe { raw::rf_null() };
    }
    const ENTRY_AREA: core::ops::Range<u64> = 0xffff_ffff_c000_0000..0xffff_ffff_c000_9000;
    const STACKS: u64 = 0xffff_ffff_c000_8000;
    let target = [0u16, 0, selector_of(0)];
    let mut registers = [0u64; 16];
    // SAFETY: none. RAX points to the gate's far pointer; every other register except RSP is set to
    // 1.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "push {out}",
            "mov rbx, 1", "mov rcx, 1", "mov rdx, 1", "mov rsi, 1", "mov rdi, 1", "mov rbp, 1",
            "mov r8, 1", "mov r9, 1", "mov r10, 1", "mov r11, 1", "mov r12, 1", "mov r13, 1", "mov r14, 1", "mov r15, 1",
            ".byte 0xff, 0x18",
            "xchg rax, [rsp]",
            "mov [rax], rbx", "mov [rax + 8], rcx", "mov [rax + 16], rdx", "mov [rax + 24], rsi", "mov [rax + 32], rdi",
            "mov [rax + 40], rbp", "mov [rax + 48], r8", "mov [rax + 56], r9", "mov [rax + 64], r10", "mov [rax + 72], r11",
            "mov [rax + 80], r12", "mov [rax + 88], r13", "mov [rax + 96], r14", "mov [rax + 104], r15",
            "pop rcx",
            "mov [rax + 112], rcx",
            "pop rbp",
            "pop rbx",
            out = in(reg) registers.as_mut_ptr(), inout("rax") target.as_ptr() => _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _, clobber_abi("C")
        );
    }
    // An interrupt leaves this driver's own registers on the entry stack, among them small negative
    // numbers and 1 << 63: the former would be addresses in the last page, which is never mapped,
    // and the latter is no address (SDM vol. 1, 3.3.7.1).
    const UPPER_HALF: core::ops::Range<u64> = 0xffff_8000_0000_0000..0xffff_ffff_ffff_f000;
    let is_kernel = |value: &u64| UPPER_HALF.contains(value) && !ENTRY_AREA.contains(value);
    // SAFETY: the entry stacks are readable in every root.
    let stacks = (0..512).map(|word| unsafe { (STACKS as *const u64).add(word).read_volatile() });
    (registers.into_iter().filter(is_kernel).count() + stacks.filter(is_kernel).count()) as u64
}

/// The return gate's selector.
const RETURN_GATE: u16 = 4 << 3 | 5;

/// Returns the selector of a service's gate. The kernel defines the layout; it is no secret.
fn selector_of(service: u16) -> u16 {
    (6 + 2 * service) << 3 | 5
}

fn log_pointer(address: u64) -> u64 {
    // SAFETY: none.
    unsafe { raw::rf_log(3, address, 16) as u64 }
}

/// Logs from `address` at a level that the kernel does not show.
fn log_pointer_quiet(address: u64) -> u64 {
    // SAFETY: none.
    unsafe { raw::rf_log(5, address, 16) as u64 }
}

/// Logs from address 0, with a different number in each register that a call preserves.
fn log_registers(_: u64) -> u64 {
    // SAFETY: none; the call does not return.
    unsafe {
        asm!(
            "mov ebx, 0xb", "mov ebp, 0xbb", "mov r12d, 12", "mov r13d, 13", "mov r14d, 14", "mov r15d, 15",
            "mov edi, 3", "xor esi, esi", "mov edx, 16",
            "call {}",
            "ud2",
            sym raw::rf_log,
            options(noreturn)
        )
    }
}

/// Logs from address 0 with a far call of its own. RSP points to a word that names another caller.
#[inline(never)]
fn log_elsewhere(_: u64) -> u64 {
    const LOG: u16 = 1;
    let target = [0u16, 0, selector_of(LOG)];
    let innocent = [read as *const () as u64 + 5];
    // SAFETY: none; the call does not return.
    unsafe {
        asm!("mov rsp, rcx", ".byte 0xff, 0x18", "ud2", in("rax") target.as_ptr(), in("rcx") innocent.as_ptr(),
            in("rdi") 3, in("rsi") 0, in("rdx") 16, options(noreturn))
    }
}

fn log_length(len_bytes: u64) -> u64 {
    let text = [b'a'; 16];
    // SAFETY: none.
    unsafe { raw::rf_log(3, text.as_ptr() as u64, len_bytes) as u64 }
}

/// Logs a text that tries to clear the screen, reverse the writing direction, and imitate the
/// kernel's log.
fn log_forged(_: u64) -> u64 {
    log::info!("\x1b[2J\u{202e}\u{db}\r\n[   0.000001] e1000: loaded into ring 0");
    0
}

fn panic(_: u64) -> u64 {
    panic!("as it was told");
}

/// Calls `rf_panic` with a random text: in the driver's own memory, or anywhere else. The time
/// seeds the random numbers, so each run differs.
fn panic_random(_: u64) -> u64 {
    const LENGTHS: [u64; 8] = [0, 1, 7, 512, 513, 4096, 1 << 63, u64::MAX];
    let own = core::hint::black_box([0u8; 1024]);
    // SAFETY: the service takes no arguments.
    let mut state = unsafe { raw::rf_time_ns() } as u64;
    let mut random = || {
        // splitmix64, because only a few bits of the time differ.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    };
    let (number, offset) = (random(), random());
    let address = match number % 4 {
        0 => number,
        1 => own.as_ptr() as u64 + offset % 1024,
        2 => (own.as_ptr() as u64 & !(SLOT_SIZE - 1)) + offset % SLOT_SIZE,
        // An address in the kernel's half, or a non-canonical one.
        _ => (number | 0xffff_8000_0000_0000) & !((offset & 1) << 47),
    };
    let len_bytes = LENGTHS.get(random() as usize % 16).copied().unwrap_or(random() % 600);
    // SAFETY: none; the call does not return.
    unsafe { raw::rf_panic(address, len_bytes) as u64 }
}

/// Grows the heap until the kernel refuses.
fn heap(_: u64) -> u64 {
    let mut taken = 0;
    // SAFETY: the service takes no pointers.
    while unsafe { raw::rf_heap_grow(4096) } > 0 {
        taken += 4096;
    }
    taken
}

fn endless(_: u64) -> u64 {
    loop {
        core::hint::spin_loop();
    }
}

fn endless_df(_: u64) -> u64 {
    // SAFETY: none.
    unsafe { asm!("std", "2: jmp 2b", options(noreturn)) }
}

fn gate_flood(_: u64) -> u64 {
    loop {
        // SAFETY: the service takes no arguments.
        unsafe { raw::rf_null() };
    }
}

/// Searches new heap memory for data of an earlier owner. Returns the number of words that are not
/// zero.
fn stale(_: u64) -> u64 {
    const LEN_BYTES: u64 = 128 << 10;
    // SAFETY: as everywhere in this file; the service returns memory of this length.
    let start = unsafe { raw::rf_heap_grow(LEN_BYTES) } as u64;
    // SAFETY: as above.
    let word = |index: u64| unsafe { ((start + index * 8) as *const u64).read_volatile() };
    (0..LEN_BYTES / 8).filter(|index| word(*index) != 0).count() as u64
}
