//! Admission of drivers to ring 0: the commands, and the record in `/etc` that outlives the
//! machine.

use super::files::{about, path_of, read_whole, replace_whole};
use super::modules::{as_paged, parse_ring};
use super::settings::{FOLDER, ask_person};
use super::{Outcome, said};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::mutex::Mutex as AsyncMutex;
use embassy_time::Timer;
use fs::error::Error;
use fs::file::How;
use fs::tree;
use host::domain::{Ring, registry};
use host::module::confinement;
use host::{evidence, module, promote as moving};
use hw::arch::confinement::CHECKS;
use hw::arch::syscall;
use hw::println;
use ringfence_abi::fs::FsError;
use ringfence_core::arguments::Arguments;
use ringfence_core::evidence::{policy, record, report};
use ringfence_core::limits::RECORD_S;
use spin::Mutex;

/// The record of this machine.
const RECORD: &str = "/etc/record";
/// Where a record goes that is not believed.
const DAMAGED: &str = "/etc/record.bad";
const POLICY: &str = "/etc/policy.toml";
const REPORTS: &str = "/etc/reports";
const REPORT_ENDING: &str = ".report";
/// The least time between two writes of the record, in seconds.
const LEAST_S: u64 = 1;
/// The most files of a folder that are looked at.
const MOST_FILES: usize = 256;

pub async fn promote(mut arguments: Arguments<'_>) -> Outcome {
    let word = arguments.word("the domain's name")?;
    if word == "--auto" {
        let on = match arguments.optional() {
            None | Some("on") => true,
            Some("off") => false,
            Some(other) => return arguments.wrong(&format!("'{other}' is not known; there are on and off")),
        };
        arguments.end()?;
        moving::set_automatic(on);
        return Ok(());
    }
    let force = match arguments.optional() {
        None => false,
        Some("--force") => true,
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    into_ring_0(word, force).await
}

/// Moves a driver into ring 0 for a person. The paged build of a segmented driver takes its place
/// first, if that one may run there.
pub async fn into_ring_0(name: &str, force: bool) -> Outcome {
    if force {
        ask_person("--force")?;
    }
    let mut handle = module::find(name).map_err(said)?;
    let is_segmented = {
        let domain = handle.lock();
        domain.is_segmented() && domain.is_alive()
    };
    if is_segmented {
        let may = module::decide(&mut handle.lock(), false);
        let may = if may.is_err() && force { module::decide(&mut handle.lock(), true) } else { may };
        may.map_err(|why| format!("{name} stays in ring 1: {why}"))?;
        as_paged(&handle).await?.iter().for_each(|done| println!("{done}"));
        handle = module::find(name).map_err(said)?;
    }
    let admitted = moving::promote(&handle, force).await.map_err(|why| format!("{name} {why}"))?;
    println!("{name}: now in ring 0: {admitted}");
    Ok(())
}

pub async fn demote(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    arguments.end()?;
    into_ring_1(name).await
}

async fn into_ring_1(name: &str) -> Outcome {
    let handle = module::find(name).map_err(said)?;
    moving::demote(&handle).await.map_err(|why| format!("{name} {why}"))?;
    println!("{name}: now in ring 1");
    Ok(())
}

pub async fn ring(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the domain's name")?;
    let word = arguments.word("the ring")?;
    let ring = parse_ring(&arguments, word)?;
    arguments.end()?;
    match ring {
        Ring::Trusted => into_ring_0(name, false).await,
        Ring::Sandboxed => into_ring_1(name).await,
    }
}

/// Prints the policy by which drivers may run in ring 0 on this machine.
pub fn show_policy() {
    evidence::policy_in_words().iter().for_each(|line| println!("{line}"));
    match confinement::check() {
        Ok(()) => {
            println!("segments  32-bit code stays below 4 GiB, by {} checks at boot", CHECKS.len());
            let end = if syscall::ends_upcalls() { "by SYSCALL" } else { "at a gate: this CPU has no SYSCALL there" };
            println!("          its upcalls end {end}");
        }
        Err(why) => println!("segments  refused: {why}"),
    }
    if moving::is_automatic() {
        println!("automatic drivers are promoted as soon as they have earned it");
    }
}

/// Returns whether there is something at a path.
pub async fn is_there(path: &str) -> Result<bool, String> {
    let path = path_of(path)?;
    match tree::stat(&path).await {
        Ok(_) => Ok(true),
        Err(Error::Said(FsError::NotFound)) => Ok(false),
        Err(error) => Err(about(&path)(error)),
    }
}

/// Reads a file of `/etc`; `None` if there is none.
async fn read_there(path: &str, most: usize) -> Result<Option<Vec<u8>>, String> {
    match is_there(path).await? {
        true => read_whole(path, most).await.map(Some),
        false => Ok(None),
    }
}

/// Takes the policy, the reports and the record from the disk at `/etc`, and says where the record
/// is kept from now on.
pub async fn take_from_etc() {
    if let Some(content) = read_there(POLICY, policy::MOST_BYTES).await.transpose() {
        if let Err(why) = evidence::set_policy_of_disk(POLICY, content) {
            println!("{POLICY}: {why}");
        }
        moving::review();
    }
    for name in reports().await {
        let path = format!("{REPORTS}/{name}");
        let bytes = read_whole(&path, report::MOST_BYTES).await;
        if let Err(why) = bytes.and_then(|bytes| evidence::add_report(&bytes)) {
            println!("{path}: {why}");
        }
    }
    // A machine without a key can neither check the disk's record nor go on with it.
    let kept = match restore().await {
        Ok(()) if evidence::can_sign() => Kept::OnDisk,
        Ok(()) => Kept::InMemory,
        Err(why) => {
            println!("{why}\n{RECORD} is left alone, and a record is kept in memory");
            Kept::InMemory
        }
    };
    keep(kept);
}

/// Goes on with the record on the disk. The error is the reason why the disk cannot be used.
async fn restore() -> Outcome {
    if !evidence::can_sign() {
        return Ok(());
    }
    let Some(bytes) = read_there(RECORD, record::MOST_BYTES).await? else { return Ok(()) };
    match evidence::restore(&bytes) {
        Ok(count) => println!("the record of {count} modules goes on"),
        Err(why) => {
            println!("{RECORD} does not count, and a new record begins: {why}");
            set_aside().await?;
        }
    }
    Ok(())
}

/// Returns the names of the reports in `/etc`.
async fn reports() -> Vec<String> {
    let Ok(path) = path_of(REPORTS) else { return Default::default() };
    let Ok(folder) = tree::open(&path, How::Existing).await else { return Default::default() };
    let Ok((entries, _)) = folder.list(MOST_FILES).await else { return Default::default() };
    entries.into_iter().map(|entry| entry.name).filter(|name| name.ends_with(REPORT_ENDING)).collect()
}

/// Keeps a record that is not believed, out of the way of the new one.
async fn set_aside() -> Outcome {
    let (from, to) = (path_of(RECORD)?, path_of(DAMAGED)?);
    tree::rename(&from, &to).await.map_err(about(&from))?;
    println!("it is kept as {DAMAGED}");
    Ok(())
}

/// Where the record is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The place is not known yet. No note is settled until then, or the saved record would be
    /// lost.
    Unknown,
    /// In memory.
    InMemory,
    /// On the disk that is mounted at `/etc` at boot.
    OnDisk,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept::Unknown);
