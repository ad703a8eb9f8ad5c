//! Other ways to cross between a driver and the kernel, which `bench` uses to measure the parts of
//! a crossing. They exist only behind a feature, as they weaken the protection from drivers. **A
//! kernel without the feature `bench` has none of this.**

use super::cpu::{self, CPU, Cpu};
use super::entry_area;
use super::syscall;
use core::arch::global_asm;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;
use ringfence_core::module::Imports;
use x86_64::VirtAddr;
use x86_64::registers::control::{Cr4, Cr4Flags, Efer, EferFlags};
use x86_64::registers::model_specific::{LStar, SFMask, Star};
use x86_64::registers::rflags::RFlags;

global_asm!(
    include_str!("bench.S"),
    kernel_cr3 = const entry_area::KERNEL_CR3 as i64,
    services = const entry_area::SERVICES as i64,
    entry_stack_top = const entry_area::ENTRY_STACK_TOP as i64,
    driver_stack = const descriptor::DRIVER_STACK,
    cpu = sym CPU,
    cpu_upcall_rsp = const offset_of!(Cpu, upcall_rsp),
    cpu_domain_cr3 = const offset_of!(Cpu, domain_cr3),
    user = sym USER,
    user_back = const offset_of!(User, back),
    user_shim = const offset_of!(User, shim),
    user_entry = const offset_of!(User, entry),
    user_granted = const offset_of!(User, granted),
    service_count = const SERVICE_COUNT,
);

unsafe extern "C" {
    safe fn bench_gate_bare();
    safe fn bench_gate_shared();
    safe fn bench_interrupt();
    safe fn bench_enter_user();
    safe fn bench_syscall();
}

/// A way to cross, in place of a service's gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crossing {
    /// The shortest crossing with two CR3 writes.
    Bare,
    /// The kernel's own path without its CR3 writes, in a root that maps the kernel as well.
    SharedRoot,
    /// The shortest crossing through an interrupt gate.
    Interrupt,
}

/// A vector that nothing else uses.
pub(crate) const VECTOR: u8 = 0x81;

impl Crossing {
    /// Returns the address of the crossing's entry.
    pub(crate) fn target(self) -> u64 {
        let entry = match self {
            Crossing::Bare => bench_gate_bare,
            Crossing::SharedRoot => bench_gate_shared,
            Crossing::Interrupt => bench_interrupt,
        };
        entry as *const () as u64
    }
}

/// Lets ring 1 raise [`VECTOR`], or no more.
pub(crate) fn set_vector(is_open: bool) {
    const PRIVILEGE_1: u64 = 1 << 45;
    let [low, high] = descriptor::interrupt_gate(Crossing::Interrupt.target(), 0);
    entry_area::write_vector(VECTOR, is_open.then_some([low | PRIVILEGE_1, high]));
}

/// The state of `bench_enter_user` and `bench_syscall`.
#[repr(C)]
struct User {
    /// The return address in `enter_trusted`, while the driver runs.
    back: AtomicU64,
    /// The address of the code in the slot with which an upcall begins.
    shim: AtomicU64,
    /// The driver's entry point.
    entry: AtomicU64,
    /// The services that the driver may call, by number: what is present in an LDT.
    granted: AtomicU64,
}
const _: () = assert!(SERVICE_COUNT <= 64);

static USER: User =
    User { back: AtomicU64::new(0), shim: AtomicU64::new(0), entry: AtomicU64::new(0), granted: AtomicU64::new(0) };

/// The selectors that SYSRET puts into CS and SS are right behind this one. No table has their
/// descriptors: SYSRET loads none.
const SYSRET_BASE: u16 = descriptor::GDT_ENTRIES as u16 * 8;

/// Returns the address of the code that enters ring 3, as a trusted driver's entry point.
pub(crate) fn user_entry() -> u64 {
    bench_enter_user as *const () as u64
}

/// Makes this `shim` and `entry` those of the driver that [`with_syscall`] runs in ring 3, and lets
/// it call the `granted` services.
pub(crate) fn set_user(shim: u64, entry: u64, granted: Imports) {
    let granted = (0..SERVICE_COUNT).filter(|number| granted.contains(*number)).map(|number| 1 << number).sum();
    for (word, value) in [(&USER.shim, shim), (&USER.entry, entry), (&USER.granted, granted)] {
        word.store(value, Ordering::Relaxed);
    }
}

/// Runs `then` with SYSCALL and SYSRET for ring 3. SMAP is off, as `enter_trusted` pushes to the
/// driver's stack. Interrupts are off while the driver runs: SYSRET and SFMASK see to that.
pub fn with_syscall<R>(then: impl FnOnce() -> R) -> R {
    // Leave a segmented root now: to leave it later would switch SYSCALL off.
    cpu::load_kernel_root();
    let cr4 = Cr4::read();
    let masked = RFlags::INTERRUPT_FLAG | RFlags::TRAP_FLAG | RFlags::DIRECTION_FLAG;
    SFMask::write(masked | RFlags::ALIGNMENT_CHECK | RFlags::NESTED_TASK);
    LStar::write(VirtAddr::new_truncate(bench_syscall as *const () as u64));
    // SAFETY: SYSCALL leads to `bench_syscall` with the kernel's segments. That code is mapped in
    // the kernel's root, whose driver is the one of `set_user`. In the root of a paged domain it is
    // not, so that SYSCALL there ends the driver. No segmented driver runs meanwhile.
    unsafe {
        Star::write_raw(SYSRET_BASE, descriptor::KERNEL_CODE);
        Cr4::write(cr4 - Cr4Flags::SUPERVISOR_MODE_ACCESS_PREVENTION);
        Efer::update(|efer| efer.insert(EferFlags::SYSTEM_CALL_EXTENSIONS));
    }
    let result = then();
    // SAFETY: these are the values from before.
    unsafe {
        Efer::write_raw(cpu::EFER.bits());
        Cr4::write(cr4);
    }
    syscall::init();
    result
}
