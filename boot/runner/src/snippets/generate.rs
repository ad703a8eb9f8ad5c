//! Generates machine code. Each snippet follows from the seed and its number.

use ringfence_abi::layout::{IMAGE, MAILBOX, STACK_TOP, STUBS};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::tcg;

/// Length of a snippet in bytes.
pub const BYTES: usize = 64;
/// The bytes after a snippet's code: UD2.
const REST: [u8; 2] = [0x0f, 0x0b];
const NOP: u8 = 0x90;

/// A piece of code. The UD2s after it end the driver, if the code itself does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snippet(Vec<u8>);

impl Snippet {
    /// Returns all bytes of the snippet.
    pub fn bytes(&self) -> [u8; BYTES] {
        std::array::from_fn(|index| match self.0.get(index) {
            Some(byte) => *byte,
            // A NOP keeps the UD2s whole: half a UD2 at the end would run into the next snippet.
            None if index == self.0.len() && index % 2 == 1 => NOP,
            None => REST[index % 2],
        })
    }

    /// Describes the snippet for a person: its number and its bytes.
    pub fn text(&self, number: usize) -> String {
        let hex: Vec<String> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("snippet {number} [{}]", hex.join(" "))
    }

    /// Returns whether QEMU gives some of the code more power than the CPU does ([`tcg`]).
    fn has_holes(&self) -> bool {
        tcg::holes(&self.bytes()).next().is_some()
    }
}

/// The prefixes that are tried before each opcode.
const PREFIXES: [&[u8]; 16] = [
    &[],
    &[0x66],
    &[0x67],
    &[0xf0],
    &[0xf2],
    &[0xf3],
    &[0x48],
    &[0x4f],
    &[0x66, 0x48],
    &[0xf0, 0x48],
    &[0xf0, 0x66],
    &[0xf2, 0x48],
    &[0xf3, 0x48],
    &[0x66, 0xf2],
    &[0x64],
    &[0x36, 0xf0],
];
/// The bytes that come before an opcode in each opcode map.
const MAPS: [&[u8]; 4] = [&[], &[0x0f], &[0x0f, 0x38], &[0x0f, 0x3a]];
/// Number of ModRM bytes: each operation of a group, with ECX and with the memory at RSI.
const OPERANDS: usize = 16;
/// Numbers of systematic snippets: with legacy prefixes, VEX and EVEX. VEX and EVEX go through the
/// maps, and through all fields of their last prefix bytes except the registers.
const LEGACY: usize = PREFIXES.len() * MAPS.len() * 256 * OPERANDS;
const VEX: usize = 3 * 256 * 32 * 4;
const EVEX: usize = 3 * 256 * 16 * 4;
const SYSTEMATIC: usize = LEGACY + VEX + EVEX;
/// Distance between one systematic snippet and the next. It has no common divisor with
/// [`SYSTEMATIC`], so that each one comes once in [`SYSTEMATIC`] steps.
const STEP: usize = 99_991;

/// All snippets that follow from a seed, for a kind of domain.
pub struct Snippets {
    seed: u64,
    kind: DomainKind,
}

impl Snippets {
    /// Makes the snippets of `seed` for this kind of domain.
    pub fn new(seed: u64, kind: DomainKind) -> Snippets {
        Snippets { seed, kind }
    }

    /// Returns the snippet with this number.
    pub fn get(&self, number: usize) -> Snippet {
        const TRIES: u64 = 64;
        let random = |attempt: u64| {
            let salt = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ attempt << 56;
            fastrand::Rng::with_seed(self.seed ^ salt)
        };
        for attempt in 0..TRIES {
            let mut random = random(attempt);
            let code = match number % 4 {
                // If the code has a hole with any bytes after it, random bytes replace it after
                // half the tries.
                0 | 2 if attempt < TRIES / 2 => {
                    let place = number / 2 * STEP + self.seed as usize % SYSTEMATIC;
                    systematic(place % SYSTEMATIC, &mut random)
                }
                1 if self.kind == DomainKind::Segmented => frame_of_32_bits(&mut random),
                1 => frame(&mut random),
                _ => bytes(&mut random),
            };
            let snippet = Snippet(code);
            if !snippet.has_holes() {
                return snippet;
            }
        }
        Snippet(Vec::new())
    }
}

