//! `cargo run -- conform NAME`: tests a driver against the rules for all drivers of its class. Each
//! test has a machine of its own, in each ring; docs/conformance.md explains the tests.

mod disk;
mod files;
mod nic;
mod peer;
mod random;

use crate::build::System;
use crate::drivers::{self, Driver};
use crate::machine::{Disk, End, Machine, Monitor, Running};
use crate::output;
use anyhow::{Context, Result, bail};
use fastrand::Rng;
use peer::Peer;
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_link::event::Event;
use serde_json::json;
use std::fs::{self, File};
use std::process::Command;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Longest time for a test.
const LIMIT: Duration = Duration::from_secs(120);

/// The settings of a conformance run.
pub struct Options {
    /// The module.
    pub name: String,
    /// QEMU's name of the device, if not the module's first ID in the list of known devices.
    pub device: Option<String>,
    /// The only test to run, if not all.
    pub only: Option<String>,
    /// The only ring to test in, if not both.
    pub ring: Option<u8>,
    /// The machine.
    pub machine: Machine,
    /// Whether to print each outcome as a JSON object.
    pub json: bool,
}

/// The outcome of a test.
#[derive(Debug)]
pub struct Outcome {
    /// The name of the test.
    pub test: &'static str,
    /// The meaning of the test.
    pub meaning: &'static str,
    /// The ring that the driver ran in.
    pub ring: u8,
    /// The reason of the failure, if the test failed.
    pub failure: Option<String>,
    /// How long the test took.
    pub time: Duration,
}

/// A running machine with the driver.
pub struct Bench {
    running: Running,
    monitor: Monitor,
    name: String,
    /// The kind of its domain.
    kind: DomainKind,
    /// How many times the test has ended the driver.
    kills: usize,
    /// Whether faults of the driver are no failure.
    may_fault: bool,
}

impl Bench {
    /// Runs a command, which must succeed.
    fn run(&mut self, line: &str) -> Result<()> {
        match self.running.command(line)? {
            None => Ok(()),
            Some(error) => bail!("'{line}': {error}"),
        }
    }

    /// Loads the driver into a ring.
    fn load(&mut self, ring: u8) -> Result<()> {
        self.run(&format!("insmod {} --kind {} --ring {ring}", self.name, self.kind))
    }

    /// Returns the commands that move the driver elsewhere and back: into ring 0, or, for a
    /// segmented driver, into the other kind of domain.
    fn moves(&self) -> [String; 2] {
        let name = &self.name;
        match self.kind {
            DomainKind::Paged => [0, 1].map(|ring| format!("ring {name} {ring}")),
            DomainKind::Segmented => {
                [DomainKind::Paged, DomainKind::Segmented].map(|kind| format!("reload {name} --kind {kind}"))
            }
        }
    }

    /// Runs a command; returns the error, if it failed.
    fn try_to(&mut self, line: &str) -> Result<Option<String>> {
        self.running.command(line)
    }

    /// Waits for the end of a command that was started with `&`.
    fn ended(&mut self, line: &str) -> Result<()> {
        let ended = |event| matches!(event, Event::Command { line: ended, .. } if ended == line).then_some(());
        self.running.wait_for_event(&format!("the end of '{line}'"), ended)
    }

    /// Runs commands at the same time. Returns the error of each, if it failed.
    fn at_once<const N: usize>(&mut self, lines: [&str; N]) -> Result<[Option<String>; N]> {
        let mut ends = [const { None }; N];
        for line in lines {
            self.running.type_line(&format!("{line} &"))?;
        }
        while ends.iter().any(Option::is_none) {
            let end = |event| match event {
                Event::Command { line, error } => Some((line.to_string(), error.map(|error| error.to_string()))),
                _ => None,
            };
            let (ended, error) = self.running.wait_for_event("the end of a command", end)?;
            if let Some(index) = lines.iter().position(|line| *line == ended) {
                ends[index] = Some(error);
            }
        }
        Ok(ends.map(Option::flatten))
    }

