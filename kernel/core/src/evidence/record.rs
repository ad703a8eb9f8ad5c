//! The service of modules in ring 1 of a machine, and their faults: a chain of lines, which the
//! machine signs.
//!
//! ```text
//! ringfence-record 1
//! 1764331440 SHA256 e1000 served 412000 31000 LINK
//! 1764331471 SHA256 e1000 fault page-fault 1 LINK
//! # ringfence-signature KEY SIGNATURE
//! ```
//!
//! A line has the seconds since 1970, the hash of the module's file, the module's name, an event,
//! and a link: the SHA-256 of the link before and of the line up to its own link. So no line can be
//! changed, left out or put in without all links behind it, and the signature covers the last link.
//! The event is one of
//!
//! * `served OPERATIONS MILLISECONDS`: the module served in ring 1, since the line before about it;
//! * `fault KIND RING`: the kernel ended it for a fault. Its record begins anew;
//! * `forgiven`: a person forgave its faults in ring 0;
//! * `sum OPERATIONS MILLISECONDS FAULTS LAST-FAULT LAST-IN-RING-0 FORGIVEN`: the record up to
//!   here, with times in seconds since 1970: a long chain is summed up in a new one, whose first
//!   line has the last link of the old one.

use super::signed::{Purpose, SecretKey, Signed, Trusted, Unsigned, sign};
use super::{Hash, from_hex, hash, hex};
use crate::date::Date;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// The first line.
const FIRST: &str = "ringfence-record 1";
/// The most bytes of a record's file.
pub const MOST_BYTES: usize = 128 << 10;
/// The length from which a chain is summed up.
const LONG_BYTES: usize = 48 << 10;
/// The most module files in a record. The file with the oldest last line is forgotten for a new
/// file.
const MOST_MODULES: usize = 128;

/// The sum of a module file's record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally {
    /// The module's name.
    pub name: String,
    /// Operations in ring 1 since the last fault.
    pub operations: u64,
    /// Milliseconds in ring 1 since the last fault.
    pub ms: u64,
    /// Faults.
    pub faults: u64,
    /// The time of the last fault, in seconds since 1970.
    pub last_fault: u64,
    /// The time of the last fault in ring 0, in seconds since 1970; 0 if there was none.
    pub in_ring_0: u64,
    /// The time at which a person forgave the faults in ring 0, likewise.
    pub forgiven: u64,
    /// The time of the last line about it, in seconds since 1970.
    pub last: u64,
}

/// The sums of the records of module files, by the hashes of the files.
pub type Tallies = BTreeMap<Hash, Tally>;

/// An event in the record of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done<'a> {
    /// It served in ring 1.
    Served {
        /// Operations.
        operations: u64,
        /// Milliseconds.
        ms: u64,
    },
    /// It was ended for a fault of this kind in this ring.
    Fault(&'a str, u8),
    /// A person forgave its faults in ring 0.
    Forgiven,
}

impl Tally {
    /// Adds an event at a time.
    pub fn add(&mut self, done: Done, at: u64) {
        self.last = self.last.max(at);
        match done {
            Done::Served { operations, ms } => {
                self.operations = self.operations.saturating_add(operations);
                self.ms = self.ms.saturating_add(ms);
            }
            Done::Fault(_, ring) => {
                (self.operations, self.ms) = (0, 0);
                self.faults = self.faults.saturating_add(1);
                self.last_fault = self.last_fault.max(at);
                // A clock may go back, and an event that comes later counts as later all the same.
                if ring == 0 {
                    self.in_ring_0 = at.max(self.in_ring_0).max(self.forgiven.saturating_add(1));
                }
            }
            Done::Forgiven => self.forgiven = at.max(self.in_ring_0),
        }
    }

    /// Returns when the module faulted in ring 0, in seconds since 1970, unless a person forgave
    /// it.
    pub fn faulted_in_ring_0(&self) -> Option<u64> {
        (self.in_ring_0 > self.forgiven).then_some(self.in_ring_0)
    }

