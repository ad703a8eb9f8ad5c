//! Attacks of 32-bit code on the confinement of its segmented domain (`drivers/rogue-segment`),
//! which is in slot 2.

use super::{Attack, Expected};

const UD: &str = "#UD invalid opcode, in command";
const GP: &str = "#GP general protection, in command";
const KERNEL_CODE: &str = "#GP general protection on entry 1 of the GDT, in command";
const KERNEL_DATA: &str = "#GP general protection on entry 2 of the GDT, in command";

/// Instructions and selectors, with the faults that end them.
const FAULTS: &[(&str, &str)] = &[
    ("cli", GP),
    ("sti", GP),
    ("hlt", GP),
    ("mov-to-cr3", GP),
    ("mov-from-cr3", GP),
    ("mov-to-cr0", GP),
    ("mov-to-cr4", GP),
    ("mov-to-dr7", GP),
    ("clts", GP),
    ("lmsw", GP),
    ("lgdt", GP),
    ("lidt", GP),
    ("lldt", GP),
    ("ltr", GP),
    ("sgdt", GP),
    ("sidt", GP),
    ("str", GP),
    ("rdmsr", GP),
    ("wrmsr", GP),
    ("invd", GP),
    ("invlpg", GP),
    ("in", GP),
    ("out", GP),
    ("sysenter", GP),
    ("sysexit", GP),
    ("sysret", GP),
    ("int-3", "#GP general protection on int 0x3, in command"),
    ("int-80", "#GP general protection on int 0x80, in command"),
    ("ud2", UD),
    ("x87", "#NM no coprocessor, in command"),
    ("sse", UD),
    // In 64-bit code QEMU 7.2 lets ring 1 load a null selector into SS; not here.
    ("null-ss", GP),
    ("pop-null-ss", GP),
    ("kernel-ss", KERNEL_DATA),
    ("kernel-ds", KERNEL_DATA),
    ("far-jump-to-the-kernel", KERNEL_CODE),
    ("far-call-of-the-kernel", KERNEL_CODE),
    ("far-return-to-the-kernel", KERNEL_CODE),
    ("iret-to-the-kernel", KERNEL_CODE),
    ("jump-to-a-gate", KERNEL_CODE),
    ("16-bit-call-of-the-kernel", KERNEL_CODE),
    ("call-of-a-task", "#GP general protection on entry 3 of the GDT, in command"),
    ("call-of-a-gate-not-granted", "#NP segment not present on the gate of rf_dma_alloc, in command"),
    ("nested-task", GP),
    // Each address is cut off to 32 bits, so that the kernel has no name; the remaining address is
    // the driver's own.
    ("read 0", "#PF reading 0x18000000000 (own slot, unmapped), in command"),
    ("read 40000000", "#PF reading 0x18040000000 (own slot, unmapped), in command"),
    ("read c0000000", "#PF reading 0x180c0000000 (own slot, unmapped), in command"),
    ("read ffffffff", "#PF reading 0x180ffffffff (own slot, unmapped), in command"),
    ("read-over-the-end", "#PF reading 0x180fffffffe (own slot, unmapped), in command"),
    ("write-over-the-end", "#PF writing 0x180fffffffe (own slot, unmapped), in command"),
    ("push-over-the-end", "#PF writing 0x180fffffffe (own slot, unmapped), in command"),
    ("no-stack", "#PF writing 0x180fffffffc (own slot, unmapped), in command"),
    ("write 430000", "#PF writing 0x18000430000 (own read-only data), in command"),
    ("write 220000", "#PF writing 0x18000220000 (own service stubs), in command"),
    ("run 1f00000", "#PF executing 0x18001f00000 (own mailbox), in command"),
    ("run 0", "#PF executing 0x18000000000 (own slot, unmapped), in command"),
    ("jump-over-the-end", "#PF executing 0x180fff* (own slot, unmapped), in command"),
    ("step-into-a-gate", "#DB debug exception, in command, at gate32_0+0x0"),
    ("return-gate-with-flags 100", "#DB debug exception, in command, at gate32_return+0x0"),
    ("log-from 0", "bad pointer to rf_log: 0x10 bytes at 0x18000000000 (own slot, unmapped), in command"),
    ("log-from 3fffffff", "bad pointer to rf_log: 0x10 bytes at 0x1803fffffff (own slot, unmapped), in command"),
    ("log-from-above 1", "bad pointer to rf_log: 0x10 bytes at 0x18101f00000 (own slot, unmapped), in command"),
    ("log-from-above 80", "bad pointer to rf_log: 0x10 bytes at 0x8001f00000 (another domain's slot), in command"),
    (
        "log-from-above ffff8000",
        "bad pointer to rf_log: 0x10 bytes at 0xffff800001f00000 (physical memory), in command",
    ),
    // QEMU enters virtual-8086 mode, with any CS, and cannot fetch from a page that is no user's.
    ("virtual-8086", "#PF executing 0x180000012b4 (own slot, unmapped), in command"),
    ("virtual-8086-data", "#PF executing 0x180000012b4 (own slot, unmapped), in command"),
    ("lds", KERNEL_DATA),
    ("les", KERNEL_DATA),
    ("lfs", KERNEL_DATA),
    ("lss", KERNEL_DATA),
    ("lss-null", GP),
    ("bound", "#BR bound range exceeded, in command"),
    ("into", "#GP general protection on int 0x4, in command"),
    ("aam", "#DE divide error, in command"),
    ("popf-iopl", GP),
    ("iret-iopl", GP),
    ("sldt", GP),
    ("smsw", GP),
    ("rdpmc", GP),
    ("wbinvd", GP),
    ("ins", GP),
    ("outs", GP),
    ("rsm", UD),
    ("vmcall", UD),
    ("swapgs", UD),
    ("jump-to-a-gate-of-16-bits", KERNEL_CODE),
    ("popa-over-the-end", "#PF reading 0x180fffffffe (own slot, unmapped), in command"),
    ("enter-over-the-end", "#PF writing 0x180fffffffe (own slot, unmapped), in command"),
    ("spin", "took longer than 100 ms, in command"),
];