/// Returns one opcode with one prefix and one operand, and random bytes for the rest of the
/// instruction.
fn systematic(place: usize, random: &mut fastrand::Rng) -> Vec<u8> {
    let mut code = Vec::new();
    let operand = |index: usize| (index as u8 & 7) << 3 | if index & 8 == 0 { 0xc1 } else { 0x06 };
    if let Some(place) = place.checked_sub(LEGACY) {
        if let Some(place) = place.checked_sub(VEX) {
            let (operands, place) = (place % 4, place / 4);
            let (last, place) = (place % 16, place / 16);
            let (opcode, map) = (place % 256, place / 256);
            // P0 has the R, X, B and R' of an instruction without prefixes; P1 varies W and pp; P2
            // varies the vector length and the mask.
            code.extend([
                0x62,
                0xf1 + map as u8,
                0x7c | (last as u8 & 8) << 4 | last as u8 & 3,
                0x08 | (last as u8 & 4) << 3,
            ]);
            code.extend([opcode as u8, operand(operands * 5)]);
        } else {
            let (operands, place) = (place % 4, place / 4);
            let (last, place) = (place % 32, place / 32);
            let (opcode, map) = (place % 256, place / 256);
            let [pp, long, wide] = [last as u8 & 3, last as u8 >> 2 & 1, last as u8 >> 3 & 1];
            let vvvv = if last & 16 == 0 { 0b0111_1000 } else { 0b0000_1000 };
            code.extend([
                0xc4,
                0xe1 + map as u8,
                wide << 7 | vvvv | long << 2 | pp,
                opcode as u8,
                operand(operands * 5),
            ]);
        }
    } else {
        let (operands, place) = (place % OPERANDS, place / OPERANDS);
        let (opcode, place) = (place % 256, place / 256);
        let (map, prefixes) = (place % MAPS.len(), place / MAPS.len());
        code.extend(PREFIXES[prefixes]);
        code.extend(MAPS[map]);
        code.extend([opcode as u8, operand(operands)]);
    }
    code.extend(std::iter::repeat_with(|| random.u8(..)).take(9));
    code
}

/// Returns a selector: of the GDT or the LDT, near their ends, or any.
fn selector(random: &mut fastrand::Rng) -> u64 {
    match random.u8(..8) {
        0 => random.u64(..1 << 16),
        1 => 0,
        2 => 0xd,
        _ => random.u64(..0x140),
    }
}

/// Returns an address: in the driver's own code or stack, in the kernel, or in no mapping.
fn address(random: &mut fastrand::Rng) -> u64 {
    const PLACES: [u64; 12] = [
        0,
        0x80_0040_2000,
        0x80_0170_0000,
        0x80_017f_ff00,
        0x100_0040_0000,
        0x7fff_ffff_ffff,
        0x8000_0000_0000,
        0xffff_8000_0000_0000,
        0xffff_ffff_8020_0000,
        0xffff_ffff_c000_0000,
        0xffff_ffff_c000_8800,
        u64::MAX,
    ];
    match random.u8(..8) {
        0 => random.u64(..),
        1 => random.u64(..1 << 32),
        _ => PLACES[random.usize(..PLACES.len())].wrapping_add(random.u64(..64)),
    }
}

/// Appends `mov rax, value; push rax`.
fn push(code: &mut Vec<u8>, value: u64) {
    code.extend([0x48, 0xb8]);
    code.extend(value.to_le_bytes());
    code.push(0x50);
}

/// Returns code that pushes a made-up frame, and a return or a far transfer that uses it.
fn frame(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut code = Vec::new();
    match random.u8(..4) {
        // IRET, of each width: SS, RSP, RFLAGS, CS, RIP.
        0 | 1 => {
            let flags = match random.u8(..4) {
                0 => random.u64(..),
                1 => random.u64(..1 << 22),
                _ => 0x202 | 1 << random.u32(..22),
            };
            for value in [selector(random), address(random), flags, selector(random), address(random)] {
                push(&mut code, value);
            }
            code.extend(match random.u8(..3) {
                0 => [0x48, 0xcf].as_slice(),
                1 => &[0xcf],
                _ => &[0x66, 0xcf],
            });
        }
        // A far return.
        2 => {
            for value in [selector(random), address(random), selector(random), address(random)] {
                push(&mut code, value);
            }
            code.extend(match random.u8(..4) {
                0 => [0x48, 0xcb].as_slice(),
                1 => &[0xcb],
                2 => &[0x48, 0xca, 16, 0],
                _ => &[0x66, 0xcb],
            });
        }
        // A far jump or call through memory, with an offset of 16, 32 or 64 bits, or a load of a
        // far pointer.
        _ => {
            let offset = address(random);
            let operand = [0x66, 0x40, 0x48][random.usize(..3)];
            push(&mut code, offset >> 48 | selector(random) << 16);
            push(&mut code, if random.bool() { offset } else { offset & 0xffff_ffff | selector(random) << 32 });
            let opcode: &[u8] = match random.u8(..6) {
                0 | 1 => &[0xff, 0x2c, 0x24],
                2 | 3 => &[0xff, 0x1c, 0x24],
                4 => &[0x0f, 0xb4, 0x0c, 0x24],
                _ => &[0x0f, 0xb5, 0x0c, 0x24],
            };
            code.push(operand);
            code.extend(opcode);
        }
    }
    code
}