    /// Runs a command, which must fail.
    fn fail(&mut self, line: &str) -> Result<()> {
        if self.running.command(line)?.is_none() {
            bail!("'{line}' should fail");
        }
        Ok(())
    }

    /// Ends the driver, and waits until a new instance has replaced it.
    fn end_driver(&mut self) -> Result<()> {
        let name = self.name.clone();
        self.run(&format!("kill {name}"))?;
        self.kills += 1;
        let is_back = |event| matches!(&event, Event::Restarted { name: other, .. } if *other == name).then_some(());
        self.running.wait_for_event("a restart", is_back)
    }

    /// Returns how often the driver was ended, and is back.
    fn restarts(&mut self) -> Result<u64> {
        let name = self.name.clone();
        self.running.type_line("lsmod")?;
        let restarts = |event| match event {
            Event::Drivers(drivers) => drivers.iter().find(|driver| driver.name == name).map(|driver| driver.restarts),
            _ => None,
        };
        self.running.wait_for_event("the driver", restarts)
    }

    fn free_frames(&mut self) -> Result<u64> {
        self.running.type_line("mem")?;
        let free = |event| if let Event::Memory { free, .. } = event { Some(free) } else { None };
        self.running.wait_for_event("memory", free)
    }

    fn set_link(&mut self, up: bool) -> Result<()> {
        self.monitor.execute(&format!(r#"{{"execute": "set_link", "arguments": {{"name": "net0", "up": {up}}}}}"#))
    }

    /// Stops the machine, as a busy host would.
    fn stop(&self) -> Result<()> {
        signal(self.running.process(), "STOP")
    }

    fn go_on(&self) -> Result<()> {
        signal(self.running.process(), "CONT")
    }

    /// Shuts the machine down. Fails if the driver ended at any time other than when the test ended
    /// it.
    fn leave(mut self) -> Result<()> {
        self.running.type_line("shutdown")?;
        let run = self.running.finish(|_| ())?;
        let faults: Vec<_> = run
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Fault(fault) if fault.driver == self.name && fault.kind != "killed" => Some(&*fault.headline),
                _ => None,
            })
            .collect();
        if let Some(first) = faults.first().filter(|_| !self.may_fault) {
            bail!("the driver was ended: {first}");
        }
        let is_back = |event: &&Event| matches!(event, Event::Restarted { name, .. } if *name == self.name);
        let restarts = run.events.iter().filter(is_back).count();
        if restarts != self.kills {
            bail!("the driver was ended {} times, and came back {restarts} times", self.kills);
        }
        let given_up = run.events.iter().find_map(|event| match event {
            Event::GivenUp { name, why } if *name == self.name => Some(why),
            _ => None,
        });
        if let Some(why) = given_up {
            bail!("the driver did not come back: {why}");
        }
        if run.end != End::Done && run.end != End::CommandFailed {
            bail!("the machine: {}", run.end.description());
        }
        Ok(())
    }
}

fn signal(process: u32, name: &str) -> Result<()> {
    let status = Command::new("kill").args([&format!("-{name}"), &process.to_string()]).status()?;
    if !status.success() {
        bail!("cannot send QEMU a signal");
    }
    Ok(())
}

/// A test of a driver of some class.
#[derive(Clone, Copy)]
enum Test {
    Nic(nic::Test),
    Disk(disk::Test),
    Files(files::Test),
}

/// The machines that a test runs on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setting {
    /// One, with the device as it is.
    Usual,
    /// One for each ring size of the device that the machine can choose.
    RingSizes,
    /// One whose disks report errors for some blocks.
    BadDisks,
}

/// A test, by its name.
struct Case {
    name: &'static str,
    meaning: &'static str,
    setting: Setting,
    test: Test,
}

/// The driver under test, and its device.
#[derive(Clone, Copy)]
struct Tested<'a> {
    driver: &'a Driver,
    /// QEMU's name of the device with its options, or the name of a format.
    device: &'a str,
    /// Whether the disks report errors for some blocks.
    bad_disks: bool,
}

