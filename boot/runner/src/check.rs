//! Checks a module file as the kernel will when it loads the file. Reports the errors for which the
//! kernel refuses the module, with function and source line where they are known. Also warns of
//! code that the kernel accepts but that will not work as it looks.

use crate::build;
use crate::output;
use crate::source::Sources;
use anyhow::{Context, Result};
use iced_x86::{Decoder, DecoderOptions, Formatter, IntelFormatter, Mnemonic};
use ringfence_abi::manifest::{DomainKind, RING1_ONLY, SECTION};
use ringfence_abi::reset::ResetMethod;
use ringfence_abi::service::SERVICES;
use ringfence_core::command_line::most_like;
use ringfence_core::disassembly::bits;
use ringfence_core::module::{Module, ModuleError, symbol_at};
use ringfence_core::tcg::Hole;
use serde_json::json;
use std::path::{Path, PathBuf};

/// An error or a warning about a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Whether the kernel refuses the module because of this finding.
    pub is_refusal: bool,
    /// The finding in words.
    pub what: String,
    /// The function, offset and source line of the finding, if it is in the code.
    pub place: Option<String>,
}

/// Checks the module in `file`. `debug` is the file with its debug information, if it has any.
pub fn findings(file: &Path, debug: &Path) -> Result<Vec<Finding>> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let refused = |what: String| Finding { is_refusal: true, what, place: None };
    let module = match Module::parse(&bytes) {
        Ok(module) => module,
        Err(error) => return Ok(vec![refused(in_words(&error))]),
    };
    let mut findings = Vec::new();
    let name = module.file_name();
    if name != stem {
        let own = module.manifest.name();
        findings.push(refused(format!("the module in this file is called '{own}': its file must be {name}.rfm")));
    }
    let sources = Sources::new([(stem.clone(), debug.to_path_buf())], PathBuf::new());
    let mut places = Places { file: &bytes, name: stem, sources };
    for (offset, hole) in module.holes() {
        let what = match hole {
            Hole::LoadsSs => "it could load SS, which QEMU's TCG takes for ring 0",
            Hole::LoadsNoSegment => "it could load what is no segment register, which QEMU 10.0 does",
            Hole::LocksBitTest => "it could LOCK a bit test of a register, which aborts QEMU 7.2",
        };
        findings.push(Finding { is_refusal: true, what: what.to_string(), place: Some(places.name_of(offset)) });
    }
    for (offset, instruction) in privileged(&module) {
        let what = format!("'{instruction}' ends the driver in ring 1");
        findings.push(Finding { is_refusal: false, what, place: Some(places.name_of(offset)) });
    }
    let asks_for = |wanted: &str| module.imports.iter().any(|number| SERVICES[number].symbol == wanted);
    let manifest = &module.manifest;
    if manifest.reset.method() == Some(ResetMethod::Unknown) && asks_for("rf_pci_write") && asks_for("rf_dma_alloc") {
        findings.push(Finding {
            is_refusal: false,
            what: "its device uses DMA, and the manifest does not say how to reset it: the device is set aside when \
                   the driver ends"
                .to_string(),
            place: None,
        });
    }
    Ok(findings)
}

