//! The entry area: the pages that must be mapped, at the same address, whichever root is loaded
//! when the CPU enters the kernel.
//!
//! ```text
//! offset   page                      in the kernel's root    in a domain's root
//! 0x0000   entry text (2 pages)      R X                     R X, the same frames
//! 0x2000   constants, GDT, functions R                       R, the same frame
//! 0x3000   IDT                       R                       R, the same frame
//! 0x4000   TSS, at the page's end    R                       R, the same frame
//! 0x5000   I/O bitmap (2 pages)      R, all ports closed     R, the domain's own
//! 0x7000   LDT                       R, empty                R, the domain's own capabilities
//! 0x8000   entry and IST stacks      RW                      RW, the domain's own
//! ```
//!
//! LDTR and TR hold these addresses and never change. **One CR3 write therefore switches page
//! tables, capability table and I/O bitmap together.** Each root has its own stacks page. The CPU
//! pushes a domain's state to the domain's own page, and no domain ever sees a value that the
//! kernel pushes.

use super::{gates, vector};
use crate::memory::tables::Root;
use crate::memory::{kernel_root, write_constant};
use core::cell::UnsafeCell;
use core::mem::offset_of;
use ringfence_abi::layout::PAGE_SIZE;
use ringfence_abi::service::SERVICE_COUNT;
use ringfence_core::descriptor;
use ringfence_core::port_bitmap;
use x86_64::structures::paging::PageTableFlags as Flags;

/// First address of the entry area.
pub const BASE: u64 = 0xffff_ffff_c000_0000;
/// Length of the entry area in bytes.
pub const LEN_BYTES: u64 = 0x9000;
/// Pages of entry text.
pub const TEXT_PAGES: u64 = 2;
/// First address of the constants' page.
pub const CONSTANTS: u64 = BASE + 0x2000;
/// First address of the I/O bitmap's two pages.
pub const IO_BITMAP: u64 = BASE + 0x5000;
/// First address of the LDT's page.
pub const LDT: u64 = BASE + 0x7000;
/// Word of the LDT's page, behind the LDT, that says whose root is loaded: [`SEGMENTED_ROOT`], or
/// 0. No driver can write there.
pub const ROOT_KIND_WORD: usize = PAGE_SIZE as usize / 8 - 1;
const _: () = assert!(descriptor::LDT_BYTES <= ROOT_KIND_WORD * 8);
/// Address of that word, for `entry.S`.
pub const ROOT_KIND: u64 = LDT + ROOT_KIND_WORD as u64 * 8;
/// The root is that of a segmented domain: the kernel is mapped, and runs with it as well.
pub const SEGMENTED_ROOT: u64 = 1;
/// First address of the stacks' page.
pub const STACKS: u64 = BASE + 0x8000;
/// Top of the stack that a call gate switches to (TSS.RSP0). It grows down from here.
pub const ENTRY_STACK_TOP: u64 = STACKS + PAGE_SIZE;

/// Interrupt stack table entries. Each gets 512 bytes of the stacks' page, of which a trap uses
/// under 200.
pub mod ist {
    /// Device interrupts.
    pub const INTERRUPT: u8 = 1;
    /// Exceptions that have no stack of their own.
    pub const EXCEPTION: u8 = 2;
    /// Non-maskable interrupt.
    pub const NMI: u8 = 3;
    /// Double fault.
    pub const DOUBLE_FAULT: u8 = 4;
    /// Machine check.
    pub const MACHINE_CHECK: u8 = 5;
    /// Debug exception, which can come right behind another exception.
    pub const DEBUG: u8 = 6;
}
const IST_BYTES: u64 = 512;

/// Offset of the top of the stack for exceptions in the stacks' page.
pub(crate) const EXCEPTION_STACK_TOP: usize = ist::EXCEPTION as usize * IST_BYTES as usize;

/// Task state segment in 64-bit mode (SDM vol. 3A, 7.7, figure 7-11).
#[repr(C, packed(4))]
struct TaskState {
    reserved_0: u32,
    /// RSP0 to RSP2.
    rsp: [u64; 3],
    reserved_1: u64,
    /// IST1 to IST7.
    ist: [u64; 7],
    reserved_2: u64,
    reserved_3: u16,
    /// Offset of the I/O bitmap from the segment's base.
    io_bitmap: u16,
}
const TSS_BYTES: usize = size_of::<TaskState>();
const _: () = assert!(TSS_BYTES == 104);

