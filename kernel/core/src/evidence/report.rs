//! The result of `cargo run -- verify NAME`, in TOML: checks of a module's file on a machine other
//! than the machine that admits it.

use super::policy::in_words;
use super::{Hash, from_hex, grouped};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// The most bytes of a report.
pub const MOST_BYTES: usize = 32 << 10;

/// A report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// The module.
    pub module: Module,
    /// How the report was made.
    pub made: Made,
    /// The findings in the file's code, without running it.
    #[serde(rename = "static")]
    pub code: Static,
    /// The results of changes to the code.
    pub campaign: Campaign,
    /// The tests for drivers of its class.
    pub conformance: Conformance,
    /// Random input.
    pub fuzzing: Fuzzing,
}

/// The module that a report is about.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// Its name.
    pub name: String,
    /// Its version, as its manifest has it.
    pub version: String,
    /// The hash of its file without signatures, in hexadecimal digits.
    pub sha256: String,
}

/// How a report was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Seconds since 1970.
    pub at: u64,
    /// The version of Ringfence.
    pub ringfence: String,
    /// The machine's program and version.
    pub qemu: String,
}

/// The findings in the file's code, without running it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Static {
    /// Places for which the kernel refuses the module, such as loads of SS.
    pub refusals: u64,
    /// Instructions that only ring 0 may execute.
    pub privileged: u64,
    /// Services that no other module of its class asks for.
    pub unexpected: Vec<String>,
    /// Services that it asks for.
    pub services: Vec<String>,
    /// The most bytes of stack that the code can use, if that can be computed.
    pub stack_bytes: Option<u64>,
    /// The bytes of stack that the manifest asks for.
    pub stack_has: u64,
    /// Why the stack's bound cannot be computed.
    pub stack_unknown: Option<String>,
}

/// The results of changes to the code, an instruction at a time (`cargo run -- campaign`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Campaign {
    /// Changes.
    pub changes: u64,
    /// The seed of the random numbers.
    pub seed: u64,
    /// Changes after which the kernel was intact.
    pub kernel_intact: u64,
    /// Changes after which the good driver served again.
    pub restored: u64,
}

/// The tests for drivers of its class (`cargo run -- conform`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conformance {
    /// Tests, in both rings. 0 if the class has none.
    pub tests: u64,
    /// Tests that the driver passed.
    pub passed: u64,
    /// The tests that it failed.
    pub failed: Vec<String>,
}

/// Random input.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fuzzing {
    /// Damaged copies of the file that the loader was given.
    pub files: u64,
    /// Damaged copies that the loader took. They are other modules.
    pub files_taken: u64,
    /// Random commands, events and frames that the driver was given in ring 1.
    pub inputs: u64,
    /// Those after which the driver was ended.
    pub faults: u64,
}

/// The demands on a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ReportDemand {
    /// Changes of the campaign.
    pub changes: u64,
    /// Whether all conformance tests must have been passed, and there must be some.
    pub conformance: bool,
    /// Whether a bound of the stack must be known, and fit.
    pub stack: bool,
    /// Random inputs.
    pub inputs: u64,
    /// The most days since the report was made.
    pub max_age_days: u64,
}

impl Default for ReportDemand {
    fn default() -> ReportDemand {
        ReportDemand { changes: 300, conformance: false, stack: false, inputs: 0, max_age_days: 365 }
    }
}

impl fmt::Display for ReportDemand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} changes", grouped(self.changes))?;
        if self.inputs > 0 {
            write!(f, ", {} random inputs", grouped(self.inputs))?;
        }
        if self.conformance {
            f.write_str(", all tests of its class")?;
        }
        if self.stack {
            f.write_str(", a bound of its stack")?;
        }
        write!(f, ", at most {} days old", self.max_age_days)
    }
}

const DAY_SECONDS: u64 = 86_400;

