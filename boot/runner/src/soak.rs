//! `cargo run -- soak`: a TCP stream and disk copies go on for minutes while their drivers are
//! ended at random moments in random ways. Nothing may be lost.
//!
//! The ways are those in which code stops at once: each is a change of the running driver's code
//! (`poke`), at its entry point or at an instruction that the work executes, or the `kill` command.
//! A driver that goes on and computes wrong things is what `campaign` is about: nobody below can
//! notice wrong data.

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

/// What to do.
pub struct Options {
    /// The machine.
    pub machine: Machine,
    /// How long.
    pub time: Duration,
    /// Where the random numbers begin.
    pub seed: u64,
    /// Print the summary as a JSON object.
    pub json: bool,
}

/// What happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Drivers that were ended.
    pub crashes: u64,
    /// Drivers that came back.
    pub restarts: u64,
    /// Median and longest time from the end of a driver until it was back, in microseconds.
    pub restart_us: (u64, u64),
    /// Bytes that went through the stream and back.
    pub stream_bytes: u64,
    /// Bytes that were written to disks.
    pub disk_bytes: u64,
    /// Bytes that were not what they should be.
    pub wrong_bytes: u64,
    /// Connections that ended before they were closed.
    pub lost_connections: u64,
    /// Frames of memory that were not free again.
    pub leaked_frames: i64,
    /// Why it ended early, if it did, with the console's last lines. What is counted above is what
    /// there was by then.
    pub failure: Option<String>,
}

impl Summary {
    /// Whether nothing was lost.
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

/// Blocks that are written and copied, and their bytes.
const BLOCKS: u64 = 16384;
const BLOCK_BYTES: u64 = 512;
/// Time between two ends of a driver, in milliseconds.
const PAUSE_MS: std::ops::Range<u64> = 100..900;
/// How long changed code may wait to be executed before its driver is ended by `kill`.
const ARMED: Duration = Duration::from_millis(300);
/// Longest time in which no copy ends, or the stream brings nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// Code that stops at once and fits anywhere: it is never longer than the instruction that it
/// replaces, so that no jump leads into its middle.
const SHORT: [&[u8]; 4] = [
    &[0x0f, 0x0b], // ud2
    &[0xf4],       // hlt
    &[0xcc],       // int3
    &[0xeb, 0xfe], // jmp to itself
];
/// Code for the entry point, where no jump leads.
const LONG: [&[u8]; 4] = [
    &[0x31, 0xc0, 0x48, 0x89, 0x00],                      // xor eax, eax; mov [rax], rax
    &[0x48, 0xc7, 0xc0, 0, 0, 0, 0x80, 0x48, 0x89, 0x00], // mov rax, 0xffffffff80000000; mov [rax], rax
    &[0x50, 0xeb, 0xfd],                                  // push rax, for ever
    &[0x31, 0xd2, 0x31, 0xc9, 0xf7, 0xf1],                // xor edx, edx; xor ecx, ecx; div ecx
];

/// Ways to end one driver.
struct Victim {
    name: String,
    entry: u64,
    /// Offsets of executed instructions, and their lengths.
    sites: Vec<(u64, usize)>,
}

impl Victim {
    fn new(driver: &Driver, executed: &[u64]) -> Result<Victim> {
        let file = std::fs::read(&driver.file)?;
        let elf = object::File::parse(&*file)?;
        let entry = elf.symbols().find(|symbol| symbol.name() == Ok("rf_upcall"));
        let entry = entry.with_context(|| format!("{} has no rf_upcall", driver.name))?.address();
        // Text lies in a file as in memory.
        let bytes =
            |offset: u64| file.get(offset as usize..).map_or(Vec::new(), |rest| rest[..rest.len().min(15)].to_vec());
        let sites = mutate::sites(bytes, executed);
        let sites = sites.into_iter().map(|site| (site.offset, site.bytes.len())).collect();
        Ok(Victim { name: driver.name.clone(), entry, sites })
    }

