//! The library for driver modules. A driver crate forbids unsafe code and does not know in which
//! ring it runs. All the unsafe code that a driver needs is in this crate.
//!
//! * [`driver!`]: the manifest and the entry point
//! * [`Driver`]: the trait of every driver; [`class::Device`]: the trait of a driver that offers a
//!   device to the kernel; [`net`], [`scsi`] and [`block`]: the classes of such devices
//! * [`fs`]: filesystems, which use a disk and offer files
//! * [`device`]: PCI configuration, interrupts, [`device::Mmio`], [`device::Ports`]
//! * [`eeprom`]: serial EEPROMs, in which cards keep their addresses
//! * [`parameter`]: values that a person gives the driver when it is loaded
//! * [`timer`]: polls after a delay or at intervals; [`command`]: commands that a person gives the
//!   driver
//! * [`dma::Dma`]: memory shared with the device; [`ring::FrameRing`]: descriptors in it
//! * [`virtio`]: the parts that all virtio devices have in common
//! * `fake`, a feature: a simulated kernel and a simulated device, for tests on the host; `record`,
//!   a feature: the recording of a real run, for the same tests
//! * the macros of `log` and the collections of `alloc` work as usual
#![cfg_attr(not(feature = "fake"), no_std)]

extern crate alloc;

use alloc::vec::Vec;
use core::cell::UnsafeCell;

pub mod block;
pub mod class;
pub mod command;
pub mod device;
pub mod dma;
pub mod eeprom;
#[cfg(feature = "fake")]
pub mod fake;
pub mod fs;
#[cfg(not(feature = "fake"))]
mod heap;
pub mod manifest;
#[cfg(all(target_arch = "x86", not(feature = "fake")))]
mod mem;
pub mod net;
#[cfg(not(feature = "fake"))]
mod panic;
pub mod parameter;
#[cfg(feature = "record")]
mod record;
pub mod register;
pub mod ring;
pub mod scsi;
pub mod scsi_bus;
pub mod service;
mod shared;
pub mod timer;
pub mod virtio;

pub use command::Command;
pub use manifest::Manifest;
pub use ringfence_abi as abi;
pub use ringfence_abi::manifest::{DomainKind, Kind};
pub use ringfence_abi::reset::{NO_REGISTER, Reset};
pub use ringfence_abi::service::Refusal;
pub use ringfence_abi::upcall::{Events, Reply};

/// A result whose error does not end the driver.
pub type Result<T> = core::result::Result<T, Refusal>;

/// A driver module.
pub trait Driver: Sized + 'static {
    /// The commands that the driver lists for help and completion. The driver may understand more.
    const COMMANDS: &'static [Command] = &[];

    /// Takes the device into service.
    fn init() -> Result<Self>;

    /// Serves the device and the queues. After an interrupt, the kernel lets the next one through
    /// only if the reply acknowledges it.
    fn poll(&mut self, events: Events) -> Reply {
        let _ = events;
        Reply::ACKNOWLEDGED
    }

    /// Carries out the command that a person typed after `tell NAME`. The lines printed with
    /// [`answer!`] and the returned number are shown to that person.
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// The version of the state that [`Driver::save`] returns. It changes with the format.
    const STATE_VERSION: u32 = 0;

    /// Returns the state that the next build is to have, at most a page, before a reload; nothing
    /// if it is to start afresh. Unless it sleeps, nothing else is called afterwards. The contents
    /// of the device and of the queues need not be saved: the kernel has the requests under way.
    fn save(&mut self) -> Vec<u8> {
        Vec::new()
    }

    /// Takes over the state that the build before has saved, after [`Driver::init`]. Its version
    /// may be that of an older or of a newer build. After a refusal the driver goes on without it.
    fn restore(&mut self, version: u32, state: &[u8]) -> Result<()> {
        let _ = (version, state);
        Err(Refusal::Invalid)
    }

    /// Stops the device.
    fn exit(&mut self) {}
}

