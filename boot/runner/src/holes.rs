//! Moves instructions of a linked module whose bytes happen to form code that the kernel refuses
//! under QEMU's TCG ([`tcg`]), above all a load of SS.
//!
//! Most such bytes are displacements. A moved instruction gets another encoding of the same meaning
//! in a section of its own ([`room`]); a jump leads there, and another one back. An instruction
//! that cannot be moved stays, and its module must be compiled in another way.

use anyhow::{Context, Result};
use iced_x86::Mnemonic::{
    self, Adc, Add, And, Cmp, Dec, Inc, Lea, Mov, Movsx, Movsxd, Movzx, Neg, Not, Or, Sbb, Sub, Test, Xor,
};
use iced_x86::{Code, CodeSize, Decoder, DecoderOptions, FlowControl, Instruction, OpKind, Register};
use object::SectionKind::{ReadOnlyData, ReadOnlyDataWithRel, ReadOnlyString};
use object::write::{Object as Writer, Symbol, SymbolSection};
use object::{
    Architecture, BinaryFormat, Endianness, Object, ObjectSection, ObjectSymbol, SectionKind, SymbolFlags, SymbolKind,
    SymbolScope,
};
use ringfence_abi::manifest::DomainKind;
use ringfence_core::tcg;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;

/// The symbol of the section for moved instructions.
const ROOM: &str = "rf_moved";
/// The length of that section, in bytes: room for some 60 instructions.
const ROOM_BYTES: usize = 2048;
/// INT3, which is nowhere executed.
const FILLER: u8 = 0xcc;
/// JMP rel32, and the length of the instruction.
const JMP: u8 = 0xe9;
const JMP_BYTES: usize = 5;

/// Returns an object file with the section for moved instructions of a module for this kind of
/// domain.
pub fn room(kind: DomainKind) -> Result<Vec<u8>> {
    let architecture = match kind {
        DomainKind::Paged => Architecture::X86_64,
        DomainKind::Segmented => Architecture::I386,
    };
    let mut object = Writer::new(BinaryFormat::Elf, architecture, Endianness::Little);
    let section = object.add_section(Vec::new(), b".text.rf_moved".to_vec(), SectionKind::Text);
    object.append_section_data(section, &[FILLER; ROOM_BYTES], 16);
    object.add_symbol(Symbol {
        name: ROOM.into(),
        value: 0,
        size: ROOM_BYTES as u64,
        kind: SymbolKind::Text,
        scope: SymbolScope::Linkage,
        weak: false,
        section: SymbolSection::Section(section),
        flags: SymbolFlags::None,
    });
    Ok(object.write()?)
}

/// The argument with which the linker keeps [`room`], if it is there.
pub const KEEP_ROOM: &str = "--undefined=rf_moved";

/// Returns the number of holes in an ELF file's code.
pub fn count(path: &Path) -> Result<usize> {
    let bytes = std::fs::read(path)?;
    let file = object::File::parse(&*bytes)?;
    let code = file.sections().filter(|section| section.kind() == SectionKind::Text);
    Ok(code.map(|section| tcg::holes(section.data().unwrap_or_default()).count()).sum())
}

/// Moves the instructions with holes of a linked module that has [`room`]; returns the number of
/// holes that are left.
pub fn fill(path: &Path) -> Result<usize> {
    let mut bytes = std::fs::read(path)?;
    let mut code = Text::of(&bytes).with_context(|| format!("in {}", path.display()))?;
    let mut from = 0;
    while let Some(at) = code.hole_from(from) {
        if !code.mend(at) {
            // This one stays; the others are moved nevertheless.
            from = at + 1;
        }
    }
    bytes[code.offset..code.offset + code.bytes.len()].copy_from_slice(&code.bytes);
    std::fs::write(path, &bytes)?;
    count(path)
}

/// The section with a module's code.
struct Text {
    bytes: Vec<u8>,
    /// How wide the code is, in bits: 64 or 32.
    bits: u32,
    /// The offset of the section in its file, and its address.
    offset: usize,
    address: u64,
    /// The functions, as ranges of offsets in the section.
    functions: Vec<Range<usize>>,
    /// The rarely executed parts of functions, which gcc puts elsewhere (`NAME.cold`).
    cold: Vec<Range<usize>>,
    /// The rest of the room, as offsets in the section.
    room: Range<usize>,
    /// The addresses in the section that something leads to: jumps, tables of jumps, symbols,
    /// loaded addresses. They are of the code as it was linked, and of jumps back. An address too
    /// many does no harm.
    targets: BTreeSet<u64>,
    /// The functions with jumps to addresses that are not known.
    unknown: Vec<Range<usize>>,
    /// The places that instructions were moved away from.
    left: Vec<Range<usize>>,
}