/// The faults that differ on a CPU without virtual-8086 mode in long mode, as Bochs has: it loads
/// CS.
pub const WITHOUT_VIRTUAL_8086: &[(&str, &str)] = &[("virtual-8086", KERNEL_CODE), ("virtual-8086-data", KERNEL_CODE)];

/// The faults that differ on a CPU of Intel's, which has no SYSCALL for 32-bit code: upcalls end at
/// the return gate.
pub const WITHOUT_SYSCALL: &[(&str, &str)] = &[
    ("sysret", UD),
    ("syscall 12345678", UD),
    ("syscall-with-stack 0", UD),
    ("syscall-with-stack deadbeef", UD),
    ("syscall-with-flags 100", UD),
    ("syscall-with-flags 400", UD),
    ("syscall-with-flags 4000", UD),
    ("syscall-with-flags 244cd5", UD),
];

/// The attacks that do no harm, with their answers. The gate is called with a stack pointer that
/// leads nowhere, as the CPU takes another stack for it; and with a prefix for 16-bit operands, as
/// the gate alone decides the size of a call. SYSCALL ends the upcall wherever the driver makes it,
/// whatever its stack. Then upcalls end, in each way, with flags that the kernel must not go on
/// with: TF, DF, NT, and all but TF that POPF sets. (QEMU's SYSCALL clears DF in any case.)
const ANSWERS: [(&str, u64); 16] = [
    ("gate-at 0", 1),
    ("gate-at deadbeef", 1),
    ("16-bit-call-of-a-gate", 1),
    ("syscall 12345678", 0x1234_5678),
    ("syscall-with-stack 0", 1),
    ("syscall-with-stack deadbeef", 1),
    ("syscall-with-flags 100", 1),
    ("syscall-with-flags 400", 1),
    ("syscall-with-flags 4000", 1),
    ("syscall-with-flags 244cd5", 1),
    ("return-gate-with-flags 400", 1),
    ("return-gate-with-flags 4000", 1),
    ("return-gate-with-flags 244cd5", 1),
    ("leave-with-flags 400", 1),
    ("leave-with-flags 4000", 1),
    ("leave-with-flags 244cd5", 1),
];

/// Returns the attacks, with the outcomes on a CPU on which these differ.
pub fn differing(faults: &[(&str, &str)]) -> Vec<Attack> {
    let expected = |attack: Attack| match faults.iter().find(|(tell, _)| *tell == attack.tell) {
        Some((_, fault)) => Attack { expected: Expected::Fault(fault.to_string()), ..attack },
        None => attack,
    };
    all().into_iter().map(expected).collect()
}

/// Returns the attacks, with the outcomes under QEMU.
pub fn all() -> Vec<Attack> {
    let fault = |(tell, fault): &(&str, &str)| Attack::fault("rogue-segment", *tell, *fault);
    let mut all: Vec<Attack> = FAULTS.iter().map(fault).collect();
    all.extend(ANSWERS.map(|(tell, answer)| Attack::answer("rogue-segment", tell, Some(answer))));
    all
}
