//! The attacks and what must come of each: the tables behind the tests, and behind
//! `docs/attacks.md`; and the two boots in which all of them run.
//!
//! * [`rogue`]: on the CPU and on memory
//! * [`lies`]: on services and queues, by drivers of a network card, of a SCSI adapter and of a
//!   channel for disks
//! * [`fence`]: on memory and on others, by devices
//! * [`page`]: the document

pub mod fence;
pub mod lies;
pub mod page;
pub mod rogue;

use crate::{HEALTH, TIME_LIMIT, assert_unharmed, boot, machine};
use ringfence::machine::End;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Something that a module is told to do, and what must come of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attack {
    /// The module, which is loaded for this and unloaded afterwards.
    pub module: &'static str,
    /// What it is told.
    pub tell: String,
    /// How often.
    pub times: usize,
    /// The command that the shell does that under: `trace`, say.
    pub under: &'static str,
    /// A module that is loaded beside it meanwhile; empty if there is none.
    pub beside: &'static str,
    /// Commands that bring to light what came of it, if it does not show at once.
    pub then: String,
    /// What must come of it.
    pub expected: Expected,
    /// The instruction at which it must end, in words; empty if that is not asked for.
    pub instruction: &'static str,
}

/// What must come of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Its driver is ended, and the first two lines of the report have this in them; `@` is the
    /// address of the part of the kernel that the attack names, `*` what is another address with
    /// each build.
    Fault(String),
    /// The driver answers this each time, or anything, and goes on.
    Answer(Option<u64>),
    /// Lines with these ends are said, in this order.
    Lines(Vec<String>),
}

impl Attack {
    fn new(module: &'static str, tell: impl Into<String>, expected: Expected) -> Attack {
        Attack {
            module,
            tell: tell.into(),
            times: 1,
            under: "",
            beside: "",
            then: String::new(),
            expected,
            instruction: "",
        }
    }

    /// An attack by `module` that is to end with a fault.
    pub fn fault(module: &'static str, tell: impl Into<String>, fault: impl Into<String>) -> Attack {
        Attack::new(module, tell, Expected::Fault(fault.into()))
    }

    /// An attempt by `module` of something that does no harm.
    pub fn answer(module: &'static str, tell: impl Into<String>, answer: Option<u64>) -> Attack {
        Attack::new(module, tell, Expected::Answer(answer))
    }

    /// The same beside another module.
    pub fn beside(mut self, module: &'static str) -> Attack {
        self.beside = module;
        self
    }

    /// The same with commands behind it.
    pub fn then(mut self, then: &str) -> Attack {
        self.then = format!("; {then}");
        self
    }

    /// The same so many times.
    pub fn times(mut self, times: usize) -> Attack {
        self.times = times;
        self
    }

    /// The same under a command.
    pub fn under(mut self, command: &'static str) -> Attack {
        self.under = command;
        self
    }

    /// The same if lines with these ends must be said.
    pub fn says(mut self, lines: &[&str]) -> Attack {
        self.expected = Expected::Lines(lines.iter().map(|line| line.to_string()).collect());
        self
    }

    /// The same if it must end at this instruction.
    pub fn executing(mut self, instruction: &'static str) -> Attack {
        self.instruction = instruction;
        self
    }

    /// What the shell is told to carry it out.
    fn script(&self) -> String {
        let Attack { module, tell, times, under, beside, then, .. } = self;
        let repeat = if *times > 1 { format!("repeat {times} ") } else { String::new() };
        let (load, unload) = match *beside {
            "" => (String::new(), String::new()),
            beside => (format!("insmod {beside}; "), format!("; rmmod {beside}")),
        };
        format!("{load}insmod {module}; {repeat}{under}tell {module} {tell}{then}; rmmod {module}{unload}")
    }