impl Text {
    fn of(file: &[u8]) -> Result<Text> {
        let file = object::File::parse(file)?;
        let of_room = |symbol: &object::Symbol| symbol.name() == Ok(ROOM);
        let room = file.symbols().find(of_room).context("there is no room for instructions")?;
        let index = room.section_index().context("the room has no section")?;
        let section = file.section_by_index(index)?;
        let (offset, _) = section.file_range().context("the code is not in the file")?;
        let (bytes, address) = (section.data()?.to_vec(), section.address());
        let place = |symbol: &object::Symbol| {
            let start = (symbol.address() - address) as usize;
            start..(start + symbol.size() as usize).min(bytes.len())
        };
        let is_function = |symbol: &object::Symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(index) && symbol.size() > 0
        };
        let functions = file.symbols().filter(|symbol| is_function(symbol) && !of_room(symbol)).map(|f| place(&f));
        let functions: Vec<Range<usize>> = functions.collect();
        let is_cold =
            |symbol: &object::Symbol| is_function(symbol) && symbol.name().is_ok_and(|name| name.contains(".cold"));
        let cold = file.symbols().filter(is_cold).map(|part| place(&part)).collect();
        let of_constants =
            |section: &object::Section| matches!(section.kind(), ReadOnlyData | ReadOnlyDataWithRel | ReadOnlyString);
        let constants = file.sections().filter(of_constants);
        let constants: Vec<(u64, &[u8])> =
            constants.filter_map(|one| Some((one.address(), one.data().ok()?))).collect();
        let mut text = Text {
            functions,
            cold,
            bits: if file.is_64() { 64 } else { 32 },
            room: place(&room),
            targets: file.symbols().map(|symbol| symbol.address()).collect(),
            unknown: Vec::new(),
            left: Vec::new(),
            offset: offset as usize,
            address,
            bytes,
        };
        text.find_targets(&constants);
        Ok(text)
    }

    /// Finds the targets of branches, and the addresses that instructions load. The addresses of
    /// indirect jumps are in tables of distances from the table, whose address the function loads,
    /// or, in code of 32 bits, in tables of addresses.
    fn find_targets(&mut self, constants: &[(u64, &[u8])]) {
        for function in self.functions.clone() {
            let Some(instructions) = self.decode(&function) else { continue };
            self.targets.extend(instructions.iter().filter(|one| is_branch(one)).map(Instruction::near_branch_target));
            let mut has_table = false;
            for loaded in instructions.iter().flat_map(|one| self.loaded(one)).collect::<Vec<_>>() {
                self.targets.insert(loaded);
                let table =
                    constants.iter().find_map(|(start, bytes)| bytes.get(loaded.checked_sub(*start)? as usize..));
                let entries = table.unwrap_or(&[]).as_chunks::<4>().0.iter();
                let places: Vec<u64> = match self.bits {
                    // A table ends at the latest where an entry leads to nothing of the function.
                    64 => entries
                        .map(|entry| loaded.wrapping_add_signed(i32::from_le_bytes(*entry).into()))
                        .take_while(|place| self.is_of_function(*place, &function))
                        .collect(),
                    // The address may be some entries before the table.
                    _ => entries.map(|entry| u32::from_le_bytes(*entry).into()).collect(),
                };
                let leads_here = |place: &u64| self.offset_of(*place).is_some_and(|place| function.contains(&place));
                has_table |= places.iter().any(leads_here);
                self.targets.extend(places);
            }
            if instructions.iter().any(|one| one.flow_control() == FlowControl::IndirectBranch) && !has_table {
                self.unknown.push(function);
            }
        }
    }

    /// Returns the offset of an address in the section.
    fn offset_of(&self, address: u64) -> Option<usize> {
        address.checked_sub(self.address).map(|offset| offset as usize).filter(|offset| *offset < self.bytes.len())
    }

    /// Returns whether an entry of a function's table may lead to `address`: to the function, to
    /// its end, where it cannot arrive, or to a part of it that gcc has put elsewhere.
    fn is_of_function(&self, address: u64, function: &Range<usize>) -> bool {
        self.offset_of(address).is_some_and(|offset| {
            (function.start..=function.end).contains(&offset) || self.cold.iter().any(|part| part.contains(&offset))
        })
    }

    /// Returns the addresses that an instruction may name: of a constant, a table, or something
    /// else. In code of 32 bits a constant may be one.
    fn loaded(&self, instruction: &Instruction) -> Vec<u64> {
        if self.bits == 64 {
            return instruction
                .is_ip_rel_memory_operand()
                .then(|| instruction.ip_rel_memory_address())
                .into_iter()
                .collect();
        }
        let constants = (0..instruction.op_count()).filter(|op| instruction.op_kind(*op) == OpKind::Immediate32);
        let displacement = (instruction.memory_displ_size() == 4).then(|| instruction.memory_displacement32());
        constants.map(|_| instruction.immediate32()).chain(displacement).map(u64::from).collect()
    }

    /// Returns the offset of the first hole at `from` or behind.
    fn hole_from(&self, from: usize) -> Option<usize> {
        tcg::holes(&self.bytes).map(|(at, _)| at).find(|at| *at >= from)
    }

    /// Returns the offsets of the holes that the bytes of `place` can be a part of: no instruction
    /// is longer than [`tcg::MAX_INSTRUCTION`].
    fn holes_around(&self, place: &Range<usize>) -> Vec<usize> {
        let first = place.start.saturating_sub(tcg::MAX_INSTRUCTION - 1);
        let end = (place.end + tcg::MAX_INSTRUCTION).min(self.bytes.len());
        let found = tcg::holes(&self.bytes[first..end]).map(|(at, _)| first + at);
        found.take_while(|at| *at < place.end).collect()
    }

    /// Decodes the instructions of a function; `None` if not all of its bytes are instructions.
    fn decode(&self, function: &Range<usize>) -> Option<Vec<Instruction>> {
        let code = self.bytes.get(function.clone())?;
        let mut decoder = Decoder::with_ip(self.bits, code, self.address + function.start as u64, DecoderOptions::NONE);
        let instructions: Vec<Instruction> = decoder.iter().collect();
        instructions.iter().all(|instruction| !instruction.is_invalid()).then_some(instructions)
    }

    /// Moves the instruction with the hole at `at`, with its neighbours if it is short. Returns
    /// whether there is a hole less.
    fn mend(&mut self, at: usize) -> bool {
        let Some(function) = self.functions.iter().find(|function| function.contains(&at)).cloned() else {
            return false;
        };
        let Some(instructions) = self.decode(&function) else { return false };
        let ip = self.address + at as u64;
        let Some(index) = instructions.iter().position(|one| (one.ip()..one.next_ip()).contains(&ip)) else {
            return false;
        };
        let may_hold = |group: &Range<usize>| self.may_move(&instructions[group.clone()], &function);
        let groups: Vec<Range<usize>> = groups(instructions.len(), index).filter(may_hold).collect();
        groups.into_iter().any(|group| self.move_away(&instructions[group]))
    }

    /// Returns whether a group is long enough for a jump, nothing leads into its middle, and it is
    /// as it was linked.
    fn may_move(&self, group: &[Instruction], function: &Range<usize>) -> bool {
        let Some([first, rest @ ..]) = Some(group) else { return false };
        let bytes: usize = group.iter().map(Instruction::len).sum();
        let start = (first.ip() - self.address) as usize;
        let is_whole = self.left.iter().all(|left| left.end <= start || start + bytes <= left.start);
        let is_known = rest.is_empty() || !self.unknown.contains(function);
        bytes >= JMP_BYTES && is_whole && is_known && rest.iter().all(|one| !self.targets.contains(&one.ip()))
    }

    /// Moves a group of instructions, if that removes its holes.
    fn move_away(&mut self, group: &[Instruction]) -> bool {
        let (Some(first), Some(last)) = (group.first(), group.last()) else { return false };
        let start = (first.ip() - self.address) as usize;
        let end = (last.next_ip() - self.address) as usize;
        // A hole in the first byte of a distance is gone a few bytes on, one in the second byte 256
        // bytes on.
        for skipped in (0..16).chain(256..272) {
            for variant in 0..VARIANTS {
                let to = self.room.start + skipped;
                let Some(moved) = self.moved(group, to, variant) else { continue };
                if to + moved.len() > self.room.end {
                    return false;
                }
                let places = [start..end, to..to + moved.len()];
                let holes = |text: &Text| places.each_ref().map(|place| text.holes_around(place)).concat();
                let before = holes(self);
                let kept = places.each_ref().map(|place| self.bytes[place.clone()].to_vec());
                self.bytes[start..end].fill(FILLER);
                self.bytes[start..start + JMP_BYTES].copy_from_slice(&jump(start, to));
                self.bytes[to..to + moved.len()].copy_from_slice(&moved);
                // The group's holes are gone, and no new one has come.
                if holes(self).iter().all(|at| before.contains(at) && !(start..end).contains(at)) {
                    self.room.start = to + moved.len();
                    self.targets.insert(self.address + end as u64);
                    self.left.push(start..end);
                    return true;
                }
                for (place, bytes) in places.into_iter().zip(kept) {
                    self.bytes[place].copy_from_slice(&bytes);
                }
            }
        }
        false
    }

    /// Returns the code of a group at offset `to`: each instruction in encoding `variant`, and the
    /// jump back. `None` if an instruction has no such encoding.
    fn moved(&self, group: &[Instruction], to: usize, variant: usize) -> Option<Vec<u8>> {
        let mut code = Vec::new();
        for instruction in group {
            let from = (instruction.ip() - self.address) as usize;
            let bytes = self.bytes.get(from..from + instruction.len())?;
            let at = self.address + (to + code.len()) as u64;
            let plain = || encode(instruction, bytes, at, 0);
            code.extend(encode(instruction, bytes, at, variant).or_else(plain)?);
            if variant == 1 {
                code.extend(NOP);
            }
        }
        let back = (group.last()?.next_ip() - self.address) as usize;
        let end = to + code.len();
        code.extend(jump(end, back));
        Some(code)
    }
}

