//! Segment, gate and system descriptors, and the selectors that name them (Intel SDM vol. 3A,
//! 3.4.5, 5.8.3.1, 7.2.3).
//!
//! The descriptors of ring 1 are in the LDT. Each domain has its own LDT, which is the domain's
//! capability table. All descriptors have their accessed bit set, because the tables are mapped
//! read-only where ring 1 runs.

use ringfence_abi::service::SERVICE_COUNT;

/// Kernel code: GDT entry 1, privilege 0.
pub const KERNEL_CODE: u16 = 1 << 3;
/// Kernel data: GDT entry 2, privilege 0.
pub const KERNEL_DATA: u16 = 2 << 3;
/// Task state segment: GDT entries 3 and 4.
pub const TSS: u16 = 3 << 3;
/// Local descriptor table: GDT entries 5 and 6.
pub const LDT: u16 = 5 << 3;
/// Number of entries in the GDT.
pub const GDT_ENTRIES: usize = 7;

const TABLE_LOCAL: u16 = 1 << 2;
const RPL_1: u16 = 1;

/// Driver code: LDT entry 1, privilege 1.
pub const DRIVER_CODE: u16 = 1 << 3 | TABLE_LOCAL | RPL_1;
/// Driver data: LDT entry 2, privilege 1.
pub const DRIVER_DATA: u16 = 2 << 3 | TABLE_LOCAL | RPL_1;
/// The null selector with RPL 1, which the CPU loads into SS on the way out to ring 1 (SDM 6.14.4).
pub const DRIVER_STACK: u16 = RPL_1;

const FIRST_GATE: usize = 4;
/// The gate through which an upcall returns.
pub const RETURN_GATE: u16 = gate_selector_at(FIRST_GATE);

/// Length of the LDT in bytes: its limit plus one.
pub const LDT_BYTES: usize = (FIRST_GATE + 2 + 2 * SERVICE_COUNT) * 8;
const _: () = assert!(LDT_BYTES <= 4096, "the LDT is one page");

const fn gate_selector_at(entry: usize) -> u16 {
    (entry as u16) << 3 | TABLE_LOCAL | RPL_1
}

/// Returns the entry of the LDT at which the gate of service `number` begins. Each gate takes two.
pub const fn gate_entry(number: usize) -> usize {
    FIRST_GATE + 2 + 2 * number
}

/// Returns the selector of the gate of service `number`.
pub const fn gate_selector(number: usize) -> u16 {
    gate_selector_at(gate_entry(number))
}

/// Returns the entry of the LDT at which the return gate begins.
pub const fn return_gate_entry() -> usize {
    FIRST_GATE
}

/// Returns the thing that the selector in an error code names.
pub fn describe_selector(error_code: u64) -> SelectorName {
    if error_code & 0b010 != 0 {
        return SelectorName::Interrupt((error_code >> 3) as u8);
    }
    let entry = (error_code >> 3) as usize & 0x1fff;
    if error_code & 0b100 == 0 {
        return SelectorName::Global(entry);
    }
    if (FIRST_GATE..FIRST_GATE + 2).contains(&entry) {
        return SelectorName::ReturnGate;
    }
    match entry.checked_sub(gate_entry(0)).map(|offset| offset / 2) {
        Some(number) if number < SERVICE_COUNT => SelectorName::Gate(number),
        _ => SelectorName::Local(entry),
    }
}

/// The thing that a selector names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SelectorName {
    /// A vector of the IDT.
    Interrupt(u8),
    /// An entry of the GDT.
    Global(usize),
    /// An entry of the LDT that is no gate.
    Local(usize),
    /// The gate through which an upcall returns.
    ReturnGate,
    /// The gate of this service.
    Gate(usize),
}

const ACCESSED: u64 = 1 << 40;
const WRITABLE: u64 = 1 << 41;
const CODE: u64 = 1 << 43;
const USER: u64 = 1 << 44;
const PRESENT: u64 = 1 << 47;
const LONG: u64 = 1 << 53;
/// The segment's operands, addresses and stack are of 32 bits.
const WIDE: u64 = 1 << 54;

const fn privilege(ring: u64) -> u64 {
    ring << 45
}

/// Returns a 64-bit code segment for ring `ring`. Base and limit are ignored in 64-bit mode; they
/// span everything for Bochs, and out of 32-bit habit.
pub const fn code64(ring: u64) -> u64 {
    flat() | ACCESSED | WRITABLE | CODE | USER | PRESENT | LONG | privilege(ring)
}

/// Returns a 32-bit code segment for ring `ring`: in long mode the CPU runs it in compatibility
/// mode (SDM vol. 3A, 5.2.1), and cuts each address off to 32 bits. It spans all of them, so that
/// no return to it can go beyond its limit.
pub const fn code32(ring: u64) -> u64 {
    data32(ring) | CODE
}

/// Returns a data and stack segment for 32-bit code in ring `ring`.
pub const fn data32(ring: u64) -> u64 {
    data(ring) | WIDE
}

/// Returns a data segment for ring `ring`.
pub const fn data(ring: u64) -> u64 {
    flat() | ACCESSED | WRITABLE | USER | PRESENT | privilege(ring)
}

const fn flat() -> u64 {
    // Limit 0xfffff in units of 4 KiB.
    0xffff | 0xf << 48 | 1 << 55
}