    /// Whether `report`, what the console said meanwhile, is what it must be; otherwise what is
    /// wrong.
    fn check(&self, report: &str, parts: &BTreeMap<String, String>) -> Result<(), String> {
        let Attack { module, tell, times, .. } = self;
        // The first line says what, the second where.
        let mut lines = report.lines().skip_while(|line| !line.contains(&format!("fault: {module}: ")));
        let fault = lines.next().map(|first| format!("{first}, {}", lines.next().unwrap_or("").trim()));
        let executed = lines.next().and_then(|line| Some(line.trim().split_once("  ")?.1)).unwrap_or("");
        let is_answer = |line: &&str| line.starts_with(&format!("{module}: ")) && line.contains(" (0x");
        let answers: Vec<&str> = report.lines().filter(is_answer).collect();
        let (right, expected) = match &self.expected {
            Expected::Fault(expected) => {
                let part = tell.split(' ').find_map(|word| word.strip_prefix('@'));
                let address = part.and_then(|part| parts.get(part)).map_or("@", String::as_str);
                let expected = expected.replace('@', address);
                let executes = self.instruction.is_empty() || self.instruction == executed;
                (
                    fault.as_ref().is_some_and(|fault| has(fault, &expected)) && executes,
                    format!("{expected} {}", self.instruction),
                )
            }
            Expected::Answer(None) => (fault.is_none() && answers.len() == *times, "an answer".to_string()),
            Expected::Answer(Some(answer)) => {
                let expected = format!("{module}: {answer} ({answer:#x})");
                (fault.is_none() && answers.len() == *times && answers.iter().all(|said| *said == expected), expected)
            }
            Expected::Lines(expected) => {
                let mut lines = report.lines();
                // A fault is one of them, or there is none.
                let headline = fault.as_ref().and_then(|fault| Some(fault.split_once(", at ")?.0));
                let is_expected = headline.is_none_or(|fault| expected.iter().any(|end| fault.ends_with(end)));
                (
                    is_expected && expected.iter().all(|end| lines.any(|line| line.ends_with(end))),
                    expected.join(", then "),
                )
            }
        };
        let said = fault.map(|fault| format!("{fault} {executed}")).unwrap_or_else(|| report.to_string());
        if right { Ok(()) } else { Err(format!("{module} {tell}\n    should say {expected}\n    but says   {said}")) }
    }
}

/// Whether `text` has `pattern` in it, where `*` stands for any hexadecimal digits.
fn has(text: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    text.match_indices(first).any(|(at, _)| {
        let mut rest = &text[at + first.len()..];
        parts.clone().all(|part| {
            let digits = rest.trim_start_matches(|c: char| c.is_ascii_hexdigit());
            digits.strip_prefix(part).map(|behind| rest = behind).is_some()
        })
    })
}

/// Services called with arguments that no driver would pass, and devices that never rest.
fn calls() -> Vec<Attack> {
    [
        lies::extremes(),
        lies::random(),
        lies::random_panics(),
        lies::bad_pointers(),
        lies::endless_interrupts(),
        vec![lies::endless_poll()],
    ]
    .concat()
}

/// All the others that need no boot of their own.
fn others() -> Vec<Attack> {
    let groups = [
        rogue::memory(),
        rogue::others(),
        rogue::instructions(),
        rogue::harmless(),
        rogue::interrupts(),
        rogue::segment_loads(),
        rogue::floods(),
        lies::refused(),
        lies::nic_faults(),
        lies::sleeps(),
        lies::reaches(),
        lies::scsi_answers(),
        lies::scsi_faults(),
        lies::block(),
    ];
    let mut all = groups.concat();
    // Where nothing fences devices they would do what they try.
    if machine("").iommu {
        all.extend(fence::all());
    }
    all
}

/// Carries out `attacks` on a machine that `run` boots with a script, and returns the console of;
/// panics with all that did not come out as they must. A second driver lives beside them.
///
/// After each attack if `check_each`, and after the last one if not: the second driver answers, the
/// kernel's checksum is what it was, nobody has written to free memory, and as many frames are free
/// as before.
pub fn carry_out(attacks: &[Attack], check_each: bool, run: impl FnOnce(&str) -> Vec<String>) -> Reports {
    let after_each = if check_each { HEALTH } else { "tell template x" };
    let mut script = String::from("insmod template; tell template x; vmmap");
    // Once before, so that what is made once is made.
    let mut modules: Vec<&str> = attacks.iter().map(|attack| attack.module).collect();
    modules.dedup();
    modules.iter().for_each(|module| script += &format!("; insmod {module}; tell {module} nothing; rmmod {module}"));
    script += "; insmod rogue; tell rogue write 0; rmmod rogue";
    script += &format!("; {HEALTH}");
    for attack in attacks {
        script += &format!("; sleep 0; {}; {after_each}", attack.script());
    }
    let text = run(&format!("{script}; {HEALTH}")).join("\n");
    assert_unharmed(&text, if check_each { attacks.len() + 2 } else { 2 });
    if check_each && attacks.len() > ATTACKS_UNTIL_THEN {
        assert_heap_stays(&text);
    }
    let answers = text.matches("template: 1 (0x1)").count();
    assert_eq!(answers, if check_each { 1 } else { attacks.len() + 1 }, "the second driver did not always answer");
    // What lies between one attack and the next.
    let (before, all) = text.split_once("> sleep 0\n").expect("there are attacks");
    let reports: Vec<&str> =
        all.split("> sleep 0\n").map(|report| report.split("> rmmod").next().unwrap_or("")).collect();
    assert_eq!(reports.len(), attacks.len());
    Reports {
        of: attacks.iter().zip(reports).map(|(attack, report)| (attack.script(), report.to_string())).collect(),
        parts: parts(before),
    }
}