/// Returns the groups of up to four instructions of `count` that contain number `index`, the
/// smallest first.
fn groups(count: usize, index: usize) -> impl Iterator<Item = Range<usize>> {
    const MOST: usize = 4;
    let all =
        (1..=MOST).flat_map(move |len| (0..len).filter_map(move |before| Some((index.checked_sub(before)?, len))));
    all.map(|(first, len)| first..first + len).filter(move |group| group.end <= count)
}

fn is_branch(instruction: &Instruction) -> bool {
    instruction.op_count() > 0 && matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32)
}

/// Returns a decoder for another encoding of an instruction.
fn decoder<'a>(instruction: &Instruction, code: &'a [u8]) -> Decoder<'a> {
    let bits = if instruction.code_size() == CodeSize::Code32 { 32 } else { 64 };
    Decoder::with_ip(bits, code, instruction.ip(), DecoderOptions::NONE)
}

/// Returns the register that `register` is a part of, and that is as wide as the base register
/// `base`.
fn whole(register: Register, base: Register) -> Register {
    if base.is_gpr32() { register.full_register32() } else { register.full_register() }
}

/// Returns a jump at offset `from` to offset `to`.
fn jump(from: usize, to: usize) -> [u8; JMP_BYTES] {
    let [a, b, c, d] = (to.wrapping_sub(from + JMP_BYTES) as u32).to_le_bytes();
    [JMP, a, b, c, d]
}

/// The encodings that are tried: as it is; with a [`NOP`] behind it; with a SIB byte; with other
/// displacements, or another constant; with both; with another constant that is stored. In code of
/// 32 bits an operand may be at a fixed address; other displacements are then those from a register
/// that is saved before.
const VARIANTS: usize = 3 + 3 * STEPS.len();
/// A no-operation of two bytes.
const NOP: [u8; 2] = [0x66, 0x90];
/// The most that the stack pointer is lowered by.
const MOST_OF_STACK: u32 = 0x51;
/// Amounts by which a base register is lowered, so that the displacement grows. A lower stack
/// pointer is harmless; a higher one would give up bytes that are in use.
const STEPS: [u32; 6] = [0x08, 0x40, 0x51, 0x100, 0x1122, 0x2040];
/// Amounts by which a constant is lowered: the large ones borrow from the upper half.
const SUMMANDS: [u32; STEPS.len()] = [0x08, 0x51, 0x1122, 0x2_0406, 0x1122_3344, 0x7f01_0203];

/// Encodes an instruction for address `at`.
fn encode(instruction: &Instruction, bytes: &[u8], at: u64, variant: usize) -> Option<Vec<u8>> {
    if is_branch(instruction) {
        return encode_branch(instruction, at);
    }
    if instruction.is_ip_rel_memory_operand() {
        let displacement = displacement_of(instruction, bytes)?;
        let target = instruction.ip_rel_memory_address();
        let relative = i32::try_from(target.wrapping_sub(at + bytes.len() as u64) as i64).ok()?;
        let mut code = bytes.to_vec();
        code.get_mut(displacement..displacement + 4)?.copy_from_slice(&relative.to_le_bytes());
        return Some(code);
    }
    let (code, step) = match variant {
        0 | 1 => (bytes.to_vec(), 0),
        2 => (with_sib(instruction, bytes)?, 0),
        _ => match STEPS.get(variant - 3) {
            Some(step) if has_address(instruction) => (with_base(instruction, bytes, *step)?, *step),
            Some(_) if loads_constant(instruction) => {
                let summand = SUMMANDS[variant - 3];
                (with_sum(instruction, bytes, summand)?, summand)
            }
            Some(step) => (with_step(instruction, bytes, *step, false)?, *step),
            None => match STEPS.get(variant - 3 - STEPS.len()) {
                Some(step) => (with_step(instruction, &with_sib(instruction, bytes)?, *step, true)?, *step),
                None => {
                    let summand = *SUMMANDS.get(variant - 3 - 2 * STEPS.len())?;
                    (with_stored_sum(instruction, bytes, summand)?, summand)
                }
            },
        },
    };
    means_the_same(instruction, &code, step).then_some(code)
}

/// Returns whether an instruction loads a register with a constant of the register's width.
fn loads_constant(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Mov_r64_imm64 | Code::Mov_r32_imm32)
}

/// Encodes the load of a constant as the load of one that is smaller by `step`, and an addition
/// that changes no flags.
fn with_sum(instruction: &Instruction, bytes: &[u8], step: u32) -> Option<Vec<u8>> {
    let register = instruction.op0_register();
    let (width, constant) = match instruction.code() {
        Code::Mov_r64_imm64 => (8, instruction.immediate64().wrapping_sub(step.into())),
        _ => (4, instruction.immediate32().wrapping_sub(step).into()),
    };
    let load = [bytes.get(..bytes.len().checked_sub(width)?)?, constant.to_le_bytes().get(..width)?].concat();
    Some([load, lea(register, step as i32, instruction.code_size() == CodeSize::Code64)].concat())
}

/// Encodes the store of a constant of 32 bits as a store of a register: the register is saved on
/// the stack, loaded with a constant that is smaller by `step`, raised by as much, stored at once,
/// and restored. None of that changes flags.
fn with_stored_sum(instruction: &Instruction, bytes: &[u8], step: u32) -> Option<Vec<u8>> {
    const MOV_FROM_REGISTER: u8 = 0x89;
    let whole = [instruction.memory_base(), instruction.memory_index()].map(Register::full_register32);
    // PUSH moves the stack pointer.
    if instruction.code() != Code::Mov_rm32_imm32
        || instruction.op0_kind() != OpKind::Memory
        || whole.contains(&Register::ESP)
    {
        return None;
    }
    let register = *BASES.iter().find(|base| !whole.contains(base))?;
    let number = register.number() as u8;
    let constant = instruction.immediate32().wrapping_sub(step).to_le_bytes();
    let mut store = bytes.get(..bytes.len().checked_sub(4)?)?.to_vec();
    // The opcode is behind a prefix, if there is one, and before ModRM, which names no register.
    let opcode = store.iter().position(|byte| *byte == MOV_TO_MEMORY)?;
    store[opcode] = MOV_FROM_REGISTER;
    *store.get_mut(opcode + 1)? |= number << 3;
    let raised = lea(register, step as i32, instruction.code_size() == CodeSize::Code64);
    Some([&[PUSH | number, MOV_IMMEDIATE | number][..], &constant, &raised, &store, &[POP | number]].concat())
}

/// Returns LEA with a register as the base and the destination. In 64-bit code, `is_wide`, the
/// address has 64 bits, and the destination is as wide as the register.
fn lea(register: Register, by: i32, is_wide: bool) -> Vec<u8> {
    let number = register.number() as u8;
    let rex = 0x40 | if register.is_gpr64() { 8 } else { 0 } | if number >= 8 { 5 } else { 0 };
    let rex: &[u8] = if is_wide && rex != 0x40 { &[rex] } else { &[] };
    let low = number & 7;
    let sib: &[u8] = if low == 4 { &[0x24] } else { &[] };
    [rex, &[0x8d, 0x80 | low << 3 | low], sib, &by.to_le_bytes()].concat()
}

/// Returns whether an instruction's only operand in memory is at a fixed address.
fn has_address(instruction: &Instruction) -> bool {
    let is_memory = (0..instruction.op_count()).any(|op| instruction.op_kind(op) == OpKind::Memory);
    is_memory
        && instruction.code_size() == CodeSize::Code32
        && instruction.memory_displ_size() == 4
        && (instruction.memory_base(), instruction.memory_index()) == (Register::None, Register::None)
}

