//! Per-CPU state, in one struct, and the CPU's own settings.

use super::msr;
use crate::memory::kernel_root;
use core::cell::Cell;
use core::sync::atomic::AtomicU32;
use x86_64::PhysAddr;
use x86_64::registers::control::{Cr0, Cr0Flags, Cr3, Cr3Flags, Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::rflags;
use x86_64::structures::paging::PhysFrame;

/// The state that `entry.S` and upcalls need at once. There is one CPU; each further one would have
/// its own.
#[repr(C)]
pub(crate) struct Cpu {
    /// Continuation of the upcall that is under way, and top of the stack for services and traps
    /// during it.
    pub(crate) upcall_rsp: Cell<u64>,
    /// CR3 of the domain whose upcall is under way.
    pub(crate) domain_cr3: Cell<u64>,
    /// Address at which the kernel sees that domain's stacks' page.
    pub(crate) domain_stacks: Cell<u64>,
    /// Top of the stack for interrupts that hit the kernel.
    pub(crate) interrupt_stack: Cell<u64>,
    /// Top of the stack for exceptions that hit the kernel.
    pub(crate) exception_stack: Cell<u64>,
    /// Top of the stack for traps that can hit the other two stacks: NMI, double fault, machine
    /// check.
    pub(crate) critical_stack: Cell<u64>,
    /// The root with which the kernel goes on: that of the segmented domain that was entered last,
    /// or 0 for its own. While a paged driver runs, that one's is loaded.
    pub(crate) root: Cell<u64>,
    /// The offset that is added to the addresses in the registers of the driver that was entered
    /// last ([`crate::space::Space::lift`]): not 0 if it is segmented.
    pub(crate) lift: Cell<u64>,
    /// Not 0 while a segmented driver runs, from right before the way out of ring 0 until right
    /// behind the way in: a trap meanwhile belongs to the driver. The root says nothing, as the
    /// kernel goes on with a segmented domain's root in CR3.
    pub(crate) in_segment: Cell<u64>,
    /// EFER while `root` is not 0: with SYSCALL, if upcalls end by it ([`super::syscall`]).
    pub(crate) segment_efer: Cell<u64>,
    /// Timer ticks that the upcall under way may still use.
    pub(crate) ticks_left: AtomicU32,
}

// SAFETY: there is one CPU, and interrupt handlers write nothing but `ticks_left`.
unsafe impl Sync for Cpu {}

/// The one CPU's state, for `entry.S`. Rust code uses [`this`]. The linker script (`kernel.ld`)
/// chooses its place within its page.
#[unsafe(link_section = ".data.cpu")]
pub(crate) static CPU: Cpu = Cpu {
    upcall_rsp: Cell::new(0),
    domain_cr3: Cell::new(0),
    domain_stacks: Cell::new(0),
    interrupt_stack: Cell::new(0),
    exception_stack: Cell::new(0),
    critical_stack: Cell::new(0),
    root: Cell::new(0),
    lift: Cell::new(0),
    in_segment: Cell::new(0),
    segment_efer: Cell::new(EFER.bits()),
    ticks_left: AtomicU32::new(0),
};

/// The number of EFER among the MSRs.
pub(crate) const EFER_REGISTER: u32 = 0xc000_0080;
/// EFER, but with the root of a segmented domain ([`Cpu::segment_efer`]).
pub(crate) const EFER: EferFlags =
    EferFlags::LONG_MODE_ENABLE.union(EferFlags::LONG_MODE_ACTIVE).union(EferFlags::NO_EXECUTE_ENABLE);

/// Returns the state of the CPU that runs this.
pub(crate) fn this() -> &'static Cpu {
    &CPU
}

/// Loads the kernel's root, if the kernel goes on with that of a segmented domain
/// ([`super::entry_area::SEGMENTED_ROOT`]): other slots are mapped in the kernel's root only.
pub(crate) fn load_kernel_root() {
    if this().root.get() != 0
        && let Ok(kernels) = PhysFrame::from_start_address(PhysAddr::new_truncate(kernel_root()))
    {
        // SAFETY: both roots map the kernel in the same way.
        unsafe { Cr3::write(kernels, Cr3Flags::empty()) };
        this().root.set(0);
        // SAFETY: nothing but the end of a segmented driver's upcall uses the features that this
        // switches off.
        unsafe { Efer::write_raw(EFER.bits()) };
    }
}

/// The protections that this CPU has; the kernel does without the ones it lacks.
#[derive(Debug, Clone, Copy)]
pub struct Protections {
    /// Supervisor-mode execution prevention.
    pub smep: bool,
    /// Supervisor-mode access prevention.
    pub smap: bool,
    /// User-mode instruction prevention.
    pub umip: bool,
}

/// Sets the flags and every control register to the value that the design needs, and enables
/// nothing beyond.
///
/// No global pages (CR4.PGE): they would outlive a switch of roots. No SSE or x87 (CR0.EM, no
/// CR4.OSFXSR): neither kernel nor drivers use them, so no state leaks. No SYSENTER, and SYSCALL
/// only for segmented drivers ([`super::syscall`]): they ignore privilege levels.
pub fn init() -> Protections {
    let leaf7 = core::arch::x86_64::__cpuid_count(7, 0);
    let protections =
        Protections { smep: leaf7.ebx & 1 << 7 != 0, smap: leaf7.ebx & 1 << 20 != 0, umip: leaf7.ecx & 1 << 2 != 0 };
    let mut cr4 = Cr4Flags::PHYSICAL_ADDRESS_EXTENSION;
    cr4.set(Cr4Flags::SUPERVISOR_MODE_EXECUTION_PROTECTION, protections.smep);
    cr4.set(Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION, protections.smap);
    cr4.set(Cr4Flags::USER_MODE_INSTRUCTION_PREVENTION, protections.umip);
    // SAFETY: paging stays as it is; nothing here uses the features that are switched off.
    unsafe {
        Efer::write_raw(EFER.bits());
        Cr0::write(
            Cr0Flags::PROTECTED_MODE_ENABLE
                | Cr0Flags::EMULATE_COPROCESSOR
                | Cr0Flags::NUMERIC_ERROR
                | Cr0Flags::WRITE_PROTECT
                | Cr0Flags::PAGING,
        );
        Cr4::write(cr4);
    }
    // SAFETY: interrupts are off, and stay so. Segmented and trusted drivers run with the
    // kernel's flags.
    unsafe { rflags::write_raw(0) };
    msr::SYSENTER_CS.write(0);
    protections
}

impl core::fmt::Display for Protections {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let named = [("SMEP", self.smep), ("SMAP", self.smap), ("UMIP", self.umip)];
        f.write_str("protections: NX WP")?;
        named.iter().filter(|(_, has)| *has).try_for_each(|(name, _)| write!(f, " {name}"))
    }
}