/// Makes a module from a [`Driver`]: `driver!(Type, Manifest::new("name", "version")...)`.
///
#[doc = "```rust,ignore"]
#[doc = include_str!("../examples/driver.rs")]
#[doc = "```"]
#[macro_export]
macro_rules! driver {
    ($driver:ty, $manifest:expr) => {
        const _: () = {
            // The linker keeps the symbol of this name, and all code and data that the symbol
            // refers to.
            #[unsafe(export_name = "rf_manifest")]
            #[unsafe(link_section = ".ringfence")]
            static MANIFEST: $crate::abi::manifest::Manifest = $manifest.build();

            static INSTANCE: $crate::Instance<$driver> = $crate::Instance::new();

            #[unsafe(no_mangle)]
            extern "C" fn rf_upcall(operation: u64, a: u64, b: u64, c: u64) -> i64 {
                let _ = c;
                INSTANCE.enter(operation, a, b)
            }
        };
    };
}

/// Parses a number, decimal or with the prefix `0x`; for use in [`Driver::command`].
///
/// # Errors
/// [`Refusal::Invalid`] if `text` is no such number, or the number does not fit into 64 bits.
pub fn number(text: &str) -> Result<u64> {
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| Refusal::Invalid)
}

/// Holds the driver between upcalls. Only [`driver!`] creates an instance.
#[doc(hidden)]
pub struct Instance<D>(UnsafeCell<Option<D>>);

// SAFETY: the kernel enters a driver again only after the driver has returned.
unsafe impl<D> Sync for Instance<D> {}

/// Creates the driver. It is a separate, cold function so that the path of the frequent upcalls
/// stays short.
#[cold]
#[inline(never)]
fn start<D: Driver>(instance: &mut Option<D>) -> Result<u64> {
    service::start_logging();
    command::register(D::COMMANDS)?;
    *instance = Some(D::init()?);
    Ok(0)
}

#[cold]
#[inline(never)]
fn save<D: Driver>(driver: &mut D) -> Result<u64> {
    let state = driver.save();
    shared::put_into_mailbox(&state)?;
    Ok(ringfence_abi::upcall::saved(state.len() as u32, D::STATE_VERSION))
}

#[cold]
#[inline(never)]
fn restore<D: Driver>(driver: &mut D, len_bytes: u64, version: u32) -> Result<u64> {
    driver.restore(version, &shared::mailbox(len_bytes)?).map(|()| 0)
}

/// Returns what an upcall that succeeded returns.
fn answer(value: u64) -> i64 {
    (value & i64::MAX as u64) as i64
}

impl<D: Driver> Instance<D> {
    #[doc(hidden)]
    #[allow(clippy::new_without_default, reason = "only the macro makes one")]
    pub const fn new() -> Self {
        Instance(UnsafeCell::new(None))
    }

    #[doc(hidden)]
    pub fn enter(&self, operation: u64, a: u64, b: u64) -> i64 {
        use ringfence_abi::upcall;
        // SAFETY: see `Sync`: no other reference exists while this one lives.
        let instance = unsafe { &mut *self.0.get() };
        #[cfg(feature = "record")]
        match operation {
            upcall::INIT => record::line(format_args!("init")),
            upcall::POLL => record::line(format_args!("poll {a:x}")),
            _ => {}
        }
        // The frequent operation is not looked up in a table.
        if operation == upcall::POLL
            && let Some(driver) = instance
        {
            return answer(driver.poll(Events::from_bits_truncate(a)).bits());
        }
        let result = match (operation, instance) {
            (upcall::INIT, instance) => start(instance),
            (upcall::NULL, _) => Ok(0),
            (upcall::COMMAND, Some(driver)) => shared::typed(a).and_then(|text| match &*text {
                #[cfg(feature = "record")]
                "recording" => record::tell(),
                text => {
                    #[cfg(feature = "record")]
                    record::line(format_args!("command"));
                    driver.command(text)
                }
            }),
            (upcall::SAVE, Some(driver)) => save(driver),
            (upcall::RESTORE, Some(driver)) => restore(driver, a, b as u32),
            (upcall::EXIT, Some(driver)) => {
                driver.exit();
                Ok(0)
            }
            _ => Err(Refusal::Invalid),
        };
        match result {
            Ok(value) => answer(value),
            Err(refusal) => refusal.to_result(),
        }
    }
}
