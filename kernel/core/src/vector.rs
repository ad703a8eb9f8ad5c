//! The CPU's interrupt vectors (SDM vol. 3A, table 6-1).

/// A quotient that does not fit, or a division by zero.
pub const DIVIDE_ERROR: u64 = 0;
/// Breakpoints and single steps.
pub const DEBUG: u64 = 1;
/// Non-maskable interrupt.
pub const NMI: u64 = 2;
/// An undefined instruction.
pub const INVALID_OPCODE: u64 = 6;
/// An exception while another one was being delivered.
pub const DOUBLE_FAULT: u64 = 8;
/// A task state segment that is not valid.
pub const INVALID_TSS: u64 = 10;
/// A segment or a gate that is not present.
pub const NOT_PRESENT: u64 = 11;
/// A fault of the stack segment.
pub const STACK_FAULT: u64 = 12;
/// A violation without a vector of its own.
pub const GENERAL_PROTECTION: u64 = 13;
/// An access that the page tables do not allow.
pub const PAGE_FAULT: u64 = 14;
/// A hardware error.
pub const MACHINE_CHECK: u64 = 18;
/// The first vector that is not an exception's.
pub const FIRST_INTERRUPT: u64 = 32;

/// Returns an exception's name.
pub fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        DEBUG => "#DB debug exception",
        NMI => "NMI",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range exceeded",
        INVALID_OPCODE => "#UD invalid opcode",
        7 => "#NM no coprocessor",
        DOUBLE_FAULT => "#DF double fault",
        INVALID_TSS => "#TS invalid TSS",
        NOT_PRESENT => "#NP segment not present",
        STACK_FAULT => "#SS stack fault",
        GENERAL_PROTECTION => "#GP general protection",
        PAGE_FAULT => "#PF page fault",
        16 => "#MF x87 error",
        17 => "#AC alignment check",
        MACHINE_CHECK => "#MC machine check",
        19 => "#XM SIMD error",
        20 => "#VE virtualization exception",
        21 => "#CP control protection",
        _ => "exception",
    }
}
