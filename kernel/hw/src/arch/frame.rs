//! The registers at a trap.

use ringfence_core::descriptor::{DRIVER_CODE, DRIVER_DATA, DRIVER_STACK, KERNEL_CODE};
use ringfence_core::fault::Exception;

/// The registers that `entry.S` pushes, and the registers that the CPU has pushed before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "the fields are registers")]
pub struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rbp: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rbx: u64,
    pub rax: u64,
    pub vector: u64,
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// RFLAGS.TF: a debug exception follows each instruction.
pub const TRAP_FLAG: u64 = 1 << 8;
/// CF, PF, AF, ZF, SF, TF, DF, OF, NT, RF, AC, ID: the flags that a driver may set. Not IOPL, not
/// VM.
const RFLAGS_DRIVER: u64 = 0x0025_4dd5;
/// RFLAGS.VM.
const VIRTUAL_8086: u64 = 1 << 17;
/// The addresses that a segmented driver can name.
pub(crate) const SEGMENT: u64 = 0xffff_ffff;
/// IF and the bit that is always 1.
const RFLAGS_ALWAYS: u64 = 0x202;

impl TrapFrame {
    /// Sets the segments to those of a driver in ring 1, and keeps only the flags that a driver may
    /// set. A segmented driver's addresses are cut off.
    pub(crate) fn sanitize(&mut self, is_segmented: bool) {
        self.cs = u64::from(DRIVER_CODE);
        self.ss = u64::from(if is_segmented { DRIVER_DATA } else { DRIVER_STACK });
        self.rflags = self.rflags & RFLAGS_DRIVER | RFLAGS_ALWAYS;
        if is_segmented {
            self.rip &= SEGMENT;
            self.rsp &= SEGMENT;
        }
    }

    /// Returns whether the trap did not hit entry code: CS is not the kernel's, or the CPU was in
    /// virtual-8086 mode, which QEMU enters from 32-bit code with any CS.
    pub(crate) fn is_outside_ring_0(&self) -> bool {
        self.cs != u64::from(KERNEL_CODE) || self.is_in_virtual_8086_mode()
    }

    pub(crate) fn is_in_virtual_8086_mode(&self) -> bool {
        self.rflags & VIRTUAL_8086 != 0
    }

    /// Returns whether the trap hit the driver's own code, and not entry code.
    pub fn is_in_driver(&self) -> bool {
        self.cs == u64::from(DRIVER_CODE)
    }

    /// Returns the words of the frame, in their order in memory.
    pub(crate) fn words(&self) -> [u64; size_of::<TrapFrame>() / 8] {
        [
            self.r15,
            self.r14,
            self.r13,
            self.r12,
            self.r11,
            self.r10,
            self.r9,
            self.r8,
            self.rbp,
            self.rdi,
            self.rsi,
            self.rdx,
            self.rcx,
            self.rbx,
            self.rax,
            self.vector,
            self.error_code,
            self.rip,
            self.cs,
            self.rflags,
            self.rsp,
            self.ss,
        ]
    }

    /// Returns the trap's vector and error code.
    pub fn exception(&self) -> Exception {
        Exception { vector: self.vector, error_code: self.error_code }
    }

    /// Returns the general registers, in the order of their numbers.
    pub fn general(&self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, self.rsp, self.rbp, self.rsi, self.rdi, self.r8, self.r9, self.r10,
            self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }
}

impl TrapFrame {
    /// Returns the frame of 32-bit code without what is not the driver's: the upper halves of its
    /// registers, and the registers that it does not have, in which the kernel's values are.
    pub fn narrowed(&self) -> TrapFrame {
        let [rax, rbx, rcx, rdx] = [self.rax, self.rbx, self.rcx, self.rdx].map(|value| value & u64::from(u32::MAX));
        let [rsi, rdi, rbp] = [self.rsi, self.rdi, self.rbp].map(|value| value & u64::from(u32::MAX));
        let TrapFrame { vector, error_code, rip, cs, rflags, rsp, ss, .. } = *self;
        TrapFrame {
            rax,
            rbx,
            rcx,
            rdx,
            rsi,
            rdi,
            rbp,
            vector,
            error_code,
            rip,
            cs,
            rflags,
            rsp,
            ss,
            ..TrapFrame::default()
        }
    }
}

impl core::fmt::Display for TrapFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let rows: [&[(&str, u64)]; 7] = [
            &[("rax", self.rax), ("rbx", self.rbx), ("rcx", self.rcx)],
            &[("rdx", self.rdx), ("rsi", self.rsi), ("rdi", self.rdi)],
            &[("rbp", self.rbp), ("rsp", self.rsp), ("r8 ", self.r8)],
            &[("r9 ", self.r9), ("r10", self.r10), ("r11", self.r11)],
            &[("r12", self.r12), ("r13", self.r13), ("r14", self.r14)],
            &[("r15", self.r15), ("rip", self.rip), ("flg", self.rflags)],
            &[("cs ", self.cs), ("ss ", self.ss), ("err", self.error_code)],
        ];
        write_rows(f, &rows, 16)
    }
}

/// The registers of 32-bit code, as it sees them.
pub struct Narrow<'a>(pub &'a TrapFrame);

impl core::fmt::Display for Narrow<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let TrapFrame { rax, rbx, rcx, rdx, rsi, rdi, rbp, rsp, rip, rflags, cs, ss, error_code, .. } = *self.0;
        let rows: [&[(&str, u64)]; 4] = [
            &[("eax", rax), ("ebx", rbx), ("ecx", rcx), ("edx", rdx)],
            &[("esi", rsi), ("edi", rdi), ("ebp", rbp), ("esp", rsp)],
            &[("eip", rip), ("efl", rflags), ("cs ", cs), ("ss ", ss)],
            &[("err", error_code)],
        ];
        write_rows(f, &rows, 8)
    }
}

/// Writes rows of registers, of each as many hexadecimal digits.
fn write_rows(f: &mut core::fmt::Formatter<'_>, rows: &[&[(&str, u64)]], digits: usize) -> core::fmt::Result {
    let mask = u64::MAX >> (64 - 4 * digits);
    for (index, row) in rows.iter().enumerate() {
        if index > 0 {
            writeln!(f)?;
        }
        write!(f, "   ")?;
        for (name, value) in *row {
            write!(f, " {name}={:0digits$x}", value & mask)?;
        }
    }
    Ok(())
}
