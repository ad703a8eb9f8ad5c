//! Changes of machine code in the manner of the fault injectors of Rio, Nooks and MINIX 3: small
//! mistakes of programmers or of memory, one instruction at a time.

use iced_x86::{
    Code, Decoder, DecoderOptions, Encoder, FlowControl, Formatter, Instruction, IntelFormatter, Mnemonic, OpKind,
    Register,
};

/// A kind of change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// One bit of the instruction is flipped.
    BitFlip,
    /// The instruction is removed.
    Removed,
    /// One register operand is replaced by another register.
    Operand,
    /// The displacement, the base, the index or the scale of a memory operand is changed.
    Address,
    /// A conditional branch is never taken.
    BranchRemoved,
    /// A condition is inverted.
    ConditionInverted,
    /// The instruction that initializes a register or a variable is removed.
    InitDropped,
    /// The instruction that loads an argument of a call is removed.
    ArgumentDropped,
    /// The number with which a counter or a length is compared is changed.
    BoundChanged,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 9] = [
        Kind::BitFlip,
        Kind::Removed,
        Kind::Operand,
        Kind::Address,
        Kind::BranchRemoved,
        Kind::ConditionInverted,
        Kind::InitDropped,
        Kind::ArgumentDropped,
        Kind::BoundChanged,
    ];

    /// Returns the kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Kind::BitFlip => "bit flipped",
            Kind::Removed => "instruction removed",
            Kind::Operand => "operand changed",
            Kind::Address => "address changed",
            Kind::BranchRemoved => "branch removed",
            Kind::ConditionInverted => "condition inverted",
            Kind::InitDropped => "initialisation dropped",
            Kind::ArgumentDropped => "argument dropped",
            Kind::BoundChanged => "loop bound changed",
        }
    }
}

/// An instruction that the workload executes.
#[derive(Debug, Clone)]
pub struct Site {
    /// The instruction's offset in the image.
    pub offset: u64,
    /// How wide its code is: 64 or 32 bits.
    pub bits: u32,
    /// The instruction's bytes.
    pub bytes: Vec<u8>,
    /// The instruction, decoded at its offset.
    pub instruction: Instruction,
    /// Whether a call follows before control can go elsewhere.
    pub before_call: bool,
}

/// Decodes the instructions at `offsets` (sorted) of an image, whose code is `bits` wide; skips
/// bytes that do not decode.
pub fn sites(bits: u32, image: impl Fn(u64) -> Vec<u8>, offsets: &[u64]) -> Vec<Site> {
    let mut sites: Vec<Site> = Vec::new();
    for offset in offsets {
        let bytes = image(*offset);
        let instruction = Decoder::with_ip(bits, &bytes, *offset, DecoderOptions::NONE).decode();
        if instruction.is_invalid() || instruction.len() > bytes.len() {
            continue;
        }
        let bytes = bytes[..instruction.len()].to_vec();
        sites.push(Site { offset: *offset, bits, bytes, instruction, before_call: false });
    }
    // From the end to the start: a call marks the instructions before it.
    let mut call_near = false;
    for site in sites.iter_mut().rev() {
        call_near = match site.instruction.flow_control() {
            FlowControl::Next => call_near,
            FlowControl::Call | FlowControl::IndirectCall => true,
            _ => false,
        };
        site.before_call = call_near;
    }
    sites
}

impl Site {
    /// Formats `bytes` at the place as text.
    pub fn text(&self, bytes: &[u8]) -> String {
        let mut decoder = Decoder::with_ip(self.bits, bytes, self.offset, DecoderOptions::NONE);
        let mut formatter = IntelFormatter::new();
        let mut lines = Vec::new();
        while decoder.can_decode() {
            let instruction = decoder.decode();
            if instruction.mnemonic() != Mnemonic::Nop {
                let mut line = String::new();
                formatter.format(&instruction, &mut line);
                lines.push(line);
            }
        }
        if lines.is_empty() { "nop".to_string() } else { lines.join("; ") }
    }
}

