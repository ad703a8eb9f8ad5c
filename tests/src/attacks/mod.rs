//! The attacks and their expected outcomes: the tables behind the tests and behind
//! `docs/attacks.md`, and the boots in which all attacks run.
//!
//! * [`rogue`]: attacks on the CPU and on memory
//! * [`lies`]: attacks on services and queues, by drivers of a network card, of a SCSI adapter and
//!   of an ATA channel
//! * [`fence`]: attacks on the fence around devices
//! * [`segment`]: attacks of 32-bit code
//! * [`page`]: the document

pub mod fence;
pub mod lies;
pub mod page;
pub mod rogue;
pub mod segment;

use crate::{HEALTH, TIME_LIMIT, assert_memory_is_unharmed, assert_template_answers, boot, machine, usual_kind};
use ringfence::machine::End;
use ringfence_abi::manifest::DomainKind;
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// An attack: a command for a module, and its expected outcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attack {
    /// The module, which is loaded for the attack and unloaded afterwards.
    pub module: &'static str,
    /// The command, as `tell` passes it to the module.
    pub tell: String,
    /// How many times the command is given.
    pub times: usize,
    /// A shell command that runs the `tell`, such as `trace`.
    pub under: &'static str,
    /// A module that is loaded during the attack; empty if there is none.
    pub beside: &'static str,
    /// The kind of domain, as `insmod` takes it; empty for the usual one.
    pub kind: &'static str,
    /// Commands that reveal the outcome, if it does not show at once.
    pub then: String,
    /// The expected outcome.
    pub expected: Expected,
    /// The text of the instruction at which the driver must end; empty if any instruction may be.
    pub instruction: &'static str,
}

/// The expected outcome of an attack.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// The driver is ended, and the first two lines of the report contain this text. `@` stands for
    /// the address of the part of the kernel that the attack names, and `*` for an address that
    /// differs between builds.
    Fault(String),
    /// The driver gives this answer each time (any answer if `None`), and goes on.
    Answer(Option<u64>),
    /// The console has lines with these ends, in this order.
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
            kind: "",
            then: String::new(),
            expected,
            instruction: "",
        }
    }

    /// Makes an attack by `module` that must end with a fault.
    pub fn fault(module: &'static str, tell: impl Into<String>, fault: impl Into<String>) -> Attack {
        Attack::new(module, tell, Expected::Fault(fault.into()))
    }

    /// Makes an attempt by `module` that does no harm and must be answered.
    pub fn answer(module: &'static str, tell: impl Into<String>, answer: Option<u64>) -> Attack {
        Attack::new(module, tell, Expected::Answer(answer))
    }

    /// Sets the module that is loaded beside the attacker.
    pub fn beside(mut self, module: &'static str) -> Attack {
        self.beside = module;
        self
    }

    /// Adds commands after the attack.
    pub fn then(mut self, then: &str) -> Attack {
        self.then = format!("; {then}");
        self
    }

    /// Sets how many times the command is given.
    pub fn times(mut self, times: usize) -> Attack {
        self.times = times;
        self
    }

    /// Sets the command that runs the `tell`.
    pub fn under(mut self, command: &'static str) -> Attack {
        self.under = command;
        self
    }

    /// Makes the attack one from a segmented domain.
    fn segmented(mut self) -> Attack {
        self.kind = " --kind segmented";
        self
    }

    /// Expects lines with these ends instead of the outcome set before.
    pub fn says(mut self, lines: &[&str]) -> Attack {
        self.expected = Expected::Lines(lines.iter().map(|line| line.to_string()).collect());
        self
    }

    /// Expects the driver to end at this instruction.
    pub fn executing(mut self, instruction: &'static str) -> Attack {
        self.instruction = instruction;
        self
    }

    /// Returns the shell's commands for the attack.
    fn script(&self) -> String {
        let Attack { module, tell, times, under, beside, kind, then, .. } = self;
        let repeat = if *times > 1 { format!("repeat {times} ") } else { String::new() };
        let (load, unload) = match *beside {
            "" => (String::new(), String::new()),
            beside => (format!("insmod {beside}; "), format!("; rmmod {beside}")),
        };
        format!("{load}insmod {module}{kind}; {repeat}{under}tell {module} {tell}{then}; rmmod {module}{unload}")
    }

    /// Checks `report`, the console's output during the attack. Returns the difference if it is not
    /// as expected.
    fn check(&self, report: &str, parts: &BTreeMap<String, String>) -> Result<(), String> {
        let Attack { module, tell, times, .. } = self;
        // The first line names the fault, the second the place.
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
                // There is no fault, or its headline is one of the expected lines.
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

/// Returns whether `text` contains `pattern`, in which `*` stands for any hexadecimal digits.
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

/// Returns the attacks with extreme service arguments, and with devices that interrupt for ever.
fn calls() -> Vec<Attack> {
    [
        lies::extremes(usual_kind()),
        lies::random(),
        lies::random_panics(),
        lies::bad_pointers(usual_kind()),
        lies::endless_interrupts(),
        vec![lies::endless_poll()],
    ]
    .concat()
}

/// Returns all other attacks that need no boot of their own.
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
        lies::reaches(usual_kind()),
        lies::watched(),
        lies::ports(),
        lies::scsi_answers(),
        lies::scsi_faults(),
        lies::block(),
    ];
    let mut all = groups.concat();
    // Without an IOMMU these attacks would succeed.
    if machine("").iommu {
        all.extend(fence::all());
    }
    all
}

