//! `save`: the settings that a person has changed, as the commands that change them.
//!
//! At boot they are carried out from the ramdisk and from `/etc` ([`super::scripting::at_boot`]).

use super::Outcome;
use super::files::{path_of, replace_whole};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use host::domain::{registry, trust};
use host::promote;
use hw::println;
use net::Status;
use ringfence_abi::manifest::Policy;
use ringfence_abi::net::Hearing;
use ringfence_core::arguments::Arguments;
use ringfence_core::limits;

/// Where filesystem and file are that are looked for at boot.
pub const FOLDER: &str = "/etc";
/// See [`FOLDER`].
pub const FILE: &str = "/etc/settings";

/// Whether settings of a disk are carried out.
static ARE_OF_DISK: AtomicBool = AtomicBool::new(false);

/// While this exists, settings of a disk are carried out. They have come through drivers, so they
/// are no person's word.
pub struct OfDisk(());

impl OfDisk {
    /// Begins.
    pub fn begin() -> OfDisk {
        ARE_OF_DISK.store(true, Ordering::Relaxed);
        OfDisk(())
    }
}

impl Drop for OfDisk {
    fn drop(&mut self) {
        ARE_OF_DISK.store(false, Ordering::Relaxed);
    }
}

/// Refuses a setting that only a person or the ramdisk may give, if it comes from a disk.
pub fn ask_person(what: &str) -> Outcome {
    match ARE_OF_DISK.load(Ordering::Relaxed) {
        true => Err(format!("{what} is for a person, or for settings in the ramdisk: a disk's come through drivers")),
        false => Ok(()),
    }
}

fn of_limits() -> Vec<String> {
    let changed = limits::ALL.into_iter().filter(|limit| limit.is_changed());
    changed.map(|limit| format!("limits {} {}", limit.name, limit.get())).collect()
}

fn of_drivers() -> Vec<String> {
    let mut all = Vec::new();
    for handle in registry::all() {
        let domain = handle.lock();
        let (now, own) = (domain.life.policy(), domain.manifest.policy());
        if Ok(now) != own {
            all.push(format!("policy {} {}", domain.name, if now == Policy::Restart { "restart" } else { "stop" }));
        }
        if trust::is_banned(&domain) {
            all.push(format!("policy {} ring0-never", domain.name));
        }
    }
    all
}

fn of_interface(status: &Status) -> Vec<String> {
    let name = &status.name;
    let mut all = Vec::new();
    for address in status.addresses.iter().filter(|_| status.is_static) {
        let router = status.router.map_or(String::new(), |router| format!(" via {router}"));
        all.push(format!("ip addr add {address} dev {name}{router}"));
    }
    if status.mtu != net::MTU {
        all.push(format!("ip link set {name} mtu {}", status.mtu));
    }
    for (hearing, word) in [(Hearing::PROMISCUOUS, "promisc"), (Hearing::ALL_MULTICAST, "allmulticast")] {
        if status.hearing.contains(hearing) {
            all.push(format!("ip link set {name} {word} on"));
        }
    }
    all.extend(status.groups.iter().map(|group| format!("ip maddr add {group} dev {name}")));
    if !status.is_up {
        all.push(format!("ip link set {name} down"));
    }
    all
}

pub async fn save(mut arguments: Arguments<'_>) -> Outcome {
    let path = path_of(arguments.optional().unwrap_or(FILE))?;
    arguments.end()?;
    let mut lines = of_limits();
    lines.extend(of_drivers());
    if promote::is_automatic() {
        lines.push("promote --auto".into());
    }
    lines.extend(net::status().iter().filter(|status| !status.driver.is_empty()).flat_map(of_interface));
    let text = format!("# Settings, by 'save'. 'source' carries them out.\n{}\n", lines.join("\n"));
    replace_whole(&path, text.as_bytes()).await?;
    println!("{} settings are in {path}", lines.len());
    Ok(())
}
