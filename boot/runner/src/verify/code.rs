//! Evidence from a module's code without running it: instructions that ring 1 forbids, services
//! that a module like this needs none of, and a bound of the stack where it can be computed.

use crate::check;
use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use ringfence_abi::layout::{IMAGE, STUBS};
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_abi::service::SERVICES;
use ringfence_core::evidence::report::Static;
use ringfence_core::module::{Module, Value};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Looks at the module in `file`; `debug` has its symbols.
pub fn look_at(file: &Path, debug: &Path, module: &Module) -> Result<Static> {
    let findings = check::findings(file, debug)?;
    let refusals = findings.iter().filter(|finding| finding.is_refusal).count() as u64;
    let services: Vec<String> =
        module.imports.iter().filter_map(|number| Some(SERVICES.get(number)?.symbol.to_string())).collect();
    let needs = Needs {
        device: module.manifest.has_device(),
        offer: module.manifest.kind() != Ok(Kind::Other),
        used: module.manifest.uses().is_ok_and(|uses| uses != Kind::Other),
    };
    let unexpected = services.iter().filter(|service| !needs.expect(service)).cloned().collect();
    let stack = Code::new(module).bound(module.entry);
    Ok(Static {
        refusals,
        privileged: check::privileged(module).len() as u64,
        unexpected,
        services,
        stack_bytes: stack.as_ref().ok().copied(),
        stack_has: module.manifest.stack_bytes.into(),
        stack_unknown: stack.err(),
    })
}

/// Claims of a module's manifest that decide which services it can need.
#[derive(Debug, Clone, Copy, Default)]
struct Needs {
    /// Whether it drives a device.
    device: bool,
    /// Whether it offers a device of a class.
    offer: bool,
    /// Whether it uses another driver's device.
    used: bool,
}

impl Needs {
    /// Returns whether a module that says this can need the service.
    fn expect(self, service: &str) -> bool {
        let of_device = ["rf_dma_", "rf_bar_", "rf_pci_", "rf_irq_"];
        match service {
            _ if of_device.iter().any(|prefix| service.starts_with(prefix)) => self.device,
            "rf_offer" => self.offer,
            "rf_use" => self.used,
            _ => true,
        }
    }
}

/// A function's need of stack, or the reason why it is not known.
type Bound = std::result::Result<u64, String>;

/// A module's instructions, by their offset in the image. Those of a segmented module are by their
/// address, as it calls stubs of services by theirs.
struct Code {
    kind: DomainKind,
    instructions: BTreeMap<u64, Instruction>,
    /// Targets of the words that the loader writes, by the place of the word.
    pointers: HashMap<u64, Value>,
}

/// Bytes that a stub and a gate push. A service has the kernel's stack in ring 1.
const GATE_BYTES: u64 = 64;
/// The most bytes that an `and` of the stack pointer drops, for alignment.
const ALIGNMENT: i64 = 63;

impl Code {
    fn new(module: &Module) -> Code {
        let executable = module.segments.iter().filter(|segment| segment.executable);
        let pointers = module.relocations.iter().map(|relocation| (relocation.at, relocation.value)).collect();
        Code::of(module.domain, executable.map(|segment| (segment.start, segment.bytes)), pointers)
    }

    /// Decodes segments of the image: the offset of each, and its bytes.
    fn of<'a>(
        kind: DomainKind,
        segments: impl Iterator<Item = (u64, &'a [u8])>,
        pointers: HashMap<u64, Value>,
    ) -> Code {
        let mut instructions = BTreeMap::new();
        let (bits, base) = if kind == DomainKind::Segmented { (32, IMAGE) } else { (64, 0) };
        for (start, bytes) in segments {
            let decoder = Decoder::with_ip(bits, bytes, base + start, DecoderOptions::NONE);
            instructions.extend(decoder.into_iter().map(|instruction| (instruction.ip(), instruction)));
        }
        Code { kind, instructions, pointers }
    }

    /// Returns the stack pointer, the frame pointer, and the bytes that a call pushes.
    fn registers(&self) -> (Register, Register, i64) {
        match self.kind {
            DomainKind::Paged => (Register::RSP, Register::RBP, 8),
            DomainKind::Segmented => (Register::ESP, Register::EBP, 4),
        }
    }

    /// Returns the most bytes of stack that the function at offset `entry` needs, with its callees.
    fn bound(&self, entry: u64) -> Bound {
        let base = if self.kind == DomainKind::Segmented { IMAGE } else { 0 };
        self.function(base + entry, &mut BTreeMap::new(), &mut BTreeSet::new())
    }

