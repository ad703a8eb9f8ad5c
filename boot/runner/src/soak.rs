//! `cargo run -- soak`: runs a TCP stream and disk copies for minutes, while their drivers are
//! ended at random moments in random ways. Nothing may be lost.
//!
//! Each way stops the driver's code at once. It is the `kill` command, or a change of the running
//! driver's code (`poke`) at its entry point or at an instruction that the work executes. Drivers
//! that go on with wrong results are the subject of `campaign`: no layer below could notice wrong
//! data.

use crate::bench::has_address;
use crate::build::System;
use crate::campaign::{coverage, mutate};
use crate::drivers::{self, Driver};
use crate::machine::{Disk, Machine, Protocol, Running, Said, free_port};
use crate::output;
use anyhow::{Context, Result, bail};
use object::{Object, ObjectSymbol};
use ringfence_abi::manifest::Kind;
use ringfence_link::event::{Event, Sha256};
use serde_json::json;
use sha2::Digest;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{IsTerminal, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The settings of a soak.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// How long to end drivers.
    pub time: Duration,
    /// The seed of the random numbers.
    pub seed: u64,
    /// Whether to print the summary as a JSON object.
    pub json: bool,
}

/// The result of a soak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of drivers that were ended.
    pub crashes: u64,
    /// Number of drivers that came back.
    pub restarts: u64,
    /// Median and longest time from the end of a driver until it was back, in microseconds.
    pub restart_us: (u64, u64),
    /// Bytes that went through the stream and back.
    pub stream_bytes: u64,
    /// Bytes that were written to disks.
    pub disk_bytes: u64,
    /// Bytes that differed from the expected ones.
    pub wrong_bytes: u64,
    /// Connections that ended before they were closed.
    pub lost_connections: u64,
    /// Frames of memory that were not freed.
    pub leaked_frames: i64,
    /// The reason for an early end, if there was one, with the console's last lines. The other
    /// fields then hold the values up to the failure.
    pub failure: Option<String>,
}

impl Summary {
    /// Returns whether nothing was lost.
    pub fn is_good(&self) -> bool {
        self.failure.is_none()
            && self.wrong_bytes == 0
            && self.lost_connections == 0
            && self.leaked_frames == 0
            && self.crashes == self.restarts
    }

    fn text(&self) -> String {
        let rows = [
            ("crashes", self.crashes.to_string()),
            ("restarts", self.restarts.to_string()),
            ("restart, median", format!("{} us", self.restart_us.0)),
            ("restart, longest", format!("{} us", self.restart_us.1)),
            ("through the stream and back", format!("{} bytes", self.stream_bytes)),
            ("written to disks", format!("{} bytes", self.disk_bytes)),
            ("bytes wrong", self.wrong_bytes.to_string()),
            ("connections lost", self.lost_connections.to_string()),
            ("memory leaked", format!("{} frames", self.leaked_frames)),
        ];
        let failure = self.failure.iter().map(|failure| format!("failed: {failure}\n"));
        rows.map(|(name, value)| format!("{name:<28} {value}\n")).into_iter().chain(failure).collect()
    }
}

/// Number of blocks that are written and copied, and their length in bytes.
const BLOCKS: u64 = 16384;
const BLOCK_BYTES: u64 = 512;
/// Range of the time between two attacks on a driver, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// How long changed code may wait to be executed before its driver is ended by `kill`.
const ARMED: Duration = Duration::from_millis(300);
/// Longest time without the end of a copy, or without data on the stream.
const PATIENCE: Duration = Duration::from_secs(60);

/// Code that stops at once and fits anywhere: it is never longer than the instruction that it
/// replaces, so that no jump leads into its middle.
const SHORT: [&[u8]; 4] = [
    &[0x0f, 0x0b], // ud2
    &[0xf4],       // hlt
    &[0xcc],       // int3
    &[0xeb, 0xfe], // jmp to itself
];
/// Code for the entry point. It may be long, because no jump leads into the middle of it.
const LONG: [&[u8]; 4] = [
    &[0x31, 0xc0, 0x48, 0x89, 0x00],                      // xor eax, eax; mov [rax], rax
    &[0x48, 0xc7, 0xc0, 0, 0, 0, 0x80, 0x48, 0x89, 0x00], // mov rax, 0xffffffff80000000; mov [rax], rax
    &[0x50, 0xeb, 0xfd],                                  // push rax, for ever
    &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1],                // xor edx, edx; xor ecx, ecx; div ecx
];

