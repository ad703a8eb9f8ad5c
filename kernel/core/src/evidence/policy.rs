//! The demands of a machine on a module file before the file may run in ring 0: a policy, in TOML.
//!
//! ```toml
//! # The kind of domain for modules that prefer none: paged or segmented.
//! kind = "paged"
//! # Each list is a way to ring 0: a module needs all that the list names.
//! admit = [["signature"], ["record", "report"], ["force"]]
//!
//! [record]
//! operations = 1_000_000
//! minutes = 60
//!
//! [report]
//! changes = 300
//! max_age_days = 90
//! ```

use super::record::Tally;
use super::report::{Report, ReportDemand};
use super::{grouped, record};
use crate::date::Date;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use ringfence_abi::manifest::DomainKind;
use serde::{Deserialize, Deserializer, de};

/// The most bytes of a policy.
pub const MOST_BYTES: usize = 16 << 10;
/// The most ways to ring 0, and the most pieces of evidence of one.
const MOST_WAYS: usize = 16;

/// A kind of evidence for a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Evidence {
    /// A signature of the file by a trusted key.
    Signature,
    /// A record that meets [`RecordDemand`].
    Record,
    /// A report that meets [`ReportDemand`], signed by a trusted key.
    Report,
    /// The word of a person, in a kernel that is built to take it.
    Force,
}

/// The demands on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RecordDemand {
    /// Operations in ring 1 since the last fault.
    pub operations: u64,
    /// Minutes in ring 1 since the last fault.
    pub minutes: u64,
}

impl Default for RecordDemand {
    fn default() -> RecordDemand {
        RecordDemand { operations: 1_000_000, minutes: 60 }
    }
}

/// Reads the name of a kind of domain.
fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DomainKind, D::Error> {
    const NAMES: &[&str] = &[DomainKind::Paged.name(), DomainKind::Segmented.name()];
    let name = String::deserialize(deserializer)?;
    DomainKind::named(&name).ok_or_else(|| de::Error::unknown_variant(&name, NAMES))
}

/// The demands of a machine on module files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// The kind of domain for modules that prefer none.
    #[serde(deserialize_with = "named")]
    pub kind: DomainKind,
    /// Whether everything is admitted, for the development of drivers.
    pub development: bool,
    /// The ways to ring 0. Each names the pieces of evidence that a module needs together.
    pub admit: Vec<Vec<Evidence>>,
    /// The demands on a record.
    pub record: RecordDemand,
    /// The demands on a report.
    pub report: ReportDemand,
}

/// The evidence that a module file has.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a> {
    /// The trusted key that has signed the file, or the reason why there is none.
    pub signer: Result<&'a str, &'a str>,
    /// Its record.
    pub record: &'a Tally,
    /// The name of its operations, in the plural.
    pub operations: &'a str,
    /// Its report, or the reason why there is none that counts.
    pub report: Result<&'a Report, &'a str>,
    /// The word of a person: whether it was given, and whether this kernel takes it.
    pub force: Force,
    /// Seconds since 1970.
    pub now: u64,
}

/// The word of a person that a module may run in ring 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// It was not given.
    NotGiven,
    /// It was given.
    Given,
    /// This kernel takes none.
    NotTaken,
}

/// Why a module was admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admitted {
    /// The policy is for development.
    Development,
    /// By this evidence.
    By(Vec<Evidence>),
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Evidence::Signature => "its signature",
            Evidence::Record => "its record",
            Evidence::Report => "its report",
            Evidence::Force => "force",
        })
    }
}

fn in_minutes(count: u64) -> String {
    format!("{} minute{}", grouped(count), if count == 1 { "" } else { "s" })
}

/// Returns the names of pieces of evidence that are needed together, joined by "and".
fn together(evidence: &[Evidence]) -> String {
    evidence.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

impl fmt::Display for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admitted::Development => f.write_str("the policy is for development"),
            Admitted::By(evidence) => write!(f, "by {}", together(evidence)),
        }
    }
}

impl Policy {
    /// Returns the policy of a machine that has no other: for development.
    pub fn for_development() -> Policy {
        Policy { development: true, ..Policy::default() }
    }

    /// Returns a policy that admits nothing.
    pub fn nothing() -> Policy {
        Policy::default()
    }

    /// Reads a policy. The error names the line.
    pub fn parse(text: &str) -> Result<Policy, String> {
        if text.len() > MOST_BYTES {
            return Err(format!("a policy has at most {MOST_BYTES} bytes"));
        }
        let policy: Policy = toml::from_str(text).map_err(|error| in_words(text, &error))?;
        if policy.development && !policy.admit.is_empty() {
            return Err("'development' admits everything, so 'admit' would mean nothing: remove one of them".into());
        }
        if policy.admit.iter().any(Vec::is_empty) {
            return Err(
                "'admit' has an empty list, which would admit everything: 'development = true' says that".into()
            );
        }
        if policy.admit.len() > MOST_WAYS || policy.admit.iter().any(|way| way.len() > MOST_WAYS) {
            return Err(format!("'admit' has more than {MOST_WAYS} lists, or one that is longer"));
        }
        Ok(policy)
    }

