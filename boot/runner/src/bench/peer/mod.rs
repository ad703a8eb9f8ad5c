//! `cargo run -- bench --peer linux`: the same work by Debian's stock kernel, whose drivers run in
//! ring 0, on the same QEMU and the same devices. Boots of both alternate, so that a slower moment
//! of the host meets both.

mod linux;

use super::host::Awake;
use super::{BOOT_ROWS, Row, TIME_LIMIT, boot_times, boot_to_prompt, files, in_guest, reload, streams_of};
use crate::build::System;
use crate::machine::{Machine, Protocol, Running, Said, free_port};
use crate::{drivers, output};
use anyhow::{Context, Result, bail};
use linux::Linux;
use ringfence_abi::manifest::{DomainKind, Kind};
use ringfence_core::module::file_name;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Boots of each system.
const BOOTS: usize = 3;
/// The marks at the beginning of the guest's lines.
const MARK: &str = "@PEER ";

/// A row's name and batch.
type Key = (String, u64);
/// The kind of domain of Ringfence's drivers, and the key.
type OurKey = (&'static str, Key);

/// Measures both systems; returns a row for each value, and one for each ratio.
pub fn rows(system: &System, machine: &Machine, awake: &Awake) -> Result<Vec<Row>> {
    let linux = Linux::fetch()?;
    let machine = Machine { scratch: true, timeout: Some(TIME_LIMIT), ..machine.clone() };
    // Boots of both use the same images, one after the other.
    let directory = TempDir::new()?;
    let with_files = files::add(&machine, directory.path())?;
    let guest = linux.on(&with_files)?;
    let kinds = kinds(system, &machine)?;
    let (mut ours, mut theirs): (BTreeMap<OurKey, Vec<f64>>, BTreeMap<Key, Vec<f64>>) = Default::default();
    let mut units = BTreeMap::new();
    for boot in 1..=BOOTS {
        for kind in &kinds {
            output::complain(&format!("bench: Ringfence, {kind}, boot {boot} of {BOOTS}"));
            for (key, unit, value) in of_ringfence(system, [&machine, &with_files], *kind, awake)? {
                units.insert((kind.name(), key.clone()), unit);
                ours.entry((kind.name(), key)).or_default().push(value);
            }
        }
        output::complain(&format!("bench: {}, boot {boot} of {BOOTS}", linux.version));
        for (key, value) in of_linux(system, &guest, awake)? {
            theirs.entry(key).or_default().push(value);
        }
    }
    let mut rows = Vec::new();
    for (key, unit) in units {
        let (Some(ours), Some(theirs)) = (ours.get(&key), theirs.get(&key.1)) else { continue };
        rows.extend(compared(&key, &unit, "peer", ours, theirs));
    }
    output::complain("bench: instructions, in a boot of each with -icount");
    let [machine, with_files] = [machine, with_files].map(|machine| Machine { icount: true, ..machine });
    let theirs = measured_by(&mut linux.on(&with_files)?.start(system)?, Instant::now())?;
    for kind in kinds {
        let counted = in_ring_1(system, [&machine, &with_files], kind, " --instructions", &mut |_| ())?;
        for (key, unit, value) in counted {
            if let Some(samples) = theirs.get(&key) {
                let theirs = Row::of("", &unit, samples.clone()).median;
                rows.extend(compared(&(kind.name(), key), &unit, "peer-instructions", &[value], &[theirs]));
            }
        }
    }
    Ok(rows)
}

/// Returns the kinds of domains that all drivers of the machine are built for.
fn kinds(system: &System, machine: &Machine) -> Result<Vec<DomainKind>> {
    let loaded = drivers::loaded(system, machine)?;
    let is_built = |kind: &DomainKind| {
        loaded.iter().all(|driver| drivers::find(system, machine, &file_name(&driver.name, *kind)).is_ok())
    };
    Ok(DomainKind::ALL.into_iter().filter(is_built).collect())
}

/// Returns the rows of both systems, and of their ratio.
fn compared((kind, (name, batch)): &OurKey, unit: &str, prefix: &str, ours: &[f64], theirs: &[f64]) -> [Row; 3] {
    let with = |row: Row, ring| {
        // Linux's drivers have no kind.
        let kind = (ring != Some(0)).then(|| kind.to_string());
        Row { ring, kind, batch: Some(*batch), ..row }
    };
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
    kind: DomainKind,
    option: &str,
    pin: &mut dyn FnMut(u32),
) -> Result<Vec<(Key, String, f64)>> {
    let mut failures = 0;
    let commands = ["nic", "icmp", "scsi"].map(|family| format!("bench {family} --ring 1 --kind {kind}{option}"));
    let mut rows = in_guest(system, machine, &commands.join("; "), pin, &mut failures)?;
    let command = format!("{}; bench fs --ring 1 --kind {kind}{option}", files::mount(with_files));
    rows.extend(in_guest(system, with_files, &command, pin, &mut failures)?);
    if failures > 0 {
        bail!("{failures} of Ringfence's rows failed");
    }
    Ok(rows.into_iter().map(|row| ((row.name, row.batch.unwrap_or(1)), row.unit, row.median)).collect())
}

/// Measures one boot of Ringfence.
fn of_ringfence(
    system: &System,
    machines: [&Machine; 2],
    kind: DomainKind,
    awake: &Awake,
) -> Result<Vec<(Key, String, f64)>> {
    let mut found = in_ring_1(system, machines, kind, "", &mut |process| awake.pin(process))?;
    let [machine, _] = machines;
    if kind == DomainKind::Paged {
        for (name, time) in BOOT_ROWS.into_iter().zip(boot_to_prompt(system, machine)?) {
            found.push(((name.to_string(), 1), "ms".to_string(), time));
        }
    }
    let nic = drivers::loaded(system, machine)?.into_iter().find(|driver| driver.kind == Kind::Nic);
    let (machine, ports) = with_ports(machine)?;
    let mut running = machine.start(system)?;
    awake.pin(running.process());
    running.wait_for_event("an address", super::has_address)?;
    if let Some(nic) = nic.filter(|nic| nic.domain != kind) {
        reload(&mut running, &nic.module, kind)?;
    }
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
