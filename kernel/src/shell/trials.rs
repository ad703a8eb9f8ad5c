//! Commands that change the code of drivers, to see the effect.

use super::run_all;
use super::settings::ask_person;
use super::{Outcome, said};
use crate::trial;
use alloc::format;
use alloc::sync::Arc;
use host::domain::Ring;
use host::file::{Content, File};
use host::{evidence, module};
use hw::{console, link, println};
use ringfence_abi::layout::IMAGE;
use ringfence_core::arguments::{Arguments, Patch};
use ringfence_core::command_line;
use ringfence_link::event::{self, Event};

fn parse_patch(arguments: &Arguments, word: &str) -> Result<Patch, alloc::string::String> {
    Patch::parse(word).map_or_else(|| arguments.wrong(&format!("'{word}' is no OFFSET:BYTES in hexadecimal")), Ok)
}

/// Prints the outcome of a trial, and tells programs. Nothing else is printed meanwhile.
pub async fn trial(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the driver's name")?;
    let word = arguments.word("the change")?;
    let patch = parse_patch(&arguments, word)?;
    let watched = arguments.number("the offset in the image")?;
    let word = arguments.word("the ring")?;
    let ring = super::modules::parse_ring(&arguments, word)?;
    let usage = arguments.wrong("three lists of commands are needed");
    let Some(lists) = command_line::three_lists(arguments.rest()) else { return usage };
    let handle = module::find(name).map_err(said)?;
    // Of the module's two files, it is the one of the driver that runs.
    let good = handle.lock().file.name.clone();
    let good = module::file(&good).map_err(said)?;
    let patched = patch.apply(&good.bytes).ok_or("the change does not lie inside the file")?;
    let patched = File { name: good.name.clone(), build: good.build, bytes: Content::Changed(Arc::new(patched)) };
    let mute = console::mute();
    let outcome = trial::run(handle, &good, &patched, ring, watched, lists, run_all).await;
    drop(mute);
    let trial::Outcome { activated, kind, why, restored, restore_us, checksum, free, stray } = outcome;
    let was = if activated { "" } else { ", and was not executed" };
    println!("{name}: {kind}{was}{}{why}", if why.is_empty() { "" } else { ": " });
    link::tell(&Event::Trial(event::Trial {
        activated,
        kind: kind.into(),
        why: why.as_str().into(),
        not_restored: restored.as_ref().err().map(|why| why.as_str().into()),
        restore_us,
        checksum,
        free,
        stray,
    }));
    restored.map_err(|why| format!("{name} is not restored: {why}"))
}

/// Changes the code of a driver in its slot.
pub async fn poke(mut arguments: Arguments<'_>) -> Outcome {
    ask_person("poke")?;
    let name = arguments.word("the driver's name")?;
    let word = arguments.word("the change")?;
    let patch = parse_patch(&arguments, word)?;
    arguments.end()?;
    let handle = module::find(name).map_err(said)?;
    let mut domain = handle.lock();
    let end = patch.at.checked_add(patch.bytes.len()).map(|end| end as u64);
    if end.is_none_or(|end| end > domain.image_bytes) {
        return Err("the change does not lie inside the image".into());
    }
    module::admit_change(&domain, &patch).map_err(said)?;
    if domain.ring() == Ring::Trusted && !evidence::is_for_development() {
        return Err(format!("{name} runs in ring 0, which its file has earned, and not what would become of it"));
    }
    let at = domain.base() + IMAGE + patch.at as u64;
    match domain.space.write(at, &patch.bytes) {
        true => {
            domain.witnessed.is_changed = true;
            Ok(())
        }
        false => Err("nothing is mapped there".into()),
    }
}
