//! The accesses of a driver to its device's registers, from the instruction that makes them.

use crate::disassembly::MAX_INSTRUCTION;
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, MemorySize, Mnemonic, OpKind, Register};

/// The direction of an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// It reads the register.
    Reads,
    /// It writes the register.
    Writes,
    /// It reads the register and then writes it.
    Changes,
}

/// An access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// Its direction.
    pub direction: Direction,
    /// The number of bytes; 0 for data that is no plain number, and for an unknown instruction.
    pub width_bytes: u8,
    /// The value that was read or written, if a general register or the instruction has it.
    pub value: Option<u64>,
    /// The value before it was changed.
    pub before: Option<u64>,
}

/// Has the decoder make its tables, which takes milliseconds under emulation, before a driver waits
/// for it.
pub fn prepare() {
    decode(&[]);
}

fn decode(code: &[u8]) -> Instruction {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    Decoder::new(64, code, DecoderOptions::NONE).decode()
}

/// Returns the access to memory at `address` that the first instruction of `code` makes.
/// `registers` are the general registers, in the order of their numbers, RAX first: before the
/// instruction the direction is right, and after it the value.
pub fn to_memory(code: &[u8], registers: [u64; 16], address: u64) -> Access {
    let instruction = decode(code);
    let copies =
        matches!(instruction.mnemonic(), Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq);
    let [.., rdi, _, _, _, _, _, _, _, _] = registers;
    let width_bytes = match instruction.memory_size() {
        MemorySize::UInt8 | MemorySize::Int8 => 1,
        MemorySize::UInt16 | MemorySize::Int16 => 2,
        MemorySize::UInt32 | MemorySize::Int32 => 4,
        MemorySize::UInt64 | MemorySize::Int64 => 8,
        _ => 0,
    };
    let is_first = |kind: OpKind| matches!(kind, OpKind::Memory | OpKind::MemoryESRDI | OpKind::MemoryESEDI);
    let is_target = is_first(instruction.op0_kind());
    let moves = matches!(
        instruction.mnemonic(),
        Mnemonic::Mov
            | Mnemonic::Movzx
            | Mnemonic::Movsx
            | Mnemonic::Movsxd
            | Mnemonic::Stosb
            | Mnemonic::Stosw
            | Mnemonic::Stosd
            | Mnemonic::Stosq
            | Mnemonic::Lodsb
            | Mnemonic::Lodsw
            | Mnemonic::Lodsd
            | Mnemonic::Lodsq
    );
    let sets = (Code::Seto_rm8 as usize..=Code::Setg_rm8 as usize).contains(&(instruction.code() as usize));
    let sets = sets || matches!(instruction.mnemonic(), Mnemonic::Pop | Mnemonic::Movnti);
    let direction = match is_target {
        true if moves || sets || copies && rdi == address => Direction::Writes,
        true if changes(instruction.mnemonic()) => Direction::Changes,
        _ => Direction::Reads,
    };
    // The effect of other instructions is not known: nothing stands in for the register.
    let is_known = moves || sets || only_reads(instruction.mnemonic()) || changes(instruction.mnemonic());
    let width_bytes = if is_known { width_bytes } else { 0 };
    let value = match instruction.op_kind(u32::from(is_target)) {
        OpKind::Register => value(instruction.op_register(u32::from(is_target)), registers),
        _ => instruction.try_immediate(u32::from(is_target)).ok(),
    };
    let mask = u64::MAX.checked_shr(64 - 8 * u32::from(width_bytes)).unwrap_or(0);
    Access { direction, width_bytes, value: value.filter(|_| moves).map(|value| value & mask), before: None }
}

/// Returns whether an instruction reads its operand in memory, whichever it is, and does not write
/// it.
fn only_reads(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Bt, Cmp, Div, Idiv, Imul, Mul, Push, Test};
    matches!(mnemonic, Bt | Cmp | Div | Idiv | Imul | Mul | Push | Test)
}

/// Returns whether an instruction reads its first operand and then writes it.
fn changes(mnemonic: Mnemonic) -> bool {
    use Mnemonic::{Adc, Add, And, Btc, Btr, Bts, Cmpxchg, Dec, Inc, Neg, Not, Or, Rcl, Rcr, Rol, Ror, Sar, Sbb};
    use Mnemonic::{Shl, Shld, Shr, Shrd, Sub, Xadd, Xchg, Xor};
    matches!(
        mnemonic,
        Adc | Add
            | And
            | Btc
            | Btr
            | Bts
            | Cmpxchg
            | Dec
            | Inc
            | Neg
            | Not
            | Or
            | Rcl
            | Rcr
            | Rol
            | Ror
            | Sar
            | Sbb
            | Shl
            | Shld
            | Shr
            | Shrd
            | Sub
            | Xadd
            | Xchg
            | Xor
    )
}

