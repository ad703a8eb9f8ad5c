//! Machine code in words, for fault reports.

use alloc::string::String;
use iced_x86::{Decoder, DecoderOptions, FastFormatter, Mnemonic};

/// Longest instruction in bytes (Intel SDM vol. 2A, 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// The first instruction of `code`, which lies at `address`, in Intel syntax with its bytes before it, or `None` if it is
/// cut short or is no instruction.
pub fn instruction(code: &[u8], address: u64) -> Option<String> {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
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

/// Length in bytes of the call at whose end `code` ends; `None` if no call does.
///
/// Code is not read backwards without doubt: of the forms that compilers use, the likeliest is taken.
pub fn call_before(code: &[u8]) -> Option<usize> {
    // CALL rel32; CALL [RIP + disp32]; CALL [register + disp32 or disp8] and CALL register, with a REX prefix first.
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

    // iced-x86 widens references in a way that Stacked Borrows does not allow; there is no unsafe code of ours.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn instructions_are_named_with_their_bytes() {
        assert_eq!(instruction(&[0x48, 0x8b, 0x07, 0xc3], 0x1000).unwrap(), "488b07  mov rax, [rdi]");
        assert_eq!(instruction(&[0xeb, 0xfe], 0x8000001000).unwrap(), "ebfe  jmp 0x8000001000");
        assert_eq!(instruction(&[0x0f, 0x0b], 0).unwrap(), "0f0b  ud2");
        assert_eq!(instruction(&[0x48, 0x8b], 0), None);
        assert_eq!(instruction(&[], 0), None);
    }

    proptest! {
        #[test]
        #[cfg_attr(miri, ignore)]
        fn no_bytes_make_it_panic(code in proptest::collection::vec(any::<u8>(), 0..20), address in any::<u64>()) {
            let _ = instruction(&code, address);
        }
    }
}
