//! The class of block devices: acts when a driver offers one, takes the place of another driver, or
//! goes.

use super::cache;
use super::client::Client;
use super::device::Device;
use super::disk::{self, Disk};
use super::request::{self, Blocks, Queues};
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use host::domain::offer::{Class, Offer, Use};
use host::domain::{Domain, Handle};
use host::requests::{Protocol, Server};
use hw::console::{self, Source};
use log::Level;
use ringfence_abi::block::{BLOCK_READ_ONLY, BLOCK_REQUESTS, BlockInfo};
use ringfence_abi::manifest::Kind;
use ringfence_abi::service::Refusal;
use ringfence_core::passed::Content;
use spin::Mutex;
use zerocopy::FromBytes;

/// The class of block devices.
pub struct Devices;

/// The class's only value, for the kernel's table of classes.
pub static CLASS: Devices = Devices;

static DEVICES: Mutex<Vec<Arc<Device>>> = Mutex::new(Vec::new());

fn device_of(handle: &Handle) -> Option<Arc<Device>> {
    DEVICES.lock().iter().find(|device| Arc::ptr_eq(&device.server.handle(), handle)).cloned()
}

fn info_of(handle: &Handle) -> Option<BlockInfo> {
    handle.lock().offered::<Queues>().map(|queues| queues.info)
}

/// Adds the disk of a driver.
fn add(handle: &Handle) {
    let (Some(server), Some(info)) = (Server::new::<Blocks>(handle), info_of(handle)) else { return };
    let device = disk::add(|name| Device::new(name, server, info));
    let source = Source::by_itself(&handle.lock().name);
    let text =
        format_args!("{}: {}, {} blocks of {} bytes", device.name(), device.model(), info.blocks, info.block_bytes);
    console::say_because_of(&source, Level::Info, text);
    DEVICES.lock().push(device);
}

fn remove(device: &Arc<Device>) {
    device.set_gone();
    disk::forget(|disk| disk.name() == device.name());
    DEVICES.lock().retain(|other| !Arc::ptr_eq(other, device));
}

impl Class for Devices {
    fn kind(&self) -> Kind {
        Kind::Block
    }

    fn info_bytes(&self) -> usize {
        size_of::<BlockInfo>()
    }

    fn check(&self, info: &[u8]) -> Result<(), Refusal> {
        let info = BlockInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        let is_good = (512..=4096).contains(&info.block_bytes)
            && info.block_bytes.is_power_of_two()
            && info.blocks.checked_mul(info.block_bytes.into()).is_some()
            && (1..=BLOCK_REQUESTS as u32).contains(&info.queue_depth)
            && info.flags & !BLOCK_READ_ONLY == 0
            && info.reserved == 0;
        if is_good { Ok(()) } else { Err(Refusal::Invalid) }
    }

    fn offer(&self, domain: &mut Domain, info: &[u8]) -> Result<Box<dyn Offer>, Refusal> {
        let info = BlockInfo::read_from_bytes(info).map_err(|_| Refusal::Invalid)?;
        Ok(Box::new(Queues::new(domain, info)?))
    }

    fn open(&self, domain: &mut Domain, name: &str) -> Result<Box<dyn Use>, Refusal> {
        Ok(Box::new(Client::open(domain, name)?))
    }

    fn noun(&self) -> &'static str {
        Blocks::NAMES[0]
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

    /// Goes on with the requests that wait for the driver, if the device is still the same.
    fn replace(&self, dead: &Handle, fresh: &Handle) {
        let (Some(device), Some(info)) = (device_of(dead), info_of(fresh)) else { return };
        if device.is_still(&info) {
            // Nothing tells one disk of a model from another.
            cache::changed(&*device);
            device.server.replace::<Blocks>(fresh);
        } else {
            let source = Source::by_itself(&fresh.lock().name);
            console::say_because_of(&source, Level::Warn, format_args!("{}: it is gone", device.name()));
            remove(&device);
            add(fresh);
        }
    }

    fn detach(&self, handle: &Handle) {
        if let Some(device) = device_of(handle) {
            remove(&device);
        }
    }

    fn wake_waiting(&self) {
        DEVICES.lock().iter().for_each(|device| device.server.wake());
    }
}