/// Returns the port that the first instruction of `code` accesses, and the access; `None` if it
/// accesses no port. `registers` are the general registers: before the instruction the port is
/// right, and after it the value.
pub fn to_port(code: &[u8], registers: [u64; 16]) -> Option<(u16, Access)> {
    let instruction = decode(code);
    let [rax, _, rdx, ..] = registers;
    let (direction, port, data) = match instruction.mnemonic() {
        Mnemonic::In => (Direction::Reads, 1, 0),
        Mnemonic::Out => (Direction::Writes, 0, 1),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => (Direction::Reads, 1, 0),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => (Direction::Writes, 0, 1),
        _ => return None,
    };
    let port = match instruction.op_kind(port) {
        OpKind::Immediate8 => instruction.immediate8().into(),
        _ => rdx as u16,
    };
    let width_bytes = match (instruction.mnemonic(), instruction.op_register(data)) {
        (Mnemonic::Insb | Mnemonic::Outsb, _) | (_, Register::AL) => 1,
        (Mnemonic::Insw | Mnemonic::Outsw, _) | (_, Register::AX) => 2,
        _ => 4,
    };
    let is_register = instruction.op_kind(data) == OpKind::Register;
    let value = is_register.then_some(rax & (u64::MAX >> (64 - 8 * u32::from(width_bytes))));
    Some((port, Access { direction, width_bytes, value, before: None }))
}

/// Returns the address of the memory from which the first instruction of `code` copies data to a
/// port, or to which it copies data from a port. `registers` are the general registers before it;
/// `None` if it copies nothing.
pub fn copied(code: &[u8], registers: [u64; 16]) -> Option<u64> {
    let [.., rsi, rdi, _, _, _, _, _, _, _, _] = registers;
    match decode(code).mnemonic() {
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => Some(rdi),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => Some(rsi),
        _ => None,
    }
}

/// Returns whether the first instruction of `code` is repeated and has no repetition left, so that
/// it accesses nothing. Some versions of QEMU check its access all the same. `registers` are the
/// general registers before it.
pub fn is_over(code: &[u8], registers: [u64; 16]) -> bool {
    let instruction = decode(code);
    let [_, rcx, ..] = registers;
    (instruction.has_rep_prefix() || instruction.has_repne_prefix()) && rcx == 0
}

/// Returns the value of a general register, or of a part of one.
fn value(register: Register, registers: [u64; 16]) -> Option<u64> {
    let at = |first: Register| (register as usize).checked_sub(first as usize);
    let of = |number: usize| registers.get(number).copied();
    // The names come in the order of their numbers, by length; AH to BH stand behind BL.
    match (at(Register::RAX), at(Register::EAX), at(Register::AX), at(Register::AH)) {
        (Some(number), ..) => of(number),
        (_, Some(number), ..) => of(number).map(|value| value & 0xffff_ffff),
        (_, _, Some(number), _) => of(number).map(|value| value & 0xffff),
        (.., Some(number @ 0..4)) => of(number).map(|value| value >> 8 & 0xff),
        (.., Some(number)) => of(number).map(|value| value & 0xff),
        _ => of(at(Register::AL)?).map(|value| value & 0xff),
    }
}

#[cfg(test)]
mod tests {
    use super::Direction::{Changes, Reads, Writes};
    use super::*;
    use proptest::prelude::*;