/// A driver, and the ways to end it.
struct Victim {
    name: String,
    entry: u64,
    /// Offsets and lengths of the executed instructions.
    sites: Vec<(u64, usize)>,
}

impl Victim {
    fn new(driver: &Driver, executed: &[u64]) -> Result<Victim> {
        let file = std::fs::read(&driver.file)?;
        let elf = object::File::parse(&*file)?;
        let entry = elf.symbols().find(|symbol| symbol.name() == Ok("rf_upcall"));
        let entry = entry.with_context(|| format!("{} has no rf_upcall", driver.name))?.address();
        // The text of a module has the same offsets in the file as in memory.
        let bytes =
            |offset: u64| file.get(offset as usize..).map_or(Vec::new(), |rest| rest[..rest.len().min(15)].to_vec());
        let sites = mutate::sites(bytes, executed);
        let sites = sites.into_iter().map(|site| (site.offset, site.bytes.len())).collect();
        Ok(Victim { name: driver.name.clone(), entry, sites })
    }

    /// Returns a command that ends the driver, at once or when the changed place is next executed.
    fn command(&self, random: &mut fastrand::Rng) -> String {
        let (offset, code) = match random.u32(..8) {
            0 => return format!("kill {}", self.name),
            1..4 => (self.entry, LONG[random.usize(..LONG.len())]),
            _ => {
                let (offset, len) = self.sites[random.usize(..self.sites.len())];
                let fitting: Vec<&[u8]> = SHORT.into_iter().filter(|code| code.len() <= len).collect();
                (offset, fitting[random.usize(..fitting.len())])
            }
        };
        let hex: String = code.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("poke {} {offset:x}:{hex}", self.name)
    }
}

/// Runs the work for the given time while drivers are ended, and prints the result.
pub fn run(system: &System, options: &Options) -> Result<Summary> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let directory = TempDir::new()?;
    let disks = ["from.img", "to.img"].map(|name| directory.path().join(name));
    for disk in &disks {
        File::create(disk)?.set_len(BLOCKS * BLOCK_BYTES)?;
    }
    let port = free_port()?;
    let machine = Machine {
        disks: disks.iter().cloned().map(Disk::from).collect(),
        // Flushed data need not reach the host's disk, which may be slow.
        volatile_disks: true,
        forwards: vec![(Protocol::Tcp, port, 7)],
        timeout: Some(options.time + 4 * PATIENCE),
        ..options.machine.clone()
    };
    for (option, model) in [("--nic", &machine.nic), ("--hba", &machine.hba)] {
        if model == "none" {
            bail!("the work of a soak is a TCP stream and disk copies: {option} must not be none");
        }
    }
    output::complain("soak: finding out what the work executes");
    let quiet = Machine { forwards: Vec::new(), ..machine.clone() };
    let executed = coverage::executed(system, &quiet, "ip; ping 10.0.2.2; blkcheck disk0 0 256 1")?;
    let victims: Vec<Victim> = executed
        .iter()
        .map(|(name, offsets)| Ok((drivers::find(system, &machine, name)?, offsets)))
        .filter(|found| found.as_ref().map_or(true, |(driver, _)| driver.kind != Kind::Other))
        .map(|found| {
            found.and_then(|(driver, offsets)| Victim::new(&driver, &offsets.iter().copied().collect::<Vec<_>>()))
        })
        .collect::<Result<_>>()?;
    if victims.is_empty() || victims.iter().any(|victim| victim.sites.is_empty()) {
        bail!("QEMU does not say what code of the drivers it translated: is it built without a disassembler?");
    }

    let mut running = machine.start(system)?;
    running.wait_for_event("an address", has_address)?;
    for limit in ["restarts 1000", "console-rows 1000000", "restart-wait-ms 0", "command-ms 2000", "transmit-ms 500"] {
        running.type_line(&format!("limits {limit}"))?;
    }
    running.type_line("mem")?;
    let before = running.wait_for_event("free memory", free_frames)?;
    let stream = Stream::start(port, options.seed)?;
    let mut soak = Soak {
        running,
        disks,
        summary: Summary::default(),
        times: Vec::new(),
        copies: 0,
        recent: VecDeque::new(),
        written: None,
    };
    let end = Instant::now() + options.time;
    if let Err(error) = soak.go_on(&victims, end, &mut random, stream, before) {
        let recent: Vec<&str> = soak.recent.iter().map(String::as_str).collect();
        soak.summary.failure = Some(format!("{error:#}; the console said last:\n{}", recent.join("\n")));
    }
    soak.times.sort_unstable();
    let last = soak.times.len().saturating_sub(1);
    let at = |index: usize| soak.times.get(index).copied().unwrap_or(0);
    soak.summary.restart_us = (at(last / 2), at(last));
    if options.json {
        let summary = &soak.summary;
        output::line(format_args!(
            "{}",
            json!({
                "crashes": summary.crashes, "restarts": summary.restarts, "restart_us_median": summary.restart_us.0,
                "restart_us_longest": summary.restart_us.1, "stream_bytes": summary.stream_bytes,
                "disk_bytes": summary.disk_bytes, "wrong_bytes": summary.wrong_bytes,
                "lost_connections": summary.lost_connections, "leaked_frames": summary.leaked_frames,
                "failure": summary.failure,
            })
        ));
    } else {
        output::text(format_args!("{}", soak.summary.text()));
    }
    Ok(soak.summary)
}