/// Returns a system descriptor (SDM 7.2.3, figure 7-4) of type `kind` for `bytes` bytes at `base`.
const fn system(kind: u64, base: u64, bytes: u64) -> [u64; 2] {
    let limit = bytes - 1;
    [
        limit & 0xffff
            | (base & 0xff_ffff) << 16
            | kind << 40
            | PRESENT
            | (limit >> 16 & 0xf) << 48
            | (base >> 24 & 0xff) << 56,
        base >> 32,
    ]
}

/// Returns a 64-bit task state segment, available. LTR marks it busy.
pub const fn tss(base: u64, bytes: u64) -> [u64; 2] {
    system(0x9, base, bytes)
}

/// Returns a local descriptor table.
pub const fn ldt(base: u64, bytes: u64) -> [u64; 2] {
    system(0x2, base, bytes)
}

/// Returns a 64-bit call gate (SDM 5.8.3.1, figure 5-8) that ring 1 may call, into kernel code at
/// `target`.
///
/// A call of a gate that is not `present` faults, and the error code names its selector.
pub const fn call_gate(target: u64, present: bool) -> [u64; 2] {
    let low = target & 0xffff | (KERNEL_CODE as u64) << 16 | 0xc << 40 | privilege(1) | (target >> 16 & 0xffff) << 48;
    [if present { low | PRESENT } else { low }, target >> 32]
}

/// Returns a 64-bit interrupt gate (SDM 6.14.1, figure 6-8) on stack `ist`. No `int` instruction
/// outside ring 0 may use it.
pub const fn interrupt_gate(target: u64, ist: u8) -> [u64; 2] {
    [
        target & 0xffff
            | (KERNEL_CODE as u64) << 16
            | (ist as u64 & 7) << 32
            | 0xe << 40
            | PRESENT
            | (target >> 16 & 0xffff) << 48,
        target >> 32,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The descriptors have the bits of the manual's figures, written out by hand once.
    #[test]
    fn descriptors_have_the_manuals_bits() {
        assert_eq!(code64(0), 0x00af_9b00_0000_ffff);
        assert_eq!(code64(1), 0x00af_bb00_0000_ffff);
        assert_eq!(data(1), 0x008f_b300_0000_ffff);
        assert_eq!(tss(0xffff_ffff_c000_3f98, 0x2068), [0xc000_8900_0000_2067 | 0x3f98 << 16, 0xffff_ffff]);
        assert_eq!(ldt(0x1000, 0x100), [0x0000_8200_1000_00ff, 0]);
        let target = 0x1234_5678_9abc_def0;
        assert_eq!(call_gate(target, true), [0x9abc_ac00_0008_def0, 0x1234_5678]);
        assert_eq!(call_gate(target, false), [0x9abc_2c00_0008_def0, 0x1234_5678]);
        assert_eq!(interrupt_gate(target, 3), [0x9abc_8e03_0008_def0, 0x1234_5678]);
    }

    #[test]
    fn the_upper_half_of_a_gate_is_no_descriptor() {
        // SDM 5.8.3.1: the type field in the upper half of a gate, bits 40-44, must be 0. The top
        // bits of the target fill only bits 0-31 of the upper half.
        for target in [u64::MAX, 0xffff_ffff_8000_0000, 0x7fff_ffff_ffff] {
            assert_eq!(call_gate(target, true)[1] >> 40 & 0x1f, 0);
        }
    }

    proptest! {
        /// The fields that the CPU reads out of a gate equal the fields that were put in.
        #[test]
        fn gates_lead_where_they_should(target in any::<u64>(), present in any::<bool>(), ist in 0u8..8) {
            let offset = |[low, high]: [u64; 2]| low & 0xffff | (low >> 48 & 0xffff) << 16 | high << 32;
            let selector = |low: u64| (low >> 16 & 0xffff) as u16;
            let gate = call_gate(target, present);
            prop_assert_eq!(offset(gate), target);
            prop_assert_eq!(selector(gate[0]), KERNEL_CODE);
            prop_assert_eq!((gate[0] >> 40 & 0x1f, gate[0] >> 45 & 3, gate[0] >> 47 & 1), (0xc, 1, u64::from(present)));
            let gate = interrupt_gate(target, ist);
            prop_assert_eq!(offset(gate), target);
            prop_assert_eq!((gate[0] >> 32 & 7, gate[0] >> 40 & 0x1f, gate[0] >> 45 & 3), (ist.into(), 0xe, 0));
        }

        #[test]
        fn system_descriptors_keep_base_and_limit(base in any::<u64>(), bytes in 1u64..0x10_0000) {
            for [low, high] in [tss(base, bytes), ldt(base, bytes)] {
                prop_assert_eq!((low >> 16 & 0xff_ffff) | (low >> 56) << 24 | high << 32, base);
                prop_assert_eq!((low & 0xffff) | (low >> 48 & 0xf) << 16, bytes - 1);
            }
        }
    }

    #[test]
    fn selectors_are_named() {
        for number in 0..SERVICE_COUNT {
            let code = u64::from(gate_selector(number) & !3);
            assert_eq!(describe_selector(code), SelectorName::Gate(number));
        }
        assert_eq!(describe_selector(u64::from(RETURN_GATE & !3)), SelectorName::ReturnGate);
        assert_eq!(describe_selector(u64::from(DRIVER_CODE & !3)), SelectorName::Local(1));
        assert_eq!(describe_selector(8), SelectorName::Global(1));
        assert_eq!(describe_selector(0x80 << 3 | 2), SelectorName::Interrupt(0x80));
    }
}
