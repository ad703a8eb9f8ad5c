//! The class of filesystems: acts when a driver offers one, takes the place of another driver, or
//! goes.

use super::request::{self, Files, Queues};
use super::tree;
use super::volume::{self, Volume};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use block::client::Client;
use host::domain::offer::{Class, Offer};
use host::domain::{Domain, Handle};
use host::requests::{Protocol, Server};
use hw::console::{self, Source};
use log::Level;
use ringfence_abi::fs::{FS_READ_ONLY, FsInfo};
use ringfence_abi::manifest::Kind;
use ringfence_abi::service::Refusal;
use ringfence_core::passed::Content;
use zerocopy::FromBytes;

/// The class of filesystems.
pub struct Filesystems;

/// The class's only value, for the kernel's table of classes.
pub static CLASS: Filesystems = Filesystems;

fn info_of(handle: &Handle) -> Option<FsInfo> {
    handle.lock().offered::<Queues>().map(|queues| queues.info)
}

/// Adds the filesystem of a driver. It is not mounted yet.
fn add(handle: &Handle) {
    let (Some(server), Some(info)) = (Server::new::<Files>(handle), info_of(handle)) else { return };
    let name = handle.lock().name.clone();
    let source = Source::by_itself(&name);
    let volume = volume::add(Volume::new(name, server, &info));
    let text = format_args!("{} on {}{}", volume.format(), volume.disk(), volume.label_words());
    console::say_about(&source, Level::Info, text);
}

/// Returns whether a driver and its successor use the same disk: another may have its name by now.
fn have_one_disk(dead: &Handle, fresh: &Handle) -> bool {
    let (dead, fresh) = (dead.lock(), fresh.lock());
    match (dead.used::<Client>(), fresh.used::<Client>()) {
        (Some(one), Some(other)) => one.has_disk_of(other),
        (one, other) => one.is_none() && other.is_none(),
    }
}

fn remove(volume: &Arc<Volume>) {
    volume.set_gone();
    tree::forget(volume);
    volume::forget(volume);
}

impl Class for Filesystems {
    fn kind(&self) -> Kind {
        Kind::Fs
    }

    fn info_bytes(&self) -> usize {
        size_of::<FsInfo>()
    }

    fn check(&self, info: &[u8]) -> Result<(), Refusal> {
        let info = FsInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        let is_good = info.flags & !FS_READ_ONLY == 0 && info.reserved == 0;
        if is_good { Ok(()) } else { Err(Refusal::Invalid) }
    }

    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal> {
        let info = FsInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        // This flag binds the driver from now on, so its disk must be open by now.
        if info.flags & FS_READ_ONLY != 0 {
            let uses = domain.manifest.uses();
            match domain.used_mut::<Client>() {
                Some(client) => client.set_read_only(),
                None if uses == Ok(Kind::Block) => return Err(Refusal::Invalid),
                None => {}
            }
        }
        Ok(Box::new(Queues::new(domain, info)?))
    }

    fn noun(&self) -> &'static str {
        Files::NAMES[0]
    }

    fn content_words(&self, content: &Content) -> String {
        request::content_words(content)
    }

    fn result_words(&self, result: u32, _: &[u8]) -> String {
        request::result_words(result).to_string()
    }

    fn attach(&self, handle: &Handle) {
        add(handle);
    }

    /// Goes on with the requests that wait for the driver, if the filesystem is still the same.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let (Some(volume), Some(info)) = (volume::of(dead), info_of(fresh)) else { return };
        if volume.is_still(&info) && have_one_disk(dead, fresh) {
            volume.replace(fresh);
        } else {
            let source = Source::by_itself(&fresh.lock().name);
            let text = format_args!("another filesystem is on {}: its files are closed", volume.disk());
            console::say_because_of(&source, Level::Warn, text);
            remove(&volume);
            add(fresh);
        }
    }

    fn detach(&self, handle: &Handle) {
        if let Some(volume) = volume::of(handle) {
            remove(&volume);
        }
    }

    fn wake_waiting(&self) {
        volume::all().iter().for_each(|volume| volume.wake());
    }
}
