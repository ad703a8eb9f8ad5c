//! `cargo run -- verify NAME`: gathers evidence about a module that another machine can check, and
//! writes it to a signed report ([`ringfence_core::evidence::report`]).
//!
//! * [`code`]: evidence from the file's code, without running it
//! * [`random`]: random damage of the file, and random input for the running driver

mod code;
mod random;

use crate::build::{self, System};
use crate::campaign;
use crate::conform;
use crate::drivers::{self, Driver};
use crate::keys;
use crate::machine::{Machine, qemu};
use crate::output;
use anyhow::{Context, Result, anyhow, bail};
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::evidence::report::{Campaign, Conformance, Made, Module, Report, ReportDemand};
use ringfence_core::evidence::signed::{Purpose, identity, sign};
use ringfence_core::evidence::{grouped, hex};
use ringfence_core::module;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// The settings of a verification.
pub struct Options {
    /// The module.
    pub name: String,
    /// QEMU's name of the driver's device, if it is not known.
    pub device: Option<String>,
    /// Changes of the campaign.
    pub changes: usize,
    /// Random inputs.
    pub inputs: usize,
    /// The seed of the random numbers.
    pub seed: u64,
    /// The secret key that signs the report.
    pub key: PathBuf,
    /// Where the report goes, if not to `NAME.report`.
    pub out: Option<PathBuf>,
    /// Whether to print the report as a JSON object.
    pub json: bool,
    /// The machine.
    pub machine: Machine,
}

/// Gathers the evidence and writes the report. Returns whether the report meets a demand for the
/// changes and inputs of `options` and for all tests of the driver's class. A bound of the stack is
/// not demanded.
pub fn run(options: &Options) -> Result<bool> {
    // Before minutes of work.
    let key = keys::secret(&options.key)?;
    let system = &build::system(true)?;
    let driver = drivers::find(system, &options.machine, &options.name)?;
    let bytes = std::fs::read(&driver.file).with_context(|| format!("cannot read {}", driver.file.display()))?;
    let parsed = module::Module::parse(&bytes).map_err(|error| anyhow!("{}: {error}", driver.file.display()))?;
    let debug = system.modules.iter().find(|module| module.name == options.name).map(|module| &module.debug);
    let say = |part: &str| output::complain(&format!("verify: {}: {part}", options.name));
    say("the code");
    let code = code::look_at(&driver.file, debug.unwrap_or(&driver.file), &parsed)?;
    say("random damage and input");
    let fuzzing = random::run(system, options, &driver, &bytes)?;
    say("the tests of its class");
    let conformance = conformance(system, options, &driver)?;
    say(&format!("{} changes of its code", options.changes));
    let campaign = changes(system, options, &driver)?;
    let report = Report {
        module: Module {
            name: options.name.clone(),
            version: parsed.manifest.version().to_string(),
            sha256: hex(&identity(&bytes)),
        },
        made: Made {
            at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            ringfence: env!("CARGO_PKG_VERSION").to_string(),
            qemu: qemu::version()?,
        },
        code,
        campaign,
        conformance,
        fuzzing,
    };
    let path = options.out.clone().unwrap_or_else(|| PathBuf::from(format!("{}.report", options.name)));
    let text = toml::to_string(&report).context("the report cannot be written as TOML")?;
    let signed = sign(text.as_bytes(), Purpose::Report, &key).map_err(|why| anyhow!("{}: {why}", path.display()))?;
    keys::replace(&path, &signed)?;
    let demand = ReportDemand {
        // A driver without work cannot be seen to fail at it.
        changes: if driver.kind == Kind::Other { 0 } else { options.changes as u64 },
        conformance: driver.kind != Kind::Other,
        stack: false,
        inputs: options.inputs as u64,
        ..ReportDemand::default()
    };
    let lacks = demand.lacks(&report, report.made.at);
    match options.json {
        true => output::line(format_args!("{}", serde_json::to_string(&report)?)),
        false => print(&report, &path),
    }
    if let Some(lacks) = &lacks {
        output::complain(&format!("verify: {}: {lacks}", options.name));
    }
    Ok(lacks.is_none())
}

