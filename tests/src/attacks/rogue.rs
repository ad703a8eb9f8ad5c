//! Attacks on the CPU and on memory, by `rogue`, the driver that tries every action that must be
//! impossible in ring 1.

use super::Attack;
use crate::times;
use ringfence_abi::service::SERVICES;
use ringfence_core::descriptor::{self, SelectorName};

const MODULE: &str = "rogue";

/// The parts of the kernel that no driver's root maps: their names in `tell`, and in reports.
const KERNEL_PARTS: &[(&str, &str)] = &[
    ("@kernel-text", "kernel text"),
    ("@kernel-read-only-data", "kernel read-only data"),
    ("@kernel-data", "kernel data"),
    ("@kernel-heap", "kernel heap"),
    ("@kernel-stack", "kernel stack"),
    ("@interrupt-stack", "interrupt stack"),
    ("@exception-stack", "exception stack"),
    ("@critical-stack", "critical stack"),
    ("@page-tables", "page tables"),
    ("@physical-memory", "physical memory"),
    ("@ramdisk", "ramdisk"),
];

/// The parts that every root maps, read-only and not executable.
const TABLES: &[(&str, &str)] =
    &[("@gdt", "GDT"), ("@idt", "IDT"), ("@tss", "TSS"), ("@io-bitmap", "I/O bitmap"), ("@ldt", "LDT")];

/// Other places that the driver does not have: their addresses, and their names in reports.
const OTHER_PLACES: &[(&str, &str)] = &[
    ("0x8", "null"),
    ("0x123456789000", "unmapped"),
    // The registers of the network card, at the kernel's address for them.
    ("0xffff8000feb80000", "device registers"),
    ("0xffffffff810af000", "guard below a kernel stack"),
    ("0xffffffff81100000", "guard below a kernel stack"),
    // The first page and the stack of the second driver, which is in slot 0, and a free slot.
    ("0x8000430000", "another domain's slot"),
    ("0x80017ff000", "another domain's slot"),
    ("0x200000430000", "unmapped"),
];

/// Returns the forbidden kinds of access to each place that is not the driver's.
pub fn memory() -> Vec<Attack> {
    let mut attacks = Vec::new();
    let mut add = |verb: &str, place: &str, what: &str| {
        let address = if place.starts_with('@') { "@" } else { place };
        let fault = match verb {
            "read" => format!("#PF reading {address} ({what}), in command, at rf_rogue::attacks::read+"),
            "write" => format!("#PF writing {address} ({what}), in command, at rf_rogue::attacks::write+"),
            _ => format!("#PF executing {address} ({what}), in command, at {address} ({what})"),
        };
        attacks.push(Attack::fault(MODULE, format!("{verb} {place}"), fault));
    };
    for (place, what) in KERNEL_PARTS.iter().chain(OTHER_PLACES) {
        ["read", "write", "execute"].iter().for_each(|verb| add(verb, place, what));
    }
    for (place, what) in TABLES {
        ["write", "execute"].iter().for_each(|verb| add(verb, place, what));
    }
    add("write", "@entry-text", "entry text");
    add("execute", "@entry-stacks", "entry stacks");
    attacks
}

/// Returns the other attacks that must end the driver with a fault.
pub fn others() -> Vec<Attack> {
    let faults = FAULTS.iter().map(|(verb, fault)| Attack::fault(MODULE, *verb, *fault));
    let hidden = (0..).zip(HIDDEN).map(|(number, instruction)| {
        let fault = "#GP general protection, in command, at rf_rogue::attacks::hidden+";
        Attack::fault(MODULE, format!("hidden {number}"), fault).executing(instruction)
    });
    faults.chain(hidden).collect()
}

/// Returns single instructions that ring 1 does not have.
pub fn instructions() -> Vec<Attack> {
    let attack = |(verb, fault, instruction): &(&str, &str, &'static str)| {
        Attack::fault(MODULE, *verb, *fault).executing(instruction)
    };
    INSTRUCTIONS.iter().map(attack).collect()
}

/// Returns attempts that look forbidden but are allowed.
pub fn harmless() -> Vec<Attack> {
    let answer = |(verb, answer, _): &(&str, Option<u64>, _)| Attack::answer(MODULE, *verb, *answer);
    HARMLESS.iter().map(answer).collect()
}

/// Returns attacks that write more lines to the log, or more traced events, than there is room for.
pub fn floods() -> Vec<Attack> {
    vec![
        Attack::answer("null", "log 1000", None).says(&["null: 936 more lines in one upcall were dropped"]),
        Attack::answer(MODULE, "gate-flood", None).under("trace rogue ").says(&[
            "rogue: took longer than 100 ms, in command",
            " earlier events were not kept",
            "rf_null() = 0x0  1023 times",
            "! ended: overrun",
        ]),
    ]
}

