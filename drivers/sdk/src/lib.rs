//! What a driver module is written with. A driver crate forbids unsafe code and does not know its
//! ring: this crate has all the unsafe code that a driver needs.
//!
//! * [`driver!`]: the manifest and the entry point
//! * [`Driver`]: what a driver is; [`class::Device`]: one that offers something, which [`net`],
//!   [`scsi`] and [`block`] are about
//! * [`device`]: PCI configuration, interrupts, [`device::Mmio`], [`device::Ports`]
//! * [`parameter`]: what a person gives the driver when it is loaded
//! * [`timer`]: polls when time has gone by; [`command`]: what a person can tell the driver
//! * [`dma::Dma`]: memory shared with the device; [`ring::Ring`]: descriptors in it
//! * [`virtio`]: what virtio devices have in common
//! * `fake`, a feature: a kernel and a device that are made up, for tests on the host
//! * `log`'s macros and `alloc`'s collections just work
#![cfg_attr(not(feature = "fake"), no_std)]

extern crate alloc;

use core::cell::UnsafeCell;

pub mod block;
pub mod class;
pub mod command;
pub mod device;
pub mod dma;
#[cfg(feature = "fake")]
pub mod fake;
#[cfg(not(feature = "fake"))]
mod heap;
pub mod manifest;
pub mod net;
#[cfg(not(feature = "fake"))]
mod panic;
pub mod parameter;
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
pub use ringfence_abi::manifest::Kind;
pub use ringfence_abi::reset::Reset;
pub use ringfence_abi::service::Refusal;
pub use ringfence_abi::upcall::{Events, Reply};

/// What goes wrong in a driver without ending it.
pub type Result<T> = core::result::Result<T, Refusal>;

/// A driver module.
pub trait Driver: Sized + 'static {
    /// What it can be told, for help and completion. It may understand more.
    const COMMANDS: &'static [Command] = &[];

    /// Takes the device into service.
    fn init() -> Result<Self>;

    /// Looks after the device and the queues. An interrupt is let through again if the reply
    /// acknowledges it.
    fn poll(&mut self, events: Events) -> Reply {
        let _ = events;
        Reply::ACKNOWLEDGED
    }

    /// Does what a person typed behind `tell NAME`; what is said with [`answer!`] is shown, and the
    /// result.
    fn command(&mut self, text: &str) -> Result<u64> {
        let _ = text;
        Err(Refusal::NotFound)
    }

    /// Stops the device.
    fn exit(&mut self) {}
}

/// Makes a module of a [`Driver`]: `driver!(Type, Manifest::new("name", "version")...)`.
///
#[doc = "```rust,ignore"]
#[doc = include_str!("../examples/driver.rs")]
#[doc = "```"]
#[macro_export]
macro_rules! driver {
    ($driver:ty, $manifest:expr) => {
        const _: () = {
            // The linker keeps what is called so, and all that it needs.
            #[unsafe(export_name = "rf_manifest")]
            #[unsafe(link_section = ".ringfence")]
            static MANIFEST: $crate::abi::manifest::Manifest = $manifest.build();

            static INSTANCE: $crate::Instance<$driver> = $crate::Instance::new();

            #[unsafe(no_mangle)]
            extern "C" fn rf_upcall(operation: u64, a: u64, b: u64, c: u64) -> i64 {
                let _ = (b, c);
                INSTANCE.enter(operation, a)
            }
        };
    };
}

/// The number that `text` is, decimal or with `0x` before it: for [`Driver::command`].
///
/// # Errors
/// [`Refusal::Invalid`] if it is none, or does not fit.
pub fn number(text: &str) -> Result<u64> {
    let text = text.trim();
    let number = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    number.map_err(|_| Refusal::Invalid)
}

/// Holds the driver between upcalls. Only [`driver!`] makes one.
#[doc(hidden)]
pub struct Instance<D>(UnsafeCell<Option<D>>);

// SAFETY: the kernel never enters a driver again before it has returned.
unsafe impl<D> Sync for Instance<D> {}

/// Makes the driver. Apart from what is done over and over, which is the shorter for it.
#[cold]
#[inline(never)]
fn start<D: Driver>(instance: &mut Option<D>) -> Result<u64> {
    service::start_logging();
    command::register(D::COMMANDS)?;
    *instance = Some(D::init()?);
    Ok(0)
}

impl<D: Driver> Instance<D> {
    #[doc(hidden)]
    #[allow(clippy::new_without_default, reason = "only the macro makes one")]
    pub const fn new() -> Self {
        Instance(UnsafeCell::new(None))
    }

    #[doc(hidden)]
    pub fn enter(&self, operation: u64, a: u64) -> i64 {
        use ringfence_abi::upcall;
        // SAFETY: see `Sync`: this is the only reference while it lives.
        let instance = unsafe { &mut *self.0.get() };
        let result = match (operation, instance) {
            (upcall::INIT, instance) => start(instance),
            (upcall::NULL, _) => Ok(0),
            (upcall::POLL, Some(driver)) => Ok(driver.poll(Events::from_bits_truncate(a)).bits()),
            (upcall::COMMAND, Some(driver)) => shared::mailbox(a).and_then(|text| driver.command(&text)),
            (upcall::EXIT, Some(driver)) => {
                driver.exit();
                Ok(0)
            }
            _ => Err(Refusal::Invalid),
        };
        match result {
            Ok(value) => (value & i64::MAX as u64) as i64,
            Err(refusal) => refusal.to_result(),
        }
    }
}