/// Tests the driver by the suite of its class, in both rings, if its class has one.
fn conformance(system: &System, options: &Options, driver: &Driver) -> Result<Conformance> {
    if driver.kind == Kind::Other {
        return Ok(Conformance::default());
    }
    let machine = options.machine.clone();
    let (name, device) = (options.name.clone(), options.device.clone());
    let options = conform::Options { name, device, only: None, ring: None, machine, json: options.json };
    let mut tests = 0;
    let outcomes = conform::outcomes(system, &options, |outcome| {
        tests += 1;
        let passed = if outcome.failure.is_none() { "passed" } else { "FAILED" };
        output::complain(&format!("verify: {passed}  ring {}  {}", outcome.ring, outcome.test));
    })?;
    let failed: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| {
            Some(format!("{} in ring {}: {}", outcome.test, outcome.ring, outcome.failure.as_ref()?.lines().next()?))
        })
        .collect();
    Ok(Conformance { tests, passed: tests - failed.len() as u64, failed })
}

/// Changes the driver's code in ring 1. There is no work for drivers that offer nothing.
fn changes(system: &System, options: &Options, driver: &Driver) -> Result<Campaign> {
    let (seed, mut machine) = (options.seed, options.machine.clone());
    match driver.kind {
        Kind::Nic => machine.nic = driver.device(options.device.as_deref())?.to_string(),
        Kind::Scsi | Kind::Block => machine.hba = driver.device(options.device.as_deref())?.to_string(),
        Kind::Fs if ["fat", "ext"].contains(&options.name.as_str()) => {}
        Kind::Fs | Kind::Other => return Ok(Campaign { seed, ..Campaign::default() }),
    }
    if options.changes == 0 {
        return Ok(Campaign { seed, ..Campaign::default() });
    }
    let options = campaign::Options {
        machine,
        modules: [options.name.clone()].into(),
        mutants: options.changes,
        seed,
        only: None,
        ring: 1,
        kind: DomainKind::Paged,
        out: None,
        json: false,
    };
    let outcomes = campaign::outcomes(system, &options)?;
    if outcomes.is_empty() {
        bail!("the campaign changed nothing");
    }
    let count = |is_so: fn(&campaign::Outcome) -> bool| outcomes.iter().filter(|outcome| is_so(outcome)).count() as u64;
    Ok(Campaign {
        changes: outcomes.len() as u64,
        seed,
        kernel_intact: count(|outcome| outcome.kernel_intact),
        restored: count(|outcome| outcome.restored),
    })
}

/// Prints the report for a person.
fn print(report: &Report, path: &std::path::Path) {
    let Report { module, code, campaign, conformance, fuzzing, .. } = report;
    output::line(format_args!("{} {}, file {}", module.name, module.version, module.sha256));
    let stack = match (code.stack_bytes, &code.stack_unknown) {
        (Some(bytes), _) => format!("uses up to {} of {} bytes of stack", grouped(bytes), grouped(code.stack_has)),
        (None, why) => format!("the bound of its stack is not known: {}", why.as_deref().unwrap_or("no reason")),
    };
    output::line(format_args!(
        "code         {} refusals, {} privileged instructions, {} services, {} of them unexpected",
        code.refusals,
        code.privileged,
        code.services.len(),
        code.unexpected.len()
    ));
    output::line(format_args!("             {stack}"));
    output::line(format_args!(
        "random       {} damaged files, {} taken; {} inputs, {} faults",
        grouped(fuzzing.files),
        grouped(fuzzing.files_taken),
        grouped(fuzzing.inputs),
        grouped(fuzzing.faults)
    ));
    output::line(format_args!("conformance  {} of {} tests passed", conformance.passed, conformance.tests));
    conformance.failed.iter().for_each(|failed| output::line(format_args!("             {failed}")));
    output::line(format_args!(
        "campaign     {} changes, seed {}: kernel intact after {}, served again after {}",
        grouped(campaign.changes),
        campaign.seed,
        grouped(campaign.kernel_intact),
        grouped(campaign.restored)
    ));
    output::line(format_args!("{}: written and signed", path.display()));
}