    /// Adds the record of another machine. The operations and the time of one record count only if
    /// its last line is later than the other's last fault. A fault in ring 0 that was not forgiven
    /// there counts here as well, unless faults were forgiven here since.
    pub fn join(&mut self, other: &Tally) {
        if self.last <= other.last_fault {
            (self.operations, self.ms) = (0, 0);
        }
        if other.last > self.last_fault {
            self.operations = self.operations.saturating_add(other.operations);
            self.ms = self.ms.saturating_add(other.ms);
        }
        self.faults = self.faults.saturating_add(other.faults);
        self.last_fault = self.last_fault.max(other.last_fault);
        if let Some(at) = other.faulted_in_ring_0().filter(|at| *at > self.forgiven) {
            self.in_ring_0 = self.in_ring_0.max(at);
        }
        self.last = self.last.max(other.last);
    }
}

/// Writes the faults of a record, with a space before, if there are any.
pub fn faults_in_words(tally: &Tally) -> String {
    let last = Date::of_unix(tally.last_fault);
    match tally.faults {
        0 => String::new(),
        1 => format!(" (1 fault, {last})"),
        faults => format!(" ({faults} faults, the last {last})"),
    }
}

/// A record that goes on.
#[derive(Debug, Clone)]
pub struct Chain {
    /// Whether it has lines, and not only sums.
    has_text: bool,
    text: String,
    link: Hash,
    tallies: Tallies,
}

/// The reason why a record is not believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Damaged {
    /// It is longer than [`MOST_BYTES`].
    TooLong,
    /// It is no text, or has another first line.
    NoRecord,
    /// This line, counted from 1, is none of a record.
    Line(usize),
    /// The link of this line does not follow from the lines before.
    Link(usize),
    /// It has more than [`MOST_MODULES`] module files.
    TooMany,
    /// Its signature.
    Signature(Unsigned),
}

impl fmt::Display for Damaged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Damaged::TooLong => write!(f, "it has more than {MOST_BYTES} bytes"),
            Damaged::NoRecord => f.write_str("it is no record"),
            Damaged::Line(number) => write!(f, "line {number} is none of a record"),
            Damaged::Link(number) => write!(f, "the chain is broken at line {number}: a line was changed"),
            Damaged::TooMany => write!(f, "it has more than {MOST_MODULES} module files"),
            Damaged::Signature(why) => write!(f, "{why}"),
        }
    }
}

fn link(before: &Hash, line: &str) -> Hash {
    hash(format!("{} {line}", hex(before)).as_bytes())
}

/// Returns a text as a word: without spaces, and not empty.
fn word(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_graphic();
    let word: String = text.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    if word.is_empty() { "-".into() } else { word }
}

impl Default for Chain {
    fn default() -> Chain {
        Chain { has_text: true, ..Chain::of_sums() }
    }
}

impl Chain {
    /// Makes a record without lines, which nobody will sign.
    pub fn of_sums() -> Chain {
        let (text, link) = (format!("{FIRST}\n"), hash(FIRST.as_bytes()));
        Chain { has_text: false, text, link, tallies: Tallies::new() }
    }

    /// Returns the sums of the records of all module files.
    pub fn tallies(&self) -> &Tallies {
        &self.tallies
    }

    /// Returns the record of a module file.
    pub fn of(&self, file: &Hash) -> Tally {
        self.tallies.get(file).cloned().unwrap_or_default()
    }

    /// Adds an event of the module `name`, whose file has the hash `file`. The event was, or ended,
    /// at `at` (seconds since 1970).
    pub fn add(&mut self, at: u64, file: &Hash, name: &str, done: Done) {
        let name = word(name);
        let what = match done {
            Done::Served { operations, ms } => format!("served {operations} {ms}"),
            Done::Fault(kind, ring) => format!("fault {} {ring}", word(kind)),
            Done::Forgiven => "forgiven".into(),
        };
        if !self.tallies.contains_key(file) && self.tallies.len() >= MOST_MODULES {
            // Files that must not run in ring 0 are forgotten last.
            let age = |(_, tally): &(&Hash, &Tally)| (tally.faulted_in_ring_0().is_some(), tally.last);
            let oldest = self.tallies.iter().min_by_key(age).map(|(file, _)| *file);
            oldest.and_then(|oldest| self.tallies.remove(&oldest));
            if self.has_text {
                self.sum_up(at);
            }
        }
        if self.has_text {
            self.line(&format!("{at} {} {name} {what}", hex(file)));
        }
        let tally = self.tallies.entry(*file).or_default();
        tally.name = name;
        tally.add(done, at);
        if self.text.len() > LONG_BYTES {
            self.sum_up(at);
        }
    }

