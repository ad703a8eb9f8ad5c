//! `cargo run -- lab [NUMBER]`: six exercises for a course, and a checker for each. docs/labs.md
//! has the tasks, and the observations to make.
//!
//! `lab NUMBER --start` makes a folder to begin with, in most cases from a driver of the project
//! that lacks something. `lab NUMBER` checks the result. A driver is built and booted for that, as
//! any driver is built and booted.

use crate::build::{self, System};
use crate::conform;
use crate::drivers;
use crate::machine::{End, Machine};
use crate::new::manifest_outside;
use crate::{output, project};
use anyhow::{Context, Result, anyhow, bail};
use ringfence_abi::reset::{Reset, ResetMethod};
use ringfence_core::module::Module;
use ringfence_link::event::Event;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The settings.
pub struct Options {
    /// The exercise; without it, all are listed.
    pub number: Option<u8>,
    /// The folder, if not `../lab-NUMBER`.
    pub folder: Option<PathBuf>,
    /// Whether to make the folder.
    pub start: bool,
    /// The only test of drivers of a class to run (`conform --only`), if not all.
    pub only: Option<String>,
}

/// An exercise.
struct Lab {
    title: &'static str,
    /// Returns the files of the folder to begin with.
    files: fn() -> Result<Vec<(&'static str, String)>>,
    /// Checks the folder.
    check: Check,
}

/// The check of a folder.
enum Check {
    /// By the tests for all drivers of a class, of which one can be chosen, and by more.
    Class,
    /// By a function of its own.
    Own(fn(&Path) -> Result<Vec<Seen>>),
}

/// A property that a checker has looked at, and the reason if it is not as it must be.
struct Seen {
    what: String,
    failure: Option<String>,
}

impl Seen {
    fn new(what: &str, failure: Option<String>) -> Seen {
        Seen { what: what.to_string(), failure }
    }
}

const LABS: [Lab; 6] = [
    Lab { title: "find the fault of a network driver by a trace", files: never_given_back, check: Check::Class },
    Lab { title: "contain a wild write, and mend it", files: wild_write, check: Check::Own(refuses) },
    Lab { title: "measure what batches save", files: no_numbers, check: Check::Own(numbers) },
    Lab { title: "write the receive path of the NE2000", files: deaf, check: Check::Class },
    Lab { title: "defend a service against its caller", files: trusting, check: Check::Own(defends) },
    Lab { title: "survive a device that does not stop", files: endless_reset, check: Check::Own(comes_back) },
];

/// Lists the exercises, makes the folder of one, or checks it. Returns whether all is as it must
/// be.
pub fn run(options: &Options) -> Result<bool> {
    let Some(number) = options.number else {
        for (number, lab) in (1..).zip(&LABS) {
            output::line(format_args!("{number}  {}", lab.title));
        }
        output::line(format_args!("'lab NUMBER --start' makes a folder to begin with; docs/labs.md has the tasks"));
        return Ok(true);
    };
    let lab = LABS.get(usize::from(number).wrapping_sub(1));
    let lab = lab.with_context(|| format!("there are labs 1 to {}, and not {number}", LABS.len()))?;
    let folder = options.folder.clone().unwrap_or_else(|| PathBuf::from(format!("../lab-{number}")));
    // As it is typed: the usual folder needs no name.
    let typed = match &options.folder {
        Some(folder) => format!("lab {number} {}", folder.display()),
        None => format!("lab {number}"),
    };
    if options.start {
        return start(lab, &typed, &folder).map(|()| true);
    }
    if !folder.is_dir() {
        bail!("there is no folder {}: '{typed} --start' makes it", folder.display());
    }
    let only = options.only.as_deref();
    let seen = match lab.check {
        Check::Class => conforms(&folder, only)?,
        Check::Own(_) if only.is_some() => bail!("lab {number} has no tests to choose from with --only"),
        Check::Own(check) => {
            let seen = check(&folder)?;
            seen.iter().for_each(report);
            seen
        }
    };
    let failed = seen.iter().filter(|seen| seen.failure.is_some()).count();
    output::line(format_args!("lab {number}: {} of {} passed", seen.len() - failed, seen.len()));
    Ok(failed == 0)
}

fn report(seen: &Seen) {
    let Seen { what, failure } = seen;
    match failure {
        None => output::line(format_args!("passed  {what}")),
        Some(failure) => output::line(format_args!("FAILED  {what}\n        {failure}")),
    }
}

fn start(lab: &Lab, typed: &str, folder: &Path) -> Result<()> {
    if folder.exists() {
        bail!("{} is there already", folder.display());
    }
    for (name, content) in (lab.files)()? {
        let path = folder.join(name);
        let parent = path.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::line(format_args!("{}: {}", folder.display(), lab.title));
    output::line(format_args!("  docs/labs.md has the task; 'cargo run -- {typed}' checks it"));
    Ok(())
}

/// Returns the sources of a driver of the project as driver `lab-NUMBER`, without its tests, where
/// `change` has something in another's place.
fn driver(of: &str, number: u8, change: [&str; 2]) -> Result<Vec<(&'static str, String)>> {
    let sources = project().join("drivers").join(of).join("src");
    let read = |file: &str| {
        let path = sources.join(file);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let [from, to] = change;
    let library = read("lib.rs")?;
    let (before, after) = library.split_once(from).with_context(|| format!("drivers/{of} has changed"))?;
    let library = format!("{before}{to}{after}");
    let library =
        library.replace("#[cfg(test)]\nmod tests;\n", "").replace(&format!("\"{of}\""), &format!("\"lab-{number}\""));
    Ok(vec![
        ("Cargo.toml", manifest_outside(&format!("lab-{number}"))),
        ("src/lib.rs", library),
        ("src/registers.rs", read("registers.rs")?),
    ])
}

/// A driver that gives no frame back that it has sent from the last of the card's four places.
fn never_given_back() -> Result<Vec<(&'static str, String)>> {
    let given = "if let Some(frame) = self.sending[slot].take() {";
    driver("rtl8139", 1, [given, "if let Some(frame) = self.sending[slot].take_if(|_| slot + 1 < SENDING) {"])
}

/// A driver that receives nothing.
fn deaf() -> Result<Vec<(&'static str, String)>> {
    const BEGINS: &str = "    fn receive(&mut self, queues: &mut Queues) {\n";
    const ENDS: &str = "\n    }\n";
    let path = project().join("drivers/ne2k-pci/src/lib.rs");
    let library = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let body = library.split_once(BEGINS).and_then(|(_, rest)| Some(rest.split_once(ENDS)?.0));
    let body = body.context("drivers/ne2k-pci has changed")?;
    driver("ne2k-pci", 4, [body, "        let _ = queues;"])
}

/// A driver whose recipe for a reset waits for a value that never comes.
fn endless_reset() -> Result<Vec<(&'static str, String)>> {
    driver(
        "rtl8139",
        6,
        [".waits_for(command::RESET as u32, 0)", ".waits_for(command::RESET as u32, command::RESET as u32)"],
    )
}

/// Checks a network driver by the tests for all of its class, in ring 1, and looks whether it is
/// left in peace when the network is.
fn conforms(folder: &Path, only: Option<&str>) -> Result<Vec<Seen>> {
    let mut machine = Machine::default();
    let module = build::module(folder)?;
    machine.contents.modules.push(module.packed);
    let (name, only) = (module.name, only.map(String::from));
    let options = conform::Options { name: name.clone(), device: None, only, ring: Some(1), machine, json: false };
    let system = build::system(true)?;
    let mut all = Vec::new();
    conform::outcomes(&system, &options, |outcome| {
        let seen = Seen::new(&format!("{}: {}", outcome.test, outcome.meaning), outcome.failure.clone());
        report(&seen);
        all.push(seen);
    })?;
    // A driver that keeps a frame is ended for it only when nothing else goes on for a while.
    let nic = drivers::find(&system, &options.machine, &name)?.device(None)?.to_string();
    let events = booted(&system, folder, &nic, "ping 10.0.2.2 -c 9; sleep 6500; ping 10.0.2.2 -c 1")?;
    let fault = events.iter().find_map(|event| match event {
        Event::Fault(fault) => Some(fault.headline.to_string()),
        _ => None,
    });
    let seen = Seen::new("quiet: some seconds after pings, it has given all frames back", fault);
    report(&seen);
    all.push(seen);
    Ok(all)
}

/// The driver of lab 2: it stores numbers, wherever it is told.
const WILD_WRITE: &str = r#"//! Stores numbers: `tell lab-2 set INDEX VALUE`, `tell lab-2 get INDEX`.
#![no_std]

use ringfence_sdk::{Driver, Manifest, Refusal, Result, driver};

driver!(Lab, Manifest::new("lab-2", "0.1.0").restart());

const CELLS: usize = 16;

struct Lab {
    cells: [u64; CELLS],
}

impl Driver for Lab {
    fn init() -> Result<Lab> {
        Ok(Lab { cells: [0; CELLS] })
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let mut words = text.split_whitespace();
        let verb = words.next().ok_or(Refusal::Invalid)?;
        let mut number = || words.next().and_then(|word| word.parse::<usize>().ok()).ok_or(Refusal::Invalid);
        let cell = unsafe { &mut *self.cells.as_mut_ptr().add(number()?) };
        match verb {
            "set" => *cell = number()? as u64,
            "get" => {}
            _ => return Err(Refusal::Invalid),
        }
        Ok(*cell)
    }
}
"#;

fn wild_write() -> Result<Vec<(&'static str, String)>> {
    Ok(vec![("Cargo.toml", manifest_outside("lab-2")), ("src/lib.rs", WILD_WRITE.to_string())])
}

/// Boots with the module in `folder` and runs commands. Returns the events.
fn booted(system: &System, folder: &Path, nic: &str, commands: &str) -> Result<Vec<Event<'static>>> {
    const LIMIT: Duration = Duration::from_secs(60);
    let mut machine = Machine { timeout: Some(LIMIT), scratch: true, ..Machine::default() };
    machine.nic = nic.to_string();
    machine.contents.modules.push(build::module(folder)?.packed);
    machine.contents.exec = Some(commands.to_string());
    let run = machine.run(system, |_| ())?;
    if run.end != End::Done && run.end != End::CommandFailed {
        bail!("the machine: {}", run.end.description());
    }
    Ok(run.events)
}

/// Returns the error of a command, if it has failed.
fn error_of<'a>(events: &'a [Event], command: &str) -> Option<&'a str> {
    events.iter().find_map(|event| match event {
        Event::Command { line, error: Some(error) } if line == command => Some(&**error),
        _ => None,
    })
}