/// Explains why a file is no module, with a hint where there is one.
fn in_words(error: &ModuleError) -> String {
    let hint = match error {
        ModuleError::UnknownService(name) => {
            let name = String::from_utf8_lossy(name.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
            let meant = most_like(&name, SERVICES.iter().map(|service| service.symbol));
            meant.map(|meant| format!("; did you mean {meant}?")).unwrap_or_default()
        }
        ModuleError::NoManifest => format!("; 'driver!' in Rust and RF_MANIFEST in C make the section {SECTION}"),
        ModuleError::NoEntry => "; 'driver!' makes it, in C it is to be written".to_string(),
        _ => String::new(),
    };
    format!("{error}{hint}")
}

/// Returns the instructions that only ring 0 may execute, with their offsets.
pub fn privileged(module: &Module) -> Vec<(u64, String)> {
    let (mut found, bits) = (Vec::new(), bits(module.domain));
    for segment in module.segments.iter().filter(|segment| segment.executable) {
        let mut decoder = Decoder::with_ip(bits, segment.bytes, segment.start, DecoderOptions::NONE);
        for instruction in decoder.iter() {
            // The kernel can grant I/O ports to a driver, which may then execute these
            // instructions.
            let is_io = matches!(
                instruction.mnemonic(),
                Mnemonic::In
                    | Mnemonic::Out
                    | Mnemonic::Insb
                    | Mnemonic::Insw
                    | Mnemonic::Insd
                    | Mnemonic::Outsb
                    | Mnemonic::Outsw
                    | Mnemonic::Outsd
            );
            if instruction.is_invalid() || !instruction.is_privileged() || is_io {
                continue;
            }
            let mut text = String::new();
            IntelFormatter::new().format(&instruction, &mut text);
            found.push((instruction.ip(), text));
        }
    }
    found
}

/// Names of places in a module's code.
struct Places<'a> {
    file: &'a [u8],
    name: String,
    sources: Sources,
}

impl Places<'_> {
    fn name_of(&mut self, offset: u64) -> String {
        let place = format!("{}+{offset:#x}", self.name);
        let line = self.sources.line(&self.name, offset).unwrap_or_default();
        match symbol_at(self.file, offset) {
            Some((function, into)) => {
                let function =
                    output::printable(&format!("{:#}", rustc_demangle::demangle(&String::from_utf8_lossy(function))));
                format!("{function}+{into:#x} ({place}){line}")
            }
            None => format!("{place}{line}"),
        }
    }
}

/// Checks files, or the modules whose sources are in folders, and prints the findings; returns
/// whether the kernel takes all of them.
pub fn run(paths: &[PathBuf], json: bool) -> Result<bool> {
    let mut all_good = true;
    for path in paths {
        let (file, debug) = match build::is_folder(path) {
            true => {
                let module = build::module(path)?;
                (module.packed, module.debug)
            }
            false => (path.clone(), path.clone()),
        };
        let file = &file;
        let findings = findings(file, &debug)?;
        let is_refused = findings.iter().any(|finding| finding.is_refusal);
        all_good &= !is_refused;
        if json {
            let said: Vec<_> = findings
                .iter()
                .map(|finding| json!({ "refused": finding.is_refusal, "what": finding.what, "place": finding.place }))
                .collect();
            output::line(format_args!("{}", json!({ "file": file, "refused": is_refused, "findings": said })));
            continue;
        }
        for finding in &findings {
            output::line(format_args!("{}: {}", file.display(), finding.in_words()));
        }
        if !is_refused {
            output::line(format_args!("{}: {}", file.display(), summary(file)?));
        }
    }
    Ok(all_good)
}

impl Finding {
    /// Formats the finding as one or two lines.
    pub fn in_words(&self) -> String {
        let kind = if self.is_refusal { "refused" } else { "warning" };
        let place = self.place.as_ref().map(|place| format!("\n    at {place}")).unwrap_or_default();
        format!("{kind}: {}{place}", self.what)
    }
}

/// Summarizes a module that the kernel takes.
fn summary(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file)?;
    let Ok(module) = Module::parse(&bytes) else { return Ok(String::new()) };
    let rings = match (module.domain, module.manifest.flags & RING1_ONLY) {
        (DomainKind::Segmented, _) => "segmented domains, in ring 1",
        (DomainKind::Paged, 0) => "either ring",
        (DomainKind::Paged, _) => "ring 1 only",
    };
    let (services, parameters) = (module.imports.iter().count(), module.parameters.len());
    let kib = module.len_bytes / 1024;
    Ok(format!("the kernel takes it: for {rings}; {kib} KiB; services: {services}; parameters: {parameters}"))
}
