//! Random input for a driver in ring 1, which must survive it.

use super::peer::Peer;
use super::{Bench, disk};
use crate::wire::{BROADCAST, IPV4};
use anyhow::{Result, bail};
use fastrand::Rng;
use ringfence_link::event::Event;

/// A command for each so many inputs of another kind.
pub const INPUTS_PER_COMMAND: usize = 20;
/// The longest random text of a command.
const LONGEST_TEXT: usize = 200;

/// Returns a random text of letters and digits. A person can type them, and the shell gives them no
/// meaning of its own.
fn text(random: &mut Rng) -> String {
    (0..random.usize(1..LONGEST_TEXT)).map(|_| random.alphanumeric()).collect()
}

/// Has the driver told random texts. It may refuse them.
fn tell(bench: &mut Bench, random: &mut Rng) -> Result<()> {
    let line = format!("tell {} {}", bench.name, text(random));
    bench.try_to(&line).map(drop)
}

/// Sends `count` random frames, and tells the driver random texts now and then. In the end it must
/// answer.
pub fn frames(bench: &mut Bench, peer: &Peer, count: usize, random: &mut Rng) -> Result<()> {
    bench.run("ip addr add 10.7.0.2/24 dev eth0")?;
    let mac = peer.resolve()?;
    for number in 0..count {
        let mut frame: Vec<u8> = (0..random.usize(14..1600)).map(|_| random.u8(..)).collect();
        match random.u8(..3) {
            0 => frame[..6].copy_from_slice(&mac),
            1 => frame[..6].copy_from_slice(&BROADCAST),
            _ => {}
        }
        if random.bool() {
            frame[12..14].copy_from_slice(&IPV4.to_be_bytes());
        }
        peer.send(&frame);
        if number % INPUTS_PER_COMMAND == 0 {
            tell(bench, random)?;
        }
    }
    peer.echo(&mac, b"after random frames")
}

/// Makes `count` random requests of disks, most of them within the disk, and tells the driver
/// random texts. In the end it must serve.
pub fn requests(bench: &mut Bench, count: usize, random: &mut Rng) -> Result<()> {
    bench.running.type_line("lsblk")?;
    let is_disk = |event| matches!(event, Event::Disk(_)).then_some(());
    bench.running.wait_for_event("a disk", is_disk)?;
    for number in 0..count {
        let first = random.u64(..disk::BLOCKS + disk::BLOCKS / 16);
        let blocks = random.u64(1..200);
        let line = match random.u8(..3) {
            0 => format!("blkcheck disk0 {first} {blocks} {number}"),
            1 => format!("blkread disk0 {first} {blocks}"),
            _ => {
                tell(bench, random)?;
                continue;
            }
        };
        let is_within = first + blocks <= disk::BLOCKS;
        let error = bench.try_to(&line)?;
        if error.is_some() == is_within {
            bail!("'{line}': {}", error.unwrap_or_else(|| "it should fail".into()));
        }
    }
    bench.run("blkcheck disk0 0 64 1")
}

/// Tells a driver `count` random texts.
pub fn texts(bench: &mut Bench, count: usize, random: &mut Rng) -> Result<()> {
    (0..count).try_for_each(|_| tell(bench, random))
}