/// Returns the bytes of `site` with a change of kind `kind`, as many as before; `None` if this kind
/// does not fit the instruction.
pub fn mutate(site: &Site, kind: Kind, random: &mut fastrand::Rng) -> Option<Vec<u8>> {
    let instruction = &site.instruction;
    let removed = || Some(vec![0x90; site.bytes.len()]);
    let changed = match kind {
        Kind::BitFlip => {
            let mut bytes = site.bytes.clone();
            let index = random.usize(..bytes.len());
            bytes[index] ^= 1 << random.u32(..8);
            Some(bytes)
        }
        Kind::Removed => removed(),
        Kind::Operand => encode(site, &change_register(site.bits, instruction, random)?),
        Kind::Address => encode(site, &change_address(site.bits, instruction, random)?),
        Kind::BranchRemoved => instruction.is_jcc_short_or_near().then(removed)?,
        Kind::ConditionInverted => {
            let mut inverted = *instruction;
            inverted.negate_condition_code();
            encode(site, &inverted)
        }
        Kind::InitDropped => {
            let sets = match instruction.mnemonic() {
                Mnemonic::Mov => is_immediate(instruction.op1_kind()),
                Mnemonic::Xor => {
                    instruction.op1_kind() == OpKind::Register
                        && instruction.op0_register() == instruction.op1_register()
                }
                _ => false,
            };
            sets.then(removed)?
        }
        Kind::ArgumentDropped => {
            const ARGUMENTS: [Register; 6] =
                [Register::RDI, Register::RSI, Register::RDX, Register::RCX, Register::R8, Register::R9];
            let loads = match site.bits {
                // Arguments are on the stack.
                32 => match instruction.mnemonic() {
                    Mnemonic::Push => true,
                    Mnemonic::Mov => {
                        instruction.op0_kind() == OpKind::Memory && instruction.memory_base() == Register::ESP
                    }
                    _ => false,
                },
                _ => {
                    matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Lea | Mnemonic::Xor)
                        && instruction.op0_kind() == OpKind::Register
                        && ARGUMENTS.contains(&instruction.op0_register().full_register())
                }
            };
            (loads && site.before_call).then(removed)?
        }
        Kind::BoundChanged => {
            let compares = matches!(instruction.mnemonic(), Mnemonic::Cmp) && is_immediate(instruction.op1_kind());
            if !compares {
                return None;
            }
            let mut changed = *instruction;
            let bound = instruction.immediate(1);
            let other = match random.u32(..4) {
                0 => bound.wrapping_add(1),
                1 => bound.wrapping_sub(1),
                2 => bound.wrapping_mul(2),
                _ => !bound,
            };
            // The immediate may be too narrow for the new bound.
            let fits = encode_immediate(&mut changed, other);
            fits.then(|| encode(site, &changed))?
        }
    }?;
    (changed != site.bytes).then_some(changed)
}

fn is_immediate(kind: OpKind) -> bool {
    matches!(
        kind,
        OpKind::Immediate8
            | OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
            | OpKind::Immediate32to64
    )
}

/// Sets the second operand, an immediate, to `value` cut to its width; returns whether it could.
fn encode_immediate(instruction: &mut Instruction, value: u64) -> bool {
    match instruction.op1_kind() {
        OpKind::Immediate8 | OpKind::Immediate8to16 | OpKind::Immediate8to32 | OpKind::Immediate8to64 => {
            instruction.set_immediate8(value as u8);
        }
        OpKind::Immediate16 => instruction.set_immediate16(value as u16),
        OpKind::Immediate32 | OpKind::Immediate32to64 => instruction.set_immediate32(value as u32),
        _ => return false,
    }
    true
}

/// The general-purpose registers without RSP.
const REGISTERS: [Register; 15] = [
    Register::RAX,
    Register::RCX,
    Register::RDX,
    Register::RBX,
    Register::RBP,
    Register::RSI,
    Register::RDI,
    Register::R8,
    Register::R9,
    Register::R10,
    Register::R11,
    Register::R12,
    Register::R13,
    Register::R14,
    Register::R15,
];