/// Indices that lie outside, near and far: some times eight they are right again.
const WRONG: [u64; 9] = [16, 17, 31, 128, 19_999, 100_000_000, 1 << 61, (1 << 61) + 3, u64::MAX];
const CELLS: u64 = 16;

fn refuses(folder: &Path) -> Result<Vec<Seen>> {
    let store = |cell| format!("tell lab-2 set {cell} {}", 1000 + 7 * cell);
    let read = |cell| format!("tell lab-2 get {cell}");
    let stores: Vec<String> = (0..CELLS).map(store).collect();
    let reads: Vec<String> = (0..CELLS).map(read).collect();
    let wrong: Vec<String> =
        WRONG.iter().flat_map(|index| [format!("tell lab-2 set {index} 1"), read(*index)]).collect();
    let all = [&["insmod lab-2".to_string()][..], &stores, &wrong, &reads, &["integrity".to_string()]].concat();
    let events = booted(&build::system(true)?, folder, "none", &all.join("; "))?;
    let answers: Vec<u64> = events
        .iter()
        .filter_map(|event| match event {
            Event::Answer { value, .. } => Some(*value),
            _ => None,
        })
        .collect();
    let fault = events.iter().find_map(|event| match event {
        Event::Fault(fault) => Some(fault.headline.to_string()),
        _ => None,
    });
    let is_refused = |command: &&String| error_of(&events, command).is_some_and(|error| error.contains("invalid"));
    let granted = wrong.iter().find(|command| !is_refused(command));
    let failed =
        stores.iter().chain(&reads).find_map(|command| Some(format!("{command}: {}", error_of(&events, command)?)));
    let expected = (0..CELLS).map(|cell| 1000 + 7 * cell);
    let last = answers.len().checked_sub(CELLS as usize).map(|first| &answers[first..]);
    let is_there = last.is_some_and(|last| last.iter().copied().eq(expected));
    let lost = (!is_there).then(|| "a cell has another number, or none".to_string());
    Ok(vec![
        Seen::new("the driver is not ended", fault),
        Seen::new("all 16 cells can be used", failed),
        Seen::new(
            "each wrong index is refused as an invalid argument",
            granted.map(|command| format!("'{command}' is not")),
        ),
        Seen::new("what was stored is there after that", lost),
        Seen::new("the kernel is unharmed", error_of(&events, "integrity").map(str::to_string)),
    ])
}