    fn function(&self, entry: u64, known: &mut BTreeMap<u64, u64>, within: &mut BTreeSet<u64>) -> Bound {
        if let Some(bytes) = known.get(&entry) {
            return Ok(*bytes);
        }
        if !within.insert(entry) {
            return Err(format!("the function at {entry:#x} calls itself"));
        }
        let (mut most, mut seen) = (0, BTreeMap::new());
        let mut open = vec![(entry, 0i64)];
        while let Some((at, depth)) = open.pop() {
            // Code that is reached with different depths moves its stack in a way that is not
            // followed, if the later one is deeper.
            match seen.get(&at) {
                Some(before) if *before >= depth => continue,
                Some(_) => return Err(format!("the stack's depth at {at:#x} differs by the way there")),
                None => seen.insert(at, depth),
            };
            let Some(instruction) = self.instructions.get(&at) else {
                return Err(format!("there is no instruction at {at:#x}"));
            };
            let after = self.after(instruction, depth)?;
            most = most.max(depth).max(after);
            let next = instruction.next_ip();
            match instruction.flow_control() {
                FlowControl::Next => open.push((next, after)),
                FlowControl::ConditionalBranch => {
                    open.extend([(next, after), (instruction.near_branch_target(), after)]);
                }
                // A tail call.
                FlowControl::UnconditionalBranch if self.is_stub(instruction.near_branch_target()) => {
                    most = most.max(depth + GATE_BYTES as i64);
                }
                FlowControl::UnconditionalBranch => open.push((instruction.near_branch_target(), after)),
                FlowControl::Call | FlowControl::IndirectCall => {
                    let callee = match self.callee(instruction)? {
                        Callee::Function(callee) => self.function(callee, known, within)?,
                        Callee::Service => GATE_BYTES,
                    };
                    most = most.max(depth + self.registers().2 + callee as i64);
                    open.push((next, depth));
                }
                FlowControl::IndirectBranch => match self.callee(instruction)? {
                    // A tail call.
                    Callee::Function(callee) => {
                        most = most.max(depth + self.function(callee, known, within)? as i64);
                    }
                    Callee::Service => most = most.max(depth + GATE_BYTES as i64),
                },
                FlowControl::Return | FlowControl::Exception | FlowControl::Interrupt => {}
                FlowControl::XbeginXabortXend => return Err(format!("a transaction at {at:#x}")),
            }
        }
        within.remove(&entry);
        let bytes = u64::try_from(most).unwrap_or(0);
        known.insert(entry, bytes);
        Ok(bytes)
    }

    /// Returns the depth of the stack behind an instruction.
    fn after(&self, instruction: &Instruction, depth: i64) -> std::result::Result<i64, String> {
        let at = instruction.ip();
        let (stack, frame, _) = self.registers();
        let is_stack = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register() == stack;
        let is_write = !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
        if is_stack && is_write {
            // A number has 32 bits in either kind of code.
            let number = || instruction.try_immediate(1).ok().map(|number| i64::from(number as i32));
            let number = Some(()).filter(|()| instruction.op_count() > 1).and_then(|()| number());
            return match (instruction.mnemonic(), number) {
                (Mnemonic::Sub, Some(number)) => Ok(depth + number),
                (Mnemonic::Add, Some(number)) => Ok(depth - number),
                (Mnemonic::And, Some(_)) => Ok(depth + ALIGNMENT),
                (Mnemonic::Lea, _)
                    if instruction.memory_base() == stack && instruction.memory_index() == Register::None =>
                {
                    Ok(depth - i64::from(instruction.memory_displacement32() as i32))
                }
                // Back to where a frame begins; it is not deeper.
                (Mnemonic::Lea | Mnemonic::Mov, _)
                    if instruction.op1_register() == frame || instruction.memory_base() == frame =>
                {
                    Ok(0)
                }
                _ => Err(format!("the stack is moved at {at:#x}")),
            };
        }
        match instruction.mnemonic() {
            Mnemonic::Leave => Ok(0),
            Mnemonic::Call => Ok(depth),
            _ => Ok(depth - i64::from(instruction.stack_pointer_increment())),
        }
    }

    /// Returns whether an address is that of a stub. Other modules reach stubs by pointers only.
    fn is_stub(&self, address: u64) -> bool {
        self.kind == DomainKind::Segmented && (STUBS..IMAGE).contains(&address)
    }

    fn callee(&self, instruction: &Instruction) -> std::result::Result<Callee, String> {
        if matches!(instruction.op0_kind(), OpKind::NearBranch64 | OpKind::NearBranch32) {
            let target = instruction.near_branch_target();
            return Ok(if self.is_stub(target) { Callee::Service } else { Callee::Function(target) });
        }
        let at = instruction.ip();
        let pointer = instruction.is_ip_rel_memory_operand().then(|| instruction.ip_rel_memory_address());
        match pointer.and_then(|place| self.pointers.get(&place)) {
            Some(Value::Image(function)) => Ok(Callee::Function(*function)),
            Some(Value::Stub(_)) => Ok(Callee::Service),
            None => Err(format!("what is called at {at:#x} is chosen when it runs")),
        }
    }
}