/// Prints the progress: each time on a terminal, every 30 seconds in a log. `said` is the time of
/// the last line in the log.
fn progress(summary: &Summary, end: Instant, said: &mut Instant) {
    const NOW_AND_THEN: Duration = Duration::from_secs(30);
    let left = end.saturating_duration_since(Instant::now()).as_secs();
    if std::io::stderr().is_terminal() {
        output::progress(format_args!("\rsoak: {} crashes, {} s to go    ", summary.crashes, left));
    } else if said.elapsed() > NOW_AND_THEN {
        *said = Instant::now();
        output::complain(&format!("soak: {} crashes, {} s to go", summary.crashes, left));
    }
}

/// Returns the number of free frames, if this is the event of `mem`.
fn free_frames(event: Event) -> Option<i64> {
    match event {
        Event::Memory { free, .. } => i64::try_from(free).ok(),
        _ => None,
    }
}

struct Soak {
    running: Running,
    disks: [PathBuf; 2],
    summary: Summary,
    times: Vec<u64>,
    copies: u64,
    /// The last lines of the console that concern drivers.
    recent: VecDeque<String>,
    /// SHA-256 of the data that the guest reports to have written to the first disk, once it has.
    written: Option<Sha256>,
}

impl Soak {
    /// Ends drivers until `end`, then waits for the last copy and the stream.
    fn go_on(
        &mut self,
        victims: &[Victim],
        end: Instant,
        random: &mut fastrand::Rng,
        stream: Stream,
        before: i64,
    ) -> Result<()> {
        self.next_copy()?;
        let (mut heard, mut said) = (Instant::now(), Instant::now());
        while Instant::now() < end {
            let next = Instant::now() + Duration::from_millis(random.u64(PAUSE_MS));
            while let Some(left) = next.checked_duration_since(Instant::now()) {
                if let Some(said) = self.running.next_within(left)
                    && self.note(&said)?
                {
                    heard = Instant::now();
                }
            }
            if heard.elapsed() > PATIENCE {
                bail!("no copy has ended for {} s", PATIENCE.as_secs());
            }
            let victim = &victims[random.usize(..victims.len())];
            let crashes = self.summary.crashes;
            self.running.type_line(&victim.command(random))?;
            // Changed code must not wait too long for the rare event that executes it.
            let until = Instant::now() + ARMED;
            while self.summary.crashes == crashes {
                let Some(left) = until.checked_duration_since(Instant::now()) else {
                    self.running.type_line(&format!("kill {}", victim.name))?;
                    break;
                };
                if let Some(said) = self.running.next_within(left)
                    && self.note(&said)?
                {
                    heard = Instant::now();
                }
            }
            progress(&self.summary, end, &mut said);
        }
        let copies = self.copies;
        while self.copies == copies {
            self.next(Instant::now() + PATIENCE, "the last copy to end")?;
        }
        let Stopped { bytes, wrong, sum } = stream.stop();
        self.summary.stream_bytes = bytes;
        self.summary.wrong_bytes += wrong;
        self.summary.lost_connections = match sum {
            Some(sum) => {
                self.running.type_line("echoed")?;
                let limit = Instant::now() + PATIENCE;
                let what = format!("the guest to have echoed {bytes} bytes {}", Sha256(sum));
                while self.next(limit, &what)? != Some(Event::Data { bytes, sha256: Sha256(sum) }) {}
                0
            }
            None => 1,
        };
        self.settle(victims, before)
    }