/// Returns attacks by means that a debugger uses: breakpoints, single steps, and drivers that it
/// stops. A debugger is there that passes each fault on.
pub fn under_debugger() -> Vec<Attack> {
    [
        ("flag 8", "#DB debug exception, in command"),
        ("trap-flag-gate", "#DB debug exception, in command"),
        ("trap-flag-return", "#DB debug exception, in command"),
        ("int-n 3", "#GP general protection on int 0x3, in command"),
        ("loop", "took longer than 100 ms, in command"),
        ("write-text", "#PF writing 0x"),
    ]
    .map(|(tell, fault)| Attack::fault(MODULE, tell, fault))
    .to_vec()
}

/// Returns every `int n`; each fifth where the long tests are left out.
pub fn interrupts() -> Vec<Attack> {
    let fault =
        |number| format!("#GP general protection on int {number:#x}, in command, at rf_rogue::instructions::int_n+");
    (0..256)
        .step_by(times(1, 5))
        .map(|number| Attack::fault(MODULE, format!("int-n {number}"), fault(number)))
        .collect()
}

/// Returns bit tests of a register with a LOCK prefix, for Bochs and QEMU since 9.1. QEMU 7.2
/// aborts on them, and the kernel does not load the module there.
pub fn locked_bit_tests() -> Vec<Attack> {
    let attack = |number| {
        Attack::fault(
            "rogue-ss",
            format!("lock-bt {number}"),
            "#UD invalid opcode, in command, at rf_rogue_ss::lock_bt+",
        )
    };
    (0..5).map(attack).collect()
}

/// Returns loads of CS, and of segment registers that do not exist, for Bochs: QEMU 10.0 loads CS,
/// LDTR and TR.
pub fn loads_of_no_segment() -> Vec<Attack> {
    let fault = "#UD invalid opcode, in command, at rf_rogue_ss::load_none+";
    [1, 6, 7].map(|register| Attack::fault("rogue-ss", format!("load-none {register}"), fault)).to_vec()
}

/// Returns attacks that begin with a load of SS, for Bochs: under QEMU their module is not loaded.
pub fn loads_of_ss() -> Vec<Attack> {
    const MODULE: &str = "rogue-ss";
    vec![
        Attack::fault(MODULE, "null-ss", "#GP general protection, in command, at rf_rogue_ss::null_ss+"),
        Attack::fault(MODULE, "shadowed-gate", "#DB debug exception, in command, at gate_0+0x0 (entry text)"),
        Attack::fault(MODULE, "shadowed-return", "#DB debug exception, in command, at gate_return+0x0 (entry text)"),
        // CVE-2018-8897: the debug exception is delayed until the gate was entered.
        Attack::answer(MODULE, "watched-gate 0x10001f00000", None)
            .under("trace rogue-ss --watch 0x10001f00000:2 ")
            .says(&["rogue-ss: 0 (0x0)", "before gate_0+0x0"]),
    ]
}

/// Returns loads of SS with every selector.
pub fn selectors_in_ss() -> Vec<Attack> {
    ["load-ss", "load-lss"].into_iter().flat_map(|verb| with_all_selectors("rogue-ss", verb)).collect()
}

/// Returns far calls to the driver's own code, for Bochs: their effect with a null selector in SS
/// differs between versions of QEMU.
pub fn far_calls_to_own_code() -> Vec<Attack> {
    let own = descriptor::DRIVER_CODE & !3;
    let attack = |selector| Attack::fault(MODULE, format!("far-call {selector:#x}"), far_jump_fault(selector));
    [own, own | 1].map(attack).to_vec()
}

/// Returns all loads of other segment registers and all jumps to segments, with every selector.
pub fn segment_loads() -> Vec<Attack> {
    let verbs = DATA_LOADS.iter().chain(CODE_LOADS).chain(&["iret-stack"]);
    verbs.flat_map(|verb| with_all_selectors(MODULE, verb)).collect()
}

fn with_all_selectors(module: &'static str, verb: &'static str) -> Vec<Attack> {
    // See `far_calls_to_own_code`.
    let own_code = |selector: u16| is_own_code(selector) && selector & 3 <= 1;
    let is_told = |selector: &u16| verb != "far-call" || !own_code(*selector);
    let attack = |selector| match segment_fault(verb, selector) {
        Some(fault) => Attack::fault(module, format!("{verb} {selector:#x}"), fault),
        None => Attack::answer(module, format!("{verb} {selector:#x}"), None),
    };
    selectors().filter(is_told).map(attack).collect()
}

/// The instructions that are hidden in the middle of others.
const HIDDEN: [&str; 4] = ["mov rax, cr3", "wrmsr", "cli", "out dx, al"];

const INTERRUPT_RETURN_STACK: &str =
    "#GP general protection, in command, at rf_rogue::instructions::interrupt_return_stack+";