/// The values that entry code needs before it has loaded the kernel's root, and the GDT.
///
/// The addresses of the Rust functions that it calls are here as well, and not in displacements of
/// its own instructions. Displacements differ with each build, and a driver that jumps into the
/// middle of one may find an instruction that does more under QEMU than on a CPU
/// (`core/src/tcg.rs`).
#[repr(C, align(4096))]
pub struct Constants {
    /// CR3 of the kernel's root.
    pub kernel_cr3: u64,
    gdt: [u64; descriptor::GDT_ENTRIES],
    /// The functions for traps from the kernel, and from drivers.
    traps: [u64; 2],
    /// The functions behind the gates, by number.
    services: [u64; SERVICE_COUNT],
}
/// Address of `kernel_cr3`, for `entry.S`.
pub const KERNEL_CR3: u64 = CONSTANTS + offset_of!(Constants, kernel_cr3) as u64;
/// Address of `traps`, for `entry.S`.
pub const TRAPS: u64 = CONSTANTS + offset_of!(Constants, traps) as u64;
/// Address of `services`, for `entry.S`.
pub const SERVICES: u64 = CONSTANTS + offset_of!(Constants, services) as u64;

#[repr(C)]
struct Data {
    constants: Constants,
    idt: [[u64; 2]; 256],
    before_tss: [u8; PAGE_SIZE as usize - TSS_BYTES],
    tss: TaskState,
    io_bitmap: [u8; port_bitmap::BYTES],
    ldt: [u8; PAGE_SIZE as usize],
    stacks: [u8; PAGE_SIZE as usize],
}
const _: () = {
    assert!(CONSTANTS + size_of::<Data>() as u64 == BASE + LEN_BYTES);
    assert!(CONSTANTS + offset_of!(Data, tss) as u64 + TSS_BYTES as u64 == IO_BITMAP);
    assert!(CONSTANTS + offset_of!(Data, io_bitmap) as u64 == IO_BITMAP);
    assert!(CONSTANTS + offset_of!(Data, ldt) as u64 == LDT);
    assert!(CONSTANTS + offset_of!(Data, stacks) as u64 == STACKS);
};

#[repr(transparent)]
struct Area(UnsafeCell<Data>);
// SAFETY: written by `init` before anything else runs; afterwards only the CPU uses it, except for
// [`write_vector`].
unsafe impl Sync for Area {}

// Only the CPU reads it, so the compiler must be told that it is used.
#[used]
#[unsafe(link_section = ".entry.data")]
static AREA: Area = Area(UnsafeCell::new(Data {
    constants: Constants {
        kernel_cr3: 0,
        gdt: [0; descriptor::GDT_ENTRIES],
        traps: [0; 2],
        services: [0; SERVICE_COUNT],
    },
    idt: [[0; 2]; 256],
    before_tss: [0; PAGE_SIZE as usize - TSS_BYTES],
    tss: TaskState {
        reserved_0: 0,
        rsp: [0; 3],
        reserved_1: 0,
        ist: [0; 7],
        reserved_2: 0,
        reserved_3: 0,
        io_bitmap: TSS_BYTES as u16,
    },
    io_bitmap: [0xff; port_bitmap::BYTES],
    ldt: [0; PAGE_SIZE as usize],
    stacks: [0; PAGE_SIZE as usize],
}));

unsafe extern "C" {
    /// The 256 vector entries of `entry.S`, [`VECTOR_STRIDE`] bytes apart.
    static trap_vectors: u8;
    static __entry_text_end: u8;
}
/// Bytes from one vector's entry to the next.
pub const VECTOR_STRIDE: u64 = 16;

/// Returns whether `rip` lies in the entry text.
pub fn is_text(rip: u64) -> bool {
    (BASE..&raw const __entry_text_end as u64).contains(&rip)
}