/// Held while the record is written.
static WRITING: AsyncMutex<CriticalSectionRawMutex, ()> = AsyncMutex::new(());

/// Says where the record is kept from now on.
pub fn keep(kept: Kept) {
    *KEPT.lock() = kept;
}

/// Writes the record to `/etc`, if it has changed and is kept there.
pub async fn save_record() -> Outcome {
    let kept = *KEPT.lock();
    if kept == Kept::Unknown {
        return Ok(());
    }
    let _writing = WRITING.lock().await;
    registry::all().iter().for_each(|handle| handle.lock().witness());
    if kept == Kept::InMemory || !tree::is_mounted_at(&path_of(FOLDER)?) {
        evidence::settle();
        return Ok(());
    }
    let Some(bytes) = evidence::unsaved() else { return Ok(()) };
    replace_whole(&path_of(RECORD)?, &bytes).await?;
    evidence::saved();
    Ok(())
}

/// The task that writes the record: now and then, and after each fault.
pub async fn keep_record() {
    let mut last = Ok(());
    loop {
        select(Timer::after_secs(RECORD_S.get()), evidence::urgent()).await;
        let outcome = save_record().await;
        // Each reason is logged once.
        if let Err(why) = &outcome
            && outcome != last
        {
            log::warn!("the record is not saved: {why}");
        }
        last = outcome;
        // A driver may fault hundreds of times a second.
        Timer::after_secs(LEAST_S).await;
    }
}
