//! The attacks and what must stop each: the tables behind the tests in `sandbox.rs` and behind `docs/attacks.md`.

use ringfence_abi::service::SERVICES;
use ringfence_core::descriptor::{self, SelectorName};

/// Attack, and the beginning of the fault it must end with.
pub const FAULTS: &[(&str, &str)] = &[
    ("read 0", "#PF reading 0x0 (null), in command, at rf_rogue::attacks::read+"),
    ("write 8", "#PF writing 0x8 (null), in command, at rf_rogue::attacks::write+"),
    ("execute 0", "#PF executing 0x0 (null), in command, at 0x0 (null)"),
    ("read 0x123456789000", "#PF reading 0x123456789000 (unmapped)"),
    ("read 0xffffffff80000000", "#PF reading 0xffffffff80000000 (kernel read-only data)"),
    ("write 0xffffffff80000000", "#PF writing 0xffffffff80000000 (kernel read-only data)"),
    ("execute 0xffffffff80000000", "#PF executing 0xffffffff80000000 (kernel read-only data)"),
    ("read 0xffff800000000000", "#PF reading 0xffff800000000000 (kernel memory)"),
    ("write 0xffffffffc0000000", "#PF writing 0xffffffffc0000000 (entry text)"),
    ("write 0xffffffffc0002008", "#PF writing 0xffffffffc0002008 (descriptor tables)"),
    ("write 0xffffffffc0003000", "#PF writing 0xffffffffc0003000 (descriptor tables)"),
    ("write 0xffffffffc0005000", "#PF writing 0xffffffffc0005000 (I/O bitmap)"),
    ("write 0xffffffffc0007030", "#PF writing 0xffffffffc0007030 (capability table (LDT))"),
    ("execute 0xffffffffc0008000", "#PF executing 0xffffffffc0008000 (entry stacks)"),
    ("read 0x8000000000000000", "#GP general protection, in command, at rf_rogue::attacks::read+"),
    ("write 0x8000400000", "#PF writing 0x8000400000 (another domain's slot)"),
    ("write-text", "(own text), in command, at rf_rogue::attacks::write+"),
    ("execute-data", "(own data), in command, at "),
    ("write-relro", "(own read-only data), in command, at rf_rogue::attacks::write+"),
    ("recurse", "(guard below own stack), in command, at rf_rogue::attacks::deeper+"),
    ("big-frame", "(guard below own stack), in command, at rf_rogue::attacks::big_frame+"),
    ("cli", "#GP general protection, in command, at rf_rogue::attacks::cli+"),
    ("hlt", "#GP general protection, in command, at rf_rogue::attacks::hlt+"),
    ("read-cr3", "#GP general protection, in command, at rf_rogue::attacks::read_cr3+"),
    ("write-cr3 0x1000", "#GP general protection, in command, at rf_rogue::attacks::write_cr3+"),
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
    ("far-call 0x125", "#NP segment not present on the gate of rf_scsi_register, in command"),
    // The upper half of a gate, and code that is no gate.
    ("far-call 0x12d", "#GP general protection on the gate of rf_scsi_register, in command"),
    ("far-call 0xffff", "#GP general protection on entry 8191 of the LDT, in command"),
    ("far-call 8", "#GP general protection on entry 1 of the GDT, in command"),
    ("far-call 0x18", "#GP general protection on entry 3 of the GDT, in command"),
    ("far-jump-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    ("iret-ring0", "#GP general protection on entry 1 of the GDT, in command"),
    ("trap-flag-gate", "#DB debug exception, in command, at "),
    ("shadowed-gate", "#DB debug exception, in command, at 0xffffffffc000"),
    ("flag 8", "#DB debug exception, in command, at "),
    // The kernel's own entry code, run in ring 1.
    ("execute 0xffffffffc0000000", "#GP general protection, in command, at 0xffffffffc0000"),
    ("execute 0xffffffffc0000004", "#GP general protection, in command, at 0xffffffffc0000"),
    ("read 0xffffa00000000000", "#PF reading 0xffffa00000000000 (kernel memory)"),
    ("read 0xffff8000feb80000", "#PF reading 0xffff8000feb80000 (kernel memory)"),
    ("write 0xffffffffc0004f98", "#PF writing 0xffffffffc0004f98 (descriptor tables)"),
    // The last word of its stack, and the first one behind.
    ("read 0x100017ffffc", "#PF reading 0x10001800000 (own slot, unmapped), in command, at rf_rogue::attacks::read+"),
    ("write 0x100017ffffc", "#PF writing 0x10001800000 (own slot, unmapped), in command, at rf_rogue::attacks::write+"),
    ("bad-stack-fault 0", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("bad-stack-fault 0xffffffff80000000", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("bad-stack-fault 0x8000000000000000", "#UD invalid opcode, in command, at rf_rogue::attacks::bad_stack_fault+"),
    ("log-pointer 0", "bad pointer to rf_log: 0x10 bytes at 0x0 (null), in command"),
    ("log-pointer 0xffffffff80000000", "bad pointer to rf_log: 0x10 bytes at 0xffffffff80000000"),
    ("log-pointer 0xfffffffffffffff8", "bad pointer to rf_log: 0x10 bytes at 0xfffffffffffffff8"),
    ("log-pointer 0x8000400000", "bad pointer to rf_log: 0x10 bytes at 0x8000400000 (another domain's slot)"),
    ("panic", "gave up, in command"),
    ("loop", "took longer than 100 ms, in command, at rf_rogue::attacks::endless+"),
    ("loop-df", "took longer than 100 ms, in command, at rf_rogue::attacks::endless_df+"),
    ("gate-flood", "took longer than 100 ms, in command, at "),
    ("bad-stack 0xffffffffc0008800", "took longer than 100 ms, in command, at "),
];

/// Instructions that ring 1 does not have, and the fault that each must end with. Those of VMX, SVM and MONITOR are not
/// there at all in QEMU's emulation, and so invalid.
pub const INSTRUCTIONS: &[(&str, &str)] = &[
    ("sti", "#GP general protection, in command"),
    ("clts", "#GP general protection, in command"),
    ("invd", "#GP general protection, in command"),
    ("wbinvd", "#GP general protection, in command"),
    ("lmsw", "#GP general protection, in command"),
    ("lldt", "#GP general protection, in command"),
    ("ltr", "#GP general protection, in command"),
    ("lgdt", "#GP general protection, in command"),
    ("invlpg", "#GP general protection, in command"),
    ("invpcid", "#UD invalid opcode, in command"),
    ("swapgs", "#GP general protection, in command"),
    ("sysretq", "#UD invalid opcode, in command"),
    ("sysexit", "#UD invalid opcode, in command"),
    ("xsetbv", "#GP general protection, in command"),
    ("wrmsr", "#GP general protection, in command"),
    ("rdpmc", "#GP general protection, in command"),
    ("monitor", "#UD invalid opcode, in command"),
    ("mwait", "#UD invalid opcode, in command"),
    ("vmcall", "#UD invalid opcode, in command"),
    ("vmmcall", "#UD invalid opcode, in command"),
    ("mov-cr0", "#GP general protection, in command"),
    ("mov-from-cr0", "#GP general protection, in command"),
    ("mov-cr4", "#GP general protection, in command"),
    ("mov-cr8", "#GP general protection, in command"),
    ("mov-dr0", "#GP general protection, in command"),
    ("mov-dr7", "#GP general protection, in command"),
    ("mov-from-dr6", "#GP general protection, in command"),
    ("in16", "#GP general protection, in command"),
    ("in32", "#GP general protection, in command"),
    ("out16", "#GP general protection, in command"),
    ("out32", "#GP general protection, in command"),
    ("insb", "#GP general protection, in command"),
    ("outsb", "#GP general protection, in command"),
    ("rdfsbase", "#UD invalid opcode, in command"),
    ("wrgsbase", "#UD invalid opcode, in command"),
    ("sgdt", "#GP general protection, in command"),
    ("sidt", "#GP general protection, in command"),
    ("sldt", "#GP general protection, in command"),
    ("str", "#GP general protection, in command"),
    ("smsw", "#GP general protection, in command"),
    ("fninit", "#NM no coprocessor, in command"),
    ("avx", "#UD invalid opcode, in command"),
    ("fxsave", "#NM no coprocessor, in command"),
];

const NULL_SS: &str =
    "a null selector in SS must have the current privilege level (SDM vol. 2, MOV); QEMU does not ask";

/// What Bochs says differently, and is right to: attack, fault, and why.
pub const BOCHS: &[(&str, &str, &str)] = &[
    (
        "sysenter",
        "#GP general protection, in command, at rf_rogue::attacks::sysenter+",
        "SYSENTER_CS is 0 (SDM vol. 2, SYSENTER); QEMU does not know it in 64-bit mode for its CPU's vendor",
    ),
    ("sysexit", "#GP general protection, in command", "ring 0 only (SDM vol. 2, SYSEXIT); QEMU as for `sysenter`"),
    ("invpcid", "#GP general protection, in command", "ring 0 only; QEMU's CPU does not have it"),
    (
        "xsetbv",
        "#UD invalid opcode, in command",
        "CR4.OSXSAVE = 0 comes first (SDM vol. 2, XSETBV); QEMU looks at the ring first",
    ),
    ("load-ss 0x0", "#GP general protection, in command", NULL_SS),
    ("load-ss 0x2", "#GP general protection, in command", NULL_SS),
    ("load-ss 0x3", "#GP general protection, in command", NULL_SS),
    ("emms", "#UD invalid opcode, in command", "CR0.EM = 1 (SDM vol. 2, EMMS); QEMU does not look at that"),
];

/// Instructions that ring 1 has, and that do no harm.
pub const HARMLESS: &[&str] = &["rdtsc", "cpuid", "prefetch-kernel", "emms"];

/// Verbs that load a segment register, and those that return to a code segment.
pub const DATA_LOADS: &[&str] = &["load-ds", "load-es", "load-fs", "load-gs"];
/// See [`DATA_LOADS`].
pub const CODE_LOADS: &[&str] = &["far-return", "interrupt-return", "far-jump"];

/// Every selector of the GDT and the LDT and two beyond each, with every requested privilege level.
pub fn selectors() -> impl Iterator<Item = u16> {
    let global = 0..descriptor::GDT_ENTRIES as u16 + 2;
    let local = 0..(descriptor::LDT_BYTES / 8) as u16 + 2;
    let entries = global.map(|entry| entry << 3).chain(local.map(|entry| entry << 3 | 4));
    entries.flat_map(|entry| (0..4).map(move |privilege| entry | privilege))
}

/// What must become of `verb` with `selector`: the fault, or `None` if it is allowed (Intel SDM vol. 2, MOV, RET, IRET).
pub fn segment_fault(verb: &str, selector: u16) -> Option<String> {
    let privilege = selector & 3;
    if verb == "far-jump" {
        return Some(far_jump_fault(selector));
    }
    let is_code = CODE_LOADS.contains(&verb);
    if selector & !3 == 0 {
        // QEMU lets any null selector into SS; the manual asks for the current privilege level.
        return is_code.then(|| "#GP general protection, in command".to_string());
    }
    let allowed = match selector & !3 {
        code if code == descriptor::DRIVER_CODE & !3 => match (verb, is_code) {
            ("load-ss", _) => false,
            (_, true) => privilege == 1,
            _ => privilege <= 1,
        },
        data if data == descriptor::DRIVER_DATA & !3 => match (verb, is_code) {
            ("load-ss", _) => privilege == 1,
            (_, true) => false,
            _ => privilege <= 1,
        },
        _ => false,
    };
    if allowed {
        return None;
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

/// The fault of a far jump to `selector` (Intel SDM vol. 2, JMP): one that is let through ends at address 0.
fn far_jump_fault(selector: u16) -> String {
    let on = |fault: &str, what: &str| format!("{fault} on {what}, in command");
    let denied = |what: &str| on("#GP general protection", what);
    if selector & !3 == 0 {
        return "#GP general protection, in command".to_string();
    }
    if selector & !3 == descriptor::DRIVER_CODE & !3 && selector & 3 <= 1 {
        return "#PF executing 0x0 (null), in command".to_string();
    }
    match descriptor::describe_selector(u64::from(selector & !3)) {
        // A gate of ring 1 with a privilege level that may use it: not there, or it leads to ring 0, where a jump may not.
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

/// Services that `rogue` asks for.
const GRANTED: [&str; 4] = ["rf_null", "rf_log", "rf_panic", "rf_heap_grow"];

/// Whether a selector names the first half of a gate.
fn is_gate(selector: u16) -> bool {
    (selector >> 3).is_multiple_of(2)
}

/// What an attack tries and what stops it, in words.
pub fn explain(verb: &str) -> (String, &'static str) {
    let (name, argument) = verb.split_once(' ').unwrap_or((verb, ""));
    let (tries, stops) = match name {
        "read" => ("reads ARG", "the domain's root does not map it"),
        "write" => ("writes ARG", "the domain's root does not map it writable"),
        "execute" => ("jumps to ARG", "the domain's root does not map it executable"),
        "write-text" => ("writes its own text", "mapped read-only"),
        "execute-data" => ("executes its own stack", "mapped NX"),
        "write-relro" => ("writes its relocated constants", "read-only after relocation"),
        "recurse" => ("recurses until the stack is gone", "unmapped addresses below the stack"),
        "big-frame" => ("reaches 256 KiB below the stack at once", "unmapped addresses below the stack"),
        "in" | "out" => ("uses port ARG", "the I/O bitmap, and IOPL 0"),
        "int" | "int3" => ("raises an interrupt by instruction", "IDT gates have privilege 0"),
        "far-call" => ("calls far to selector ARG", "the gate is not present, or it is no gate of ring 1"),
        "far-jump-ring0" => ("jumps far to the kernel's code segment", "privilege check"),
        "iret-ring0" => ("returns from an interrupt to the kernel's code segment", "privilege check"),
        "shadowed-gate" => (
            "single-steps into a gate from the shadow of a write to SS",
            "the trap is attributed by CR3, and has a stack of its own",
        ),
        "flag" => ("sets the trap flag", "the debug exception is the driver's"),
        "bad-stack-fault" => ("faults with RSP at ARG", "exceptions have stacks of their own"),
        "trap-flag-gate" => ("single-steps into a gate", "the trap is attributed by CR3, and has a stack of its own"),
        "log-pointer" => ("has the kernel read ARG", "the pointer is not in its slot"),
        "panic" => ("panics", "`rf_panic`"),
        "loop" => ("loops for ever", "time budget"),
        "loop-df" => ("loops for ever with the direction flag set", "time budget; traps clear the flag"),
        "gate-flood" => ("calls a gate for ever", "time budget"),
        "bad-stack" => ("waits for interrupts with RSP at ARG", "interrupts have stacks of their own"),
        "divide" => ("divides by zero", "exception"),
        "ud2" => ("executes an invalid opcode", "exception"),
        "sse" | "fninit" | "avx" | "fxsave" => ("uses SSE, AVX or x87", "CR0.EM, no CR4.OSFXSR"),
        "syscall" | "sysenter" | "sysretq" | "sysexit" => ("executes `NAME`", "EFER.SCE = 0, SYSENTER_CS = 0"),
        "sgdt" | "sidt" | "sldt" | "str" | "smsw" => ("executes `NAME`", "UMIP"),
        "rdfsbase" | "wrgsbase" => ("executes `NAME`", "CR4.FSGSBASE = 0"),
        "in16" | "in32" | "out16" | "out32" | "insb" | "outsb" => ("executes `NAME`", "the I/O bitmap, and IOPL 0"),
        _ => ("executes `NAME`", "privileged in ring 0"),
    };
    (tries.replace("ARG", argument).replace("NAME", verb), stops)
}
