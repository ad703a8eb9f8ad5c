//! A small harness for tests that boot the whole system: each test is a few lines over [`boot_well`] or [`boot_badly`].
//!
//! Every run has a time limit, and passes only with the agreed status *and* the agreed last line.

#![forbid(unsafe_code)]

pub mod attacks;

use ringfence::build::{self, System};
use ringfence::machine::{End, Machine, Run, Running};
use std::sync::OnceLock;
use std::time::Duration;

/// Longest run of a test that does not name another limit: far more than any takes on an idle machine.
pub const TIME_LIMIT: Duration = Duration::from_secs(120);

/// The system, built once.
pub fn system() -> &'static System {
    static SYSTEM: OnceLock<System> = OnceLock::new();
    SYSTEM.get_or_init(|| build::system(true).expect("the system builds"))
}

/// A machine without devices and drivers that runs `commands`, separated by `;`.
pub fn bare(commands: &str) -> Machine {
    let mut machine = machine(commands);
    machine.nic = "none".into();
    machine.hba = "none".into();
    machine
}

/// A machine with a network card and a SCSI adapter, and their drivers, on the mainboard that the environment's `RINGFENCE_MACHINE`
/// names if it does, that runs `commands`, separated by `;`.
pub fn machine(commands: &str) -> Machine {
    let mut machine = Machine { timeout: Some(TIME_LIMIT), ..Machine::default() };
    if let Ok(board) = std::env::var("RINGFENCE_MACHINE") {
        machine.use_board(&board);
    }
    machine.contents.exec = Some(commands.to_string());
    machine
}

/// The same, but nothing fences its devices.
pub fn unfenced(mut machine: Machine) -> Machine {
    machine.use_board("pc");
    machine
}

/// Boots a machine and waits for its end.
pub fn boot(machine: &Machine) -> Run {
    machine.run(system(), |_| ()).expect("QEMU runs")
}

/// Boots a machine on which every command must succeed; returns its console.
pub fn boot_well(machine: &Machine) -> String {
    let run = boot(machine);
    assert_eq!(run.end, End::Done, "the console said:\n{}", run.text());
    run.text()
}

/// Boots a machine on which so many commands must fail, and nothing else.
pub fn boot_badly(machine: &Machine, failed: usize) -> Run {
    let run = boot(machine);
    let last = format!("ringfence: {failed} command{} failed", if failed == 1 { "" } else { "s" });
    let said = run.lines.iter().rev().find(|line| !line.is_empty());
    assert_eq!((run.end, said), (End::CommandFailed, Some(&last)), "the console said:\n{}", run.text());
    run
}

/// Has a machine that waits for commands end in order.
pub fn leave(mut running: Running) {
    running.type_line("shutdown").expect("the console is open");
    let run = running.finish(|_| ()).expect("QEMU ends");
    assert_eq!(run.end, End::Done, "the console said:\n{}", run.text());
}

/// Starts `machine`, whatever commands it was to run, and waits until it asks for some.
pub fn at_prompt(mut machine: Machine) -> Running {
    machine.contents.exec = None;
    let mut running = machine.start(system()).expect("QEMU runs");
    running.wait_for("Type 'help'").expect("the prompt");
    running
}

/// What a row of `lsmod` says.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// The ring it runs in.
    pub ring: u64,
    /// Its slot.
    pub slot: u64,
    /// How often it was entered.
    pub upcalls: u64,
    /// What it has had of the CPU.
    pub cpu_ms: u64,
    /// Whether it runs.
    pub state: String,
}

/// What each `lsmod` in `text` says of the driver called `name`.
pub fn listed(text: &str, name: &str) -> Vec<Listed> {
    let row = |line: &str| {
        let (found, rest) = line.split_once(char::is_whitespace)?;
        let mut words = rest.split_whitespace();
        let mut number = || words.next()?.parse().ok();
        let [ring, slot, upcalls, cpu_ms] = [number()?, number()?, number()?, number()?];
        let state = words.skip(1).collect::<Vec<_>>().join(" ");
        (found == name).then_some(Listed { ring, slot, upcalls, cpu_ms, state })
    };
    text.lines().filter_map(row).collect()
}

/// Asserts that `text` has a line that contains `part`.
#[track_caller]
pub fn assert_says(text: &str, part: &str) {
    assert!(text.lines().any(|line| line.contains(part)), "no line has '{part}':\n{text}");
}

/// Commands that ask whether an attack has hurt anybody: a second driver, `template`, must answer, and the kernel says how
/// it is and how much memory is free.
pub const HEALTH: &str = "tell template still there; integrity; mem";

/// Asserts that [`HEALTH`] was asked `times` times, and that all was well each time and the same as the first time.
#[track_caller]
pub fn assert_unharmed(text: &str, times: usize) {
    let wanted = [
        ("the second driver", "template: 11 (0xb)"),
        ("the kernel", "text, read-only data, descriptor tables, page tables"),
        ("what nobody has", "   0  frames written to that nobody has"),
        ("free memory", "frames    "),
    ];
    for (what, part) in wanted {
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(part)).collect();
        assert!(lines.len() == times && lines.iter().all(|line| *line == lines[0]), "{what}: {lines:?}");
    }
}

/// Asserts that `integrity` was asked, and that what must never change of the kernel was the same each time.
#[track_caller]
pub fn assert_intact(text: &str) {
    let sum =
        |line: &str| Some(line.split_once("  text, read-only data, descriptor tables, page tables")?.0.to_string());
    let sums: Vec<String> = text.lines().filter_map(sum).collect();
    assert!(sums.len() > 1 && sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
}

/// The runner's command line, built once.
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