/// Fills the tables and loads GDTR, IDTR, LDTR and TR from them. Called once, with the kernel's
/// root in CR3.
pub(crate) fn init() {
    let kernel_cr3 = kernel_root();
    let area = AREA.0.get();
    // The segment's limit ends with the bitmap: see `port_bitmap::Ports`.
    let [tss_low, tss_high] = descriptor::tss(IO_BITMAP - TSS_BYTES as u64, (TSS_BYTES + port_bitmap::BYTES) as u64);
    let [ldt_low, ldt_high] = descriptor::ldt(LDT, descriptor::LDT_BYTES as u64);
    let gdt = [0, descriptor::code64(0), descriptor::data(0), tss_low, tss_high, ldt_low, ldt_high];
    use x86_64::VirtAddr;
    use x86_64::instructions::segmentation::{self, Segment};
    use x86_64::registers::segmentation::{CS, SegmentSelector};
    let pointer = |offset: usize, bytes: usize| x86_64::structures::DescriptorTablePointer {
        limit: (bytes - 1) as u16,
        base: VirtAddr::new(CONSTANTS + offset as u64),
    };
    let null = SegmentSelector(0);
    // SAFETY: nothing else runs yet, and the area is mapped writable until [`protect`]; the
    // selectors name the descriptors that are written here.
    unsafe {
        let (traps, services) = (gates::trap_functions(), gates::service_functions());
        (*area).constants = Constants { kernel_cr3, gdt, traps, services };
        for vector in 0..256 {
            let target = &raw const trap_vectors as u64 + vector as u64 * VECTOR_STRIDE;
            (*area).idt[vector] = descriptor::interrupt_gate(target, stack_of(vector as u64));
        }
        (*area).tss.rsp = [ENTRY_STACK_TOP; 3];
        (*area).tss.ist = core::array::from_fn(|index| STACKS + (index as u64 + 1) * IST_BYTES);
        use x86_64::instructions::tables;
        tables::lgdt(&pointer(offset_of!(Constants, gdt), descriptor::GDT_ENTRIES * 8));
        tables::lidt(&pointer(offset_of!(Data, idt), 256 * 16));
        CS::set_reg(SegmentSelector(descriptor::KERNEL_CODE));
        segmentation::SS::set_reg(SegmentSelector(descriptor::KERNEL_DATA));
        segmentation::DS::set_reg(null);
        segmentation::ES::set_reg(null);
        segmentation::FS::set_reg(null);
        segmentation::GS::set_reg(null);
        core::arch::asm!("lldt {:x}", in(reg) descriptor::LDT, options(nostack, preserves_flags));
        tables::load_tss(SegmentSelector(descriptor::TSS));
    }
}

/// Makes the tables read-only for the kernel too, once they are complete.
pub(crate) fn protect() {
    for page in (CONSTANTS..STACKS).step_by(PAGE_SIZE as usize) {
        Root::kernel().set_flags(page, Flags::PRESENT | Flags::NO_EXECUTE);
    }
    x86_64::instructions::tlb::flush_all();
}

/// Points an interrupt vector to `target`, or, with `None`, back to its own entry.
pub(super) fn set_vector(vector: u8, target: Option<u64>) {
    write_vector(vector, target.map(|target| descriptor::interrupt_gate(target, 0)));
}

/// Writes `gate`, or the vector's own gate, into the IDT.
pub(super) fn write_vector(vector: u8, gate: Option<[u64; 2]>) {
    let entry = CONSTANTS + offset_of!(Data, idt) as u64 + u64::from(vector) * 16;
    let [low, high] = match gate {
        Some(gate) => gate,
        None => {
            let own = &raw const trap_vectors as u64 + u64::from(vector) * VECTOR_STRIDE;
            descriptor::interrupt_gate(own, stack_of(vector.into()))
        }
    };
    // SAFETY: the address is that of an IDT entry, which only the CPU reads; the gate leads to a
    // handler of a vector.
    unsafe { write_constant(entry, &[low, high]) };
}

fn stack_of(vector: u64) -> u8 {
    match vector {
        vector::DEBUG => ist::DEBUG,
        vector::NMI => ist::NMI,
        vector::DOUBLE_FAULT => ist::DOUBLE_FAULT,
        vector::MACHINE_CHECK => ist::MACHINE_CHECK,
        vector::FIRST_INTERRUPT.. => ist::INTERRUPT,
        _ => ist::EXCEPTION,
    }
}
