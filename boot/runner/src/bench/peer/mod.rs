//! `cargo run -- bench --peer linux`: the same work by Debian's stock kernel, whose drivers run in
//! ring 0, on the same QEMU and the same devices. Boots of both alternate, so that a slower moment
//! of the host meets both.

mod linux;

use super::host::Awake;
use super::{BOOT_ROWS, Row, TIME_LIMIT, boot_times, boot_to_prompt, files, in_guest, streams_of};
use crate::build::System;
use crate::machine::{Machine, Protocol, Running, Said, free_port};
use crate::output;
use anyhow::{Context, Result, bail};
use linux::Linux;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Boots of each system.
const BOOTS: usize = 3;
/// The marks at the beginning of the guest's lines.
const MARK: &str = "@PEER ";

/// A row's name and batch.
type Key = (String, u64);

/// Measures both systems; returns a row for each value, and one for each ratio.
pub fn rows(system: &System, machine: &Machine, awake: &Awake) -> Result<Vec<Row>> {
    let linux = Linux::fetch()?;
    let machine = Machine { scratch: true, timeout: Some(TIME_LIMIT), ..machine.clone() };
    // Boots of both use the same images, one after the other.
    let directory = TempDir::new()?;
    let with_files = files::add(&machine, directory.path())?;
    let guest = linux.on(&with_files)?;
    let (mut ours, mut theirs): (BTreeMap<Key, Vec<f64>>, BTreeMap<Key, Vec<f64>>) = Default::default();
    let mut units = BTreeMap::new();
    for boot in 1..=BOOTS {
        output::complain(&format!("bench: Ringfence, boot {boot} of {BOOTS}"));
        for (key, unit, value) in of_ringfence(system, [&machine, &with_files], awake)? {
            units.insert(key.clone(), unit);
            ours.entry(key).or_default().push(value);
        }
        output::complain(&format!("bench: {}, boot {boot} of {BOOTS}", linux.version));
        for (key, value) in of_linux(system, &guest, awake)? {
            theirs.entry(key).or_default().push(value);
        }
    }
    let mut rows = Vec::new();
    for (key, unit) in units {
        let (Some(ours), Some(theirs)) = (ours.get(&key), theirs.get(&key)) else { continue };
        let (name, batch) = key;
        rows.extend(compared(&name, batch, &unit, "peer", ours, theirs));
    }
    output::complain("bench: instructions, in a boot of each with -icount");
    let [machine, with_files] = [machine, with_files].map(|machine| Machine { icount: true, ..machine });
    let mut theirs = measured_by(&mut linux.on(&with_files)?.start(system)?, Instant::now())?;
    for ((name, batch), unit, value) in in_ring_1(system, [&machine, &with_files], " --instructions", &mut |_| ())? {
        if let Some(samples) = theirs.remove(&(name.clone(), batch)) {
            let theirs = Row::of("", &unit, samples).median;
            rows.extend(compared(&name, batch, &unit, "peer-instructions", &[value], &[theirs]));
        }
    }
    Ok(rows)
}

/// Returns the rows of both systems, and of their ratio.
fn compared(name: &str, batch: u64, unit: &str, prefix: &str, ours: &[f64], theirs: &[f64]) -> [Row; 3] {
    let with = |row: Row, ring| Row { ring, batch: Some(batch), ..row };
    // A rate is better if it is higher, a cost if it is lower: in the ratio, more is better.
    let is_cost = !unit.ends_with("/s");
    let ratio = |(ours, theirs): (&f64, &f64)| if is_cost { theirs / ours } else { ours / theirs };
    [
        with(Row::of(&format!("ringfence/{name}"), unit, ours.to_vec()), Some(1)),
        with(Row::of(&format!("linux/{name}"), unit, theirs.to_vec()), Some(0)),
        with(Row::of(&format!("{prefix}/{name}"), "ratio", ours.iter().zip(theirs).map(ratio).collect()), None),
    ]
}

