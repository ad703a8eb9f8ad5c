//! Machine code in words, for fault reports.

use alloc::string::String;
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Mnemonic, OpKind, Register};
use ringfence_abi::manifest::DomainKind;

/// Longest instruction in bytes (Intel SDM vol. 2A, 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// Returns the number of bits of the code in a domain of this kind.
pub fn bits(kind: DomainKind) -> u32 {
    match kind {
        DomainKind::Paged => 64,
        DomainKind::Segmented => 32,
    }
}

/// Returns the first instruction of `code`, which lies at `address` in a domain of this kind, in
/// Intel syntax with its bytes before it. `None` if it is cut short or undefined.
pub fn instruction(kind: DomainKind, code: &[u8], address: u64) -> Option<String> {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    let mut decoder = Decoder::with_ip(bits(kind), code, address, DecoderOptions::NONE);
    let instruction = decoder.decode();
    if instruction.mnemonic() == Mnemonic::INVALID {
        return None;
    }
    let mut text = String::new();
    for byte in code.get(..instruction.len())? {
        // Writing to a String does not fail.
        let _ = core::fmt::write(&mut text, format_args!("{byte:02x}"));
    }
    text.push_str("  ");
    let mut formatter = FastFormatter::new();
    formatter.options_mut().set_use_hex_prefix(true);
    formatter.options_mut().set_space_after_operand_separator(true);
    formatter.format(&instruction, &mut text);
    Some(text)
}

/// Returns the address of the memory operand of the first instruction of `code`, which lies at
/// `address`. `registers` are the general registers in the order of their numbers, RAX first.
/// `None` if there is no such operand. All segments have base 0 here.
pub fn operand_address(code: &[u8], address: u64, registers: [u64; 16]) -> Option<u64> {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    let instruction = Decoder::with_ip(64, code, address, DecoderOptions::NONE).decode();
    let operand = (0..instruction.op_count()).find(|operand| instruction.op_kind(*operand) == OpKind::Memory)?;
    instruction.virtual_address(operand, 0, |register, _, _| match register {
        Register::ES | Register::CS | Register::SS | Register::DS | Register::FS | Register::GS => Some(0),
        // Addresses of 32 bits are always canonical, so that 32-bit registers need no value.
        _ => registers.get((register as usize).checked_sub(Register::RAX as usize)?).copied(),
    })
}

/// Returns the vector that the first instruction of `code` raises; `None` if it is no `int`
/// instruction.
pub fn raises(code: &[u8]) -> Option<u8> {
    // INTO, which only 32-bit code has.
    const INTO: u8 = 0xce;
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    if code.first() == Some(&INTO) {
        return Some(4);
    }
    let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
    match instruction.mnemonic() {
        Mnemonic::Int => Some(instruction.immediate8()),
        Mnemonic::Int3 => Some(3),
        _ => None,
    }
}

/// Returns the length in bytes of the call instruction that ends at the end of `code`; `None` if
/// there is none.
///
/// Code cannot be read backwards without doubt: among the forms that compilers use, the likeliest
/// is taken.
pub fn call_before(code: &[u8]) -> Option<usize> {
    // CALL rel32; CALL [RIP + disp32]; CALL [register + disp32 or disp8] and CALL register, each
    // with a REX prefix first.
    const LENGTHS: [usize; 7] = [5, 6, 8, 7, 4, 3, 2];
    LENGTHS.into_iter().find(|len| {
        let Some(code) = code.len().checked_sub(*len).and_then(|start| code.get(start..)) else { return false };
        let instruction = Decoder::new(64, code, DecoderOptions::NONE).decode();
        instruction.mnemonic() == Mnemonic::Call && instruction.len() == *len
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    #[cfg_attr(miri, ignore)]
    fn calls_are_found_from_their_end() {
        assert_eq!(call_before(&[0x90, 0xe8, 1, 2, 3, 4]), Some(5));
        assert_eq!(call_before(&[0x90, 0xff, 0x15, 1, 2, 3, 4]), Some(6));
        assert_eq!(call_before(&[0x90, 0x41, 0xff, 0xd6]), Some(3));
        assert_eq!(call_before(&[0x90, 0x90, 0xff, 0xd0]), Some(2));
        assert_eq!(call_before(&[0x90; 15]), None);
        assert_eq!(call_before(&[]), None);
    }

    // iced-x86 widens references in a way that Stacked Borrows does not allow; our own code has no
    // unsafe code.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn instructions_are_named_with_their_bytes() {
        assert_eq!(
            instruction(DomainKind::Paged, &[0x48, 0x8b, 0x07, 0xc3], 0x1000).unwrap(),
            "488b07  mov rax, [rdi]"
        );
        assert_eq!(instruction(DomainKind::Paged, &[0xeb, 0xfe], 0x8000001000).unwrap(), "ebfe  jmp 0x8000001000");
        assert_eq!(instruction(DomainKind::Paged, &[0x0f, 0x0b], 0).unwrap(), "0f0b  ud2");
        assert_eq!(instruction(DomainKind::Paged, &[0x48, 0x8b], 0), None);
        assert_eq!(instruction(DomainKind::Paged, &[], 0), None);
        assert_eq!(instruction(DomainKind::Segmented, &[0x48, 0x8b, 0x07], 0).unwrap(), "48  dec eax");
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn vectors_are_found_behind_prefixes() {
        assert_eq!(
            [raises(&[0xcd, 0x21]), raises(&[0x66, 0xcd, 0x80]), raises(&[0xcc]), raises(&[0xce])],
            [Some(0x21), Some(0x80), Some(3), Some(4)]
        );
        assert_eq!([raises(&[0x0f, 0x0b]), raises(&[0xcd]), raises(&[])], [None; 3]);
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn the_address_of_an_operand_is_what_its_registers_say() {
        let mut registers = [0; 16];
        (registers[1], registers[7], registers[12]) = (0x10, 1 << 63, 3);
        // MOV RAX, [RDI]; MOV [RCX + R12 * 8 - 1], RAX; LEA RAX, [RIP + 1].
        assert_eq!(operand_address(&[0x48, 0x8b, 0x07], 0, registers), Some(1 << 63));
        assert_eq!(operand_address(&[0x4a, 0x89, 0x44, 0xe1, 0xff], 0, registers), Some(0x27));
        assert_eq!(operand_address(&[0x48, 0x8d, 0x05, 1, 0, 0, 0], 0x100, registers), Some(0x108));
        // UD2; RDMSR; cut short.
        assert_eq!(operand_address(&[0x0f, 0x0b], 0, registers), None);
        assert_eq!(operand_address(&[0x0f, 0x32], 0, registers), None);
        assert_eq!(operand_address(&[0x48], 0, registers), None);
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore)]
        fn no_bytes_make_it_panic(code in proptest::collection::vec(any::<u8>(), 0..20), address in any::<u64>()) {
            let _ = (instruction(DomainKind::Paged, &code, address), raises(&code), operand_address(&code, address, [address; 16]));
        }
    }
}