const BATCHES: [u64; 3] = [1, 8, 32];

fn no_numbers() -> Result<Vec<(&'static str, String)>> {
    let mut text =
        String::from("# Instructions for a frame that the rtl8139's driver sends, in ring 1 and in ring 0:\n");
    for batch in BATCHES {
        text += &format!("batch {batch}: ring 1 ?, ring 0 ?\n");
    }
    Ok(vec![("answers.txt", text)])
}

/// Compares the numbers in `answers.txt` with the numbers that are measured now.
fn numbers(folder: &Path) -> Result<Vec<Seen>> {
    /// How far a number may be off.
    const NEAR: f64 = 0.01;
    let path = folder.join("answers.txt");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut machine = Machine { icount: true, scratch: true, nic: "rtl8139".into(), ..Machine::default() };
    machine.contents.exec = Some("bench nic/tx --instructions".to_string());
    output::complain("lab: measuring nic/tx");
    let run = machine.run(&build::system(true)?, |_| ())?;
    let measured = |batch: u64, ring: u8| {
        run.events.iter().find_map(|event| match event {
            Event::Bench(row) if row.name == "nic/tx" && row.batch == Some(batch) && row.ring == Some(ring) => {
                Some(row.median)
            }
            _ => None,
        })
    };
    let mut seen = Vec::new();
    for batch in BATCHES {
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("batch {batch}:"))).unwrap_or_default();
        for ring in [1, 0] {
            let said = line.split(',').find_map(|part| part.trim().strip_prefix(&format!("ring {ring} ")));
            let is = measured(batch, ring).with_context(|| format!("nothing was measured at batch {batch}"))?;
            let failure = match said.map(|said| (said, said.parse::<f64>())) {
                None => Some("answers.txt has no such line".to_string()),
                Some((said, Err(_))) => Some(format!("'{said}' is no number of instructions")),
                Some((_, Ok(said))) if (said - is).abs() <= NEAR * is => None,
                Some((said, Ok(_))) => Some(format!("{said} is not what is measured")),
            };
            seen.push(Seen::new(&format!("batch {batch}, ring {ring}"), failure));
        }
    }
    Ok(seen)
}

