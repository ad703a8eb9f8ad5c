//! A small harness for tests that boot the whole system: each test is a few lines over
//! [`boot_well`] or [`boot_badly`].
//!
//! Every run has a time limit, and passes only with the agreed status *and* the agreed last line.

#![forbid(unsafe_code)]

pub mod attacks;
pub mod filesystem;
pub mod gdb;

use ringfence::build::{self, System};
use ringfence::machine::{End, Machine, Run, Running};
use ringfence_abi::manifest::DomainKind;
use ringfence_link::event::{self, Disk, Driver, Event, Fault, Row, Trial};
use std::fmt;
use std::ops::Deref;
use std::sync::OnceLock;
use std::time::Duration;

/// Longest run of a test that sets no other limit. It is far more than any test needs on an idle
/// machine.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);

/// Returns `all`, or `few` where the long tests are left out. A test that repeats something does so
/// this often.
pub fn times<T>(all: T, few: T) -> T {
    let is_long = |argument: std::ffi::OsString| argument == "--include-ignored" || argument == "--ignored";
    if std::env::args_os().any(is_long) { all } else { few }
}

/// Returns whether a driver serves: it runs, or rests for a moment, as a driver does on a slow host
/// that has used more than its share of the CPU.
pub fn serves(driver: &Driver) -> bool {
    matches!(&*driver.state, "running" | "resting")
}

/// Returns the system, which is built once.
pub fn system() -> &'static System {
    static SYSTEM: OnceLock<System> = OnceLock::new();
    SYSTEM.get_or_init(|| build::system(true).expect("the system builds"))
}

/// Returns a machine without devices and drivers that runs `commands`, separated by `;`.
pub fn bare(commands: &str) -> Machine {
    let mut machine = machine(commands);
    machine.nic = "none".into();
    machine.hba = "none".into();
    machine
}

/// Returns a machine with a network card and a SCSI adapter, and their drivers, that runs
/// `commands`, separated by `;`. The environment's `RINGFENCE_MACHINE` may name its mainboard, and
/// `RINGFENCE_KIND` the kind of domain of the drivers.
pub fn machine(commands: &str) -> Machine {
    let mut machine = Machine { timeout: Some(TIME_LIMIT), ..Machine::default() };
    if let Ok(board) = std::env::var("RINGFENCE_MACHINE") {
        machine.use_board(&board);
    }
    machine.contents.kind = chosen_kind();
    machine.contents.exec = Some(commands.to_string());
    machine
}

/// Returns the kind of domain of the drivers, if the environment's `RINGFENCE_KIND` names one.
fn chosen_kind() -> Option<DomainKind> {
    let kind = std::env::var("RINGFENCE_KIND").ok()?;
    Some(DomainKind::named(&kind).expect("RINGFENCE_KIND names a kind of domain"))
}

/// Returns the machine with paged domains, for what they alone have.
pub fn paged(mut machine: Machine) -> Machine {
    machine.contents.kind = Some(DomainKind::Paged);
    machine
}

/// Returns the kind of domain of the drivers of [`machine`].
pub fn usual_kind() -> DomainKind {
    chosen_kind().unwrap_or_default()
}

/// Returns the name of the file from which a driver of [`machine`] is loaded.
pub fn file_of(module: &str) -> String {
    format!("{module}{}", usual_kind().suffix())
}

/// Changes the machine's mainboard to one without an IOMMU, so that nothing fences its devices.
pub fn unfenced(mut machine: Machine) -> Machine {
    machine.use_board("pc");
    machine
}

/// A run that has ended: the console's output, to which it dereferences, and the kernel's events.
///
/// **A test takes its facts from the events.** It searches the console only for a sentence that it
/// tests.
#[derive(Debug)]
pub struct Ran {
    run: Run,
    text: String,
}

impl Deref for Ran {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Ran {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<Run> for Ran {
    fn from(run: Run) -> Ran {
        let text = run.text();
        Ran { run, text }
    }
}

impl Ran {
    /// Returns how the run ended.
    pub fn end(&self) -> End {
        self.run.end
    }

    /// Returns the console's lines.
    pub fn console(&self) -> &[String] {
        &self.run.lines
    }

    /// Returns the events that the kernel told programs.
    pub fn events(&self) -> &[Event<'static>] {
        &self.run.events
    }

    fn each<'a, T>(&'a self, of: impl Fn(&'a Event<'static>) -> Option<T>) -> Vec<T> {
        self.run.events.iter().filter_map(of).collect()
    }

    /// Returns the faults that ended the driver called `name`.
    pub fn faults(&self, name: &str) -> Vec<&Fault<'static>> {
        self.each(|event| match event {
            Event::Fault(fault) if fault.driver == name => Some(&**fault),
            _ => None,
        })
    }