    /// Decides about a module. The error names the missing evidence for each way.
    ///
    /// No evidence admits a module that faulted in ring 0, until a person forgives it or admits it
    /// by force.
    pub fn decide(&self, shown: &Shown) -> Result<Admitted, String> {
        if let Some(at) = shown.record.faulted_in_ring_0().filter(|_| shown.force != Force::Given) {
            return Err(format!("it faulted in ring 0 ({})", Date::of_unix(at)));
        }
        if self.development {
            return Ok(Admitted::Development);
        }
        let mut missing = Vec::new();
        for way in &self.admit {
            let lacks: Vec<String> = way.iter().filter_map(|evidence| self.lacks(*evidence, shown)).collect();
            if lacks.is_empty() {
                return Ok(Admitted::By(way.clone()));
            }
            missing.push(lacks.join(" and "));
        }
        if shown.force != Force::NotGiven && !self.admit.iter().flatten().any(|evidence| *evidence == Evidence::Force) {
            missing.push("the policy takes no --force".into());
        }
        Err(match self.admit.is_empty() {
            true => "the policy admits nothing to ring 0".into(),
            false => missing.join("; or "),
        })
    }

    /// Describes the missing part of a piece of evidence; `None` if nothing is missing.
    fn lacks(&self, evidence: Evidence, shown: &Shown) -> Option<String> {
        match evidence {
            Evidence::Signature => shown.signer.err().map(String::from),
            Evidence::Record => self.lacks_record(shown.record, shown.operations),
            Evidence::Report => match shown.report {
                Ok(report) => self.report.lacks(report, shown.now),
                Err(why) => Some(why.into()),
            },
            Evidence::Force => match shown.force {
                Force::Given => None,
                Force::NotGiven => Some("--force is not given".into()),
                Force::NotTaken => Some("this kernel is built without 'force'".into()),
            },
        }
    }

    fn lacks_record(&self, tally: &Tally, operations: &str) -> Option<String> {
        let (has, of) = (tally.operations, self.record.operations);
        let (minutes, of_minutes) = (tally.ms / 60_000, self.record.minutes);
        let mut lacks = Vec::new();
        if has < of {
            lacks.push(format!("{} of {} {operations}", grouped(has), grouped(of)));
        }
        if minutes < of_minutes {
            lacks.push(format!("{minutes} of {} in ring 1", in_minutes(of_minutes)));
        }
        let faults = record::faults_in_words(tally);
        (!lacks.is_empty()).then(|| format!("its record has {}{faults}", lacks.join(" and ")))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = format!("domains are {}, unless a module or a person prefers others", self.kind);
        if self.development {
            writeln!(f, "any module may run in ring 0 that has not faulted: this is for development")?;
            return writeln!(f, "{kind}");
        }
        if self.admit.is_empty() {
            writeln!(f, "no module may run in ring 0")?;
            return writeln!(f, "{kind}");
        }
        let ways: Vec<String> = self.admit.iter().map(|way| together(way)).collect();
        writeln!(f, "a module may run in ring 0 by {}", ways.join(", or by "))?;
        let asks_for = |evidence| self.admit.iter().flatten().any(|asked| *asked == evidence);
        if asks_for(Evidence::Record) {
            let RecordDemand { operations, minutes } = self.record;
            let (operations, minutes) = (grouped(operations), in_minutes(minutes));
            writeln!(f, "record    {operations} operations and {minutes} in ring 1 since its last fault")?;
        }
        if asks_for(Evidence::Report) {
            writeln!(f, "report    {}", self.report)?;
        }
        writeln!(f, "{kind}")
    }
}