    /// RAX is 0x1111_2222_3333_4a5b, RCX 1, RDX 0xc0de_c03c, RSI 0x77 and so on.
    fn registers() -> [u64; 16] {
        let mut registers = [0; 16];
        (registers[0], registers[1], registers[2]) = (0x1111_2222_3333_4a5b, 1, 0xc0de_c03c);
        (registers[6], registers[9]) = (0x8877, 0x9_9999_9999);
        registers
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn an_access_to_memory_is_what_its_instruction_says() {
        let cases: [(&[u8], _, _, _); 16] = [
            // MOV [RDI], EAX; AL; AH; SIL; R9D; MOV dword [RDI], 5.
            (&[0x89, 0x07], Writes, 4, Some(0x3333_4a5b)),
            (&[0x88, 0x07], Writes, 1, Some(0x5b)),
            (&[0x88, 0x27], Writes, 1, Some(0x4a)),
            (&[0x40, 0x88, 0x37], Writes, 1, Some(0x77)),
            (&[0x44, 0x89, 0x0f], Writes, 4, Some(0x9999_9999)),
            (&[0xc7, 0x07, 5, 0, 0, 0], Writes, 4, Some(5)),
            // MOV RAX, [RDI]; MOVZX EAX, word [RDI].
            (&[0x48, 0x8b, 0x07], Reads, 8, Some(0x1111_2222_3333_4a5b)),
            (&[0x0f, 0xb7, 0x07], Reads, 2, Some(0x4a5b)),
            // OR dword [RDI], 1; TEST dword [RDI], 1; ADD EAX, [RDI].
            (&[0x83, 0x0f, 1], Changes, 4, None),
            (&[0xf7, 0x07, 1, 0, 0, 0], Reads, 4, None),
            (&[0x03, 0x07], Reads, 4, None),
            // BT dword [RDI], 3; PUSH qword [RDI]; SETE [RDI].
            (&[0x0f, 0xba, 0x27, 3], Reads, 4, None),
            (&[0xff, 0x37], Reads, 8, None),
            (&[0x0f, 0x94, 0x07], Writes, 1, None),
            // MOVBE [RDI], EAX, of which only the direction is not known.
            (&[0x0f, 0x38, 0xf1, 0x07], Reads, 0, None),
            // LCALL [RDI].
            (&[0xff, 0x1f], Reads, 0, None),
        ];
        for (code, direction, width_bytes, value) in cases {
            let expected = Access { direction, width_bytes, value, before: None };
            assert_eq!(to_memory(code, registers(), 0), expected, "{code:x?}");
        }
        // REP STOSD; MOVSW, from and to the address.
        let stored = Access { direction: Writes, width_bytes: 4, value: Some(0x3333_4a5b), before: None };
        assert_eq!(to_memory(&[0xf3, 0xab], registers(), 0), stored);
        for (address, direction) in [(0x8877, Reads), (0x5000, Writes)] {
            let mut registers = registers();
            registers[7] = 0x5000;
            let copied = Access { direction, width_bytes: 0, value: None, before: None };
            assert_eq!(to_memory(&[0x66, 0xa5], registers, address), copied);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn an_access_to_a_port_is_what_its_instruction_says() {
        let cases: [(&[u8], _, _, _, _); 6] = [
            // IN AL, DX; IN EAX, DX; OUT DX, AX; OUT 0x80, AL; REP INSW; OUTSB.
            (&[0xec], 0xc03c, Reads, 1, Some(0x5b)),
            (&[0xed], 0xc03c, Reads, 4, Some(0x3333_4a5b)),
            (&[0x66, 0xef], 0xc03c, Writes, 2, Some(0x4a5b)),
            (&[0xe6, 0x80], 0x80, Writes, 1, Some(0x5b)),
            (&[0xf3, 0x66, 0x6d], 0xc03c, Reads, 2, None),
            (&[0x6e], 0xc03c, Writes, 1, None),
        ];
        for (code, port, direction, width_bytes, value) in cases {
            let expected = Some((port, Access { direction, width_bytes, value, before: None }));
            assert_eq!(to_port(code, registers()), expected, "{code:x?}");
        }
        for other in [&[0x89, 0x07][..], &[0xf4], &[0x66], &[]] {
            assert_eq!(to_port(other, registers()), None);
        }
        let mut registers = registers();
        registers[7] = 0x5000;
        assert!(!is_over(&[0xf3, 0x66, 0x6d], registers));
        registers[1] = 0;
        assert!(is_over(&[0xf3, 0x66, 0x6d], registers) && !is_over(&[0x66, 0x6d], registers));
        let copies = [&[0xf3, 0x66, 0x6d][..], &[0x6e], &[0xec], &[]].map(|code| copied(code, registers));
        assert_eq!(copies, [Some(0x5000), Some(0x8877), None, None]);
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore)]
        fn no_bytes_make_it_panic(code in prop::collection::vec(any::<u8>(), 0..20), word in any::<u64>()) {
            let _ = (to_memory(&code, [word; 16], word), to_port(&code, [word; 16]), copied(&code, [word; 16]), is_over(&code, [word; 16]));
        }
    }
}