impl ReportDemand {
    /// Describes the demands that a report does not meet; `None` if it meets all.
    pub fn lacks(&self, report: &Report, now: u64) -> Option<String> {
        let Report { campaign, conformance, code, fuzzing, made, .. } = report;
        let mut lacks = Vec::new();
        let age_days = now.saturating_sub(made.at) / DAY_SECONDS;
        if made.at > now.saturating_add(DAY_SECONDS) {
            lacks.push("is from the future, or this machine's clock is wrong".into());
        }
        if age_days > self.max_age_days {
            lacks.push(format!("is {age_days} days old, of at most {}", self.max_age_days));
        }
        let forbidden = code.refusals.saturating_add(code.privileged);
        if forbidden > 0 {
            lacks.push(format!("has {forbidden} places of code that ring 1 forbids"));
        }
        if !code.unexpected.is_empty() {
            lacks.push(format!("has services that are not expected: {}", code.unexpected.join(", ")));
        }
        if self.stack && code.stack_bytes.is_none_or(|bytes| bytes > code.stack_has) {
            lacks.push("has no bound of the stack that fits".into());
        }
        if campaign.changes < self.changes {
            lacks.push(format!("has {} of {} changes", grouped(campaign.changes), grouped(self.changes)));
        }
        if campaign.kernel_intact < campaign.changes || campaign.restored < campaign.changes {
            lacks.push("has changes that harmed the kernel, or after which nothing served".into());
        }
        if conformance.passed < conformance.tests {
            lacks.push(format!("has {} of {} tests of its class passed", conformance.passed, conformance.tests));
        } else if self.conformance && conformance.tests == 0 {
            lacks.push("has no tests of its class".into());
        }
        if fuzzing.inputs < self.inputs {
            lacks.push(format!("has {} of {} random inputs", grouped(fuzzing.inputs), grouped(self.inputs)));
        }
        if fuzzing.faults > 0 {
            lacks.push(format!("has {} random inputs that ended the driver", grouped(fuzzing.faults)));
        }
        (!lacks.is_empty()).then(|| format!("its report {}", lacks.join(", ")))
    }
}

impl Report {
    /// Reads a report. The error names the line.
    pub fn parse(text: &str) -> Result<Report, String> {
        if text.len() > MOST_BYTES {
            return Err(format!("a report has at most {MOST_BYTES} bytes"));
        }
        toml::from_str(text).map_err(|error| in_words(text, &error))
    }

    /// Returns the hash of the file that the report is about.
    pub fn of(&self) -> Option<Hash> {
        from_hex(&self.module.sha256)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { campaign, conformance, fuzzing, .. } = self;
        write!(f, "{} changes, kernel intact after {}", grouped(campaign.changes), grouped(campaign.kernel_intact))?;
        write!(f, "; {} of {} tests", conformance.passed, conformance.tests)?;
        write!(f, "; {} random inputs, {} faults", grouped(fuzzing.inputs), grouped(fuzzing.faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            code: Static { stack_bytes: Some(100), stack_has: 4096, ..Static::default() },
            campaign: Campaign { changes: 300, seed: 1, kernel_intact: 300, restored: 300 },
            conformance: Conformance { tests: 36, passed: 36, failed: Vec::new() },
            fuzzing: Fuzzing { files: 100, files_taken: 0, inputs: 1000, faults: 0 },
            ..Report::default()
        }
    }

    #[test]
    fn each_thing_that_a_report_lacks_is_named() {
        let demand = ReportDemand { conformance: true, stack: true, inputs: 1000, ..ReportDemand::default() };
        assert_eq!(demand.lacks(&good(), 365 * DAY_SECONDS), None);
        type Spoil = fn(&mut Report);
        let spoilt: [(Spoil, &str); 10] = [
            (|report| report.code.refusals = 1, "1 places of code that ring 1 forbids"),
            (|report| report.code.privileged = 1, "1 places of code that ring 1 forbids"),
            (|report| report.code.unexpected = ["rf_x".into()].into(), "services that are not expected: rf_x"),
            (|report| report.code.stack_bytes = None, "no bound of the stack"),
            (|report| report.code.stack_bytes = Some(5000), "no bound of the stack"),
            (|report| report.campaign.changes = 299, "299 of 300 changes"),
            (|report| report.campaign.kernel_intact = 299, "changes that harmed the kernel"),
            (|report| report.conformance.passed = 35, "35 of 36 tests"),
            (|report| report.fuzzing.inputs = 999, "999 of 1,000 random inputs"),
            (|report| report.fuzzing.faults = 2, "2 random inputs that ended"),
        ];
        for (spoil, expected) in spoilt {
            let mut report = good();
            spoil(&mut report);
            let lacks = demand.lacks(&report, 0).unwrap_or_default();
            assert!(lacks.contains(expected), "{lacks}");
        }
        assert!(demand.lacks(&good(), 366 * DAY_SECONDS).is_some_and(|lacks| lacks.contains("366 days old")));
        let made = Made { at: 2 * DAY_SECONDS, ..Made::default() };
        let lacks = demand.lacks(&Report { made, ..good() }, 0);
        assert!(lacks.is_some_and(|lacks| lacks.contains("from the future")));
    }

    #[test]
    fn a_report_that_is_none_is_named() {
        assert!(Report::parse("x = 1").unwrap_err().starts_with("line 1: unknown field `x`"));
        assert!(Report::parse(&"#".repeat(MOST_BYTES + 1)).unwrap_err().contains("at most"));
    }
}
