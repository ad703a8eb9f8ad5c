//! SCSI above the drivers: commands, their errors, and the disks that were found.
//!
//! * [`class`]: the entry in the kernel's table of classes
//! * [`queues`]: requests to a driver
//! * [`command`]: sends a command, again if its driver was ended, and checks its outcome
//! * [`scan`]: searches for the disks of a host
//! * [`disk`]: the blocks of one disk
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use host::domain::Handle;
use host::requests::Server;
use spin::Mutex;

mod class;
pub mod command;
pub mod disk;
pub mod queues;
pub mod scan;

/// A SCSI host: a driver, and its successors.
pub struct Host {
    server: Server,
    /// Set when a search for the host's units has ended.
    scanned: AtomicBool,
    /// Whether units were lost according to this driver: its successor may say otherwise.
    lost_some: AtomicBool,
    /// Whether the units are known from a driver that lost some. A search with another driver
    /// clears this.
    in_doubt: AtomicBool,
    /// How often a person has ordered the reset of a unit. A reset may concern the others as well.
    resets: AtomicU64,
    /// Units to look at again.
    stale: Mutex<Vec<(u32, u32)>>,
    /// Units for which the log has the reason why they are not used.
    told: Mutex<Vec<(u32, u32)>>,
}

pub use class::CLASS;

static HOSTS: Mutex<Vec<Arc<Host>>> = Mutex::new(Vec::new());

impl core::ops::Deref for Host {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Host {
    fn new(server: Server) -> Host {
        Host {
            server,
            scanned: AtomicBool::new(false),
            lost_some: AtomicBool::new(false),
            in_doubt: AtomicBool::new(false),
            resets: AtomicU64::new(0),
            stale: Mutex::new(Vec::new()),
            told: Mutex::new(Vec::new()),
        }
    }

    /// Returns whether the units must be looked at again before their known properties can be
    /// relied on.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }
}

/// Returns all hosts.
fn hosts() -> Vec<Arc<Host>> {
    HOSTS.lock().clone()
}

fn host_of(handle: &Handle) -> Option<Arc<Host>> {
    HOSTS.lock().iter().find(|host| Arc::ptr_eq(&host.handle(), handle)).cloned()
}