    /// Waits for the next line or event, notes it, and returns it if it is an event. `what`
    /// describes the expected event in the error.
    fn next(&mut self, limit: Instant, what: &str) -> Result<Option<Event<'static>>> {
        let left = limit.saturating_duration_since(Instant::now());
        let said = self.running.next_within(left).with_context(|| format!("waited in vain for {what}"))?;
        self.note(&said)?;
        Ok(match said {
            Said::Event(event) => Some(event),
            Said::Line(_) => None,
        })
    }

    /// Starts to write another pattern to the first disk.
    fn next_copy(&mut self) -> Result<()> {
        self.running.type_line(&format!("blkwrite disk0 0 {BLOCKS} {} &", self.copies + 1))
    }

    /// Counts an event or keeps a line; returns whether a write or a copy has ended.
    fn note(&mut self, said: &Said) -> Result<bool> {
        let event = match said {
            Said::Line(line) => {
                self.keep(line);
                return Ok(false);
            }
            Said::Event(event) => event,
        };
        match event {
            Event::Fault(_) => self.summary.crashes += 1,
            Event::Restarted { after_us, .. } => {
                self.summary.restarts += 1;
                self.times.push(*after_us);
            }
            Event::Panic { message } => bail!("the kernel panicked: {message}"),
            Event::GivenUp { name, why } => bail!("{name}: {why}"),
            // A driver that is to be killed may already have been ended by the change made before.
            Event::Command { line, error: Some(error) } if !line.starts_with("kill ") => {
                bail!("'{line}' failed: {error}")
            }
            Event::Data { bytes, sha256 } if *bytes == BLOCKS * BLOCK_BYTES => {
                self.summary.disk_bytes += bytes;
                match self.written.take() {
                    None => {
                        self.running.type_line(&format!("blkcopy disk0 0 disk1 0 {BLOCKS} &"))?;
                        self.written = Some(*sha256);
                    }
                    Some(written) => {
                        self.summary.wrong_bytes += self.compare(written, *sha256)?;
                        self.copies += 1;
                        self.next_copy()?;
                    }
                }
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    /// Keeps a line of the console for the analysis of a failure.
    fn keep(&mut self, line: &str) {
        const RECENT: usize = 60;
        // Lines that are printed in every case are of no interest.
        let is_kept = ["[", "    then: "].iter().any(|start| line.starts_with(start))
            || ["error", "poke", "kill"].iter().any(|part| line.contains(part));
        if is_kept {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(line.to_string());
        }
    }

    /// Returns the number of bytes in which the disks differ. If the first disk is not what the
    /// guest wrote and copied, returns the length of the disk.
    fn compare(&self, written: Sha256, copied: Sha256) -> Result<u64> {
        let [from, to] = [std::fs::read(&self.disks[0])?, std::fs::read(&self.disks[1])?];
        let sum = Sha256(sha2::Sha256::digest(&from).into());
        if sum != written || sum != copied {
            return Ok(from.len() as u64);
        }
        Ok(from.iter().zip(&to).filter(|(from, to)| from != to).count() as u64)
    }

    /// Replaces all drivers by new instances, and counts the frames that are not free again.
    fn settle(&mut self, victims: &[Victim], before: i64) -> Result<()> {
        for Victim { name, .. } in victims {
            let wanted = self.summary.crashes + 1;
            self.running.type_line(&format!("kill {name}"))?;
            let limit = Instant::now() + PATIENCE;
            while self.summary.crashes < wanted || self.summary.restarts < self.summary.crashes {
                self.next(limit, &format!("{name} to be back"))?;
            }
        }
        self.running.type_line("mem")?;
        let limit = Instant::now() + PATIENCE;
        loop {
            if let Some(free) = self.next(limit, "the free memory")?.and_then(free_frames) {
                self.summary.leaked_frames = before - free;
                return Ok(());
            }
        }
    }
}

/// Reports the loss of the stream at once, so that the message is beside the console's lines of
/// that moment.
fn ended(doing: &str, error: &std::io::Error) {
    output::complain(&format!("\nsoak: {doing} ended: {error}"));
}

/// A stream of random bytes through the guest's echo server.
struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Option<[u8; 32]>>,
    receiver: JoinHandle<(u64, u64, [u8; 32])>,
}

impl Stream {
    fn start(port: u16, seed: u64) -> Result<Stream> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).context("connecting to the guest")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // One piece goes there and back before any driver is ended. libslirp 4.7 loses the data
        // that it has read from the host if a SYN-ACK comes twice (`sbreserve` empties its buffer).
        // It comes twice if the driver is ended before the guest has the answer to it.
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut first, mut back) = ([0; 4096], [0; 4096]);
        random.fill(&mut first);
        socket.write_all(&first).and_then(|()| socket.read_exact(&mut back)).context("the first bytes")?;
        if back != first {
            bail!("the first bytes of the stream came back wrong");
        }
        let mut sum = sha2::Sha256::new_with_prefix(first);
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(first.len() as u64)));
        let (mut out, mut back) = (socket.try_clone()?, socket);
        let (stopped, count) = (stop.clone(), sent.clone());
        let (mut random_back, mut sum_back) = (random.clone(), sum.clone());
        // Both ends generate the bytes from the same seed. Each has its own checksum of the bytes
        // that it sent or received.
        let sender = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while !stopped.load(Ordering::Relaxed) {
                random.fill(&mut piece);
                out.write_all(&piece).inspect_err(|error| ended("sending", error)).ok()?;
                sum.update(piece);
                count.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            out.shutdown(Shutdown::Write).ok()?;
            Some(sum.finalize().into())
        });
        let receiver = std::thread::spawn(move || {
            let (mut piece, mut expected) = ([0; 4096], [0; 4096]);
            let (mut bytes, mut wrong) = (first.len() as u64, 0);
            let mut filled = 0;
            let mut read = |room: &mut [u8]| back.read(room).inspect_err(|error| ended("receiving", error));
            while let Ok(count @ 1..) = read(&mut piece[filled..]) {
                sum_back.update(&piece[filled..filled + count]);
                bytes += count as u64;
                filled += count;
                if filled == piece.len() {
                    random_back.fill(&mut expected);
                    wrong += piece.iter().zip(&expected).filter(|(is, should)| is != should).count() as u64;
                    filled = 0;
                }
            }
            (bytes, wrong, sum_back.finalize().into())
        });
        Ok(Stream { stop, sent, sender, receiver })
    }

    /// Closes the stream.
    fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        let sent_sum = self.sender.join().ok().flatten();
        let (bytes, wrong, sum) = self.receiver.join().unwrap_or_default();
        let whole = bytes == self.sent.load(Ordering::Relaxed) && sent_sum == Some(sum);
        Stopped { bytes, wrong, sum: whole.then_some(sum) }
    }
}

/// The result of a stream.
struct Stopped {
    /// Number of bytes that came back.
    bytes: u64,
    /// Number of bytes that came back wrong.
    wrong: u64,
    /// SHA-256 of the bytes that were sent, if all of them came back.
    sum: Option<[u8; 32]>,
}