    fn line(&mut self, line: &str) {
        self.link = link(&self.link, line);
        self.text += &format!("{line} {}\n", hex(&self.link));
    }

    /// Begins a new chain, which has the sums of this one and follows its last link.
    fn sum_up(&mut self, at: u64) {
        let before = hex(&self.link);
        self.text = format!("{FIRST} {before}\n");
        let line = |(file, tally): (&Hash, &Tally)| {
            let Tally { name, operations, ms, faults, last_fault, in_ring_0, forgiven, last } = tally;
            let (at, file) = ((*last).min(at), hex(file));
            format!("{at} {file} {name} sum {operations} {ms} {faults} {last_fault} {in_ring_0} {forgiven}")
        };
        let lines: Vec<String> = self.tallies.iter().map(line).collect();
        self.link = hash(format!("{FIRST} {before}").as_bytes());
        lines.iter().for_each(|line| self.line(line));
    }

    /// Returns the file, signed by the machine's key.
    pub fn signed(&self, key: &SecretKey) -> Vec<u8> {
        // A text without signatures can always be signed.
        sign(self.text.as_bytes(), Purpose::Record, key).unwrap_or_default()
    }

    /// Reads a record that one of `trusted` has signed. Returns also that key.
    pub fn parse<'t>(file: &[u8], trusted: &'t [Trusted]) -> Result<(Chain, &'t Trusted), Damaged> {
        if file.len() > MOST_BYTES {
            return Err(Damaged::TooLong);
        }
        let signed = Signed::parse(file).map_err(Damaged::Signature)?;
        // The chain first: it says which line was changed.
        let chain = Chain::read(signed.content)?;
        let signer = signed.signer(Purpose::Record, trusted).map_err(Damaged::Signature)?;
        Ok((chain, signer))
    }

    fn read(content: &[u8]) -> Result<Chain, Damaged> {
        let text = core::str::from_utf8(content).map_err(|_| Damaged::NoRecord)?;
        let mut lines = text.strip_suffix('\n').ok_or(Damaged::NoRecord)?.split('\n');
        let first = lines.next().filter(|first| first.starts_with(FIRST)).ok_or(Damaged::NoRecord)?;
        let mut chain = Chain { text: text.to_string(), link: hash(first.as_bytes()), ..Chain::default() };
        for (line, number) in lines.zip(2..) {
            let (line, own) = line.rsplit_once(' ').ok_or(Damaged::Line(number))?;
            chain.link = link(&chain.link, line);
            if from_hex(own) != Some(chain.link) {
                return Err(Damaged::Link(number));
            }
            chain.take(line).ok_or(Damaged::Line(number))?;
            if chain.tallies.len() > MOST_MODULES {
                return Err(Damaged::TooMany);
            }
        }
        Ok(chain)
    }

    /// Adds a line that was read.
    fn take(&mut self, line: &str) -> Option<()> {
        let words: Vec<&str> = line.split(' ').collect();
        let [at, file, name, what @ ..] = words.as_slice() else { return None };
        let (at, file) = (at.parse().ok()?, from_hex(file)?);
        let tally = self.tallies.entry(file).or_default();
        tally.name = name.to_string();
        match what {
            ["served", operations, ms] => {
                tally.add(Done::Served { operations: operations.parse().ok()?, ms: ms.parse().ok()? }, at);
            }
            ["fault", kind, ring] => tally.add(Done::Fault(kind, ring.parse().ok()?), at),
            ["forgiven"] => tally.add(Done::Forgiven, at),
            ["sum", numbers @ ..] => {
                let numbers: Vec<u64> = numbers.iter().map_while(|number| number.parse().ok()).collect();
                let [operations, ms, faults, last_fault, in_ring_0, forgiven] = numbers.try_into().ok()?;
                let name = name.to_string();
                *tally = Tally { name, operations, ms, faults, last_fault, in_ring_0, forgiven, last: at };
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key() -> SecretKey {
        SecretKey::from_seed([5; 32])
    }

    fn trusted() -> [Trusted; 1] {
        [Trusted { name: "machine".into(), key: key().public() }]
    }

    fn chain() -> Chain {
        let mut chain = Chain::default();
        chain.add(10, &[1; 32], "e1000", Done::Served { operations: 100, ms: 1000 });
        chain.add(20, &[1; 32], "e1000", Done::Fault("page fault", 1));
        chain.add(30, &[1; 32], "e1000", Done::Served { operations: 7, ms: 70 });
        chain.add(40, &[2; 32], "fat", Done::Served { operations: 1, ms: 5 });
        chain
    }

    #[test]
    fn a_record_comes_back_and_counts_since_the_last_fault() {
        let (read, by) =
            Chain::parse(&chain().signed(&key()), &trusted()).map(|(read, by)| (read, by.name.clone())).unwrap();
        assert_eq!(by, "machine");
        assert_eq!(read.tallies(), chain().tallies());
        let expected = Tally {
            name: "e1000".into(),
            operations: 7,
            ms: 70,
            faults: 1,
            last_fault: 20,
            last: 30,
            ..Tally::default()
        };
        assert_eq!(read.of(&[1; 32]), expected);
        // It goes on as the one before would.
        let (mut read, mut other) = (read, chain());
        for chain in [&mut read, &mut other] {
            chain.add(50, &[3; 32], "", Done::Served { operations: 1, ms: 1 });
        }
        assert_eq!(read.signed(&key()), other.signed(&key()));
    }

    #[test]
    fn what_was_done_to_a_record_is_named() {
        let file = chain().signed(&key());
        let text = core::str::from_utf8(&file).unwrap();
        let with = |from: &str, to: &str| text.replacen(from, to, 1).into_bytes();
        let parse = |file: &[u8]| Chain::parse(file, &trusted()).map(drop);
        assert_eq!(parse(&with("served 100 ", "served 900 ")), Err(Damaged::Link(2)));
        let third = text.lines().nth(2).unwrap();
        assert_eq!(parse(&with(&format!("{third}\n"), "")), Err(Damaged::Link(3)));
        // The last lines can be cut off, but the signature does not fit the lines that are left.
        let fifth = text.lines().nth(4).unwrap();
        let cut = Err(Damaged::Signature(Unsigned::Wrong(key().public())));
        assert_eq!(parse(&with(&format!("{fifth}\n"), "")), cut);
        assert_eq!(parse(&with("# ringfence-signature", "# ringfence-sign")), Err(Damaged::Link(6)));
        assert_eq!(Chain::parse(&file, &[]).map(drop), Err(Damaged::Signature(Unsigned::NotTrusted(key().public()))));
        let unsigned = chain().text;
        assert_eq!(parse(unsigned.as_bytes()), Err(Damaged::Signature(Unsigned::None)));
        assert_eq!(parse(b"development = true\n"), Err(Damaged::NoRecord));
        assert_eq!(parse(&[b'#'; MOST_BYTES + 1]), Err(Damaged::TooLong));
    }

    #[test]
    fn a_long_record_is_summed_up_and_nothing_is_lost() {
        let mut chain = Chain::default();
        for number in 0..2000u64 {
            let file = [(number % 7) as u8; 32];
            chain.add(number, &file, "module", Done::Served { operations: 3, ms: 2 });
            if number == 1000 {
                chain.add(number, &file, "module", Done::Fault("killed", 0));
            }
        }
        assert!(chain.text.len() <= LONG_BYTES);
        let (read, _) = Chain::parse(&chain.signed(&key()), &trusted()).unwrap();
        assert_eq!(read.tallies(), chain.tallies());
        let sum: u64 = read.tallies().values().map(|tally| tally.operations).sum();
        let lost = (0..=1000u64).filter(|number| number % 7 == 1000 % 7).count() as u64;
        assert_eq!(sum, 3 * (2000 - lost));
        assert_eq!(read.tallies().values().map(|tally| tally.faults).sum::<u64>(), 1);
    }

    #[test]
    fn the_module_that_served_longest_ago_is_forgotten() {
        let mut chain = Chain::default();
        for number in 0..MOST_MODULES as u64 + 1 {
            let mut file = [0; 32];
            file[..8].copy_from_slice(&number.to_le_bytes());
            chain.add(number, &file, "module", Done::Served { operations: 1, ms: 1 });
        }
        assert_eq!(chain.tallies().len(), MOST_MODULES);
        assert!(!chain.tallies().contains_key(&[0; 32]));
        assert!(Chain::parse(&chain.signed(&key()), &trusted()).is_ok());
    }

    #[test]
    fn a_fault_in_ring_0_counts_until_it_is_forgiven() {
        let mut chain = chain();
        assert_eq!(chain.of(&[1; 32]).faulted_in_ring_0(), None);
        chain.add(50, &[1; 32], "e1000", Done::Fault("#GP", 0));
        assert_eq!(chain.of(&[1; 32]).faulted_in_ring_0(), Some(50));
        chain.add(60, &[1; 32], "e1000", Done::Forgiven);
        assert_eq!(chain.of(&[1; 32]).faulted_in_ring_0(), None);
        let (read, _) = Chain::parse(&chain.signed(&key()), &trusted()).map(|(read, _)| (read, ())).unwrap();
        assert_eq!(read.tallies(), chain.tallies());
        chain.add(70, &[1; 32], "e1000", Done::Fault("#GP", 0));
        assert_eq!(chain.of(&[1; 32]).faulted_in_ring_0(), Some(70));
        // Also if the clock goes back, or stands.
        for at in [70, 5] {
            chain.add(at, &[1; 32], "e1000", Done::Forgiven);
            assert_eq!(chain.of(&[1; 32]).faulted_in_ring_0(), None);
            chain.add(at, &[1; 32], "e1000", Done::Fault("#GP", 0));
            assert!(chain.of(&[1; 32]).faulted_in_ring_0().is_some());
        }
    }

    #[test]
    fn records_of_machines_are_joined() {
        let one = Tally { operations: 5, ms: 6, faults: 1, last_fault: 9, last: 20, ..Tally::default() };
        let joined = |other: Tally| {
            let mut tally = one.clone();
            tally.join(&other);
            (tally.operations, tally.ms, tally.faults, tally.last_fault)
        };
        let other = Tally { operations: 1, ms: 1, faults: 2, last_fault: 3, last: 10, ..Tally::default() };
        assert_eq!(joined(other.clone()), (6, 7, 3, 9));
        // All of the other is from before the fault here, and the other way round.
        assert_eq!(joined(Tally { last: 9, ..other.clone() }), (5, 6, 3, 9));
        assert_eq!(joined(Tally { last_fault: 20, last: 30, ..other.clone() }), (1, 1, 3, 20));
        // Forgiven there is not forgiven here.
        let mut here = Tally { in_ring_0: 10, ..Tally::default() };
        here.join(&Tally { in_ring_0: 12, forgiven: 12, ..other.clone() });
        assert_eq!(here.faulted_in_ring_0(), Some(10));
        here.join(&Tally { in_ring_0: 15, ..other });
        assert_eq!(here.faulted_in_ring_0(), Some(15));
        here.add(Done::Forgiven, 15);
        assert_eq!(here.faulted_in_ring_0(), None);
    }

    proptest! {
        #[test]
        fn a_changed_byte_is_found(at in any::<prop::sample::Index>(), by in 1u8..) {
            let mut file = chain().signed(&key());
            let at = at.index(file.len());
            file[at] ^= by;
            let trusted = trusted();
            let read = Chain::parse(&file, &trusted);
            // Hexadecimal digits may change their case in the signature, which changes nothing.
            prop_assert!(read.is_err() || read.is_ok_and(|(read, _)| read.tallies() == chain().tallies()));
        }

        #[test]
        fn nothing_read_panics(lines in prop::collection::vec("[0-9a-f servdumflt-]{0,100}", 0..6)) {
            let mut chain = Chain::default();
            lines.iter().for_each(|line| chain.line(line));
            let _ = Chain::parse(&chain.signed(&key()), &trusted());
        }
    }
}
