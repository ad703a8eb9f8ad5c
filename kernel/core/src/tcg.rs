//! Finds instructions in a module's code that QEMU's TCG executes differently from a CPU, or aborts
//! on.
//!
//! A module's code never changes, and nothing else of the module is executable: one search is
//! enough. It looks **at every offset**, because a driver can jump into the middle of an
//! instruction.

/// An instruction that TCG handles as no CPU does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hole {
    /// A load of SS does not change the current privilege level, and a null selector there must ask
    /// for that level (SDM vol. 2, MOV and LDS/LES/LFS/LGS/LSS). TCG keeps the current level in
    /// SS's hidden part. It accepts any null selector for SS, and sets level 0: with two
    /// instructions, ring 1 becomes ring 0. No driver has a use for such a load.
    LoadsSs,
    /// MOV to CS and to the segment registers 6 and 7, which do not exist, is undefined, and REX.R
    /// is ignored there (SDM vol. 2, MOV; vol. 1, 3.7). QEMU 10.0 loads CS. For the numbers 6 to 15
    /// it overwrites the state that it keeps behind GS: LDTR, TR, GDTR, IDTR, control registers.
    /// Afterwards no driver can be entered any more, or the whole machine is lost.
    LoadsNoSegment,
    /// BT, BTS, BTR and BTC of a register with a LOCK prefix are undefined (SDM vol. 2, LOCK). QEMU
    /// 7.2 aborts while it translates one, and the whole machine is lost.
    LocksBitTest,
}

/// Longest instruction in bytes (SDM vol. 3A, 23.15).
pub const MAX_INSTRUCTION: usize = 15;

/// Opcode of MOV to a segment register.
const MOV: u8 = 0x8e;
/// First byte of the two-byte opcodes.
const TWO_BYTE: u8 = 0x0f;
/// Second byte of the opcode of LSS.
const LSS: u8 = 0xb2;
/// Bits 3 to 5 of the ModRM byte name the segment register.
const REGISTER: u8 = 0b0011_1000;
const CS: u8 = 1 << 3;
const SS: u8 = 2 << 3;
const GS: u8 = 5 << 3;
/// The bit of a REX prefix that extends a register number of ModRM to the upper eight registers.
const REX_R: u8 = 0b0100;
const LOCK: u8 = 0xf0;

/// Whether an instruction that TCG mishandles may begin with a byte.
static BEGINS: [bool; 256] = {
    let mut begins = [false; 256];
    let (mut rex, last_rex) = (0x40, 0x4f);
    while rex <= last_rex {
        begins[rex] = rex as u8 & REX_R != 0;
        rex += 1;
    }
    begins[MOV as usize] = true;
    begins[TWO_BYTE as usize] = true;
    begins[LOCK as usize] = true;
    begins
};

/// Returns the offsets in `code` at which an instruction that TCG mishandles could begin, each with
/// the kind of the instruction. For a load, this is the offset of its opcode, or of a REX prefix
/// with REX.R. An instruction that is cut off at the end counts, because the bytes after it are not
/// known here.
pub fn holes(code: &[u8]) -> impl Iterator<Item = (usize, Hole)> {
    // Few bytes begin one, and a driver's code is searched whenever it is loaded.
    let may_begin = |(_, first): &(usize, &u8)| BEGINS.get(usize::from(**first)).is_some_and(|begins| *begins);
    code.iter().enumerate().filter(may_begin).filter_map(move |(at, first)| {
        let rest = code.get(at + 1..).unwrap_or(&[]);
        let second = rest.first().copied();
        let hole = match (*first, second) {
            (MOV, Some(modrm)) if modrm & REGISTER == CS || modrm & REGISTER > GS => Some(Hole::LoadsNoSegment),
            (0x40..=0x4f, _) if first & REX_R != 0 && is_mov_to_segment(rest) => Some(Hole::LoadsNoSegment),
            (MOV, second) if second.is_none_or(|modrm| modrm & REGISTER == SS) => Some(Hole::LoadsSs),
            (TWO_BYTE, second) if second.is_none_or(|opcode| opcode == LSS) => Some(Hole::LoadsSs),
            (LOCK, _) if is_bit_test_of_register(rest) => Some(Hole::LocksBitTest),
            _ => None,
        };
        hole.map(|hole| (at, hole))
    })
}