/// How many of them 32-bit code has.
const OF_32_BITS: usize = 7;

/// Returns another register of the same width in code of `bits` bits, if `register` is a
/// general-purpose register.
fn another(bits: u32, register: Register, random: &mut fastrand::Rng) -> Option<Register> {
    if !register.is_gpr() {
        return None;
    }
    let count = if bits == 32 { OF_32_BITS } else { REGISTERS.len() };
    let other = REGISTERS[random.usize(..count)];
    let number = other.number() as u32;
    Some(match register.size() {
        8 => other,
        4 => Register::EAX + number,
        2 => Register::AX + number,
        // In iced's numbering, SPL, BPL, SIL and DIL come after AH to BH.
        _ if number < 4 => Register::AL + number,
        _ => Register::SPL + (number - 4),
    })
}

fn change_register(bits: u32, instruction: &Instruction, random: &mut fastrand::Rng) -> Option<Instruction> {
    let operands: Vec<u32> =
        (0..instruction.op_count()).filter(|operand| instruction.op_kind(*operand) == OpKind::Register).collect();
    let operand = *operands.get(random.usize(..operands.len().max(1)))?;
    let mut changed = *instruction;
    changed.try_set_op_register(operand, another(bits, instruction.op_register(operand), random)?).ok()?;
    Some(changed)
}

fn change_address(bits: u32, instruction: &Instruction, random: &mut fastrand::Rng) -> Option<Instruction> {
    let has_memory = (0..instruction.op_count()).any(|operand| instruction.op_kind(operand) == OpKind::Memory);
    if !has_memory || instruction.code() == Code::Nop_rm32 {
        return None;
    }
    let mut changed = *instruction;
    let (base, index) = (instruction.memory_base(), instruction.memory_index());
    match random.u32(..4) {
        0 if base.is_gpr() => {
            changed.set_memory_base(another(bits, base, random)?);
            return Some(changed);
        }
        1 if index.is_gpr() => {
            changed.set_memory_index(another(bits, index, random)?);
            return Some(changed);
        }
        2 if index.is_gpr() => {
            const SCALES: [u32; 4] = [1, 2, 4, 8];
            changed.set_memory_index_scale(SCALES[random.usize(..SCALES.len())]);
            return Some(changed);
        }
        _ => {}
    }
    const STEPS: [u64; 8] = [1, 4, 8, 16, 64, 256, 4096, 1 << 20];
    let step = STEPS[random.usize(..STEPS.len())];
    let displacement = instruction.memory_displacement64();
    let other = if random.bool() { displacement.wrapping_add(step) } else { displacement.wrapping_sub(step) };
    changed.set_memory_displacement64(if bits == 32 { u64::from(other as u32) } else { other });
    Some(changed)
}

