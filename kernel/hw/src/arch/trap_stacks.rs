//! The stacks of traps that hit the kernel, each with an unmapped page below it.

use super::cpu;
use crate::memory::frames::{Frames, OutOfMemory};
use crate::memory::tables::{Leaf, Root};
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_core::extent::Extent;
use x86_64::structures::paging::PageTableFlags as Flags;

/// First address of the stacks and the unmapped pages around them: in the 2 MiB of the kernel's
/// data (`kernel.ld`).
const START: u64 = 0xffff_ffff_8110_0000;
/// Length of a stack in bytes.
const LEN_BYTES: u64 = 32 << 10;
/// Names of the stacks: for interrupts, for exceptions, and for traps that can hit the other two.
pub const NAMES: [&str; 3] = ["interrupt stack", "exception stack", "critical stack"];

/// Returns the address range of each stack.
pub fn extents() -> [Extent; NAMES.len()] {
    core::array::from_fn(|index| Extent::new(START + index as u64 * 2 * LEN_BYTES + PAGE_SIZE, LEN_BYTES))
}

/// Returns the address range of all stacks, with the unmapped pages around them.
pub fn all() -> Extent {
    Extent::new(START, NAMES.len() as u64 * 2 * LEN_BYTES)
}

/// Allocates and maps the stacks.
pub(crate) fn init() -> Result<(), OutOfMemory> {
    for stack in extents() {
        for offset in (0..LEN_BYTES).step_by(PAGE_SIZE as usize) {
            let flags = Flags::PRESENT | Flags::WRITABLE | Flags::NO_EXECUTE;
            Root::kernel().map(stack.start + offset, Leaf::Own(Frames::new(1)?), flags)?;
        }
    }
    let [interrupt, exception, critical] = extents().map(|stack| stack.start + stack.len_bytes);
    let cpu = cpu::this();
    cpu.interrupt_stack.set(interrupt);
    cpu.exception_stack.set(exception);
    cpu.critical_stack.set(critical);
    Ok(())
}