/// Returns an address of 32 bits: in the driver's own memory, where the kernel's lower half is, or
/// in no mapping.
fn address_of_32_bits(random: &mut fastrand::Rng) -> u32 {
    const PLACES: [u64; 10] = [
        0,
        IMAGE,
        STUBS,
        STACK_TOP - 256,
        MAILBOX,
        0x8000_0000,
        0x8020_0000,
        0xc000_0000,
        0xc000_8800,
        u32::MAX as u64,
    ];
    match random.u8(..8) {
        0 => random.u32(..),
        _ => (PLACES[random.usize(..PLACES.len())] as u32).wrapping_add(random.u32(..64)),
    }
}

/// Appends `push value`.
fn push32(code: &mut Vec<u8>, value: u32) {
    code.push(0x68);
    code.extend(value.to_le_bytes());
}

/// Returns the like of [`frame`] for 32-bit code.
fn frame_of_32_bits(random: &mut fastrand::Rng) -> Vec<u8> {
    let mut code = Vec::new();
    let flags = match random.u8(..4) {
        0 => random.u32(..),
        1 => random.u32(..1 << 22),
        _ => 0x202 | 1 << random.u32(..22),
    };
    // From the top of the stack on, a return has EIP and CS; with them, IRET has EFLAGS, and, into
    // another ring, ESP and SS.
    let [ss, cs] = [(); 2].map(|()| selector(random) as u32);
    let [esp, eip] = [(); 2].map(|()| address_of_32_bits(random));
    match random.u8(..4) {
        0 | 1 => {
            [ss, esp, flags, cs, eip].iter().for_each(|value| push32(&mut code, *value));
            code.extend(if random.bool() { [0xcf].as_slice() } else { &[0x66, 0xcf] });
        }
        2 => {
            [ss, esp, cs, eip].iter().for_each(|value| push32(&mut code, *value));
            code.extend(match random.u8(..3) {
                0 => [0xcb].as_slice(),
                1 => &[0xca, 16, 0],
                _ => &[0x66, 0xcb],
            });
        }
        // A far jump or call, through memory or direct, or a load of a far pointer.
        _ => {
            push32(&mut code, cs);
            push32(&mut code, if random.bool() { eip } else { eip & 0xffff | cs << 16 });
            if random.bool() {
                code.push(0x66);
            }
            let opcode: &[u8] = match random.u8(..8) {
                0 | 1 => &[0xff, 0x2c, 0x24],
                2 | 3 => &[0xff, 0x1c, 0x24],
                4 => &[0x0f, 0xb4, 0x0c, 0x24],
                5 => &[0xc4, 0x0c, 0x24],
                6 => &[0xc5, 0x0c, 0x24],
                _ => &[0x9a],
            };
            code.extend(opcode);
            code.extend(eip.to_le_bytes());
            code.extend((cs as u16).to_le_bytes());
        }
    }
    code
}

/// Returns random bytes, with bytes that lead to rare instructions more often.
fn bytes(random: &mut fastrand::Rng) -> Vec<u8> {
    const RARE: [u8; 20] = [
        0x0f, 0x0f, 0x0f, 0x66, 0xf0, 0xf2, 0xf3, 0x48, 0x41, 0xff, 0xc4, 0xc5, 0x62, 0x8e, 0xcf, 0xcb, 0x9d, 0x06,
        0x01, 0xae,
    ];
    let count = random.usize(1..40);
    let byte = |random: &mut fastrand::Rng| match random.u8(..3) {
        0 => RARE[random.usize(..RARE.len())],
        _ => random.u8(..),
    };
    std::iter::repeat_with(|| byte(random)).take(count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn they_follow_from_seed_and_number() {
        let of = |seed| Snippets::new(seed, DomainKind::Paged);
        let (one, two) = (of(1), of(2));
        assert_eq!(one.get(7), of(1).get(7));
        let different = (0..1000).filter(|number| one.get(*number) != two.get(*number)).count();
        assert!(different > 950, "{different}");
    }

    #[test]
    fn none_is_what_is_not_loaded() {
        for snippets in DomainKind::ALL.map(|kind| Snippets::new(3, kind)) {
            for number in 0..20_000 {
                let bytes = snippets.get(number).bytes();
                assert_eq!(
                    tcg::holes(&[bytes.as_slice(), &REST].concat()).next(),
                    None,
                    "{}",
                    snippets.get(number).text(number)
                );
            }
        }
    }

    /// Each opcode of each map, with each prefix and operand, comes once in [`SYSTEMATIC`] steps.
    #[test]
    fn the_systematic_ones_are_all_there() {
        let places: HashSet<usize> = (0..SYSTEMATIC).map(|number| number * STEP % SYSTEMATIC).collect();
        assert_eq!(places.len(), SYSTEMATIC);
        let mut random = fastrand::Rng::with_seed(1);
        let starts: HashSet<Vec<u8>> = (0..LEGACY).map(|place| systematic(place, &mut random)[..4].to_vec()).collect();
        for opcode in 0..=u8::MAX {
            assert!(starts.contains(&vec![0x66, 0x0f, opcode, 0xc1]), "{opcode:02x}");
        }
    }
}
