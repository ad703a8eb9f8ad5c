//! Finds loads of SS in a module's code, which QEMU's TCG takes for more than they are.
//!
//! A load of SS does not change the current privilege level, and a null selector there must ask for that level (SDM vol. 2,
//! MOV and LDS/LES/LFS/LGS/LSS). TCG keeps the current level in SS's hidden part and lets any null selector into it, with level 0:
//! two instructions, and ring 1 is ring 0. No driver has a use for such a load. A module's code never changes and nothing else
//! of it is executable, so that it is enough to look once, **at every offset**: a driver can jump into the middle of an
//! instruction.

/// What MOV to a segment register begins with.
const MOV: u8 = 0x8e;
/// What two-byte opcodes begin with, and LSS behind it.
const TWO_BYTE: u8 = 0x0f;
const LSS: u8 = 0xb2;
/// Bits 3 to 5 of the ModRM byte name the segment register, and SS is 2.
const REGISTER: u8 = 0b0011_1000;
const SS: u8 = 2 << 3;

/// Where in `code` a load of SS could begin, but for its prefixes. One that the last byte begins counts: what follows is not
/// known here.
pub fn loads(code: &[u8]) -> impl Iterator<Item = usize> {
    let second = |at: usize| code.get(at + 1).copied();
    code.iter().enumerate().filter_map(move |(at, first)| {
        let is_load = match *first {
            MOV => second(at).is_none_or(|modrm| modrm & REGISTER == SS),
            TWO_BYTE => second(at).is_none_or(|opcode| opcode == LSS),
            _ => false,
        };
        is_load.then_some(at)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Register};

    /// Every pair of bytes, as the decoder sees it, with what a load needs behind it.
    #[test]
    fn what_loads_ss_is_what_the_decoder_says() {
        let mut found = 0;
        for pair in 0..=u16::MAX {
            let [first, second] = pair.to_be_bytes();
            let bytes = [first, second, 0, 0, 0, 0, 0, 0];
            let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let is_mov = instruction.op0_register() == Register::SS;
            let is_lss = [Code::Lss_r16_m1616, Code::Lss_r32_m1632, Code::Lss_r64_m1664].contains(&instruction.code());
            assert_eq!(loads(&bytes).next() == Some(0), is_mov || is_lss || pair == 0x0fb2, "{first:02x} {second:02x}");
            found += usize::from(is_mov || is_lss);
        }
        assert_eq!(found, 32 + 1);
    }

    #[test]
    fn the_last_byte_may_begin_one() {
        assert_eq!(loads(&[0x90, 0x8e]).collect::<Vec<_>>(), [1]);
        assert_eq!(loads(&[0x90, 0x0f]).collect::<Vec<_>>(), [1]);
        assert_eq!(loads(&[0x8e, 0xd8, 0x0f, 0x0b]).count(), 0);
        assert_eq!(loads(&[]).count(), 0);
    }
}