enum Callee {
    Function(u64),
    Service,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(parts: &[&[u8]], pointers: &[(u64, Value)]) -> Code {
        Code::of(DomainKind::Paged, [(0, &*parts.concat())].into_iter(), pointers.iter().copied().collect())
    }

    fn narrow(parts: &[&[u8]]) -> Bound {
        Code::of(DomainKind::Segmented, [(0x1000, &*parts.concat())].into_iter(), HashMap::new()).bound(0x1000)
    }

    /// sub rsp, 0x20; call the function behind; add rsp, 0x20; ret.
    const CALLS: &[u8] = b"\x48\x83\xec\x20\xe8\x05\x00\x00\x00\x48\x83\xc4\x20\xc3";
    /// push rbx; pop rbx; ret.
    const PUSHES: &[u8] = b"\x53\x5b\xc3";
    /// test edi, edi; je to the last instruction; push rbx; push rbx; add rsp, 16; ret.
    const BRANCHES: &[u8] = b"\x85\xff\x74\x06\x53\x53\x48\x83\xc4\x10\xc3";

    #[test]
    fn the_bound_is_that_of_the_deepest_way() {
        assert_eq!(code(&[PUSHES], &[]).bound(0), Ok(8));
        assert_eq!(code(&[CALLS, PUSHES], &[]).bound(0), Ok(0x20 + 8 + 8));
        assert_eq!(code(&[BRANCHES], &[]).bound(0), Ok(16));
    }

    #[test]
    fn the_bound_of_32_bit_code_is_in_its_own_words() {
        // sub esp, 0x20; call the function behind; lea esp, [esp + 0x20]; ret.
        let calls = b"\x83\xec\x20\xe8\x05\x00\x00\x00\x8d\x64\x24\x20\xc3";
        assert_eq!(narrow(&[PUSHES]), Ok(4));
        assert_eq!(narrow(&[calls, PUSHES]), Ok(0x20 + 4 + 4));
        // push ebp; mov ebp, esp; and esp, -16; push eax; lea esp, [ebp - 4]; leave; ret.
        let aligns = b"\x55\x89\xe5\x83\xe4\xf0\x50\x8d\x65\xfc\xc9\xc3";
        assert_eq!(narrow(&[aligns]), Ok(4 + ALIGNMENT as u64 + 4));
        // A call of the first stub; ret.
        let distance = (STUBS as u32).wrapping_sub(IMAGE as u32 + 0x1000 + 5);
        assert_eq!(narrow(&[b"\xe8", &distance.to_le_bytes(), b"\xc3"]), Ok(4 + GATE_BYTES));
        // add esp, -0x400; ret.
        assert_eq!(narrow(&[b"\x81\xc4\x00\xfc\xff\xff\xc3"]), Ok(0x400));
        // mov esp, eax.
        assert_eq!(narrow(&[b"\x89\xc4\xc3"]), Err("the stack is moved at 0x431000".into()));
    }

    #[test]
    fn what_a_pointer_leads_to_counts_if_the_loader_writes_it() {
        // call [rip + 0x10]; ret.
        let calls = b"\xff\x15\x10\x00\x00\x00\xc3";
        let place = 6 + 0x10;
        assert_eq!(code(&[calls, PUSHES], &[(place, Value::Image(7))]).bound(0), Ok(8 + 8));
        assert_eq!(code(&[calls], &[(place, Value::Stub(0))]).bound(0), Ok(8 + GATE_BYTES));
        assert!(code(&[calls], &[]).bound(0).is_err_and(|why| why.contains("chosen when it runs")));
    }

    #[test]
    fn what_has_no_bound_is_named() {
        // call itself; ret.
        assert_eq!(code(&[b"\xe8\xfb\xff\xff\xff\xc3"], &[]).bound(0), Err("the function at 0x0 calls itself".into()));
        // push rbx; jmp back to it.
        assert!(code(&[b"\x53\xeb\xfd"], &[]).bound(0).is_err_and(|why| why.contains("differs by the way there")));
        // mov rsp, rax.
        assert_eq!(code(&[b"\x48\x89\xc4\xc3"], &[]).bound(0), Err("the stack is moved at 0x0".into()));
    }

    #[test]
    fn a_module_without_a_device_needs_nothing_of_one() {
        for service in ["rf_dma_alloc", "rf_bar_map", "rf_pci_read", "rf_irq_enable", "rf_offer", "rf_use"] {
            assert!(!Needs::default().expect(service), "{service}");
            assert!(Needs { device: true, offer: true, used: true }.expect(service), "{service}");
        }
        assert!(Needs::default().expect("rf_log"));
    }
}