/// After so many attacks as many reports and lines are kept as ever will be.
const ATTACKS_UNTIL_THEN: usize = 600;

/// Asserts that the kernel's own memory does not grow with attacks, once as many reports and lines
/// are kept as ever will be.
fn assert_heap_stays(text: &str) {
    // Reports and lines are longer or shorter.
    const MOST_BYTES: u64 = 64 << 10;
    let used = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let used: Vec<u64> = text.lines().filter_map(used).skip(ATTACKS_UNTIL_THEN).collect();
    let (first, most) = (used.first().expect("'mem' says it"), used.iter().max().expect("'mem' says it"));
    assert!(most - first < MOST_BYTES, "the kernel's heap grew from {first} to {most} bytes");
}

/// What attacks left.
pub struct Reports {
    /// By the attack's script.
    of: BTreeMap<String, String>,
    /// Addresses of the kernel's parts.
    parts: BTreeMap<String, String>,
}

impl Reports {
    /// Asserts that each of `attacks` came out as it must.
    #[track_caller]
    pub fn assert(&self, attacks: &[Attack]) {
        assert!(!attacks.is_empty());
        let wrong: Vec<String> =
            attacks.iter().filter_map(|attack| attack.check(&self.of[&attack.script()], &self.parts).err()).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// The first address of each part of the kernel, as `vmmap` prints them, by the name that `tell`
/// knows it by.
fn parts(text: &str) -> BTreeMap<String, String> {
    let part = |line: &str| {
        let start = line.get(..16).filter(|start| u64::from_str_radix(start, 16).is_ok())?;
        let what = line.get(52..)?;
        Some((what.replace('/', "").replace(' ', "-").to_lowercase(), format!("0x{start}")))
    };
    text.lines().filter_map(part).collect()
}

/// Asserts what came of `attacks`, out of one of two boots in which all of them run, each in a
/// domain of its own. Two, so that whoever waits for one leaves the other CPU to the other.
pub fn assert_all(attacks: &[Attack]) {
    // One that panics once does so for all who ask.
    static CALLS: LazyLock<Reports> = LazyLock::new(|| in_one_boot(&calls()));
    static OTHERS: LazyLock<Reports> = LazyLock::new(|| in_one_boot(&others()));
    let is_call = attacks.first().is_some_and(|first| calls().contains(first));
    if is_call { CALLS.assert(attacks) } else { OTHERS.assert(attacks) }
}

fn in_one_boot(attacks: &[Attack]) -> Reports {
    carry_out(attacks, true, |script| {
        let mut machine = machine(&format!(
            "limits command-ms 300; {script}; limits command-ms 30000; insmod e1000; ip; insmod virtio-scsi; \
                 blkread disk0 0 8"
        ));
        machine.contents.autoload = false;
        let disk = tempfile::NamedTempFile::new().expect("a disk");
        disk.as_file().set_len(1 << 20).expect("a disk of 1 MiB");
        machine.disks = vec![disk.path().to_path_buf().into()];
        machine.extra = ["-device", "lsi53c895a", "-device", "isa-ide"].map(Into::into).to_vec();
        machine.timeout = Some(5 * TIME_LIMIT);
        let run = boot(&machine);
        // The attacks failed, which is their purpose; the machine did not, and the devices work
        // for who treats them well.
        let lines = run.console();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        assert_eq!(run.end(), End::CommandFailed, "{last}");
        for good in ["eth0: 10.0.2.15/24 via e1000", "  4096 bytes"] {
            assert!(last.contains(good), "no '{good}':\n{last}");
        }
        lines.to_vec()
    })
}