    /// Returns the loaded drivers with this name.
    pub fn loaded(&self, name: &str) -> Vec<&Driver<'static>> {
        self.each(|event| match event {
            Event::Loaded(driver) if driver.name == name => Some(driver),
            _ => None,
        })
    }

    /// Counts the restarts of the driver called `name`.
    pub fn restarts(&self, name: &str) -> usize {
        let is_it = |event: &&Event| matches!(event, Event::Restarted { name: restarted, .. } if restarted == name);
        self.run.events.iter().filter(is_it).count()
    }

    /// Returns the rows of all `lsmod`s for the driver called `name`.
    pub fn drivers(&self, name: &str) -> Vec<&Driver<'static>> {
        let shown = self.each(|event| match event {
            Event::Drivers(drivers) => Some(drivers),
            _ => None,
        });
        shown.into_iter().flatten().filter(|driver| driver.name == name).collect()
    }

    /// Returns the answers of the driver called `name` to `tell`.
    pub fn answers(&self, name: &str) -> Vec<u64> {
        self.each(|event| match event {
            Event::Answer { name: answers, value, .. } if answers == name => Some(*value),
            _ => None,
        })
    }

    /// Returns the data that commands moved: number of bytes, and their SHA-256 in hexadecimal
    /// digits.
    pub fn data(&self) -> Vec<(u64, String)> {
        self.each(|event| match event {
            Event::Data { bytes, sha256 } => Some((*bytes, sha256.to_string())),
            _ => None,
        })
    }

    /// Returns the disks that were listed.
    pub fn disks(&self) -> Vec<&Disk<'static>> {
        self.each(|event| match event {
            Event::Disk(disk) => Some(disk),
            _ => None,
        })
    }

    /// Returns the rows of `bench`.
    pub fn rows(&self) -> Vec<&Row<'static>> {
        self.each(|event| match event {
            Event::Bench(row) => Some(row),
            _ => None,
        })
    }

    /// Returns the outcomes of the trials of changed modules.
    pub fn trials(&self) -> Vec<&Trial<'static>> {
        self.each(|event| match event {
            Event::Trial(trial) => Some(trial),
            _ => None,
        })
    }

    /// Returns the commands that failed, and their errors.
    pub fn errors(&self) -> Vec<(&str, &str)> {
        self.each(|event| match event {
            Event::Command { line, error: Some(error) } => Some((line.as_ref(), error.as_ref())),
            _ => None,
        })
    }

    /// Returns the number of free frames from each `mem`.
    pub fn free_frames(&self) -> Vec<u64> {
        self.each(|event| match event {
            Event::Memory { free, .. } => Some(*free),
            _ => None,
        })
    }

    /// Returns the used bytes of the kernel's heap from each `mem`.
    pub fn heap_used(&self) -> Vec<u64> {
        self.each(|event| match event {
            Event::Memory { heap_used, .. } => Some(*heap_used),
            _ => None,
        })
    }

    /// Returns the results of each `integrity`: the checksum of the kernel's constant parts, and
    /// the number of free frames that somebody wrote to.
    pub fn integrity(&self) -> Vec<(u64, u64)> {
        self.each(|event| match event {
            Event::Integrity { checksum, stray } => Some((*checksum, *stray)),
            _ => None,
        })
    }
}

/// Boots a machine and waits for its end.
pub fn boot(machine: &Machine) -> Ran {
    machine.run(system(), |_| ()).expect("QEMU runs").into()
}

/// Boots a machine on which every command must succeed; returns the run.
pub fn boot_well(machine: &Machine) -> Ran {
    let run = boot(machine);
    assert_eq!(run.end(), End::Done, "the console said:\n{run}");
    assert_eq!(run.run.lost, 0, "what the kernel told was lost; the console said:\n{run}");
    run
}

/// Boots a machine on which exactly `failed` commands must fail; returns the run.
pub fn boot_badly(machine: &Machine, failed: usize) -> Ran {
    let run = boot(machine);
    assert_eq!((run.end(), run.errors().len()), (End::CommandFailed, failed), "the console said:\n{run}");
    assert_eq!(run.run.lost, 0, "what the kernel told was lost; the console said:\n{run}");
    run
}

/// Shuts down a machine that waits for commands, which must end in order.
pub fn leave(mut running: Running) {
    running.type_line("shutdown").expect("the console is open");
    let run = running.finish(|_| ()).expect("QEMU ends");
    assert_eq!(run.end, End::Done, "the console said:\n{}", run.text());
}

/// Starts `machine` without its commands, and waits for its prompt.
pub fn at_prompt(mut machine: Machine) -> Running {
    machine.contents.exec = None;
    let mut running = machine.start(system()).expect("QEMU runs");
    running.wait_for("Type 'help'").expect("the prompt");
    running
}

/// Types a command and waits for its end; returns the error, if it failed.
pub fn outcome(running: &mut Running, line: &str) -> Option<String> {
    running.command(line).expect("it ends")
}