/// Returns the attacks of others in segmented domains: those of drivers whose code is the same
/// there. The kernel names memory by its addresses in the slot for both kinds.
pub fn in_segments() -> Vec<Attack> {
    let groups = [
        lies::refused(),
        lies::nic_faults(),
        lies::sleeps(),
        lies::reaches(DomainKind::Segmented),
        lies::ports(),
        lies::scsi_answers(),
        lies::scsi_faults(),
        lies::block(),
        lies::extremes(DomainKind::Segmented),
        lies::random(),
        lies::bad_pointers(DomainKind::Segmented),
        lies::endless_interrupts(),
        vec![lies::endless_poll()],
    ];
    let mut all = groups.concat();
    if machine("").iommu {
        all.extend(fence::all());
    }
    all.into_iter().map(Attack::segmented).collect()
}

/// Attacks between two checks of all memory, which take longer than an attack. What is written to
/// the kernel's constant memory stays there until a check, and a frame that is not freed stays
/// missing. A free frame that was written to is found at a check, or when it is allocated.
const CHECKED_EVERY: usize = 16;

/// Carries out `attacks` on a machine that `run` boots with a script; `run` returns the console's
/// lines. Returns the reports of the attacks. A second driver lives beside the attackers.
///
/// Panics unless the second driver answers after each attack; and after each [`CHECKED_EVERY`]
/// attacks and the last one, the kernel's checksum and the number of free frames are unchanged, and
/// free memory was not written to.
pub fn carry_out(attacks: &[Attack], run: impl FnOnce(&str) -> Vec<String>) -> Reports {
    let mut script = String::from("insmod template; tell template x; vmmap");
    // Each module runs once before, so that allocations that are made only once do not count.
    let mut modules: Vec<&str> = attacks.iter().map(|attack| attack.module).collect();
    modules.dedup();
    let kind = attacks.first().map_or("", |attack| attack.kind);
    modules
        .iter()
        .for_each(|module| script += &format!("; insmod {module}{kind}; tell {module} nothing; rmmod {module}"));
    script += "; insmod rogue; tell rogue write 0; rmmod rogue";
    script += &format!("; {HEALTH}");
    let groups = attacks.chunks(CHECKED_EVERY);
    let checks = groups.len() + 1;
    for group in groups {
        for attack in group {
            script += &format!("; sleep 0; {}; tell template still there", attack.script());
        }
        script += "; integrity; mem";
    }
    let text = run(&script).join("\n");
    assert_template_answers(&text, attacks.len() + 1);
    assert_memory_is_unharmed(&text, checks);
    if attacks.len() > ATTACKS_UNTIL_THEN {
        assert_heap_stays(&text);
    }
    // The output between one attack and the next.
    let (before, all) = text.split_once("> sleep 0\n").expect("there are attacks");
    let reports: Vec<&str> =
        all.split("> sleep 0\n").map(|report| report.split("> rmmod").next().unwrap_or("")).collect();
    assert_eq!(reports.len(), attacks.len());
    Reports {
        of: attacks.iter().zip(reports).map(|(attack, report)| (attack.script(), report.to_string())).collect(),
        parts: parts(before),
    }
}