/// The crate of lab 5: the kernel's end of a service that copies from its caller's memory.
const TRUSTING: &str = r#"//! A driver calls `copy_in` with a start and a length. It may say whatever it likes.

/// The caller's memory: it begins at this address of the caller's, and has this content.
pub struct Memory<'a> {
    pub start: u64,
    pub bytes: &'a [u8],
}

/// The most bytes that a caller may have copied at once.
pub const MOST: u64 = 4096;

/// Copies `len_bytes` bytes from `start`. Returns `None` if they are not all the caller's, or more
/// than [`MOST`].
pub fn copy_in(memory: &Memory, start: u64, len_bytes: u64) -> Option<Vec<u8>> {
    let offset = (start - memory.start) as usize;
    Some(memory.bytes[offset..offset + len_bytes as usize].to_vec())
}
"#;

/// The calls that the crate must withstand: a program, so that a panic ends it, as it ends a
/// kernel.
const HOSTILE: &str = r#"use lab_5::{MOST, Memory, copy_in};

const START: u64 = 0x80_0043_0000;

/// What is right, said another way: one byte after the other, in wider numbers.
fn right(memory: &Memory, start: u64, len_bytes: u64) -> Option<Vec<u8>> {
    if len_bytes > MOST {
        return None;
    }
    let first = u128::from(start).checked_sub(u128::from(memory.start))?;
    (first + u128::from(len_bytes) <= memory.bytes.len() as u128).then_some(())?;
    (first..first + u128::from(len_bytes)).map(|at| memory.bytes.get(at as usize).copied()).collect()
}