/// QEMU's devices whose rings have a size that the machine chooses, with the options that choose
/// the smallest size, one in between, and the largest.
const RING_SIZES: [(&str, [&str; 3]); 3] = [
    ("virtio-net", ["rx_queue_size=256,tx_queue_size=256", "rx_queue_size=512", "rx_queue_size=1024"]),
    ("virtio-scsi", ["virtqueue_size=4", "virtqueue_size=32", "virtqueue_size=1024"]),
    ("virtio-blk", ["queue-size=4", "queue-size=32", "queue-size=1024"]),
];

/// Tests that no driver of a device can pass because of QEMU's model: the device, the test, and the
/// reason.
const LEFT_OUT: [(&str, &str, &str); 1] = [(
    "lsi53c895a",
    disk::BAD_BLOCK.0,
    "QEMU's model keeps a failed read in its queue, and QEMU ends at the next reset (lsi_soft_reset)",
)];

/// Returns the reason why a test is left out with a device, if it is.
fn left_out(device: &str, test: &str) -> Option<&'static str> {
    let is_meant = |(name, of, _): &&(&str, &str, &str)| device.split(',').next() == Some(name) && test == *of;
    LEFT_OUT.iter().find(is_meant).map(|(.., why)| *why)
}

/// Returns the options of a device for the sizes of its rings; none if its driver chooses the size.
fn ring_sizes(device: &str) -> &'static [&'static str] {
    RING_SIZES.iter().find(|(name, _)| device.starts_with(name)).map_or(&[], |(_, options)| options)
}

/// The peer or the filesystem that a driver under test works with, besides its device.
enum Other {
    /// The host at the other end of the cable.
    Peer(Peer),
    /// The filesystem.
    Image(files::Image),
    Nothing,
}

/// Returns the tests of a class.
fn tests_of(kind: Kind) -> Vec<Case> {
    fn cases<T: Copy>(
        tests: &[(&'static str, &'static str, T)],
        setting: Setting,
        of_class: impl Fn(T) -> Test,
    ) -> Vec<Case> {
        let case = |&(name, meaning, test): &_| Case { name, meaning, setting, test: of_class(test) };
        tests.iter().map(case).collect()
    }
    use Setting::{BadDisks, RingSizes, Usual};
    match kind {
        Kind::Nic => {
            let usual = cases(nic::TESTS, Usual, Test::Nic);
            usual.into_iter().chain(cases(&[nic::RING_SIZE], RingSizes, Test::Nic)).collect()
        }
        Kind::Scsi | Kind::Block => {
            let mut cases_of_disks = cases(disk::TESTS, Usual, Test::Disk);
            cases_of_disks.extend(cases(&[disk::BAD_BLOCK], BadDisks, Test::Disk));
            cases_of_disks.extend(cases(&[disk::RING_SIZE], RingSizes, Test::Disk));
            if kind == Kind::Scsi {
                cases_of_disks.extend(cases(&[disk::OF_ADAPTERS], Usual, Test::Disk));
            }
            cases_of_disks
        }
        Kind::Fs => {
            let usual = cases(files::TESTS, Usual, Test::Files);
            usual.into_iter().chain(cases(&[files::BAD_BLOCK], BadDisks, Test::Files)).collect()
        }
        Kind::Other => Vec::new(),
    }
}

/// Returns the device or the format that the driver is tested on: QEMU's name of a device, or the
/// name of a format.
fn device<'a>(options: &'a Options, driver: &'a Driver) -> Result<&'a str> {
    let wanted = options.device.as_deref();
    match (driver.kind, &*driver.name) {
        (Kind::Other, _) => Ok("none"),
        (Kind::Fs, "fat") => Ok(wanted.unwrap_or("fat16")),
        (Kind::Fs, "ext") => Ok(wanted.unwrap_or("ext4")),
        (Kind::Fs, name) => {
            wanted.with_context(|| format!("which format {name} drives is not known: --device names it"))
        }
        (Kind::Nic | Kind::Scsi | Kind::Block, _) => driver.device(wanted),
    }
}