/// After this many attacks, the kernel's stores of reports and lines are full.
const ATTACKS_UNTIL_THEN: usize = 600;

/// Asserts that attacks do not make the kernel's heap grow, once the stores of reports and lines
/// are full.
fn assert_heap_stays(text: &str) {
    // Reports differ in length: the kernel keeps 32, and the last one of each of 16 drivers. A
    // report about a DMA fault has some 2 KiB more than the others.
    const MOST_BYTES: u64 = (32 + 16) * (2 << 10);
    let used = |line: &str| line.strip_prefix("heap ")?.split_whitespace().next()?.parse::<u64>().ok();
    let used: Vec<u64> = text.lines().filter_map(used).skip(1 + ATTACKS_UNTIL_THEN / CHECKED_EVERY).collect();
    let (first, most) = (used.first().expect("'mem' says it"), used.iter().max().expect("'mem' says it"));
    assert!(most - first < MOST_BYTES, "the kernel's heap grew from {first} to {most} bytes");
}

/// The output of attacks.
pub struct Reports {
    /// The reports, by the attack's script.
    of: BTreeMap<String, String>,
    /// The addresses of the kernel's parts.
    parts: BTreeMap<String, String>,
}

impl Reports {
    /// Asserts that each of `attacks` had its expected outcome.
    #[track_caller]
    pub fn assert(&self, attacks: &[Attack]) {
        assert!(!attacks.is_empty());
        let wrong: Vec<String> =
            attacks.iter().filter_map(|attack| attack.check(&self.of[&attack.script()], &self.parts).err()).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

/// Returns the first address of each part of the kernel, from the output of `vmmap`, by the name
/// that `tell` uses.
fn parts(text: &str) -> BTreeMap<String, String> {
    let part = |line: &str| {
        let start = line.get(..16).filter(|start| u64::from_str_radix(start, 16).is_ok())?;
        let what = line.get(52..)?;
        Some((what.replace('/', "").replace(' ', "-").to_lowercase(), format!("0x{start}")))
    };
    text.lines().filter_map(part).collect()
}

/// Asserts the outcomes of `attacks`. All attacks run in two boots, each attack in a domain of its
/// own, and those in segmented domains in a third. There is more than one so that they can run at
/// the same time on two CPUs.
pub fn assert_all(attacks: &[Attack]) {
    // If a boot panics, all tests that use it panic.
    static CALLS: LazyLock<Reports> = LazyLock::new(|| in_one_boot(&calls()));
    static OTHERS: LazyLock<Reports> = LazyLock::new(|| in_one_boot(&others()));
    static IN_SEGMENTS: LazyLock<Reports> = LazyLock::new(|| in_one_boot(&in_segments()));
    if attacks.first().is_some_and(|first| !first.kind.is_empty()) {
        return IN_SEGMENTS.assert(attacks);
    }
    let is_call = attacks.first().is_some_and(|first| calls().contains(first));
    if is_call { CALLS.assert(attacks) } else { OTHERS.assert(attacks) }
}

fn in_one_boot(attacks: &[Attack]) -> Reports {
    carry_out(attacks, |script| {
        let mut machine = machine(&format!(
            "limits command-ms 300; {script}; limits command-ms 30000; insmod e1000; ip; insmod virtio-scsi; \
                 blkread disk0 0 8"
        ));
        machine.contents.autoload = false;
        let disk = tempfile::NamedTempFile::new().expect("a disk");
        disk.as_file().set_len(1 << 20).expect("a disk of 1 MiB");
        machine.disks = vec![disk.path().to_path_buf().into()];
        machine.extra =
            ["lsi53c895a", "isa-ide", "rtl8139", "ne2k_pci", "virtio-net-pci,iommu_platform=on,disable-legacy=on"]
                .iter()
                .flat_map(|device| ["-device", device])
                .map(Into::into)
                .collect();
        machine.timeout = Some(5 * TIME_LIMIT);
        let run = boot(&machine);
        // The attacks made commands fail, as they should. The machine itself did not fail, and the
        // devices work with good drivers.
        let lines = run.console();
        let last = lines[lines.len().saturating_sub(60)..].join("\n");
        assert_eq!(run.end(), End::CommandFailed, "{last}");
        for good in ["eth0: 10.0.2.15/24 via e1000", "  4096 bytes"] {
            assert!(last.contains(good), "no '{good}':\n{last}");
        }
        lines.to_vec()
    })
}
