//! What a module's code shows without running: instructions that ring 1 forbids, services that a
//! module like this needs none of, and a bound of the stack where it can be computed.

use crate::check;
use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};
use ringfence_abi::manifest::{Kind, Manifest};
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
    let unexpected = services.iter().filter(|service| !is_expected(service, &module.manifest)).cloned().collect();
    let stack = Code::new(module).and_then(|code| code.bound(module.entry));
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

/// Returns whether a module that says this about itself can need the service.
fn is_expected(service: &str, manifest: &Manifest) -> bool {
    let of_device = ["rf_dma_", "rf_bar_", "rf_pci_", "rf_irq_"];
    match service {
        _ if of_device.iter().any(|prefix| service.starts_with(prefix)) => manifest.has_device(),
        "rf_offer" => manifest.kind() != Ok(Kind::Other),
        _ if service.starts_with("rf_use") => manifest.uses().is_ok_and(|uses| uses != Kind::Other),
        _ => true,
    }
}

/// A function's need of stack, or the reason why it is not known.
type Bound = std::result::Result<u64, String>;

/// A module's instructions, by their offset in the image.
struct Code {
    instructions: BTreeMap<u64, Instruction>,
    /// What the words that the loader writes point to, by their place.
    pointers: HashMap<u64, Value>,
}

/// What a stub and a gate push. A service has the kernel's stack in ring 1.
const GATE_BYTES: u64 = 64;
/// The most bytes that `and rsp` drops, for alignment.
const ALIGNMENT: i64 = 63;

impl Code {
    fn new(module: &Module) -> std::result::Result<Code, String> {
        let mut instructions = BTreeMap::new();
        for segment in module.segments.iter().filter(|segment| segment.executable) {
            let decoder = Decoder::with_ip(64, segment.bytes, segment.start, DecoderOptions::NONE);
            instructions.extend(decoder.into_iter().map(|instruction| (instruction.ip(), instruction)));
        }
        let pointers = module.relocations.iter().map(|relocation| (relocation.at, relocation.value)).collect();
        Ok(Code { instructions, pointers })
    }

    /// Returns the most bytes of stack that the function at `entry` needs, with all that it calls.
    fn bound(&self, entry: u64) -> Bound {
        self.function(entry, &mut BTreeMap::new(), &mut BTreeSet::new())
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
                FlowControl::UnconditionalBranch => open.push((instruction.near_branch_target(), after)),
                FlowControl::Call | FlowControl::IndirectCall => {
                    let callee = match self.callee(instruction)? {
                        Callee::Function(callee) => self.function(callee, known, within)?,
                        Callee::Service => GATE_BYTES,
                    };
                    most = most.max(depth + 8 + callee as i64);
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
        let is_stack = instruction.op_count() > 0
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register() == Register::RSP;
        let is_write = !matches!(instruction.mnemonic(), Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Push);
        if is_stack && is_write {
            let has_number = instruction.op_count() > 1 && instruction.try_immediate(1).is_ok();
            return match instruction.mnemonic() {
                Mnemonic::Sub if has_number => Ok(depth + instruction.immediate(1) as i64),
                Mnemonic::Add if has_number => Ok(depth - instruction.immediate(1) as i64),
                Mnemonic::And if has_number => Ok(depth + ALIGNMENT),
                Mnemonic::Lea
                    if instruction.memory_base() == Register::RSP && instruction.memory_index() == Register::None =>
                {
                    Ok(depth - instruction.memory_displacement64() as i64)
                }
                // Back to where a frame begins; it is not deeper.
                Mnemonic::Lea | Mnemonic::Mov
                    if instruction.op1_register() == Register::RBP || instruction.memory_base() == Register::RBP =>
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

    fn callee(&self, instruction: &Instruction) -> std::result::Result<Callee, String> {
        if instruction.op0_kind() == OpKind::NearBranch64 {
            return Ok(Callee::Function(instruction.near_branch_target()));
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