/// The registers that can stand in for a fixed address, of which an instruction names two at most.
const BASES: [Register; 3] = [Register::ESI, Register::EDI, Register::EBX];

/// Encodes an instruction with an operand at a fixed address as one with the operand at `step` from
/// a register: the register is saved on the stack, loaded, and restored. None of that changes
/// flags.
fn with_base(instruction: &Instruction, bytes: &[u8], step: u32) -> Option<Vec<u8>> {
    let named = |op: u32| instruction.op_register(op).full_register32();
    if !names_all_registers(instruction.mnemonic()) || instruction.op_count() > 2 {
        return None;
    }
    let is_free = |base: &&Register| **base != named(0) && **base != named(1);
    let number = BASES.iter().find(is_free)?.number() as u8;
    let mut decoder = decoder(instruction, bytes);
    let decoded = decoder.decode();
    let displacement = decoder.get_constant_offsets(&decoded).displacement_offset();
    let modrm = displacement.checked_sub(1)?;
    // ModRM names a displacement alone. Some instructions have an address and no ModRM.
    let byte = *bytes.get(modrm).filter(|byte| **byte & 0b1100_0111 == 0b101)?;
    let start = instruction.memory_displacement32().wrapping_sub(step);
    let operand = [&[byte & 0b0011_1000 | 0x80 | number][..], &step.to_le_bytes()].concat();
    Some(
        [
            &[PUSH | number, MOV_IMMEDIATE | number][..],
            &start.to_le_bytes(),
            &bytes[..modrm],
            &operand,
            bytes.get(displacement + 4..)?,
            &[POP | number],
        ]
        .concat(),
    )
}

/// PUSH, POP and MOV of a constant, without the number of the register.
const PUSH: u8 = 0x50;
const POP: u8 = 0x58;
const MOV_IMMEDIATE: u8 = 0xb8;
/// MOV of a constant of 32 bits to memory.
const MOV_TO_MEMORY: u8 = 0xc7;

/// Returns whether code, as the decoder understands it, does the same as an instruction: the same
/// operation on the same operands, with a base register that is lowered by `step` before and raised
/// by as much afterwards, or that is loaded between PUSH and POP; or the same constant, as a sum
/// with `step`, that is in a register or stored out of one.
fn means_the_same(instruction: &Instruction, code: &[u8], step: u32) -> bool {
    let decoded: Vec<Instruction> = decoder(instruction, code).into_iter().collect();
    let is_wide = instruction.memory_base().is_gpr64();
    let moves = |one: &Instruction, by: i32| {
        let base = instruction.memory_base();
        let lea = if is_wide { Code::Lea_r64_m } else { Code::Lea_r32_m };
        (one.code(), one.op0_register(), one.memory_base(), one.memory_index(), one.memory_displacement32() as i32)
            == (lea, base, base, Register::None, by)
    };
    let is_it = |one: &Instruction| {
        // Everything else of the two, the encoding of the operand aside, is compared by the
        // decoder.
        let mut same = *one;
        same.set_memory_displacement64(match is_wide {
            true => one.memory_displacement64().wrapping_sub(step.into()),
            false => one.memory_displacement32().wrapping_sub(step).into(),
        });
        same.set_memory_displ_size(instruction.memory_displ_size());
        same == *instruction
    };
    let (step, base) = (step as i32, instruction.memory_base());
    match &decoded[..] {
        [one] => step == 0 && is_it(one),
        [load, add] if loads_constant(instruction) => {
            let register = load.op0_register();
            let is_wide = register.is_gpr64();
            let constant = match is_wide {
                true => load.immediate64().wrapping_add_signed(step.into()) == instruction.immediate64(),
                false => load.immediate32().wrapping_add_signed(step) == instruction.immediate32(),
            };
            let code = if is_wide { Code::Lea_r64_m } else { Code::Lea_r32_m };
            let same_width = if load.code_size() == CodeSize::Code64 { register.full_register() } else { register };
            constant
                && (load.code(), register) == (instruction.code(), instruction.op0_register())
                && (add.code(), add.op0_register(), add.memory_base()) == (code, register, same_width)
                && (add.memory_index(), add.memory_displacement32() as i32) == (Register::None, step)
        }
        [before, one] => moves(before, -step) && is_it(one) && whole(one.op0_register(), base) == base,
        [before, one, after] => moves(before, -step) && is_it(one) && moves(after, step),
        [push, load, one, pop] => {
            let base = load.op0_register();
            let mut same = *one;
            same.set_memory_base(Register::None);
            same.set_memory_displacement64(load.immediate32().wrapping_add(one.memory_displacement32()).into());
            same.set_memory_displ_size(instruction.memory_displ_size());
            let is_named = (0..instruction.op_count()).any(|op| instruction.op_register(op).full_register32() == base);
            (push.code(), load.code(), pop.code()) == (Code::Push_r32, Code::Mov_r32_imm32, Code::Pop_r32)
                && (push.op0_register(), one.memory_base(), pop.op0_register()) == (base, base, base)
                && base != Register::ESP
                && !is_named
                && same == *instruction
        }
        [push, load, add, store, pop] => {
            let register = load.op0_register();
            let saved = if load.code_size() == CodeSize::Code64 { register.full_register() } else { register };
            let codes = match load.code_size() {
                CodeSize::Code64 => [Code::Push_r64, Code::Pop_r64],
                _ => [Code::Push_r32, Code::Pop_r32],
            };
            let operand = |one: &Instruction| {
                let displacement = (one.memory_displacement64(), one.memory_displ_size());
                (one.memory_base(), one.memory_index(), one.memory_index_scale(), displacement, one.segment_prefix())
            };
            let uses = [instruction.memory_base(), instruction.memory_index()].map(Register::full_register);
            instruction.code() == Code::Mov_rm32_imm32
                && ([push.code(), pop.code()], load.code()) == (codes, Code::Mov_r32_imm32)
                && [push, pop].map(Instruction::op0_register) == [saved, saved]
                && (add.code(), add.op0_register(), add.memory_base()) == (Code::Lea_r32_m, register, saved)
                && (add.memory_index(), add.memory_displacement32() as i32) == (Register::None, step)
                && load.immediate32().wrapping_add_signed(step) == instruction.immediate32()
                && (store.code(), store.op1_register()) == (Code::Mov_rm32_r32, register)
                && operand(store) == operand(instruction)
                && !uses.contains(&register.full_register())
                && !uses.contains(&Register::RSP)
        }
        _ => false,
    }
}

/// Encodes a branch with a distance of 32 bits.
fn encode_branch(instruction: &Instruction, at: u64) -> Option<Vec<u8>> {
    // A call of the next instruction finds out where it is.
    if instruction.near_branch_target() == instruction.next_ip() {
        return None;
    }
    let opcode: Vec<u8> = match instruction.flow_control() {
        FlowControl::UnconditionalBranch => vec![JMP],
        FlowControl::Call => vec![0xe8],
        FlowControl::ConditionalBranch if instruction.is_jcc_short_or_near() => {
            vec![0x0f, 0x80 | (instruction.condition_code() as u8 - 1)]
        }
        _ => return None,
    };
    let next = at + opcode.len() as u64 + 4;
    let distance = i32::try_from(instruction.near_branch_target().wrapping_sub(next) as i64).ok()?;
    Some([opcode, distance.to_le_bytes().to_vec()].concat())
}

