//! SCSI above the drivers: commands, their errors, and the disks that were found.
//!
//! * [`class`]: what the kernel below knows of all this
//! * [`queues`]: what requests to a driver are like
//! * [`command`]: sends a command, again if its driver was ended, and says what became of it
//! * [`scan`]: looks for the disks of a host
//! * [`disk`]: the blocks of one disk
#![no_std]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

extern crate alloc;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use host::domain::Handle;
use host::requests::Server;
use spin::Mutex;

mod class;
pub mod command;
pub mod disk;
pub mod queues;
pub mod scan;

/// A SCSI host: a driver, and whatever comes in its place when it was ended.
pub struct Host {
    server: Server,
    /// Set when its units have been looked at, as far as they are.
    scanned: AtomicBool,
    /// Whether units went while this driver said what is there: the next one may say otherwise.
    lost_some: AtomicBool,
    /// Whether what is known of its units is from a driver that lost some, until they were looked
    /// at again.
    in_doubt: AtomicBool,
    /// Units that are to be looked at again.
    stale: Mutex<Vec<(u32, u32)>>,
    /// Units of which it was said why they are not used.
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
            stale: Mutex::new(Vec::new()),
            told: Mutex::new(Vec::new()),
        }
    }

    /// Whether its units are to be looked at again before anybody relies on what is known of them.
    pub fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }
}

/// All hosts.
fn hosts() -> Vec<Arc<Host>> {
    HOSTS.lock().clone()
}

fn host_of(handle: &Handle) -> Option<Arc<Host>> {
    HOSTS.lock().iter().find(|host| Arc::ptr_eq(&host.handle(), handle)).cloned()
}