fn is_prefix(byte: &u8) -> bool {
    matches!(byte, 0x26 | 0x2e | 0x36 | 0x3e | 0x40..=0x4f | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
}

/// Returns the bytes after the other prefixes of an instruction, given the bytes after its first
/// prefix; `None` if there are more prefixes than an instruction can have.
fn behind_prefixes(rest: &[u8]) -> Option<&[u8]> {
    let rest = rest.get(..MAX_INSTRUCTION - 1).unwrap_or(rest);
    let prefixes = rest.iter().take_while(|byte| is_prefix(byte)).count();
    let behind = rest.get(prefixes..)?;
    // `behind` may be empty only because the code ends there, and not because the instruction is
    // too long.
    (!behind.is_empty() || rest.len() < MAX_INSTRUCTION - 1).then_some(behind)
}

/// Returns whether a MOV to a segment register may follow a REX prefix. QEMU also accepts a REX
/// prefix that is not the last prefix.
fn is_mov_to_segment(rest: &[u8]) -> bool {
    behind_prefixes(rest).is_some_and(|behind| matches!(behind, [] | [MOV, ..]))
}

/// Returns whether the bytes after a LOCK prefix may be a bit test of a register: other prefixes,
/// then 0F A3, AB, B3 or BB, or 0F BA with /4 to /7, and a ModRM byte that names a register.
fn is_bit_test_of_register(rest: &[u8]) -> bool {
    let names_register = |modrm: u8| modrm >= 0b1100_0000;
    let is_cut_off = rest.len() < MAX_INSTRUCTION - 1;
    let Some(behind) = behind_prefixes(rest) else { return false };
    match *behind {
        [] => true,
        [TWO_BYTE] | [TWO_BYTE, 0xa3 | 0xab | 0xb3 | 0xbb | 0xba] => is_cut_off,
        [TWO_BYTE, 0xa3 | 0xab | 0xb3 | 0xbb, modrm, ..] => names_register(modrm),
        [TWO_BYTE, 0xba, modrm, ..] => names_register(modrm) && modrm & REGISTER >= 4 << 3,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Code, Decoder, DecoderOptions, Mnemonic, OpKind, Register};

    fn decoded(bytes: &[u8]) -> iced_x86::Instruction {
        Decoder::new(64, bytes, DecoderOptions::NO_INVALID_CHECK).decode()
    }

    fn first(bytes: &[u8]) -> Option<Hole> {
        holes(bytes).find(|(at, _)| *at == 0).map(|(_, hole)| hole)
    }

    /// Every pair of bytes, with the bytes behind it that a load needs, agrees with the decoder.
    #[test]
    fn what_loads_ss_is_what_the_decoder_says() {
        let mut found = 0;
        for pair in 0..=u16::MAX {
            let [first_byte, second] = pair.to_be_bytes();
            let bytes = [first_byte, second, 0, 0, 0, 0, 0, 0];
            let instruction = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
            let is_mov = instruction.op0_register() == Register::SS;
            let is_lss = [Code::Lss_r16_m1616, Code::Lss_r32_m1632, Code::Lss_r64_m1664].contains(&instruction.code());
            assert_eq!(
                first(&bytes) == Some(Hole::LoadsSs),
                is_mov || is_lss || pair == 0x0fb2,
                "{first_byte:02x} {second:02x}"
            );
            found += usize::from(is_mov || is_lss);
            let names_none = first_byte == MOV && [1, 6, 7].contains(&(second >> 3 & 7));
            if is_prefix(&first_byte) {
                continue;
            }
            assert!(!names_none || instruction.is_invalid() || instruction.op0_register() == Register::CS);
            assert_eq!(first(&bytes) == Some(Hole::LoadsNoSegment), names_none, "{first_byte:02x} {second:02x}");
        }
        assert_eq!(found, 32 + 1);
    }

    /// Every opcode of two bytes with every ModRM byte agrees with the decoder: with LOCK alone
    /// before it, and with other prefixes as well.
    #[test]
    fn what_locks_a_bit_test_is_what_the_decoder_says() {
        let mut found = 0;
        for opcode in 0..=u8::MAX {
            for modrm in 0..=u8::MAX {
                let plain = decoded(&[TWO_BYTE, opcode, modrm, 0, 0, 0, 0, 0, 0]);
                let is_test = [Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc].contains(&plain.mnemonic());
                let expected = is_test && plain.op0_kind() == OpKind::Register;
                for prefixes in [&[LOCK] as &[u8], &[LOCK, 0x66], &[LOCK, 0x48], &[LOCK, 0x67, 0xf2, 0x2e, 0x4f]] {
                    let bytes = [prefixes, &[TWO_BYTE, opcode, modrm, 0, 0, 0, 0, 0, 0]].concat();
                    assert_eq!(first(&bytes) == Some(Hole::LocksBitTest), expected, "{bytes:02x?}");
                }
                found += usize::from(expected);
            }
        }
        assert_eq!(found, 4 * 64 + 4 * 8);
    }

    #[test]
    fn prefixes_are_as_many_as_an_instruction_can_have() {
        let with = |prefixes: usize| [vec![LOCK], vec![0x66; prefixes], vec![TWO_BYTE, 0xa3, 0xc9]].concat();
        assert_eq!(first(&with(11)), Some(Hole::LocksBitTest));
        assert_eq!(first(&with(12)), None);
        // If the last prefix is another LOCK, an instruction begins at each of the two.
        assert_eq!(holes(&[LOCK, LOCK, TWO_BYTE, 0xab, 0xc0]).count(), 2);
        // For QEMU, REX need not be the last prefix. An operand in memory is no register.
        assert_eq!(first(&[LOCK, 0x48, 0x66, TWO_BYTE, 0xba, 0xe1, 1]), Some(Hole::LocksBitTest));
        assert_eq!(first(&[LOCK, TWO_BYTE, 0xba, 0x21, 1]), None);
        assert_eq!(first(&[LOCK, TWO_BYTE, 0xba, 0xc1, 1]), None);
    }

    #[test]
    fn a_segment_register_has_no_upper_half() {
        for rex in 0x40..=0x4f {
            let expected = (rex & REX_R != 0).then_some(Hole::LoadsNoSegment);
            for code in [&[rex, 0x8e, 0xd8] as &[u8], &[rex, 0x66, 0x8e, 0x00], &[rex, 0xf2, 0x67, 0x8e, 0x00]] {
                assert_eq!(first(code), expected, "{code:02x?}");
            }
            assert_eq!(first(&[rex, 0x8c, 0xd8]), None);
        }
    }

    #[test]
    fn the_last_bytes_may_begin_one() {
        let at = |bytes: &[u8]| holes(bytes).map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(at(&[0x90, 0x8e]), [1]);
        assert_eq!(at(&[0x90, 0x0f]), [1]);
        assert_eq!(at(&[0x90, LOCK]), [1]);
        assert_eq!(at(&[0x90, LOCK, 0x66, TWO_BYTE, 0xba]), [1]);
        assert_eq!(at(&[0x8e, 0xd8, 0x0f, 0x0b]), []);
        assert_eq!(at(&[]), []);
    }
}
