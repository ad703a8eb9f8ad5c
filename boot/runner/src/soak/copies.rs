//! The work is a TCP stream, and copies from disk to disk.

use super::attacked::{Attacked, Ends, Work};
use super::stream::{Stopped, Stream};
use super::victim::{self, Victim};
use super::{Options, PATIENCE};
use crate::bench::has_address;
use crate::build::System;
use crate::machine::{Disk, Machine, Protocol, Running, free_port};
use crate::output;
use anyhow::{Result, bail};
use ringfence_link::event::{Event, Sha256};
use serde_json::json;
use sha2::Digest;
use std::fs::File;
use std::path::PathBuf;
use std::time::Instant;
use tempfile::TempDir;

/// The result of a soak.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// The ends of drivers.
    pub ends: Ends,
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
            && self.ends.all_are_back()
    }

    fn text(&self) -> String {
        let rows = [
            ("through the stream and back", format!("{} bytes", self.stream_bytes)),
            ("written to disks", format!("{} bytes", self.disk_bytes)),
            ("bytes wrong", self.wrong_bytes.to_string()),
            ("connections lost", self.lost_connections.to_string()),
            ("memory leaked", format!("{} frames", self.leaked_frames)),
        ];
        let failure = self.failure.iter().map(|failure| format!("failed: {failure}\n"));
        let rows = self.ends.rows().into_iter().chain(rows);
        rows.map(|(name, value)| format!("{name:<28} {value}\n")).chain(failure).collect()
    }
}

/// Number of blocks that are written and copied, and their length in bytes.
const BLOCKS: u64 = 16384;
const BLOCK_BYTES: u64 = 512;

/// Runs the work for the given time while drivers are ended, and prints the result.
pub fn run(system: &System, options: &Options) -> Result<Summary> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let directory = TempDir::new()?;
    let disks = ["from.img", "to.img"].map(|name| directory.path().join(name));
    for disk in &disks {
        File::create(disk)?.set_len(BLOCKS * BLOCK_BYTES)?;
    }
    let port = free_port()?;
    let mut machine = Machine {
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
    // A reload would put the drivers on probation, and the first fault would take it back.
    machine.contents.kind = Some(options.kind);
    let quiet = Machine { forwards: Vec::new(), ..machine.clone() };
    let victims = victim::of(system, &quiet, "ip; ping 10.0.2.2; blkcheck disk0 0 256 1")?;

    let mut running = machine.start(system)?;
    running.wait_for_event("an address", has_address)?;
    let mut attacked = Attacked::new(running)?;
    let before = attacked.free_frames()?;
    let stream = Stream::start(port, options.seed)?;
    let mut copies = Copies { disks, count: 0, written: None, disk_bytes: 0, wrong_bytes: 0 };
    let mut summary = Summary::default();
    let end = Instant::now() + options.time;
    let done = go_on(&mut attacked, &mut copies, &victims, (end, &mut random), stream);
    let done = done.and_then(|(bytes, wrong, is_lost)| {
        (summary.stream_bytes, summary.wrong_bytes, summary.lost_connections) = (bytes, wrong, is_lost.into());
        attacked.settle(&victims)?;
        summary.leaked_frames = before - attacked.free_frames()?;
        Ok(())
    });
    if let Err(error) = done {
        summary.failure = Some(attacked.with_recent(&error));
    }
    summary.ends = attacked.ends();
    summary.disk_bytes = copies.disk_bytes;
    summary.wrong_bytes += copies.wrong_bytes;
    let ends = &summary.ends;
    if options.json {
        output::line(format_args!(
            "{}",
            json!({
                "crashes": ends.crashes, "restarts": ends.restarts, "restart_us_median": ends.restart_us.0,
                "restart_us_longest": ends.restart_us.1, "stream_bytes": summary.stream_bytes,
                "disk_bytes": summary.disk_bytes, "wrong_bytes": summary.wrong_bytes,
                "lost_connections": summary.lost_connections, "leaked_frames": summary.leaked_frames,
                "failure": summary.failure,
            })
        ));
    } else {
        output::text(format_args!("{}", summary.text()));
    }
    Ok(summary)
}

/// Ends drivers until `end`, then waits for the last copy and the stream. Returns how many bytes
/// went through the stream, how many of them were wrong, and whether the connection was lost.
fn go_on(
    attacked: &mut Attacked,
    copies: &mut Copies,
    victims: &[Victim],
    (end, random): (Instant, &mut fastrand::Rng),
    stream: Stream,
) -> Result<(u64, u64, bool)> {
    copies.begin(&mut attacked.running)?;
    attacked.attack(victims, (end, u64::MAX), random, copies)?;
    attacked.check_kinds(victims, copies)?;
    let count = copies.count;
    attacked.wait(copies, "the last copy to end", |copies| copies.count > count)?;
    let Stopped { bytes, wrong, sum } = stream.stop();
    let Some(sum) = sum else { return Ok((bytes, wrong, true)) };
    attacked.running.type_line("echoed")?;
    let limit = Instant::now() + PATIENCE;
    let what = format!("the guest to have echoed {bytes} bytes {}", Sha256(sum));
    while attacked.next(limit, &what)? != Some(Event::Data { bytes, sha256: Sha256(sum) }) {}
    Ok((bytes, wrong, false))
}

/// The copies from disk to disk.
struct Copies {
    disks: [PathBuf; 2],
    count: u64,
    /// SHA-256 of the data that the guest reports to have written to the first disk, once it has.
    written: Option<Sha256>,
    disk_bytes: u64,
    wrong_bytes: u64,
}

impl Work for Copies {
    fn note(&mut self, running: &mut Running, event: &Event) -> Result<bool> {
        let Event::Data { bytes, sha256 } = event else { return Ok(false) };
        if *bytes != BLOCKS * BLOCK_BYTES {
            return Ok(false);
        }
        self.disk_bytes += bytes;
        match self.written.take() {
            None => {
                running.type_line(&format!("blkcopy disk0 0 disk1 0 {BLOCKS} &"))?;
                self.written = Some(*sha256);
            }
            Some(written) => {
                self.wrong_bytes += self.compare(written, *sha256)?;
                self.count += 1;
                self.begin(running)?;
            }
        }
        Ok(true)
    }
}

impl Copies {
    /// Starts to write another pattern to the first disk.
    fn begin(&self, running: &mut Running) -> Result<()> {
        running.type_line(&format!("blkwrite disk0 0 {BLOCKS} {} &", self.count + 1))
    }

    /// Returns the number of bytes in which the disks differ. If the content of the first disk
    /// differs from the data that the guest wrote or copied, returns the length of the disk.
    fn compare(&self, written: Sha256, copied: Sha256) -> Result<u64> {
        let [from, to] = [std::fs::read(&self.disks[0])?, std::fs::read(&self.disks[1])?];
        let sum = Sha256(sha2::Sha256::digest(&from).into());
        if sum != written || sum != copied {
            return Ok(from.len() as u64);
        }
        Ok(from.iter().zip(&to).filter(|(from, to)| from != to).count() as u64)
    }
}
