//! The evidence about module files, and whether it is enough for ring 0 on this machine.
//! [`ringfence_core::evidence`] has the formats and the logic.
//!
//! The policy, the trusted keys and the machine's own key come from the ramdisk: a file from a disk
//! has gone through drivers, which must not decide about themselves. A policy on a disk is
//! therefore taken only in place of the one for development, which cannot be weakened, or if a
//! trusted key has signed it. Reports and records are signed, so they may come from anywhere.

use crate::file::{Content, File};
use crate::ramdisk;
use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::future::poll_fn;
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use hw::arch::rtc;
use ringfence_abi::manifest::DomainKind;
use ringfence_core::evidence::policy::{Admitted, Force, Policy, Shown};
use ringfence_core::evidence::record::{Chain, Damaged, Done, Tallies, Tally};
use ringfence_core::evidence::report::Report;
use ringfence_core::evidence::signed::{PublicKey, Purpose, SecretKey, Signed, Trusted, identity};
use ringfence_core::evidence::{Hash, hex, short};
use spin::{Lazy, Mutex};

/// The folder of this in the ramdisk.
const FOLDER: &str = "etc/";
/// The most trusted keys, and the most reports and records of other machines.
const MOST: usize = 64;
/// The most files whose identity is kept, so that it is not computed again.
const KEPT: usize = 32;
/// The most notes that wait to become lines of the record. From half of that on, the record's task
/// is woken.
const MOST_NOTES: usize = 64;

/// A report about a module file.
struct About {
    report: Report,
    /// The trusted key that has signed it, or the reason why there is none.
    signer: Result<String, String>,
}

/// The identity of a file, and the key that has signed it.
#[derive(Clone)]
struct Known {
    file: File,
    hash: Hash,
    signer: Result<String, String>,
}

struct State {
    policy: Policy,
    /// The usual kind of domain if the runner was told one: it has precedence over the policy's.
    kind: Option<DomainKind>,
    /// The source of the policy, for a person, and the error if the policy cannot be read.
    from: String,
    keys: Vec<Trusted>,
    /// Keys of machines, whose records count and nothing else.
    machines: Vec<Trusted>,
    machine: Option<Arc<SecretKey>>,
    reports: Vec<About>,
    chain: Chain,
    /// Whether the chain has lines that are not saved.
    is_unsaved: bool,
    /// The records of other machines, by their keys.
    others: Vec<(PublicKey, Tallies)>,
    known: VecDeque<Known>,
}

static STATE: Lazy<Mutex<State>> = Lazy::new(|| {
    Mutex::new(State {
        policy: Policy::for_development(),
        kind: None,
        from: "built in".into(),
        keys: Vec::new(),
        machines: Vec::new(),
        machine: None,
        reports: Vec::new(),
        chain: Chain::of_sums(),
        is_unsaved: false,
        others: Vec::new(),
        known: VecDeque::new(),
    })
});

fn with<T>(then: impl FnOnce(&mut State) -> T) -> T {
    then(&mut STATE.lock())
}

/// A note about a module file, which is not in the record yet: identifying the file takes longer
/// than a fault may, and a line for each look at the record would be too many.
#[derive(Clone)]
struct Note {
    file: File,
    at: u64,
    what: What,
}

#[derive(Clone, Copy)]
enum What {
    Served { operations: u64, ns: u64 },
    Fault(&'static str, u8),
    Forgiven,
}

impl What {
    fn done(self) -> Done<'static> {
        match self {
            What::Served { operations, ns } => Done::Served { operations, ms: ns / 1_000_000 },
            What::Fault(kind, ring) => Done::Fault(kind, ring),
            What::Forgiven => Done::Forgiven,
        }
    }
}

static NOTES: Mutex<Vec<Note>> = Mutex::new(Vec::new());
static ON_NOTE: AtomicWaker = AtomicWaker::new();