    /// The command that ends it, now or at the next time that the place is executed.
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

/// Lets it all go on for so long, and says what happened.
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
        // What is flushed need not reach the host's disk, which may take as long as it likes.
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

/// A line that says how far it is: over and over on a terminal, now and then in a log. `said` is
/// when it did last.
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

/// Free frames, as `mem` tells.
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
    /// The console's last lines that tell of drivers.
    recent: VecDeque<String>,
    /// SHA-256 of what the guest says that it wrote to the first disk, once it has.
    written: Option<Sha256>,
}

impl Soak {
    /// Ends drivers until `end`, then waits for all that is under way.
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
            // Changed code must not lie in wait for the one frame that comes again in seconds.
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

    /// What is said next, which is taken notice of, if it is an event; `what` is what is waited
    /// for.
    fn next(&mut self, limit: Instant, what: &str) -> Result<Option<Event<'static>>> {
        let left = limit.saturating_duration_since(Instant::now());
        let said = self.running.next_within(left).with_context(|| format!("waited in vain for {what}"))?;
        self.note(&said)?;
        Ok(match said {
            Said::Event(event) => Some(event),
            Said::Line(_) => None,
        })
    }

    /// Has the first disk written with another pattern.
    fn next_copy(&mut self) -> Result<()> {
        self.running.type_line(&format!("blkwrite disk0 0 {BLOCKS} {} &", self.copies + 1))
    }

    /// Takes notice of what is said; whether a copy went on.
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
            // What was to be killed may have been ended for what was done to it before.
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

    /// Keeps a line of the console for who looks for what went wrong.
    fn keep(&mut self, line: &str) {
        const RECENT: usize = 60;
        // What is always said is of no interest.
        let is_kept = ["[", "    then: "].iter().any(|start| line.starts_with(start))
            || ["error", "poke", "kill"].iter().any(|part| line.contains(part));
        if is_kept {
            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
            self.recent.push_back(line.to_string());
        }
    }

    /// Bytes in which the disks differ from each other, or all of them if they are not what the
    /// guest wrote and copied.
    fn compare(&self, written: Sha256, copied: Sha256) -> Result<u64> {
        let [from, to] = [std::fs::read(&self.disks[0])?, std::fs::read(&self.disks[1])?];
        let sum = Sha256(sha2::Sha256::digest(&from).into());
        if sum != written || sum != copied {
            return Ok(from.len() as u64);
        }
        Ok(from.iter().zip(&to).filter(|(from, to)| from != to).count() as u64)
    }

    /// Replaces all drivers by fresh ones, and counts the frames that are free then and were not
    /// before.
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

/// Says at once that the stream is lost: the console's lines of that moment tell why.
fn ended(doing: &str, error: &std::io::Error) {
    output::complain(&format!("\nsoak: {doing} ended: {error}"));
}

/// A stream of random bytes through the guest's echo server, and what came back.
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
        // Before any driver is ended, a piece there and back. libslirp 4.7 forgets what it has read
        // from the host when a SYN-ACK comes twice (`sbreserve` empties its buffer), as one does if
        // the driver is ended before the guest has what answers it.
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
        // Both ends know the bytes from the same seed; each has its own checksum of what went
        // through its hands.
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

    /// Closes it.
    fn stop(self) -> Stopped {
        self.stop.store(true, Ordering::Relaxed);
        let sent_sum = self.sender.join().ok().flatten();
        let (bytes, wrong, sum) = self.receiver.join().unwrap_or_default();
        let whole = bytes == self.sent.load(Ordering::Relaxed) && sent_sum == Some(sum);
        Stopped { bytes, wrong, sum: whole.then_some(sum) }
    }
}

/// What became of a stream.
struct Stopped {
    /// Bytes that came back, and those of them that were wrong.
    bytes: u64,
    /// See `bytes`.
    wrong: u64,
    /// SHA-256 of what was sent, if all of it came back.
    sum: Option<[u8; 32]>,
}