/// Returns the names and meanings of a class's tests, for the documents.
pub fn meanings(kind: Kind) -> impl Iterator<Item = (&'static str, &'static str)> {
    tests_of(kind).into_iter().map(|case| (case.name, case.meaning))
}

/// Tests the driver; returns the outcome of each test.
pub fn outcomes(system: &System, options: &Options, mut show: impl FnMut(&Outcome)) -> Result<Vec<Outcome>> {
    let driver = drivers::find(system, &options.machine, &options.name)?;
    let mut tests = tests_of(driver.kind);
    if tests.is_empty() {
        bail!("{} offers nothing that there are tests for", options.name);
    }
    let device = device(options, &driver)?;
    tests.retain(|case| case.setting != Setting::RingSizes || !ring_sizes(device).is_empty());
    tests.retain(|case| {
        let why = left_out(device, case.name);
        why.inspect(|why| output::complain(&format!("conform: {} is left out with {device}: {why}", case.name)));
        why.is_none()
    });
    let wanted = |case: &Case| options.only.as_deref().is_none_or(|only| only == case.name);
    if !tests.iter().any(wanted) {
        let names: Vec<&str> = tests.iter().map(|case| case.name).collect();
        bail!("there is no such test; there are: {}", names.join(", "));
    }
    let is_allowed = |ring: &u8| *ring == 1 || !driver.is_ring1_only;
    let is_wanted = |ring: &u8| options.ring.is_none_or(|only| only == *ring);
    let rings: Vec<u8> = [1, 0].into_iter().filter(is_allowed).filter(is_wanted).collect();
    let mut outcomes = Vec::new();
    for case in tests.into_iter().filter(wanted) {
        for &ring in &rings {
            let began = Instant::now();
            let attempt = attempt(system, options, (&driver, device), &case, ring);
            let failure = attempt.err().map(|error| format!("{error:#}"));
            let Case { name, meaning, .. } = case;
            let outcome = Outcome { test: name, meaning, ring, failure, time: began.elapsed() };
            show(&outcome);
            outcomes.push(outcome);
        }
    }
    Ok(outcomes)
}

/// Gives the driver `count` random inputs in ring 1. Returns how often that ended the driver; fails
/// if it does not serve in the end.
pub fn give_random(system: &System, options: &Options, driver: &Driver, count: usize, seed: u64) -> Result<u64> {
    let device = device(options, driver)?;
    let mut random = Rng::with_seed(seed);
    let mut faults = 0;
    let tested = Tested { driver, device, bad_disks: false };
    on_bench(system, options, tested, 1, |bench, other| {
        match (driver.kind, other) {
            (_, Other::Peer(peer)) => random::frames(bench, peer, count, &mut random)?,
            (_, Other::Image(image)) => {
                files::random(bench, image, count, &mut random)?;
                random::texts(bench, count / random::INPUTS_PER_COMMAND, &mut random)?;
            }
            (Kind::Scsi | Kind::Block, _) => random::requests(bench, count, &mut random)?,
            _ => random::texts(bench, count, &mut random)?,
        }
        faults = bench.restarts()?;
        // They are counted, and are no failure of their own.
        (bench.kills, bench.may_fault) = (faults as usize, true);
        Ok(())
    })?;
    Ok(faults)
}

/// Boots each machine of a test with the driver and runs the test on it.
fn attempt(system: &System, options: &Options, (driver, device): (&Driver, &str), case: &Case, ring: u8) -> Result<()> {
    let on = |device: &str| {
        let tested = Tested { driver, device, bad_disks: case.setting == Setting::BadDisks };
        on_bench(system, options, tested, ring, |bench, other| match (case.test, other) {
            (Test::Nic(test), Other::Peer(peer)) => test(bench, peer),
            (Test::Files(test), Other::Image(image)) => test(bench, image),
            (Test::Disk(test), _) => test(bench),
            (Test::Nic(_) | Test::Files(_), _) => bail!("the machine does not have what the test is about"),
        })
    };
    match case.setting {
        Setting::Usual | Setting::BadDisks => on(device),
        Setting::RingSizes => ring_sizes(device)
            .iter()
            .try_for_each(|size| on(&format!("{device},{size}")).with_context(|| format!("with {size}"))),
    }
}