/// Notes that `file` has served in ring 1.
pub fn note_served(file: &File, operations: u64, ns: u64) {
    let mut notes = NOTES.lock();
    let last = notes.iter_mut().rev().find(|note| note.file.has_bytes_of(file));
    if let Some(Note { what: What::Served { operations: sum, ns: sum_ns }, at, .. }) = last {
        (*sum, *sum_ns) = (sum.saturating_add(operations), sum_ns.saturating_add(ns));
        *at = rtc::unix_seconds();
        return;
    }
    add(&mut notes, file, What::Served { operations, ns });
}

/// Notes that `file` was ended for a fault of this kind in this ring.
pub fn note_fault(file: &File, kind: &'static str, ring: u8) {
    let mut notes = NOTES.lock();
    // Its service before the fault does not count any more.
    notes.retain(|note| !(note.file.has_bytes_of(file) && matches!(note.what, What::Served { .. })));
    add(&mut notes, file, What::Fault(kind, ring));
    ON_NOTE.wake();
}

/// Notes that a person has forgiven the faults of `file`.
pub fn forgive(file: &File) {
    if record_of(file).faulted_in_ring_0().is_some() {
        add(&mut NOTES.lock(), file, What::Forgiven);
        ON_NOTE.wake();
    }
}

fn add(notes: &mut Vec<Note>, file: &File, what: What) {
    // A copy that a trial has changed is not worth a record, and there are thousands of them.
    if let Content::Changed(_) = file.bytes {
        return;
    }
    if notes.len() >= MOST_NOTES {
        // Notes of service can be left out: nothing is admitted for service that is not in its
        // record. A fault in ring 0 is left out last.
        let weight = |note: &Note| match note.what {
            What::Served { .. } => 0,
            What::Fault(_, 1) => 1,
            What::Fault(..) | What::Forgiven => 2,
        };
        let lightest = notes.iter().enumerate().min_by_key(|(_, note)| weight(note)).map(|(place, _)| place);
        lightest.map(|place| notes.remove(place));
    }
    notes.push(Note { file: file.clone(), at: rtc::unix_seconds(), what });
    if notes.len() > MOST_NOTES / 2 {
        ON_NOTE.wake();
    }
}