fn said(copied: &Option<Vec<u8>>) -> String {
    copied.as_ref().map_or("None".into(), |bytes| format!("Some of {} bytes", bytes.len()))
}

fn main() {
    let bytes: Vec<u8> = (0..8192u32).map(|byte| byte as u8).collect();
    for start in [START, 0, u64::MAX - 8191] {
        let memory = Memory { start, bytes: &bytes };
        let near = [0, 1, 2, 4095, 4096, 4097, 8191, 8192, 8193, u64::MAX / 2, u64::MAX - 1, u64::MAX];
        for from in near.iter().flat_map(|near| [start.wrapping_add(*near), start.wrapping_sub(*near), *near]) {
            for len_bytes in near {
                println!("memory from {start:#x}: start {from:#x}, {len_bytes:#x} bytes");
                let (copied, right) = (copy_in(&memory, from, len_bytes), right(&memory, from, len_bytes));
                // No bytes are nobody's.
                let is_nothing = len_bytes == 0 && copied.as_ref().is_none_or(|bytes| bytes.is_empty());
                if copied != right && !is_nothing {
                    println!("WRONG {} instead of {}", said(&copied), said(&right));
                    return;
                }
            }
        }
    }
    println!("RIGHT");
}
"#;

fn trusting() -> Result<Vec<(&'static str, String)>> {
    let manifest = "[package]\nname = \"lab-5\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n";
    Ok(vec![("Cargo.toml", manifest.to_string()), ("src/lib.rs", TRUSTING.to_string())])
}

fn defends(folder: &Path) -> Result<Vec<Seen>> {
    // Beside the sources, so that no answer is written over.
    let copy = tempfile::tempdir()?;
    for (file, content) in [("Cargo.toml", None), ("src/lib.rs", None), ("examples/hostile.rs", Some(HOSTILE))] {
        let to = copy.path().join(file);
        fs::create_dir_all(to.parent().unwrap_or(copy.path()))?;
        match content {
            Some(content) => fs::write(&to, content)?,
            None => {
                let from = folder.join(file);
                fs::copy(&from, &to).with_context(|| format!("cannot read {}", from.display())).map(drop)?;
            }
        }
    }
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "-q", "--offline", "--example", "hostile"]).current_dir(copy.path());
    // A panic cannot be caught in a kernel.
    cargo.env("CARGO_PROFILE_DEV_PANIC", "abort").env("CARGO_TARGET_DIR", copy.path().join("target"));
    let built = cargo.output().context("cannot start cargo")?;
    let said = String::from_utf8_lossy(&built.stderr);
    let failure = match built.status.success() {
        true => attacked(&copy.path().join("target/debug/examples/hostile"))?,
        false => {
            Some(output::printable(said.lines().find(|line| line.starts_with("error")).unwrap_or("it does not build")))
        }
    };
    Ok(vec![Seen::new("no caller gets more than its own, or all of it", failure)])
}

