//! Other ways to cross between a driver and the kernel, which `bench` uses to measure the parts of
//! a crossing. They exist only behind a feature, as they weaken the protection from drivers. **A
//! kernel without the feature `bench` has none of this.**

use super::cpu::{CPU, Cpu};
use super::entry_area;
use core::arch::global_asm;
use core::mem::offset_of;
use ringfence_core::descriptor;

global_asm!(
    include_str!("bench.S"),
    kernel_cr3 = const entry_area::KERNEL_CR3 as i64,
    services = const entry_area::SERVICES as i64,
    entry_stack_top = const entry_area::ENTRY_STACK_TOP as i64,
    driver_stack = const descriptor::DRIVER_STACK,
    cpu = sym CPU,
    cpu_upcall_rsp = const offset_of!(Cpu, upcall_rsp),
    cpu_domain_cr3 = const offset_of!(Cpu, domain_cr3),
);

unsafe extern "C" {
    safe fn bench_gate_bare();
    safe fn bench_gate_shared();
    safe fn bench_interrupt();
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