/// Boots a machine with the driver in a ring, does something with it, and shuts it down in order.
fn on_bench(
    system: &System,
    options: &Options,
    Tested { driver, device, bad_disks }: Tested,
    ring: u8,
    then: impl FnOnce(&mut Bench, &Other) -> Result<()>,
) -> Result<()> {
    let Driver { kind, domain, module, .. } = driver;
    let folder = TempDir::new()?;
    let socket = folder.path().join("qmp");
    let mut machine = options.machine.clone();
    machine.contents.autoload = false;
    machine.contents.exec = None;
    machine.timeout = Some(LIMIT);
    machine.extra.extend(["-qmp".into(), format!("unix:{},server=on,wait=off", socket.display()).into()]);
    let mut other = Other::Nothing;
    let mut rules = String::new();
    (machine.nic, machine.hba) = ("none".to_string(), "none".to_string());
    match *kind {
        Kind::Nic => {
            let (peer, network) = Peer::new()?;
            (machine.nic, machine.network) = (device.to_string(), Some(network));
            other = Other::Peer(peer);
        }
        Kind::Scsi | Kind::Block => {
            machine.hba = device.to_string();
            for name in ["a.img", "b.img"] {
                let path = folder.path().join(name);
                File::create(&path)?.set_len(disk::BLOCKS * 512)?;
                machine.disks.push(Disk::from(path));
            }
            rules = disk::error_rules();
        }
        Kind::Fs => {
            let image = files::Image::new(folder.path(), device)?;
            machine.hba = Machine::default().hba;
            machine.disks.push(Disk::from(image.path().to_path_buf()));
            rules = if bad_disks { image.error_rules()? } else { String::new() };
            other = Other::Image(image);
        }
        Kind::Other => {}
    }
    if bad_disks {
        let path = folder.path().join("errors");
        fs::write(&path, rules)?;
        machine.disk_errors = Some(path);
    }
    let running = machine.start(system)?;
    let monitor = Monitor::new(&socket)?;
    let mut bench = Bench { running, monitor, name: module.clone(), kind: *domain, kills: 0, may_fault: false };
    bench.run("limits restarts 1000")?;
    bench.run("limits restart-wait-ms 0")?;
    if *kind == Kind::Fs {
        bench.run(&format!("insmod {}", files::DISK_DRIVER))?;
        bench.run(&format!("policy {} restart", files::DISK_DRIVER))?;
        bench.run(&format!("mount disk0 {} -t {module}", files::AT))?;
        bench.run(&format!("ring {module} {ring}"))?;
    } else {
        bench.load(ring)?;
    }
    bench.run(&format!("policy {module} restart"))?;
    if *kind == Kind::Block {
        // Each block device needs a driver instance of its own, also the second disk.
        bench.load(ring)?;
    }
    then(&mut bench, &other)?;
    bench.leave()
}

/// Tests the driver and prints the outcome of each test; returns whether all tests passed.
pub fn run(system: &System, options: &Options) -> Result<bool> {
    let show = |outcome: &Outcome| {
        let Outcome { test, meaning, ring, failure, time } = outcome;
        if options.json {
            let time_ms = time.as_millis() as u64;
            let object =
                json!({ "test": test, "ring": ring, "passed": failure.is_none(), "failure": failure, "ms": time_ms });
            output::line(format_args!("{object}"));
            return;
        }
        let passed = if failure.is_none() { "passed" } else { "FAILED" };
        output::line(format_args!("{passed}  ring {ring}  {test:<12} {meaning}"));
        if let Some(failure) = failure {
            output::line(format_args!("        {failure}"));
        }
    };
    let outcomes = outcomes(system, options, show)?;
    let failed = outcomes.iter().filter(|outcome| outcome.failure.is_some()).count();
    if !options.json {
        output::line(format_args!("{}: {} of {} tests passed", options.name, outcomes.len() - failed, outcomes.len()));
    }
    Ok(failed == 0)
}