/// Has Ringfence measure itself, with drivers in ring 1. Returns keys, units and medians.
fn in_ring_1(
    system: &System,
    [machine, with_files]: [&Machine; 2],
    option: &str,
    pin: &mut dyn FnMut(u32),
) -> Result<Vec<(Key, String, f64)>> {
    let mut failures = 0;
    let commands = ["nic", "icmp", "scsi"].map(|family| format!("bench {family} --ring 1{option}"));
    let mut rows = in_guest(system, machine, &commands.join("; "), pin, &mut failures)?;
    let command = format!("{}; bench fs --ring 1{option}", files::mount(with_files));
    rows.extend(in_guest(system, with_files, &command, pin, &mut failures)?);
    if failures > 0 {
        bail!("{failures} of Ringfence's rows failed");
    }
    Ok(rows.into_iter().map(|row| ((row.name, row.batch.unwrap_or(1)), row.unit, row.median)).collect())
}

/// Measures one boot of Ringfence.
fn of_ringfence(system: &System, machines: [&Machine; 2], awake: &Awake) -> Result<Vec<(Key, String, f64)>> {
    let mut found = in_ring_1(system, machines, "", &mut |process| awake.pin(process))?;
    let [machine, _] = machines;
    for (name, time) in BOOT_ROWS.into_iter().zip(boot_to_prompt(system, machine)?) {
        found.push(((name.to_string(), 1), "ms".to_string(), time));
    }
    let (machine, ports) = with_ports(machine)?;
    let mut running = machine.start(system)?;
    awake.pin(running.process());
    running.wait_for_event("an address", super::has_address)?;
    for (name, unit, value) in streams_of(ports)? {
        found.push(((name.to_string(), 1), unit.to_string(), value));
    }
    Ok(found)
}

/// Measures one boot of Linux.
fn of_linux(system: &System, machine: &Machine, awake: &Awake) -> Result<Vec<(Key, f64)>> {
    let (machine, ports) = with_ports(machine)?;
    let started = Instant::now();
    let mut running = machine.start(system)?;
    awake.pin(running.process());
    let mut samples = measured_by(&mut running, started)?;
    for (name, _, value) in streams_of(ports)? {
        samples.insert((name.to_string(), 1), vec![value]);
    }
    Ok(samples.into_iter().map(|(key, samples)| (key, Row::of("", "", samples).median)).collect())
}

/// Reads the samples that a guest reports.
fn measured_by(running: &mut Running, started: Instant) -> Result<BTreeMap<Key, Vec<f64>>> {
    let mut samples: BTreeMap<Key, Vec<f64>> = BTreeMap::new();
    loop {
        let line = next_line(running)?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["row", name, batch, _, value] => {
                let (batch, value) = (batch.parse().context("a batch")?, value.parse().context("a value")?);
                samples.entry((name.to_string(), batch)).or_default().push(value);
            }
            ["ready"] => {
                for (name, time) in BOOT_ROWS.into_iter().zip(boot_times(started, running.process())?) {
                    samples.insert((name.to_string(), 1), vec![time]);
                }
            }
            ["user"] => {}
            ["done"] => return Ok(samples),
            _ => bail!("Linux: {line}"),
        }
    }
}

/// Returns the guest's next line for the runner, without the mark.
fn next_line(running: &mut Running) -> Result<String> {
    let mut last = Vec::new();
    loop {
        match running.next_within(Duration::from_secs(120)) {
            Some(Said::Line(line)) => match line.find(MARK) {
                Some(at) => return Ok(line[at + MARK.len()..].to_string()),
                None => last.push(line),
            },
            Some(Said::Event(_)) => {}
            None => bail!("Linux said nothing for two minutes, or ended; before:\n{}", last.join("\n")),
        }
    }
}

/// Forwards free ports to the guest's servers: TCP 9 and 19, UDP 7.
fn with_ports(machine: &Machine) -> Result<(Machine, [u16; 3])> {
    let ports = [free_port()?, free_port()?, free_port()?];
    let [discard, characters, echo] = ports;
    let forwards = vec![(Protocol::Tcp, discard, 9), (Protocol::Tcp, characters, 19), (Protocol::Udp, echo, 7)];
    Ok((Machine { forwards, ..machine.clone() }, ports))
}