/// Commands, and the beginning of the fault of each.
const FAULTS: &[(&str, &str)] = &[
    (
        "read 0x8000000000000000",
        "#GP general protection at 0x8000000000000000 (non-canonical), in command, at rf_rogue::attacks::read+",
    ),
    (
        "write 0x8000000000000000",
        "#GP general protection at 0x8000000000000000 (non-canonical), in command, at rf_rogue::attacks::write+",
    ),
    ("execute 0x8000000000000000", "#GP general protection, in command, at 0x8000000000000000 (non-canonical)"),
    // The kernel's own entry code, run in ring 1.
    ("execute @entry-text", "#GP general protection, in command, at gate_enter+0x* (entry text)"),
    // The driver's own stubs, mailbox and stack.
    ("write 0x10000220000", "#PF writing 0x10000220000 (own service stubs), in command, at rf_rogue::attacks::write+"),
    ("execute 0x10001f00000", "#PF executing 0x10001f00000 (own mailbox), in command, at 0x10001f00000"),
    (
        "read 0x10001700000",
        "#PF reading 0x10001700000 (guard below own stack), in command, at rf_rogue::attacks::read+",
    ),
    ("write-text", "rogue: #PF writing 0x100004* (own text), in command, at rf_rogue::attacks::write+"),
    ("execute-data", "rogue: #PF executing 0x100017* (own stack), in command, at 0x100017* (own stack)"),
    ("write-relro", "rogue: #PF writing 0x100004* (own read-only data), in command, at rf_rogue::attacks::write+"),
    ("execute-static", "rogue: #PF executing 0x100004* (own data), in command, at 0x100004* (own data)"),
    ("recurse", "rogue: #PF writing 0x100017fb* (guard below own stack), in command, at rf_rogue::attacks::deeper+"),
    (
        "big-frame",
        "rogue: #PF writing 0x100017b* (guard below own stack), in command, at rf_rogue::attacks::big_frame+",
    ),
    // The driver's own heap, its last word, and the first word after it.
    ("execute 0x10004080000", "#PF executing 0x10004080000 (own heap), in command, at 0x10004080000 (own heap)"),
    ("read 0x10004083ffc", "#PF reading 0x10004084000 (own slot, unmapped), in command, at rf_rogue::attacks::read+"),
    ("write 0x10004083ffc", "#PF writing 0x10004084000 (own slot, unmapped), in command, at rf_rogue::attacks::write+"),
    ("cli", "#GP general protection, in command, at rf_rogue::attacks::cli+"),
    ("hlt", "#GP general protection, in command, at rf_rogue::attacks::hlt+"),
    ("lidt", "#GP general protection, in command, at rf_rogue::attacks::lidt+"),
    ("rdmsr 0xc0000080", "#GP general protection, in command, at rf_rogue::attacks::rdmsr+"),
    ("in 0x60", "#GP general protection, in command, at rf_rogue::attacks::port_in+"),
    ("out 0xf4", "#GP general protection, in command, at rf_rogue::attacks::port_out+"),
    ("out 0xffff", "#GP general protection, in command, at rf_rogue::attacks::port_out+"),
    ("int", "#GP general protection on int 0x80, in command, at rf_rogue::attacks::int_0x80+"),
    ("int3", "#GP general protection on int 0x3, in command, at rf_rogue::attacks::int3+"),
    ("syscall", "#UD invalid opcode, in command, at rf_rogue::attacks::syscall+"),
    ("sysenter", "#UD invalid opcode, in command, at rf_rogue::attacks::sysenter+"),
    ("ud2", "#UD invalid opcode, in command, at rf_rogue::attacks::ud2+"),
    ("sse", "#UD invalid opcode, in command, at rf_rogue::attacks::sse+"),
    ("divide 0", "#DE divide error, in command, at rf_rogue::attacks::divide+"),
    ("far-call 0x125", "#NP segment not present on the gate of rf_irq_vectors, in command"),
    // The upper half of a gate, and descriptors that are no gates.
    ("far-call 0x12d", "#GP general protection on the gate of rf_irq_vectors, in command"),
    ("far-call 0xffff", "#GP general protection on entry 8191 of the LDT, in command"),
    ("far-call 8", "#GP general protection on entry 1 of the GDT, in command"),
    ("far-call 0x18", "#GP general protection on entry 3 of the GDT, in command"),
    ("far-jump-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    ("iret-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    // QEMU also cuts the stack pointer to 32 bits.
    ("iretd", "#PF reading 0x17* (unmapped), in command, at rf_rogue::instructions::INSTRUCTIONS::run+"),
    ("retfd", "#PF reading 0x17* (unmapped), in command, at rf_rogue::instructions::INSTRUCTIONS::run+"),
    ("trap-flag-gate", "#DB debug exception, in command, at gate_0+0x0 (entry text)"),
    ("trap-flag-return", "#DB debug exception, in command, at gate_return+0x0 (entry text)"),
    ("flag 8", "#DB debug exception, in command, at rf_rogue::attacks::"),
    // The last word of the driver's stack, and the first word after it.
    ("read 0x100017ffffc", "#PF reading 0x10001800000 (own slot, unmapped), in command, at rf_rogue::attacks::read+"),
    ("write 0x100017ffffc", "#PF writing 0x10001800000 (own slot, unmapped), in command, at rf_rogue::attacks::write+"),
    (
        "bad-stack-push 0",
        "#PF writing 0xfffffffffffffff8 (unmapped), in command, at rf_rogue::attacks::bad_stack_push+",
    ),
    (
        "bad-stack-push @kernel-text",
        "#PF writing 0xffffffff80* (kernel read-only data), in command, at rf_rogue::attacks::bad_stack_push+",
    ),
    ("bad-stack-push 0x8000000000000000", "#GP general protection, in command, at rf_rogue::attacks::bad_stack_push+"),
    ("bad-stack-fault 0", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("bad-stack-fault @kernel-stack", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("bad-stack-fault 0x8000000000000000", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("log-pointer 0", "bad pointer to rf_log: 0x10 bytes at 0x0 (null), in command"),
    ("log-pointer 0xffffffff80000000", "bad pointer to rf_log: 0x10 bytes at 0xffffffff80000000"),
    ("log-pointer 0xfffffffffffffff8", "bad pointer to rf_log: 0x10 bytes at 0xfffffffffffffff8"),
    ("log-pointer-quiet @kernel-heap", "bad pointer to rf_log: 0x10 bytes at @ (kernel heap)"),
    (
        "log-elsewhere",
        "bad pointer to rf_log: 0x10 bytes at 0x0 (null), in command, at rf_rogue::attacks::log_elsewhere+",
    ),
    ("log-pointer @kernel-stack", "bad pointer to rf_log: 0x10 bytes at @ (kernel stack)"),
    ("log-pointer @entry-stacks", "bad pointer to rf_log: 0x10 bytes at @ (entry stacks)"),
    ("log-pointer 0x8000430000", "bad pointer to rf_log: 0x10 bytes at 0x8000430000 (another domain's slot)"),
    ("panic", "gave up, in command"),
    ("loop", "took longer than 100 ms, in command, at rf_rogue::attacks::endless+"),
    ("loop-df", "took longer than 100 ms, in command, at rf_rogue::attacks::endless_df+"),
    ("gate-flood", "took longer than 100 ms, in command, at "),
    ("bad-stack 0", "took longer than 100 ms, in command, at rf_rogue::attacks::bad_stack+"),
    ("bad-stack @kernel-text", "took longer than 100 ms, in command, at rf_rogue::attacks::bad_stack+"),
    ("bad-stack 0x8000000000000000", "took longer than 100 ms, in command, at rf_rogue::attacks::bad_stack+"),
    ("bad-stack 0xffffffffc0008800", "took longer than 100 ms, in command, at rf_rogue::attacks::bad_stack+"),
];

const GP: &str = "#GP general protection, in command, at rf_rogue::instructions::INSTRUCTIONS::run+";
const UD: &str = "#UD invalid opcode, in command, at rf_rogue::instructions::INSTRUCTIONS::run+";
const NM: &str = "#NM no coprocessor, in command, at rf_rogue::instructions::INSTRUCTIONS::run+";

/// Instructions that ring 1 does not have, the fault of each, and the instruction's text in the
/// report, if it has one. QEMU's emulation does not have the instructions of VMX, SVM and MONITOR
/// at all, so they are invalid opcodes.
const INSTRUCTIONS: &[(&str, &str, &str)] = &[
    ("sti", GP, "sti"),
    ("clts", GP, "clts"),
    ("invd", GP, "invd"),
    ("wbinvd", GP, "wbinvd"),
    ("lmsw", GP, "lmsw eax"),
    ("lldt", GP, "lldt eax"),
    ("ltr", GP, "ltr eax"),
    ("lgdt", GP, "lgdt [rsp]"),
    ("invlpg", GP, "invlpg [rsp]"),
    ("invpcid", UD, "invpcid rax, [rsp]"),
    ("swapgs", GP, "swapgs"),
    ("sysretq", UD, "sysretq"),
    ("sysretl", UD, "sysret"),
    ("sysexit", UD, "sysexit"),
    ("xsetbv", GP, "xsetbv"),
    ("wrmsr", GP, "wrmsr"),
    ("rdpmc", GP, "rdpmc"),
    ("monitor", UD, "monitor"),
    ("mwait", UD, "mwait"),
    ("vmcall", UD, "vmcall"),
    ("vmmcall", UD, "vmmcall"),
    ("mov-cr0", GP, "mov cr0, rax"),
    ("mov-from-cr0", GP, "mov rax, cr0"),
    ("mov-cr1", GP, ""),
    ("mov-from-cr1", GP, ""),
    ("mov-cr2", GP, "mov cr2, rax"),
    ("mov-from-cr2", GP, "mov rax, cr2"),
    ("mov-cr3", GP, "mov cr3, rax"),
    ("mov-from-cr3", GP, "mov rax, cr3"),
    ("mov-cr4", GP, "mov cr4, rax"),
    ("mov-from-cr4", GP, "mov rax, cr4"),
    ("mov-cr5", GP, ""),
    ("mov-from-cr5", GP, ""),
    ("mov-cr6", GP, ""),
    ("mov-from-cr6", GP, ""),
    ("mov-cr7", GP, ""),
    ("mov-from-cr7", GP, ""),
    ("mov-cr8", GP, "mov cr8, rax"),
    ("mov-from-cr8", GP, "mov rax, cr8"),
    ("mov-dr0", GP, "mov dr0, rax"),
    ("mov-from-dr0", GP, "mov rax, dr0"),
    ("mov-dr1", GP, "mov dr1, rax"),
    ("mov-from-dr1", GP, "mov rax, dr1"),
    ("mov-dr2", GP, "mov dr2, rax"),
    ("mov-from-dr2", GP, "mov rax, dr2"),
    ("mov-dr3", GP, "mov dr3, rax"),
    ("mov-from-dr3", GP, "mov rax, dr3"),
    ("mov-dr4", GP, "mov dr4, rax"),
    ("mov-from-dr4", GP, "mov rax, dr4"),
    ("mov-dr5", GP, "mov dr5, rax"),
    ("mov-from-dr5", GP, "mov rax, dr5"),
    ("mov-dr6", GP, "mov dr6, rax"),
    ("mov-from-dr6", GP, "mov rax, dr6"),
    ("mov-dr7", GP, "mov dr7, rax"),
    ("mov-from-dr7", GP, "mov rax, dr7"),
    ("in16", GP, "in ax, dx"),
    ("in32", GP, "in eax, dx"),
    ("in32-end", GP, "in eax, dx"),
    ("out16", GP, "out dx, ax"),
    ("out32", GP, "out dx, eax"),
    ("insb", GP, "insb [rdi], dx"),
    ("insw", GP, "insw [rdi], dx"),
    ("insd", GP, "insd [rdi], dx"),
    ("rep-insb", GP, "rep insb [rdi], dx"),
    ("outsb", GP, "outsb dx, [rsi]"),
    ("outsw", GP, "outsw dx, [rsi]"),
    ("outsd", GP, "outsd dx, [rsi]"),
    ("rep-outsb", GP, "rep outsb dx, [rsi]"),
    ("wbnoinvd", GP, "wbnoinvd"),
    ("rsm", UD, "rsm"),
    ("clac", UD, "clac"),
    ("stac", UD, "stac"),
    ("getsec", UD, "getsec"),
    ("encls", UD, "encls"),
    ("vmxon", UD, "vmxon [rsp]"),
    ("vmptrld", UD, "vmptrld [rsp]"),
    ("vmclear", UD, "vmclear [rsp]"),
    ("vmread", UD, "vmread rax, rax"),
    ("vmwrite", UD, "vmwrite rax, rax"),
    ("vmresume", UD, "vmresume"),
    ("invept", UD, "invept rax, [rsp]"),
    ("invvpid", UD, "invvpid rax, [rsp]"),
    ("vmxoff", UD, "vmxoff"),
    ("vmlaunch", UD, "vmlaunch"),
    ("vmrun", UD, "vmrun"),
    ("vmload", UD, "vmload"),
    ("vmsave", UD, "vmsave"),
    ("stgi", UD, "stgi"),
    ("clgi", UD, "clgi"),
    ("skinit", UD, "skinit"),
    ("invlpga", UD, "invlpga"),
    ("monitorx", UD, "monitorx"),
    ("mwaitx", UD, "mwaitx"),
    ("xsaves", UD, "xsaves [rsp-0x40]"),
    ("xrstors", UD, "xrstors [rsp-0x40]"),
    ("wrssq", UD, "wrssq [rsp], rax"),
    ("wrussq", UD, "wrussq [rsp], rax"),
    ("rstorssp", UD, "rstorssp [rsp]"),
    ("setssbsy", UD, "setssbsy"),
    ("clrssbsy", UD, "clrssbsy [rsp]"),
    ("xgetbv", UD, "xgetbv"),
    ("rdpkru", UD, "rdpkru"),
    ("wrpkru", UD, "wrpkru"),
    ("rdfsbase", UD, "rdfsbase rax"),
    ("rdgsbase", UD, "rdgsbase rax"),
    ("wrfsbase", UD, "wrfsbase rax"),
    ("wrgsbase", UD, "wrgsbase rax"),
    ("icebp", UD, "int1"),
    ("sgdt", GP, "sgdt [rsp-0x40]"),
    ("sidt", GP, "sidt [rsp-0x40]"),
    ("sldt", GP, "sldt ax"),
    ("str", GP, "str ax"),
    ("smsw", GP, "smsw ax"),
    ("fninit", NM, "fninit"),
    ("avx", UD, "vxorps xmm0, xmm0, xmm0"),
    ("fxsave", NM, "fxsave [rsp-0x280]"),
];

const LONG_STACK: &str =
    "in 64-bit mode the stack pointer has 64 bits, whatever is popped (SDM vol. 1, 6.2.5); QEMU takes 32";

const NO_SUCH_REGISTER: &str = "there is no such register, which comes first (SDM vol. 2, MOV to/from control registers); QEMU looks at the ring first";

/// Reports that differ under Bochs, where Bochs is right: command, fault, and reason.
pub const BOCHS: &[(&str, &str, &str)] = &[
    (
        "sysenter",
        "#GP general protection, in command, at rf_rogue::attacks::sysenter+",
        "SYSENTER_CS is 0 (SDM vol. 2, SYSENTER); QEMU does not know it in 64-bit mode for its CPU's vendor",
    ),
    (
        "execute 0x8000000000000000",
        "#GP general protection, in command, at rf_rogue::attacks::execute+",
        "a call to where no address is faults before it is made (SDM vol. 2, CALL); QEMU makes it",
    ),
    (
        "bad-stack-push 0x8000000000000000",
        "#SS stack fault, in command, at rf_rogue::attacks::bad_stack_push+",
        "a push to where no address is (SDM vol. 2, PUSH); QEMU does not tell the stack from other memory",
    ),
    ("mov-cr1", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-from-cr1", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-cr5", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-from-cr5", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-cr6", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-from-cr6", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-cr7", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("mov-from-cr7", "#UD invalid opcode, in command", NO_SUCH_REGISTER),
    ("sysexit", "#GP general protection, in command", "ring 0 only (SDM vol. 2, SYSEXIT); QEMU as for `sysenter`"),
    ("invpcid", "#GP general protection, in command", "ring 0 only; QEMU's CPU does not have it"),
    (
        "xsetbv",
        "#UD invalid opcode, in command",
        "CR4.OSXSAVE = 0 comes first (SDM vol. 2, XSETBV); QEMU looks at the ring first",
    ),
    ("iretd", "#PF executing 0x8 (null), in command, at 0x8 (null)", LONG_STACK),
    ("retfd", "#PF executing 0x8 (null), in command, at 0x8 (null)", LONG_STACK),
    (
        "icebp",
        "#DB debug exception, in command, at rf_rogue::instructions::INSTRUCTIONS::run+",
        "a debug exception, whatever the ring (SDM vol. 2, INT1); QEMU does not know it",
    ),
    ("emms", "#UD invalid opcode, in command", "CR0.EM = 1 (SDM vol. 2, EMMS); QEMU does not look at that"),
];

const NOT_LOOKED_AT: &str =
    "ring 0 only (SDM vol. 2); QEMU's decoder since 9.1 does not look at the ring, and does nothing";
const NOTHING: &str = "this CPU does not have it; QEMU's decoder since 9.1 does nothing";

/// Reports that differ under QEMU since its new decoder (9.1; seen on 10.0.2): command, fault or
/// `None` for an answer, and reason. None of them does harm: there are no caches, and a missing
/// feature changes nothing.
pub const SINCE_9_1: &[(&str, Option<&str>, &str)] = &[
    ("invd", None, NOT_LOOKED_AT),
    ("wbinvd", None, NOT_LOOKED_AT),
    ("wbnoinvd", None, NOT_LOOKED_AT),
    ("xsaves", None, NOTHING),
    ("xrstors", None, NOTHING),
    ("vmxon", Some("#PF executing 0x0 (null), in command, at 0x0 (null)"), NOTHING),
    ("vmptrld", Some("#PF executing 0x0 (null), in command, at 0x0 (null)"), NOTHING),
    ("vmclear", Some("#PF executing 0x0 (null), in command, at 0x0 (null)"), NOTHING),
    ("sysretq", Some(GP), "SYSCALL is off, which comes first (SDM vol. 2, SYSRET); QEMU looks at the ring first"),
    ("sysretl", Some(GP), "as `sysretq`"),
    ("mov-cr1", Some(UD), NO_REGISTER),
    ("mov-from-cr1", Some(UD), NO_REGISTER),
    ("mov-cr5", Some(UD), NO_REGISTER),
    ("mov-from-cr5", Some(UD), NO_REGISTER),
    ("mov-cr6", Some(UD), NO_REGISTER),
    ("mov-from-cr6", Some(UD), NO_REGISTER),
    ("mov-cr7", Some(UD), NO_REGISTER),
    ("mov-from-cr7", Some(UD), NO_REGISTER),
    (
        "icebp",
        Some("#DB debug exception, in command, at rf_rogue::instructions::INSTRUCTIONS::run+"),
        "a debug exception, whatever the ring (SDM vol. 2, INT1)",
    ),
];

const NO_REGISTER: &str = "there is no such register, which comes first (SDM vol. 2, MOV to/from control registers)";

/// The only system flag that is set while a driver runs.
const IF: u64 = 0x200;
const SEGMENT: &str = "LAR, LSL, VERR and VERW say nothing of segments that are not the driver's";
const FLAGS: &str = "a flag that is not its to set stays as it is; a gate clears the others";

/// Harmless attempts: the answer, if it is always the same, and the reason.
pub const HARMLESS: &[(&str, Option<u64>, &str)] = &[
    ("rdtsc", None, "time is no secret"),
    ("rdtscp", None, "time is no secret"),
    ("cpuid", None, "nor is the CPU"),
    ("endbr64", Some(0), "does nothing without CET"),
    ("return-gate-flags 0x400", Some(1), "the kernel does not go on with DF"),
    ("return-gate-flags 0x4000", Some(1), "the kernel does not go on with NT"),
    ("return-gate-flags 0x244cd5", Some(1), "nor with any other flag"),
    ("stale", Some(0), "memory that it gets is empty, though others wrote there"),
    ("emms", Some(0), "QEMU does not look at CR0.EM; there is no x87 state to clear"),
    ("prefetch-kernel", None, "a prefetch does not fault and returns nothing"),
    ("read @entry-text", None, "no secret, and the same in every root"),
    ("read @gdt", None, "as `entry-text`"),
    ("read @idt", None, "as `entry-text`"),
    ("read @tss", None, "as `entry-text`"),
    ("read @ldt", None, "its own"),
    ("read @io-bitmap", None, "its own"),
    ("read @entry-stacks", None, "its own; the kernel keeps nothing there"),
    ("write @entry-stacks", Some(0), "its own; the kernel keeps nothing there"),
    ("ask-segment 0x8", Some(0), SEGMENT),
    ("ask-segment 0x10", Some(0), SEGMENT),
    ("ask-segment 0x18", Some(0), SEGMENT),
    ("ask-segment 0x28", Some(0), SEGMENT),
    ("gate-offset 0xdeadbeef", Some(0), "a gate ignores the offset"),
    ("middle-of-stub", None, "what a call through memory is without its first byte: arithmetic, and no gate"),
    ("gate-at-page-end", Some(0), "a gate call is one instruction, wherever it lies"),
    ("bad-stack-gate 0x10", Some(0), "the kernel does not use the driver's stack"),
    ("bad-stack-gate @kernel-stack", Some(0), "the kernel does not use the driver's stack"),
    ("bad-stack-gate 0xffffffffc0008800", Some(0), "the kernel does not use the driver's stack"),
    ("bad-stack-gate 0x8000000000000000", Some(0), "the kernel does not use the driver's stack"),
    ("flags", Some(IF), FLAGS),
    ("clear-flag 9", Some(IF), FLAGS),
    ("iret-flags 0x3000", Some(IF), FLAGS),
    ("iret-flags 0", Some(IF), FLAGS),
    ("iret-flags 0x10000", Some(IF), FLAGS),
    ("iret-flags 0x20000", Some(IF), FLAGS),
    ("iret-flags 0x180000", Some(IF), FLAGS),
    ("flag 0", Some(IF), FLAGS),
    ("flag 1", Some(IF), FLAGS),
    ("flag 2", Some(IF), FLAGS),
    ("flag 3", Some(IF), FLAGS),
    ("flag 4", Some(IF), FLAGS),
    ("flag 5", Some(IF), FLAGS),
    ("flag 6", Some(IF), FLAGS),
    ("flag 7", Some(IF), FLAGS),
    ("flag 9", Some(IF), FLAGS),
    ("flag 10", Some(IF), FLAGS),
    ("flag 11", Some(IF), FLAGS),
    ("flag 12", Some(IF), FLAGS),
    ("flag 13", Some(IF), FLAGS),
    ("flag 14", Some(IF), FLAGS),
    ("flag 15", Some(IF), FLAGS),
    ("flag 16", Some(IF), FLAGS),
    ("flag 17", Some(IF), FLAGS),
    ("flag 18", Some(IF), FLAGS),
    ("flag 19", Some(IF), FLAGS),
    ("flag 20", Some(IF), FLAGS),
    ("flag 21", Some(IF), FLAGS),
    ("leaks", Some(0), "gates clear registers: no kernel address is in any, or on the entry stacks"),
    ("heap", Some(245_760), "its budget of 256 KiB, less what it had already"),
    ("log-length 16", Some(0), "a line"),
    ("log-length 513", Some(i64::MAX as u64), "refused: longer than a line may be"),
];

/// Commands that load a data segment register.
const DATA_LOADS: &[&str] = &["load-ds", "load-es", "load-fs", "load-gs"];
/// Commands that go to a code segment.
const CODE_LOADS: &[&str] = &["far-return", "interrupt-return", "far-jump", "far-call"];

/// Returns every selector of the GDT and the LDT, and of two entries beyond each, with every
/// requested privilege level. Where the long tests are left out, these are the driver's own
/// segments, and each fifth of the others, so that the privilege levels take turns.
fn selectors() -> impl Iterator<Item = u16> {
    let global = 0..descriptor::GDT_ENTRIES as u16 + 2;
    let local = 0..(descriptor::LDT_BYTES / 8) as u16 + 2;
    let entries = global.map(|entry| entry << 3).chain(local.map(|entry| entry << 3 | 4));
    let all = entries.flat_map(|entry| (0..4).map(move |privilege| entry | privilege));
    let is_own = |selector: u16| is_own_code(selector) || selector & !3 == descriptor::DRIVER_DATA & !3;
    all.enumerate().filter(move |(place, selector)| place % times(1, 5) == 0 || is_own(*selector)).map(|(_, it)| it)
}

fn is_own_code(selector: u16) -> bool {
    selector & !3 == descriptor::DRIVER_CODE & !3
}

/// Returns the fault of `verb` with `selector`, or `None` if it is allowed (Intel SDM vol. 2, MOV,
/// RET, IRET).
fn segment_fault(verb: &str, selector: u16) -> Option<String> {
    let privilege = selector & 3;
    match verb {
        "far-jump" => return Some(far_jump_fault(selector)),
        "far-call" => return far_call_fault(selector),
        _ => {}
    }
    let is_code = CODE_LOADS.contains(&verb);
    let is_stack = ["load-ss", "load-lss", "iret-stack"].contains(&verb);
    // After an allowed return to ring 1, the code tries to read CR3, which faults.
    let allowed_fault = (verb == "iret-stack").then(|| INTERRUPT_RETURN_STACK.to_string());
    if selector & !3 == 0 {
        // A null selector in SS must ask for the current privilege level.
        let refused = is_code || is_stack && privilege != 1;
        return if refused { Some("#GP general protection, in command".to_string()) } else { allowed_fault };
    }
    let allowed = match selector & !3 {
        code if code == descriptor::DRIVER_CODE & !3 => match (is_stack, is_code) {
            (true, _) => false,
            (_, true) => privilege == 1,
            _ => privilege <= 1,
        },
        data if data == descriptor::DRIVER_DATA & !3 => match (is_stack, is_code) {
            (true, _) => privilege == 1,
            (_, true) => false,
            _ => privilege <= 1,
        },
        _ => false,
    };
    if allowed {
        return allowed_fault;
    }
    let what = match descriptor::describe_selector(u64::from(selector & !3)) {
        SelectorName::Global(entry) => format!("entry {entry} of the GDT"),
        SelectorName::Local(entry) => format!("entry {entry} of the LDT"),
        SelectorName::ReturnGate => "the return gate".to_string(),
        SelectorName::Gate(number) => format!("the gate of {}", SERVICES[number].symbol),
        SelectorName::Interrupt(_) => unreachable!("bit 1 is clear"),
    };
    Some(format!("#GP general protection on {what}, in command"))
}

/// Returns the fault of a far jump to `selector` (Intel SDM vol. 2, JMP). An allowed jump ends at
/// address 0.
fn far_jump_fault(selector: u16) -> String {
    let on = |fault: &str, what: &str| format!("{fault} on {what}, in command");
    let denied = |what: &str| on("#GP general protection", what);
    if selector & !3 == 0 {
        return "#GP general protection, in command".to_string();
    }
    if is_own_code(selector) && selector & 3 <= 1 {
        return "#PF executing 0x0 (null), in command".to_string();
    }
    match descriptor::describe_selector(u64::from(selector & !3)) {
        // A gate of ring 1, with a privilege level that may use it. It is not present, or it leads
        // to ring 0, where a jump must not go.
        SelectorName::Gate(number) if selector & 3 <= 1 && is_gate(selector) => {
            match GRANTED.contains(&SERVICES[number].symbol) {
                true => denied("entry 1 of the GDT"),
                false => on("#NP segment not present", &format!("the gate of {}", SERVICES[number].symbol)),
            }
        }
        SelectorName::ReturnGate if selector & 3 <= 1 && is_gate(selector) => denied("entry 1 of the GDT"),
        SelectorName::Gate(number) => denied(&format!("the gate of {}", SERVICES[number].symbol)),
        SelectorName::ReturnGate => denied("the return gate"),
        SelectorName::Global(entry) => denied(&format!("entry {entry} of the GDT")),
        SelectorName::Local(entry) => denied(&format!("entry {entry} of the LDT")),
        SelectorName::Interrupt(_) => unreachable!("bit 1 is clear"),
    }
}

/// Returns the fault of a far call to `selector` without arguments (Intel SDM vol. 2, CALL). A call
/// differs from a jump only in that a gate lets it through.
fn far_call_fault(selector: u16) -> Option<String> {
    let granted = |symbol: &str| GRANTED.contains(&symbol);
    match descriptor::describe_selector(u64::from(selector & !3)) {
        SelectorName::Gate(number) if selector & 3 <= 1 && is_gate(selector) && granted(SERVICES[number].symbol) => {
            match SERVICES[number].symbol {
                // The null address belongs to no driver, even with a length of zero bytes.
                "rf_panic" => Some("bad pointer to rf_panic: 0x0 bytes at 0x0 (null), in command".into()),
                // The other granted services answer or refuse.
                _ => None,
            }
        }
        // The return gate ends the upcall, with the value that happens to be in RAX.
        SelectorName::ReturnGate if selector & 3 <= 1 && is_gate(selector) => None,
        _ => Some(far_jump_fault(selector)),
    }
}

/// Services that `rogue` requests.
const GRANTED: [&str; 5] = ["rf_null", "rf_log", "rf_panic", "rf_heap_grow", "rf_time_ns"];

/// Returns whether a selector names the first half of a gate.
fn is_gate(selector: u16) -> bool {
    (selector >> 3).is_multiple_of(2)
}