/// Describes an error in a text in TOML, with its line if that is known.
pub(super) fn in_words(text: &str, error: &toml::de::Error) -> String {
    let what = error.message().replace('\n', " ");
    match error.span() {
        Some(span) => {
            let line = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
            format!("line {line}: {what}")
        }
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRICT: &str = "admit = [[\"signature\"], [\"record\", \"report\"], [\"force\"]]\n\
                          [record]\noperations = 1_000_000\nminutes = 60\n[report]\nchanges = 300\n";

    fn report() -> Report {
        let mut report = Report::default();
        report.campaign.changes = 300;
        report.campaign.kernel_intact = 300;
        report.campaign.restored = 300;
        report
    }

    fn shown<'a>(tally: &'a Tally, report: Result<&'a Report, &'a str>) -> Shown<'a> {
        Shown {
            signer: Err("it is not signed"),
            record: tally,
            operations: "frames",
            report,
            force: Force::NotGiven,
            now: 0,
        }
    }

    #[test]
    fn each_way_admits_and_what_is_missing_is_named() {
        let policy = Policy::parse(STRICT).unwrap();
        let good = Tally { operations: 1_000_000, ms: 3_600_000, ..Tally::default() };
        let poor =
            Tally { operations: 412_000, ms: 59 * 60_000, faults: 2, last_fault: 1_764_331_440, ..Tally::default() };
        let report = report();
        assert_eq!(
            policy.decide(&shown(&poor, Err("it has no report"))),
            Err("it is not signed; or its record has 412,000 of 1,000,000 frames and 59 of 60 minutes in ring 1 \
                 (2 faults, the last 2025-11-28 12:04) and it has no report; or --force is not given"
                .into())
        );
        let by = |evidence: &[Evidence]| Ok(Admitted::By(evidence.to_vec()));
        assert_eq!(policy.decide(&shown(&good, Ok(&report))), by(&[Evidence::Record, Evidence::Report]));
        assert!(policy.decide(&shown(&good, Err("it has no report"))).is_err());
        assert!(policy.decide(&shown(&poor, Ok(&report))).is_err());
        assert_eq!(policy.decide(&Shown { signer: Ok("boss"), ..shown(&poor, Err("")) }), by(&[Evidence::Signature]));
        assert_eq!(policy.decide(&Shown { force: Force::Given, ..shown(&poor, Err("")) }), by(&[Evidence::Force]));
        let not_taken = policy.decide(&Shown { force: Force::NotTaken, ..shown(&poor, Err("")) });
        assert!(not_taken.is_err_and(|why| why.ends_with("; or this kernel is built without 'force'")));
    }

    #[test]
    fn what_faulted_in_ring_0_stays_out_unless_it_is_forced() {
        let demoted = Tally { in_ring_0: 1_764_331_440, ..Tally::default() };
        for policy in [Policy::parse(STRICT).unwrap(), Policy::for_development()] {
            let shown = Shown { signer: Ok("boss"), ..shown(&demoted, Err("")) };
            assert_eq!(policy.decide(&shown), Err("it faulted in ring 0 (2025-11-28 12:04)".into()));
            assert!(policy.decide(&Shown { force: Force::Given, ..shown }).is_ok());
        }
        let policy = Policy::parse("admit = [[\"signature\"]]").unwrap();
        let forced = policy.decide(&Shown { force: Force::Given, ..shown(&Tally::default(), Err("")) });
        assert_eq!(forced, Err("it is not signed; or the policy takes no --force".into()));
    }

    #[test]
    fn development_admits_all_and_nothing_admits_none() {
        let tally = Tally::default();
        assert_eq!(Policy::for_development().decide(&shown(&tally, Err(""))), Ok(Admitted::Development));
        assert_eq!(Policy::parse("").unwrap(), Policy::nothing());
        let none =
            Policy::nothing().decide(&Shown { signer: Ok("boss"), force: Force::Given, ..shown(&tally, Err("")) });
        assert_eq!(none, Err("the policy admits nothing to ring 0".into()));
    }

    #[test]
    fn the_usual_kind_of_domain_is_paged() {
        let kind = |text: &str| Policy::parse(text).unwrap().kind;
        assert_eq!(kind(STRICT), DomainKind::Paged);
        assert_eq!(kind(&format!("kind = \"segmented\"\n{STRICT}")), DomainKind::Segmented);
        assert_eq!(Policy::for_development().kind, DomainKind::Paged);
        assert!(Policy::parse("kind = \"flat\"").unwrap_err().starts_with("line 1: unknown variant `flat`"));
    }

    #[test]
    fn what_is_wrong_with_a_policy_is_named_with_its_line() {
        let wrong = [
            ("admit = [[\"signature\"]]\nsign = 1", "line 2: unknown field `sign`"),
            ("admit = [[\"charm\"]]", "line 1: unknown variant `charm`"),
            ("admit = [[]]", "'admit' has an empty list"),
            ("development = true\nadmit = [[\"force\"]]", "'development' admits everything"),
            ("[record]\n\noperations = -1", "line 3: invalid value"),
            ("admit = [[\"record\"]", "line 1: "),
        ];
        for (text, expected) in wrong {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
        let long = format!("# {}", "x".repeat(MOST_BYTES));
        assert!(Policy::parse(&long).is_err());
        let deep = format!("admit = [{}", "[".repeat(MOST_BYTES / 2));
        assert!(Policy::parse(&deep).is_err());
    }
}