/// Waits until the record should be [saved](unsaved) at once: a fault was noted.
pub async fn urgent() {
    poll_fn(|context| {
        ON_NOTE.register(context.waker());
        let notes = NOTES.lock();
        let is_urgent = notes.iter().any(|note| !matches!(note.what, What::Served { .. }));
        if is_urgent || notes.len() > MOST_NOTES / 2 { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

impl State {
    /// Returns the hash of a file, and the trusted key that has signed it.
    fn known(&mut self, file: &File) -> Known {
        if let Some(known) = self.known.iter().find(|known| known.file.has_bytes_of(file)) {
            return known.clone();
        }
        let signer = match Signed::parse(&file.bytes) {
            Ok(signed) => signed.signer(Purpose::Module, &self.keys).map(|key| key.name.clone()),
            Err(why) => Err(why),
        };
        let signer = signer.map_err(|why| why.to_string());
        let known = Known { file: file.clone(), hash: identity(&file.bytes), signer };
        if self.known.len() == KEPT {
            self.known.pop_front();
        }
        self.known.push_back(known.clone());
        known
    }

    /// Puts all notes into the record.
    fn settle(&mut self) {
        let notes = core::mem::take(&mut *NOTES.lock());
        for Note { file, at, what } in notes {
            let known = self.known(&file);
            self.chain.add(at, &known.hash, &file.name, what.done());
            self.is_unsaved = true;
        }
        // Builds that nobody has any more are forgotten.
        self.known.retain(|known| known.file.is_shared());
    }

    /// Returns the record of a file: this machine's, and that of machines whose keys are trusted.
    fn record(&mut self, of: &Hash) -> Tally {
        let mut tally = self.chain.of(of);
        let notes = NOTES.lock().clone();
        let own = notes.iter().filter(|note| self.known(&note.file).hash == *of);
        own.for_each(|note| tally.add(note.what.done(), note.at));
        self.others.iter().filter_map(|(_, tallies)| tallies.get(of)).for_each(|other| tally.join(other));
        tally
    }

    /// Returns the report about a file that counts, or the reason why there is none.
    fn report(&self, name: &str, of: &Hash) -> Result<&About, String> {
        let own = self.reports.iter().filter(|about| about.report.of() == Some(*of));
        if let Some(about) = own.max_by_key(|about| (about.signer.is_ok(), about.report.made.at)) {
            return Ok(about);
        }
        match self.reports.iter().find(|about| about.report.module.name == name) {
            Some(about) => {
                let other = about.report.of().map_or_else(String::new, |hash| short(&hash));
                Err(format!("its report is for another file ({other}, not {})", short(of)))
            }
            None => Err("it has no report".into()),
        }
    }
}

/// Decides whether `file` may run in ring 0. `operations` is the name of its operations, in the
/// plural.
pub fn decide(file: &File, operations: &str, force: Force) -> Result<Admitted, String> {
    with(|state| {
        // Nothing depends on the file then, and a file is not identified in vain.
        let has_none = state.chain.tallies().is_empty() && state.others.is_empty() && NOTES.lock().is_empty();
        if state.policy.development && has_none {
            return Ok(Admitted::Development);
        }
        let known = state.known(file);
        let record = state.record(&known.hash);
        let report = state.report(&file.name, &known.hash).and_then(|about| match &about.signer {
            Ok(_) => Ok(&about.report),
            Err(why) => Err(format!("its report does not count: {why}")),
        });
        state.policy.decide(&Shown {
            signer: known.signer.as_deref().map_err(String::as_str),
            record: &record,
            operations,
            report: report.as_ref().copied().map_err(String::as_str),
            force,
            now: rtc::unix_seconds(),
        })
    })
}

/// Returns whether everything may run in ring 0 that has not faulted.
pub fn is_for_development() -> bool {
    with(|state| state.policy.development)
}

/// Returns the kind of domain for modules that prefer none.
pub fn usual_kind() -> DomainKind {
    with(|state| state.kind.unwrap_or(state.policy.kind))
}

/// Returns the record of a file.
pub fn record_of(file: &File) -> Tally {
    with(|state| {
        let known = state.known(file);
        state.record(&known.hash)
    })
}

/// The hash, the signer and the report of a file, in words.
#[derive(Debug, Clone)]
pub struct InWords {
    /// The hash of its content without signatures.
    pub hash: String,
    /// Its signer, or the reason why none is trusted.
    pub signed: String,
    /// Its report, in lines.
    pub report: Vec<String>,
}

/// Returns the evidence for `file` besides its record, in words.
pub fn in_words(file: &File) -> InWords {
    with(|state| {
        let known = state.known(file);
        let report = match state.report(&file.name, &known.hash) {
            Ok(About { report, signer }) => {
                let signer = match signer {
                    Ok(name) => format!("by {name}"),
                    Err(why) => format!("does not count: {why}"),
                };
                let date = ringfence_core::date::Date::of_unix(report.made.at);
                [format!("{date}, {signer}"), report.to_string()].into()
            }
            Err(why) => [why].into(),
        };
        let signed = match known.signer {
            Ok(name) => format!("by {name}, whose key is trusted"),
            Err(why) => why,
        };
        InWords { hash: hex(&known.hash), signed, report }
    })
}

/// Returns the policy, the trusted keys, and the number of reports and records of other machines,
/// in lines.
pub fn policy_in_words() -> Vec<String> {
    with(|state| {
        let mut lines = [format!("policy    {}", state.from)].to_vec();
        let policy = Policy { kind: state.kind.unwrap_or(state.policy.kind), ..state.policy.clone() };
        lines.extend(policy.to_string().lines().map(|line| match line.split_once("    ") {
            Some(_) => line.to_string(),
            None => format!("          {line}"),
        }));
        if state.kind.is_some() {
            lines.push("          --kind has chosen that, in the policy's place".into());
        }
        let trusts =
            |key: &Trusted, what| format!("trusts    {}, ed25519 key {}{what}", key.name, short(key.key.bytes()));
        lines.extend(state.keys.iter().map(|key| trusts(key, "")));
        lines.extend(state.machines.iter().map(|key| trusts(key, ", for records")));
        lines.push(match &state.machine {
            Some(key) => format!("machine   signs its records with ed25519 key {}", short(key.public().bytes())),
            None => "machine   has no key: records are kept until it ends".into(),
        });
        let (reports, others) = (state.reports.len(), state.others.len());
        if reports + others > 0 {
            lines.push(format!("evidence  reports: {reports}, records of other machines: {others}"));
        }
        lines
    })
}

/// Reads the policy, the keys, the reports and the records in the ramdisk. Logs the errors in them.
/// With a policy that cannot be read, nothing runs in ring 0.
pub fn init() {
    let files = || ramdisk::files().filter_map(|(name, bytes)| Some((name.strip_prefix(FOLDER)?, bytes)));
    let within = |folder: &'static str, ending: &'static str| {
        files().filter_map(move |(name, bytes)| Some((name.strip_prefix(folder)?.strip_suffix(ending)?, bytes)))
    };
    let text = |bytes: &'static [u8]| core::str::from_utf8(bytes).unwrap_or_default();
    let read_keys = |folder| {
        let read = |(name, bytes): (&str, _)| match PublicKey::parse(text(bytes)) {
            Ok(key) => Some(Trusted { name: name.to_string(), key }),
            Err(why) => {
                log::warn!("key {name} is not trusted: {why}");
                None
            }
        };
        within(folder, ".pub").filter_map(read).take(MOST).collect::<Vec<Trusted>>()
    };
    let (keys, machines) = (read_keys("keys/"), read_keys("machines/"));
    let mut options = ramdisk::text("options").unwrap_or("").lines();
    let kind = options.find_map(|option| DomainKind::named(option.strip_prefix("kind ")?));
    with(|state| (state.keys, state.machines, state.kind) = (keys, machines, kind));
    for (name, bytes) in files() {
        match name {
            "machine.key" => match SecretKey::parse(text(bytes)) {
                Ok(key) => with(|state| {
                    state.machine = Some(Arc::new(key));
                    state.chain = Chain::default();
                }),
                Err(why) => log::warn!("the machine's key: {why}"),
            },
            "policy.toml" => {
                let policy = read_policy(bytes).unwrap_or_else(|why| {
                    log::error!("nothing runs in ring 0: policy.toml: {why}");
                    (Policy::nothing(), format!("of the ramdisk, which cannot be read: {why}"))
                });
                with(|state| (state.policy, state.from) = policy);
            }
            _ => {}
        }
    }
    for (name, bytes) in within("reports/", ".report") {
        add_report(bytes).unwrap_or_else(|why| log::warn!("report {name}: {why}"));
    }
    for (name, bytes) in within("records/", ".record") {
        add_record(bytes).unwrap_or_else(|why| log::warn!("record {name}: {why}"));
    }
}

fn read_policy(bytes: &[u8]) -> Result<(Policy, String), String> {
    let signed = Signed::parse(bytes).map_err(|why| why.to_string())?;
    let text = core::str::from_utf8(signed.content).map_err(|_| "it is no text".to_string())?;
    Ok((Policy::parse(text)?, "of the ramdisk".into()))
}

/// Takes a policy that came from a file on a disk, if it may be taken. If it cannot be read,
/// nothing runs in ring 0 where the policy was for development before.
pub fn set_policy_of_disk(path: &str, content: Result<Vec<u8>, String>) -> Result<(), String> {
    let read = content.and_then(|bytes| Ok((read_policy(&bytes)?.0, bytes)));
    with(|state| {
        if state.policy.development {
            state.from = match &read {
                Ok(_) => format!("of {path}"),
                Err(why) => format!("of {path}, which cannot be read: {why}"),
            };
            let (policy, why) = match read {
                Ok((policy, _)) => (policy, Ok(())),
                Err(why) => (Policy::nothing(), Err(format!("nothing runs in ring 0: {why}"))),
            };
            state.policy = policy;
            return why;
        }
        let (policy, bytes) = read?;
        let signed = Signed::parse(&bytes).and_then(|signed| signed.signer(Purpose::Policy, &state.keys).cloned());
        signed.map_err(|why| {
            format!("only a policy that a trusted key has signed takes the place of the ramdisk's: {why}")
        })?;
        if policy.development {
            return Err("a policy for development does not take the place of the ramdisk's".into());
        }
        state.policy = policy;
        state.from = format!("of {path}");
        Ok(())
    })
}

/// Adds a report. It counts if a trusted key has signed it.
pub fn add_report(bytes: &[u8]) -> Result<(), String> {
    let signed = Signed::parse(bytes).map_err(|why| why.to_string())?;
    let text = core::str::from_utf8(signed.content).map_err(|_| "it is no text".to_string())?;
    let report = Report::parse(text)?;
    with(|state| {
        if state.reports.len() >= MOST {
            return Err(format!("there are {MOST} reports already"));
        }
        let signer = signed.signer(Purpose::Report, &state.keys).map(|key| key.name.clone());
        state.reports.push(About { report, signer: signer.map_err(|why| why.to_string()) });
        Ok(())
    })
}

/// Adds the record of another machine, which a trusted key must have signed.
pub fn add_record(bytes: &[u8]) -> Result<(), String> {
    with(|state| {
        if state.others.len() >= MOST {
            return Err(format!("there are {MOST} records already"));
        }
        let trusted: Vec<Trusted> = state.keys.iter().chain(&state.machines).cloned().collect();
        let (chain, signer) = Chain::parse(bytes, &trusted).map_err(|why| format!("it does not count: {why}"))?;
        if state.machine.as_ref().is_some_and(|machine| machine.public() == signer.key) {
            return Err("it is this machine's own, which belongs on the disk at /etc".into());
        }
        // Of several records of a machine, the newest counts.
        let newest = |tallies: &Tallies| tallies.values().map(|tally| tally.last).max();
        let fresh = chain.tallies().clone();
        match state.others.iter_mut().find(|(other, _)| *other == signer.key) {
            Some((_, tallies)) if newest(tallies) >= newest(&fresh) => {}
            Some((_, tallies)) => *tallies = fresh,
            None => state.others.push((signer.key, fresh)),
        }
        Ok(())
    })
}

/// Goes on with the record that this machine has saved. The notes since the machine started are
/// added, as they are not settled before. Returns the number of module files in the record.
pub fn restore(bytes: &[u8]) -> Result<usize, Damaged> {
    with(|state| {
        let own = state.machine.as_ref().map(|key| Trusted { name: "this machine".into(), key: key.public() });
        let trusted: Vec<Trusted> = own.into_iter().collect();
        let (chain, _) = Chain::parse(bytes, &trusted)?;
        let count = chain.tallies().len();
        state.chain = chain;
        Ok(count)
    })
}

/// Puts all notes into the record.
pub fn settle() {
    with(State::settle);
}

/// Returns the signed record if it has changed since [`saved`] was called, and this machine has a
/// key.
pub fn unsaved() -> Option<Vec<u8>> {
    with(|state| {
        state.settle();
        let key = state.machine.clone().filter(|_| state.is_unsaved)?;
        Some(state.chain.signed(&key))
    })
}

/// Returns whether this machine has a key, and so can sign a record.
pub fn can_sign() -> bool {
    with(|state| state.machine.is_some())
}

/// Marks the record returned by [`unsaved`] as written.
pub fn saved() {
    with(|state| state.is_unsaved = false);
}