/// Encodes `instruction` in place of the instruction at `site`; `None` if it is longer.
fn encode(site: &Site, instruction: &Instruction) -> Option<Vec<u8>> {
    let mut encoder = Encoder::new(site.bits);
    encoder.encode(instruction, site.offset).ok()?;
    let mut bytes = encoder.take_buffer();
    if bytes.len() > site.bytes.len() {
        return None;
    }
    bytes.resize(site.bytes.len(), 0x90);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(bytes: &[u8]) -> Site {
        let mut sites = sites(64, |_| bytes.to_vec(), &[0x1000]);
        sites.remove(0)
    }

    fn all(bytes: &[u8], kind: Kind) -> Vec<String> {
        let mut random = fastrand::Rng::with_seed(1);
        let mut seen: Vec<String> = (0..200)
            .filter_map(|_| mutate(&site(bytes), kind, &mut random))
            .inspect(|changed| assert_eq!(changed.len(), site(bytes).bytes.len()))
            .map(|changed| site(bytes).text(&changed))
            .collect();
        seen.sort();
        seen.dedup();
        seen
    }

    #[test]
    fn each_kind_changes_what_it_says() {
        // mov [rbx+10h],rax
        let store = [0x48, 0x89, 0x43, 0x10];
        assert_eq!(all(&store, Kind::Removed), ["nop"]);
        assert!(all(&store, Kind::Operand).contains(&"mov [rbx+10h],rsi".to_string()));
        assert!(all(&store, Kind::Address).contains(&"mov [rbx+18h],rax".to_string()));
        // mov rax,[rsi+rcx*4+8]
        let indexed = all(&[0x48, 0x8b, 0x44, 0x8e, 8], Kind::Address);
        for other in
            ["mov rax,[rsi+rcx*4+10h]", "mov rax,[rsi+rcx*8+8]", "mov rax,[rsi+rdi*4+8]", "mov rax,[rdi+rcx*4+8]"]
        {
            assert!(indexed.contains(&other.to_string()), "{other}: {indexed:?}");
        }
        let mut random = fastrand::Rng::with_seed(1);
        let flipped = mutate(&site(&store), Kind::BitFlip, &mut random).unwrap();
        assert_eq!(flipped.iter().zip(store).map(|(now, before)| (now ^ before).count_ones()).sum::<u32>(), 1);
        // jne $+2
        assert_eq!(all(&[0x75, 0x00], Kind::ConditionInverted), ["je short 0000000000001002h"]);
        assert_eq!(all(&[0x75, 0x00], Kind::BranchRemoved), ["nop"]);
        // xor ecx,ecx; mov dword [rdi],5
        assert_eq!(all(&[0x31, 0xc9], Kind::InitDropped), ["nop"]);
        assert_eq!(all(&[0xc7, 0x07, 5, 0, 0, 0], Kind::InitDropped), ["nop"]);
        // cmp rcx,20h
        assert!(all(&[0x48, 0x83, 0xf9, 0x20], Kind::BoundChanged).contains(&"cmp rcx,1Fh".to_string()));
        // An instruction that the kind does not fit is left alone.
        assert!(all(&store, Kind::ConditionInverted).is_empty());
        assert!(all(&[0xc3], Kind::Operand).is_empty());
    }

    #[test]
    fn code_of_32_bits_has_fewer_registers() {
        // dec eax; mov ecx,[ebx+10h]
        let code = [0x48, 0x8b, 0x4b, 0x10];
        let sites = sites(32, |offset| code[offset as usize..].to_vec(), &[0, 1]);
        let mut random = fastrand::Rng::with_seed(1);
        let texts = |kind, random: &mut fastrand::Rng| -> Vec<String> {
            (0..200).filter_map(|_| mutate(&sites[1], kind, random)).map(|changed| sites[1].text(&changed)).collect()
        };
        assert_eq!(sites[0].text(&sites[0].bytes), "dec eax");
        let operands = texts(Kind::Operand, &mut random);
        assert!(operands.contains(&"mov edi,[ebx+10h]".to_string()), "{operands:?}");
        assert!(operands.iter().all(|text| !text.contains('r')), "{operands:?}");
        let addresses = texts(Kind::Address, &mut random);
        assert!(addresses.contains(&"mov ecx,[ebx+8]".to_string()), "{addresses:?}");
        // push ecx; call $+5
        let code = [0x51, 0xe8, 0, 0, 0, 0];
        let sites = super::sites(32, |offset| code[offset as usize..].to_vec(), &[0, 1]);
        assert!(mutate(&sites[0], Kind::ArgumentDropped, &mut random).is_some());
    }

    #[test]
    fn arguments_are_those_before_a_call() {
        // mov rdi,rbx; call $+5; mov rdi,rbx; ret
        let code = [0x48, 0x89, 0xdf, 0xe8, 0, 0, 0, 0, 0x48, 0x89, 0xdf, 0xc3];
        let sites = sites(64, |offset| code[offset as usize..].to_vec(), &[0, 3, 8, 11]);
        let mut random = fastrand::Rng::with_seed(1);
        let dropped: Vec<bool> =
            sites.iter().map(|site| mutate(site, Kind::ArgumentDropped, &mut random).is_some()).collect();
        assert_eq!(dropped, [true, false, false, false]);
    }
}