/// Returns the offset of an instruction's displacement of 32 bits.
fn displacement_of(instruction: &Instruction, bytes: &[u8]) -> Option<usize> {
    let mut decoder = decoder(instruction, bytes);
    let decoded = decoder.decode();
    let offsets = decoder.get_constant_offsets(&decoded);
    (offsets.displacement_size() == 4).then(|| offsets.displacement_offset())
}

/// Encodes a memory operand with a SIB byte that names no index, in place of a base register alone.
fn with_sib(instruction: &Instruction, bytes: &[u8]) -> Option<Vec<u8>> {
    let (modrm, displacement_bytes) = modrm_of(instruction, bytes, false)?;
    let byte = *bytes.get(modrm)?;
    let has_sib = byte & 7 == 4;
    if has_sib || displacement_bytes == 0 {
        return None;
    }
    let sib = 4 << 3 | byte & 7;
    Some([&bytes[..modrm], &[byte & !7 | 4, sib], &bytes[modrm + 1..]].concat())
}

/// Returns the offset of the ModRM byte of an instruction whose memory operand has a base register,
/// and the length of its displacement, 0 if it has none. `sib` says that there is a SIB byte even
/// if the operand needs none.
fn modrm_of(instruction: &Instruction, bytes: &[u8], sib: bool) -> Option<(usize, usize)> {
    let mut decoder = decoder(instruction, bytes);
    let decoded = decoder.decode();
    let offsets = decoder.get_constant_offsets(&decoded);
    let immediates = offsets.immediate_size() + offsets.immediate_size2();
    let displacement_bytes = offsets.displacement_size();
    let displacement = bytes.len().checked_sub(immediates + displacement_bytes)?;
    let base = instruction.memory_base();
    // An index needs a SIB byte, and so do the base registers 4 and 12.
    let has_sib = sib || instruction.memory_index() != Register::None || base.number() & 7 == 4;
    let at = displacement.checked_sub(1 + usize::from(has_sib))?;
    let byte = *bytes.get(at)?;
    let is_wide = instruction.code_size() == CodeSize::Code64;
    let is_address = if is_wide { base.is_gpr64() } else { base.is_gpr32() };
    let is_it = is_address && usize::from(byte >> 6) == displacement_bytes.div_ceil(2) && (byte & 7 == 4) == has_sib;
    is_it.then_some((at, displacement_bytes))
}

/// Encodes an instruction with its base register lowered by `step`, and its displacement larger by
/// as much. LEA changes no flags.
fn with_step(instruction: &Instruction, bytes: &[u8], step: u32, sib: bool) -> Option<Vec<u8>> {
    let (modrm, displacement_bytes) = modrm_of(instruction, bytes, sib)?;
    let base = instruction.memory_base();
    // An interrupt in ring 0 uses the driver's stack, which may be nearly full.
    if matches!(base, Register::RSP | Register::ESP) && step > MOST_OF_STACK {
        return None;
    }
    // The base register must be nothing but the base, or else the register that is loaded as a
    // whole.
    let is_base = |register: Register| register != Register::None && whole(register, base) == base;
    let named = |op: u32| instruction.op_kind(op) == OpKind::Register && is_base(instruction.op_register(op));
    let loads = matches!(instruction.mnemonic(), Mov | Movzx | Movsx | Movsxd | Lea)
        && named(0)
        && instruction.op_register(0).size() >= 4;
    let is_used_otherwise = is_base(instruction.memory_index()) || named(1) || named(0) && !loads;
    if !names_all_registers(instruction.mnemonic()) || instruction.op_count() > 2 || is_used_otherwise {
        return None;
    }
    let displacement = (instruction.memory_displacement64() as i32).checked_add(i32::try_from(step).ok()?)?;
    let has_sib = bytes.get(modrm)? & 7 == 4;
    let operand_end = modrm + 1 + usize::from(has_sib);
    let mut wide = bytes[..operand_end].to_vec();
    wide[modrm] = wide[modrm] & 0x3f | 0x80;
    wide.extend(displacement.to_le_bytes());
    wide.extend(bytes.get(operand_end + displacement_bytes..)?);
    let lea = |by: i32| lea(base, by, base.is_gpr64());
    let restored = if loads { Vec::new() } else { lea(step as i32) };
    Some([lea(-(step as i32)), wide, restored].concat())
}