/// Types a command, which must succeed, and waits for its end.
#[track_caller]
pub fn run_well(running: &mut Running, line: &str) {
    assert_eq!(outcome(running, line), None, "{line}");
}

/// Waits until an interface has this address from DHCP.
pub fn wait_for_address(running: &mut Running, wanted: [u8; 4]) {
    let has = |event| matches!(event, Event::Address { address, .. } if address == wanted).then_some(());
    running.wait_for_event("an address", has).expect("it has one");
}

/// Waits for the row about the interface called `name`, after `ip` was typed.
pub fn wait_for_interface(running: &mut Running, name: &str) -> event::Interface<'static> {
    let is_it = |event| match event {
        Event::Interface(interface) if interface.name == name => Some(interface),
        _ => None,
    };
    running.wait_for_event(name, is_it).expect("it is there")
}

/// Types `ip`; returns the row about the interface called `name`.
pub fn interface(running: &mut Running, name: &str) -> event::Interface<'static> {
    running.type_line("ip").expect("the console is open");
    wait_for_interface(running, name)
}

/// Asserts that `text` has a line that contains `part`.
#[track_caller]
pub fn assert_says(text: &str, part: &str) {
    assert!(text.lines().any(|line| line.contains(part)), "no line has '{part}':\n{text}");
}

/// Asserts that the driver called `name` was ended by a fault with `part` in its headline, which
/// names the fault and the driver's activity.
#[track_caller]
pub fn assert_fault(run: &Ran, name: &str, part: &str) {
    let headlines: Vec<&str> = run.faults(name).into_iter().map(|fault| &*fault.headline).collect();
    assert!(
        headlines.iter().any(|headline| headline.contains(part)),
        "no fault of {name} has '{part}': {headlines:#?}\n{run}"
    );
}

/// Waits for a restart of the driver called `name`; returns the number of its restarts.
#[track_caller]
pub fn wait_for_restart(running: &mut Running, name: &str) -> u64 {
    let restarted = |event| match event {
        Event::Restarted { name: restarted, number, .. } if restarted == name => Some(number),
        _ => None,
    };
    running.wait_for_event("a restart", restarted).expect("it is restarted")
}

/// Commands that check for harm by an attack: a second driver, `template`, must answer, and the
/// kernel prints its checksum and its free memory.
pub const HEALTH: &str = "tell template still there; integrity; mem";

/// Asserts that [`HEALTH`] was run `times` times, and that each result was good and equal to the
/// first.
#[track_caller]
pub fn assert_unharmed(text: &str, times: usize) {
    assert_template_answers(text, times);
    assert_memory_is_unharmed(text, times);
}

/// Asserts that the second driver has answered `times` times.
#[track_caller]
pub fn assert_template_answers(text: &str, times: usize) {
    assert_same(text, times, "the second driver", "template: 11 (0xb)");
}

/// Asserts that `integrity` and `mem` were run `times` times, with a good result each time.
#[track_caller]
pub fn assert_memory_is_unharmed(text: &str, times: usize) {
    assert_same(text, times, "free memory", "frames    ");
    assert_same(text, times, "the kernel", "text, read-only data, descriptor tables, page tables");
    assert_same(text, times, "what nobody has", "   0  frames written to that nobody has");
}

/// Asserts that `times` lines have `part`, and that they are equal.
#[track_caller]
fn assert_same(text: &str, times: usize, what: &str, part: &str) {
    let lines: Vec<&str> = text.lines().filter(|line| line.contains(part)).collect();
    assert_eq!(lines.len(), times, "{what}: {lines:?}");
    let other = lines.iter().position(|line| *line != lines[0]);
    assert_eq!(other, None, "{what}: line {other:?} of {lines:?} differs");
}

/// Asserts that `integrity` was run more than once, and that the checksum of the kernel's constant
/// parts was the same each time.
#[track_caller]
pub fn assert_intact(run: &Ran) {
    let sums: Vec<u64> = run.integrity().into_iter().map(|(sum, _)| sum).collect();
    assert!(sums.len() > 1 && sums.iter().all(|sum| *sum == sums[0]), "{sums:x?}");
}

/// Builds the runner's command line, once; returns its path.
pub fn runner() -> std::path::PathBuf {
    static RUNNER: OnceLock<std::path::PathBuf> = OnceLock::new();
    let build = || {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = std::process::Command::new(cargo)
            .args(["build", "--quiet", "-p", "ringfence"])
            .current_dir(ringfence::project())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the runner builds");
        let target = std::env::var_os("CARGO_TARGET_DIR").map(std::path::PathBuf::from);
        target.unwrap_or_else(|| ringfence::project().join("target")).join("debug/ringfence")
    };
    RUNNER.get_or_init(build).clone()
}