/// Runs the program [`HOSTILE`]. Returns the failure, if there is one.
fn attacked(program: &Path) -> Result<Option<String>> {
    const LIMIT: Duration = Duration::from_secs(10);
    let output = tempfile::NamedTempFile::new()?;
    let mut run = Command::new(program).stdout(output.reopen()?).stderr(Stdio::null()).spawn()?;
    let began = Instant::now();
    let ended = loop {
        if let Some(status) = run.try_wait()? {
            break Some(status);
        }
        if began.elapsed() > LIMIT {
            run.kill()?;
            run.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let said = String::from_utf8_lossy(&fs::read(output.path())?).into_owned();
    let mut last = said.lines().rev();
    let (end, before) = (last.next().unwrap_or(""), last.next().unwrap_or(""));
    Ok(match (ended, end.strip_prefix("WRONG ")) {
        (None, _) => Some(format!("it does not return: {end}")),
        (Some(_), Some(wrong)) => Some(format!("{wrong}: {before}")),
        (Some(status), None) if status.success() && end == "RIGHT" => None,
        (Some(_), None) => Some(format!("the kernel ends: {end}")),
    })
}

/// Ends the driver three times, and looks whether it comes back and works.
fn comes_back(folder: &Path) -> Result<Vec<Seen>> {
    const PING: &str = "ping 10.0.2.2 -c 2";
    let ended = ["kill lab-6"; 3].join(&format!("; {PING}; "));
    let events = booted(&build::system(true)?, folder, "rtl8139", &format!("{PING}; {ended}; {PING}; integrity"))?;
    let is_loaded = events.iter().any(|event| matches!(event, Event::Loaded(driver) if driver.name == "lab-6"));
    let restarts = events.iter().filter(|event| matches!(event, Event::Restarted { name, .. } if name == "lab-6"));
    let restarts = restarts.count();
    let failed = |command: &str| error_of(&events, command).map(str::to_string);
    let module = build::module(folder)?;
    let bytes = fs::read(&module.packed)?;
    let manifest = Module::parse(&bytes).map(|module| module.manifest).map_err(|error| anyhow!("{error}"))?;
    Ok(vec![
        Seen::new("the card has the driver lab-6", (!is_loaded).then(|| "it was not loaded".to_string())),
        Seen::new("its recipe resets the card, and waits for that", wrong_recipe(&manifest.reset)),
        Seen::new("it comes back each time", (restarts < 3).then(|| format!("it came back {restarts} times"))),
        Seen::new("the network works after that", failed(PING)),
        Seen::new("the kernel is unharmed", failed("integrity")),
    ])
}

/// Returns the mistake in a recipe for the RTL8139, if there is one. A reset sets the bit RST of
/// the command register, and the card clears it when it has been reset (data sheet, 5.7).
fn wrong_recipe(recipe: &Reset) -> Option<String> {
    const COMMAND: u32 = 0x37;
    const RST: u32 = 1 << 4;
    let Reset { method, bar, offset, width_bytes, set, wait_mask, wait_value, .. } = *recipe;
    let is_command = method == ResetMethod::Register as u32 && bar <= 1 && (offset, width_bytes) == (COMMAND, 1);
    match () {
        () if !is_command => Some("it does not use the command register".into()),
        () if set != RST => Some(format!("it sets {set:#x}, which is not the reset")),
        () if wait_mask & RST == 0 => Some("it does not wait for the end of the reset".into()),
        () if wait_value & RST != 0 => Some("it waits for the reset to begin".into()),
        () => None,
    }
}