/// Returns whether instructions with this mnemonic and at most two operands use no register that is
/// not named. These are the ones that compilers use most.
fn names_all_registers(mnemonic: Mnemonic) -> bool {
    let is_plain = matches!(
        mnemonic,
        Mov | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Add
            | Adc
            | Sub
            | Sbb
            | Cmp
            | Test
            | And
            | Or
            | Xor
            | Inc
            | Dec
            | Not
            | Neg
    );
    is_plain || format!("{mnemonic:?}").starts_with("Cmov") || format!("{mnemonic:?}").starts_with("Set")
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::Formatter;

    fn decoded(bytes: &[u8]) -> Vec<Instruction> {
        Decoder::with_ip(64, bytes, 0x1000, DecoderOptions::NONE).iter().collect()
    }

    fn text(bytes: &[u8]) -> Vec<String> {
        decoded(bytes).iter().map(shown).collect()
    }

    fn shown(instruction: &Instruction) -> String {
        let mut text = String::new();
        iced_x86::IntelFormatter::new().format(instruction, &mut text);
        text
    }

    fn encoded(bytes: &[u8], variant: usize) -> Option<Vec<String>> {
        encode(&decoded(bytes)[0], bytes, 0x9000, variant).map(|code| text(&code))
    }

    #[test]
    fn another_encoding_means_the_same() {
        // mov rcx,[r14+0B10h]: ModRM and displacement form a load of CS.
        const LOAD: [u8; 7] = [0x49, 0x8b, 0x8e, 0x10, 0x0b, 0, 0];
        assert_eq!(tcg::holes(&LOAD).count(), 1);
        let with_sib = encode(&decoded(&LOAD)[0], &LOAD, 0x9000, 2).unwrap();
        assert_eq!((text(&with_sib), tcg::holes(&with_sib).count()), (text(&LOAD), 0));
        assert_eq!(with_sib, [0x49, 0x8b, 0x8c, 0x26, 0x10, 0x0b, 0, 0]);
        // mov [rbp-72h],rax with a short displacement, which becomes a long one.
        assert_eq!(
            encoded(&[0x48, 0x89, 0x45, 0x8e], 3).unwrap(),
            ["lea rbp,[rbp-8]", "mov [rbp-6Ah],rax", "lea rbp,[rbp+8]"]
        );
        // The stack pointer becomes lower, never higher.
        assert_eq!(
            encoded(&[0x48, 0x8b, 0x84, 0x24, 0x8e, 0xd0, 0, 0], 3).unwrap(),
            ["lea rsp,[rsp-8]", "mov rax,[rsp+0D096h]", "lea rsp,[rsp+8]"]
        );
        // A base register that is loaded is not restored.
        assert_eq!(
            encoded(&[0x4d, 0x8b, 0xb6, 0x8e, 0xd0, 0, 0], 3).unwrap(),
            ["lea r14,[r14-8]", "mov r14,[r14+0D096h]"]
        );
    }

    /// Returns the first instruction of 32-bit code.
    fn decoded_32(bytes: &[u8]) -> Instruction {
        Decoder::with_ip(32, bytes, 0x1000, DecoderOptions::NONE).decode()
    }

    fn encoded_32(bytes: &[u8], variant: usize) -> Option<Vec<String>> {
        let code = encode(&decoded_32(bytes), bytes, 0x9000, variant)?;
        Some(Decoder::with_ip(32, &code, 0x9000, DecoderOptions::NONE).iter().map(|one| shown(&one)).collect())
    }

    #[test]
    fn another_encoding_of_32_bits_means_the_same() {
        // mov ecx,[esi+0F4h]
        const LOAD: [u8; 6] = [0x8b, 0x8e, 0xf4, 0, 0, 0];
        assert_eq!(encoded_32(&LOAD, 2).unwrap(), ["mov ecx,[esi+0F4h]"]);
        assert_eq!(encoded_32(&LOAD, 3).unwrap(), ["lea esi,[esi-8]", "mov ecx,[esi+0FCh]", "lea esi,[esi+8]"]);
        // A register that is loaded is not restored, and the stack pointer moves little.
        assert_eq!(encoded_32(&[0x8b, 0xb6, 0x8e, 0x10, 0, 0], 3).unwrap(), ["lea esi,[esi-8]", "mov esi,[esi+1096h]"]);
        let of_stack = [0x8b, 0x84, 0x24, 0x8e, 0x10, 0, 0];
        assert_eq!(encoded_32(&of_stack, 3).unwrap(), ["lea esp,[esp-8]", "mov eax,[esp+1096h]", "lea esp,[esp+8]"]);
        assert_eq!(encoded_32(&of_stack, 6), None);
        // An index is kept.
        assert_eq!(
            encoded_32(&[0x8d, 0x4c, 0x8e, 0x3c], 3).unwrap(),
            ["lea esi,[esi-8]", "lea ecx,[esi+ecx*4+44h]", "lea esi,[esi+8]"]
        );
        // A call of the next instruction finds out where it is, and must stay there.
        assert_eq!(encoded_32(&[0xe8, 0, 0, 0, 0], 0), None);
        assert_eq!(encoded_32(&[0xe8, 0x8e, 0x10, 0, 0], 0).unwrap(), ["call 00002093h"]);
    }

    #[test]
    fn a_constant_becomes_a_sum() {
        // mov rax,0FD08E5500FD08h; mov r9d,0D08Eh
        let load = [0x48, 0xb8, 0x08, 0xfd, 0x00, 0x55, 0x8e, 0xd0, 0x0f, 0x00];
        assert_eq!(encoded(&load, 4).unwrap(), ["mov rax,0FD08E5500FCB7h", "lea rax,[rax+51h]"]);
        assert_eq!(encoded(&load, 8).unwrap(), ["mov rax,0FD08DD5FFFB05h", "lea rax,[rax+7F010203h]"]);
        let mut text = code(&[&load[..], &[0xc3]].concat(), &[]);
        assert!(text.mend(6) && text.hole_from(0).is_none());
        assert_eq!(encoded(&[0x41, 0xb9, 0x8e, 0xd0, 0, 0], 3).unwrap(), ["mov r9d,0D086h", "lea r9d,[r9+8]"]);
        assert_eq!(encoded(&[0xbc, 0x8e, 0xd0, 0, 0], 3).unwrap(), ["mov esp,0D086h", "lea esp,[rsp+8]"]);
        assert_eq!(encoded_32(&[0xbe, 0x8e, 0xd0, 0, 0], 3).unwrap(), ["mov esi,0D086h", "lea esi,[esi+8]"]);
        // Another sum, another register, and a base that is not the register.
        let code = encode(&decoded(&load)[0], &load, 0x9000, 4).unwrap();
        assert!(means_the_same(&decoded(&load)[0], &code, 0x51));
        for (at, byte) in [(2, 0xb8), (1, 0xb9), (12, 0x88), (12, 0x81)] {
            let mut wrong = code.clone();
            wrong[at] = byte;
            assert!(!means_the_same(&decoded(&load)[0], &wrong, 0x51), "{wrong:02x?}");
        }
    }

    #[test]
    fn a_constant_is_stored_out_of_a_register() {
        const SUM: usize = 3 + 2 * STEPS.len();
        // mov dword [ebp-14h],4B8EA0h, and the same at [esi+edi*4+1000h] and at [430000h].
        let store = [0xc7, 0x45, 0xec, 0xa0, 0x8e, 0x4b, 0];
        let stored = ["push esi", "mov esi,4B8E98h", "lea esi,[esi+8]", "mov [ebp-14h],esi", "pop esi"];
        assert_eq!(encoded_32(&store, SUM).unwrap(), stored);
        let indexed = encoded_32(&[0xc7, 0x84, 0xbe, 0, 0x10, 0, 0, 0xa0, 0x8e, 0x4b, 0], SUM + 1).unwrap();
        let stored = ["push ebx", "mov ebx,4B8E4Fh", "lea ebx,[ebx+51h]", "mov [esi+edi*4+1000h],ebx", "pop ebx"];
        assert_eq!(indexed, stored);
        let fixed = [0xc7, 0x05, 0, 0, 0x43, 0, 0xa0, 0x8e, 0x4b, 0];
        assert_eq!(encoded_32(&fixed, SUM + 2).unwrap()[3], "mov [430000h],esi");
        let text_of = |bytes: &[u8]| code_of(32, &[bytes, &[0xc3]].concat(), &[]);
        for (bytes, at) in [(&store[..], 4), (&fixed, 7)] {
            let mut text = text_of(bytes);
            assert!(text.mend(at) && text.hole_from(0).is_none());
        }
        // 64-bit code, with a prefix: mov dword [r8+10h],8EA0h
        assert_eq!(
            encoded(&[0x41, 0xc7, 0x40, 0x10, 0xa0, 0x8e, 0, 0], SUM).unwrap(),
            ["push rsi", "mov esi,8E98h", "lea esi,[rsi+8]", "mov [r8+10h],esi", "pop rsi"]
        );
        // [esp+8] is elsewhere behind PUSH, and a constant of 16 bits is another store.
        assert_eq!(encoded_32(&[0xc7, 0x44, 0x24, 8, 0xa0, 0x8e, 0x4b, 0], SUM), None);
        assert_eq!(encoded_32(&[0x66, 0xc7, 0x45, 0xec, 0xa0, 0x8e], SUM), None);
        // Another register each, another sum, and another operand.
        let code = encode(&decoded_32(&store), &store, 0x9000, SUM).unwrap();
        assert!(means_the_same(&decoded_32(&store), &code, 8));
        for (at, byte) in [(0, 0x57), (1, 0xbf), (2, 0x99), (7, 0xbe), (8, 9), (13, 0x7d), (14, 0xf0), (15, 0x5f)] {
            let mut wrong = code.clone();
            wrong[at] = byte;
            assert!(!means_the_same(&decoded_32(&store), &wrong, 8), "{wrong:02x?}");
        }
    }

    #[test]
    fn an_operand_at_a_fixed_address_gets_a_base() {
        // cmp dl,[430A8Eh], and mov dword [430A8Eh],7
        assert_eq!(
            encoded_32(&[0x3a, 0x15, 0x8e, 0x0a, 0x43, 0], 3).unwrap(),
            ["push esi", "mov esi,430A86h", "cmp dl,[esi+8]", "pop esi"]
        );
        assert_eq!(
            encoded_32(&[0xc7, 0x05, 0x8e, 0x0a, 0x43, 0, 7, 0, 0, 0], 3).unwrap(),
            ["push esi", "mov esi,430A86h", "mov dword ptr [esi+8],7", "pop esi"]
        );
        // Registers that are named are left alone: mov esi,[430A8Eh]
        let load = [0x8b, 0x35, 0x8e, 0x0a, 0x43, 0];
        assert_eq!(encoded_32(&load, 3).unwrap(), ["push edi", "mov edi,430A86h", "mov esi,[edi+8]", "pop edi"]);
        // What uses the stack stays: push dword [430A8Eh]
        assert_eq!(encoded_32(&[0xff, 0x35, 0x8e, 0x0a, 0x43, 0], 3), None);
        // Another address, another register, one that is not restored, and one that is named.
        let code = encode(&decoded_32(&load), &load, 0x9000, 3).unwrap();
        assert!(means_the_same(&decoded_32(&load), &code, 8));
        for (at, byte) in [(2, 0x87), (7, 0x86), (7, 0xbe), (code.len() - 1, 0x5e), (0, 0x56)] {
            let mut wrong = code.clone();
            wrong[at] = byte;
            assert!(!means_the_same(&decoded_32(&load), &wrong, 8), "{wrong:02x?}");
        }
    }

    #[test]
    fn a_base_that_is_used_otherwise_is_not_changed() {
        for bytes in [
            // mov [rbp-72h],rbp; mov [rax+rax+8Eh],ecx; mov [rax+8Eh],al
            &[0x48u8, 0x89, 0x6d, 0x8e] as &[u8],
            &[0x89, 0x8c, 0x00, 0x8e, 0, 0, 0],
            &[0x88, 0x80, 0x8e, 0, 0, 0],
            // A part of the register stays: mov ax,[rax+8Eh]. RAX is not named: mul qword
            // [rax+8Eh].
            &[0x66, 0x8b, 0x80, 0x8e, 0, 0, 0],
            &[0x48, 0xf7, 0xa0, 0x8e, 0, 0, 0],
            // push qword [rsp+8Eh] moves the stack pointer.
            &[0xff, 0xb4, 0x24, 0x8e, 0, 0, 0],
        ] {
            assert_eq!(encoded(bytes, 3), None, "{:?}", text(bytes));
        }
    }

    #[test]
    fn distances_follow_the_instruction() {
        // A short conditional jump, a call, and an operand at a distance, from 1000h to 9000h.
        let placed = |bytes: &[u8]| encode(&decoded(bytes)[0], bytes, 0x9000, 0).unwrap();
        let at = |bytes: &[u8]| Decoder::with_ip(64, bytes, 0x9000, DecoderOptions::NONE).decode();
        assert_eq!(at(&placed(&[0x77, 0x8e])).near_branch_target(), 0x1000 + 2 - 0x72);
        assert_eq!(at(&placed(&[0xe8, 0x8e, 0xd0, 0, 0])).near_branch_target(), 0x1005 + 0xd08e);
        let operand = [0x48, 0x8d, 0x3d, 0x8e, 0xd0, 0, 0];
        assert_eq!(at(&placed(&operand)).ip_rel_memory_address(), 0x1007 + 0xd08e);
        // LOOP has no long form.
        assert_eq!(encode(&decoded(&[0xe2, 0x8e])[0], &[0xe2, 0x8e], 0x9000, 0), None);
    }

    /// Returns code with one function and some room behind it, and constants.
    fn code(function: &[u8], constants: &[(u64, &[u8])]) -> Text {
        code_of(64, function, constants)
    }

    fn code_of(bits: u32, function: &[u8], constants: &[(u64, &[u8])]) -> Text {
        let bytes = [function, &[FILLER; 256]].concat();
        let room = function.len()..bytes.len();
        let functions = std::iter::once(0..function.len()).collect();
        let (targets, unknown, left, cold) = Default::default();
        let mut text = Text { bytes, bits, offset: 0, address: 0x1000, functions, cold, room, targets, unknown, left };
        text.find_targets(constants);
        text
    }

    #[test]
    fn a_short_instruction_is_moved_with_its_neighbours() {
        // 8e at the end of a short jump, and d0 behind it. Another jump leads to the one of 90 90.
        let function = [0x77, 0x04, 0x77, 0x8e, 0xd0, 0xc8, 0x90, 0x90, 0xc3];
        let mut text = code(&function, &[]);
        assert!(text.mend(3) && text.hole_from(0).is_none());
        assert_eq!((text.bytes[0], &text.bytes[6..9]), (JMP, &function[6..9]));
        let moved = Decoder::with_ip(64, &text.bytes[9..], 0x1009, DecoderOptions::NONE).into_iter().take(4);
        let targets: Vec<u64> = moved.filter(is_branch).map(|one| one.near_branch_target()).collect();
        assert_eq!(targets, [0x1006, 0xf92, 0x1006]);
    }

    /// An encoding that removes one hole and leaves another is not taken.
    #[test]
    fn two_holes_in_one_instruction_are_both_removed() {
        // mov rcx,[r14+108Eh]: a load of CS at ModRM, and a load of SS in the displacement.
        let function = [0x49, 0x8b, 0x8e, 0x8e, 0x10, 0, 0, 0xc3];
        let mut text = code(&function, &[]);
        assert_eq!(text.holes_around(&(0..function.len())), [2, 3]);
        assert!(text.mend(2) && text.hole_from(0).is_none());
        assert_eq!(text.bytes[0], JMP);
    }

    /// A short instruction with a hole, and another short one behind it.
    const SHORT: [u8; 4] = [0x77, 0x8e, 0xd0, 0xc8];

    #[test]
    fn what_a_jump_leads_to_stays_in_its_place() {
        // lea rsi,[rip+...] loads the address of a table, whose second entry leads to the
        // instruction behind the hole. The first one leads to the function's start.
        let function = [&[0x48, 0x8d, 0x35, 0xf9, 0x0f, 0, 0][..], &SHORT, &[0xff, 0xe0]].concat();
        let table = |place: i32| [0x1000 - 0x2000, 0x1000 + place - 0x2000].map(i32::to_le_bytes).concat();
        let with = |place: i32| code(&function, &[(0x2000, &table(place))]);
        let mut free = with(0);
        assert!(free.unknown.is_empty() && free.mend(8));
        let mut behind = with(9);
        assert!(behind.targets.contains(&0x1009));
        // The group may end before the target, and no longer reach beyond it.
        assert!(behind.mend(8));
        assert_eq!((behind.left.len(), &behind.left[0]), (1, &(0..9)));
        // Without a table, the target of the jump is unknown.
        let mut unknown = code(&function, &[]);
        assert_eq!((unknown.unknown.len(), &unknown.unknown[0]), (1, &(0..13)));
        assert!(!unknown.mend(8));
    }

    #[test]
    fn a_table_ends_where_an_entry_leads_elsewhere() {
        // lea rsi,[rip+...] loads the address of a table. Its third entry leads to no place of the
        // function, so what is behind it is no part of it.
        let function = [&[0x48, 0x8d, 0x35, 0xf9, 0x0f, 0, 0][..], &SHORT, &[0xff, 0xe0]].concat();
        let table = |places: [i32; 4]| places.map(|place| (place - 0x2000).to_le_bytes()).concat();
        let with = |places| code(&function, &[(0x2000, &table(places))]);
        let ended = with([0x1000, 0x100d, 0x100e, 0x1009]);
        assert!(ended.unknown.is_empty() && !ended.targets.contains(&0x1009));
        // The end of the function belongs to it.
        assert!(with([0x1000, 0x100d, 0x1000, 0x1009]).targets.contains(&0x1009));
        // An address inside a table, as that of a constant less some bytes, does not end it.
        let function = [&function[..7], &[0x48, 0x8d, 0x3d, 0xf6, 0x0f, 0, 0], &SHORT, &[0xff, 0xe0]].concat();
        let text = code(&function, &[(0x2000, &table([0x1000, 0x1000, 0x1010, 0x1000]))]);
        assert!(text.targets.contains(&0x2004) && text.targets.contains(&0x1010));
    }

    #[test]
    fn a_table_of_32_bits_has_addresses() {
        // jmp [eax*4+2000h], and mov ebx,2 with a short jump that has a hole.
        let function =
            [&[0xff, 0x24, 0x85, 0, 0x20, 0, 0][..], &[0xbb, 2, 0, 0, 0, 0xeb, 0x8e, 0xbb, 1, 0, 0, 0, 0xc3]];
        let function = function.concat();
        let with = |entries: [u32; 2]| code_of(32, &function, &[(0x2000, &entries.map(u32::to_le_bytes).concat())]);
        let mut text = with([0x1007, 0x100e]);
        assert!(text.targets.contains(&0x100e) && text.unknown.is_empty());
        assert!(text.mend(13) && text.hole_from(0).is_none());
        assert_eq!((text.left.len(), &text.left[0], text.bytes[7]), (1, &(7..14), JMP));
        // The jump with the hole is where an entry leads to; the instruction behind it as well.
        assert!(!with([0x100c, 0x100e]).mend(13));
        // mov eax,2000h is a load of the table's address as well.
        let loaded = [&[0xb8, 0, 0x20, 0, 0][..], &[0xff, 0xe0, 0xbb, 2, 0, 0, 0, 0xeb, 0x8e, 0xbb, 1, 0, 0, 0, 0xc3]];
        let text = code_of(32, &loaded.concat(), &[(0x2000, &[0x100c, 0x100e].map(u32::to_le_bytes).concat())]);
        assert!(text.unknown.is_empty() && text.targets.contains(&0x100e));
        // A table of other functions is not the one that the jump goes by.
        let unknown = with([0x7777, 0x9999]);
        assert_eq!((unknown.unknown.len(), &unknown.unknown[0]), (1, &(0..function.len())));
    }

    #[test]
    fn a_place_that_was_left_is_not_moved_again() {
        // mov rcx,[r14+0C8h], whose seven bytes become a jump and two fillers; then a short
        // instruction with a hole, which must not be moved together with a filler.
        let function =
            [&[0x49, 0x8b, 0x8e, 0xc8, 0, 0, 0][..], &[0x48, 0x89, 0x45, 0x8e, 0x48, 0x89, 0xc8, 0xc3]].concat();
        let mut text = code(&function, &[]);
        assert!(text.mend(2));
        assert_eq!((text.left.len(), &text.left[0]), (1, &(0..7)));
        assert!(text.targets.contains(&0x1007));
        assert!(text.mend(10) && text.hole_from(0).is_none());
        assert_eq!((text.left[1].start, text.bytes[7]), (7, JMP));
    }

    #[test]
    fn the_second_branch_of_two_still_leads_to_its_target() {
        // jle with a distance of d0: moved first. Its target is in the middle of the next group.
        let function = [&[0x0f, 0x8e, 0x03, 0, 0, 0][..], &SHORT, &SHORT, &[0x90, 0x90, 0xc3]].concat();
        let text = code(&function, &[]);
        assert!(text.targets.contains(&0x1009));
    }

    #[test]
    fn a_jump_back_with_a_hole_is_moved_farther() {
        // mov rcx,[r14+0C8h], and the room 718Bh bytes behind it: the way back is FFFF8Exxh.
        let function = [&[0x49, 0x8b, 0x8e, 0xc8, 0, 0, 0][..], &[0x90; 0x7180], &[0xc3]].concat();
        let mut text = code(&function, &[]);
        text.bytes.resize(function.len() + 600, FILLER);
        text.room.end = text.bytes.len();
        assert!(text.mend(2) && text.hole_from(0).is_none());
        assert!(text.room.start > function.len() + 256);
        assert_eq!(text.bytes[function.len()..function.len() + 256], [FILLER; 256]);
    }

    /// A SIB byte with a scale looks like a ModRM byte.
    #[test]
    fn an_index_is_kept() {
        // mov eax,[r14+rcx*4+10h] and mov rax,[rax+rcx*2+8Eh]
        for bytes in [&[0x41u8, 0x8b, 0x44, 0x8e, 0x10] as &[u8], &[0x48, 0x8b, 0x84, 0x48, 0x8e, 0, 0, 0]] {
            assert_eq!(encoded(bytes, 2), None);
            let [instruction] = decoded(bytes)[..] else { panic!("one") };
            for variant in 0..VARIANTS {
                if let Some(code) = encode(&instruction, bytes, 0x9000, variant) {
                    let text = text(&code);
                    assert!(text.iter().any(|line| line.contains("+rcx*")), "{text:?}");
                }
            }
        }
        assert_eq!(
            encoded(&[0x41, 0x8b, 0x44, 0x8e, 0x10], 3).unwrap(),
            ["lea r14,[r14-8]", "mov eax,[r14+rcx*4+18h]", "lea r14,[r14+8]"]
        );
        // movsxd r8,[rsi+r9*4]: the load of a jump's distance, without a displacement.
        assert_eq!(
            encoded(&[0x4e, 0x63, 0x04, 0x8e], 3).unwrap(),
            ["lea rsi,[rsi-8]", "movsxd r8,[rsi+r9*4+8]", "lea rsi,[rsi+8]"]
        );
        // mov dword [rsi+rcx*4],0D0h: an immediate, and no displacement.
        assert_eq!(
            encoded(&[0xc7, 0x04, 0x8e, 0xd0, 0, 0, 0], 3).unwrap(),
            ["lea rsi,[rsi-8]", "mov dword ptr [rsi+rcx*4+8],0D0h", "lea rsi,[rsi+8]"]
        );
    }

    #[test]
    fn other_code_is_noticed() {
        let load = decoded(&[0x49, 0x8b, 0x8e, 0x10, 0x0b, 0, 0])[0];
        assert!(means_the_same(&load, &[0x49, 0x8b, 0x8c, 0x26, 0x10, 0x0b, 0, 0], 0));
        // Another register, base, displacement, operation, or one more instruction.
        for wrong in [
            &[0x49u8, 0x8b, 0x86, 0x10, 0x0b, 0, 0] as &[u8],
            &[0x48, 0x8b, 0x8e, 0x10, 0x0b, 0, 0],
            &[0x49, 0x8b, 0x8e, 0x11, 0x0b, 0, 0],
            &[0x49, 0x03, 0x8e, 0x10, 0x0b, 0, 0],
            &[0x49, 0x8b, 0x8e, 0x10, 0x0b, 0, 0, 0x90],
        ] {
            assert!(!means_the_same(&load, wrong, 0), "{:?}", text(wrong));
        }
        // A base register that is not restored.
        let step = with_step(&load, &[0x49, 0x8b, 0x8e, 0x10, 0x0b, 0, 0], 8, false).unwrap();
        assert!(means_the_same(&load, &step, 8) && !means_the_same(&load, &step[..14], 8));
    }

    #[test]
    fn what_cannot_be_moved_stays() {
        // An immediate, and a function that is too short.
        for function in [&[0x81u8, 0xfa, 0x8e, 0xd0, 0, 0, 0xc3] as &[u8], &[0x77, 0x8e, 0xd0, 0xc8]] {
            let mut text = code(function, &[]);
            let at = text.hole_from(0).unwrap();
            assert!(!text.mend(at));
            assert_eq!(text.bytes[..function.len()], *function);
        }
    }
}
