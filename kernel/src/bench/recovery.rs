//! How long a driver that was ended is away: until another instance has started its device, is in
//! its place, and has the frames that the one before did not send; and until it has served
//! somebody: the router has answered, or a block was read.

use super::{Mode, Row, Stopwatch, nic};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use embassy_futures::yield_now;
use embassy_time::{Duration, with_timeout};
use host::domain::cause::Cause;
use host::domain::{Handle, end};
use host::{module, supervise};
use hw::arch::time;
use hw::console;
use ringfence_abi::manifest::Policy;
use ringfence_core::limits::RESTART_WAIT_MS;
use scsi::disk::Disk;

/// Ends of each driver.
const SAMPLES: usize = 15;
/// Longest time that it may be away.
const LIMIT: Duration = Duration::from_secs(5);

/// The client that is served first.
enum Client {
    Router,
    Reader(Arc<Disk>),
}

impl Client {
    /// Has `handle` serve once.
    async fn is_served(&self, handle: &Handle, mode: Mode) -> Result<(), String> {
        match self {
            Client::Router => nic::ask_router(mode, handle),
            Client::Reader(disk) => {
                let mut block = vec![0; disk.block_bytes()];
                disk.read(0, &mut block).await.map_err(|error| error.to_string())
            }
        }
    }
}

/// How a driver is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As `kill` does it.
    Killed,
    /// The driver's device accesses memory that was mapped for it, and no longer is.
    DmaFault,
}

/// Ends the drivers of the first interface and of the first disk over and over, if there are some.
pub async fn run(mode: Mode, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    scsi::scan::settled().await;
    let nic = ["recovery/nic", "recovery/nic-reset", "recovery/nic-served", "recovery/nic-dma"];
    let interface = net::first_driver().map(|handle| (nic, handle, Client::Router));
    let scsi = ["recovery/scsi", "recovery/scsi-reset", "recovery/scsi-served", "recovery/scsi-dma"];
    let disk = scsi::scan::disks().into_iter().next().map(|disk| (scsi, disk.handle(), Client::Reader(disk)));
    for (names, handle, client) in interface.into_iter().chain(disk) {
        if handle.lock().life.policy() != Policy::Restart {
            return Err("the driver's policy must be to restart".to_string());
        }
        let is_fenced = handle.lock().fence().is_some();
        let mut rows = names.map(|name| Row::new(name, mode.unit("us")));
        let [killed @ .., fault] = &mut rows;
        // Nothing is printed meanwhile: that takes longer than a restart.
        let mute = console::mute();
        let at_once = RESTART_WAIT_MS.for_now(0);
        let handle = measure(handle, &client, mode, End::Killed, killed).await?;
        if is_fenced {
            // From the fault on nothing can be told apart but when somebody is served.
            measure(handle, &client, mode, End::DmaFault, core::slice::from_mut(fault)).await?;
        }
        drop((mute, at_once));
        rows.iter().filter(|row| !row.samples.is_empty()).for_each(&mut *print);
    }
    Ok(())
}

/// Ends a driver again and again; returns the last of its successors. The `rows` are, from the last
/// one on: the time until the client was served, the part of it for stopping the device, and the
/// time until the successor was in its place.
async fn measure(
    mut handle: Handle,
    client: &Client,
    mode: Mode,
    end: End,
    rows: &mut [Row],
) -> Result<Handle, String> {
    let name = handle.lock().name.clone();
    // The first one is thrown away, as everywhere.
    for number in 0..=SAMPLES {
        // It is not to be given up for this.
        handle.lock().life.forgive();
        let watch = Stopwatch::start();
        match end {
            End::Killed => end::condemn(&handle, Cause::Killed),
            End::DmaFault => {
                handle.lock().cut_device_off();
                // Who asks now is served by the next one, or not at all; its device finds nothing
                // where it was told to look.
                let _ = client.is_served(&handle, mode).await;
            }
        }
        let back = with_timeout(LIMIT, async {
            loop {
                match module::find(&name) {
                    Ok(other) if !Arc::ptr_eq(&other, &handle) => break other,
                    _ => yield_now().await,
                }
            }
        });
        let back = back.await.map_err(|_| "the driver does not come back".to_string())?;
        if end == End::DmaFault && handle.lock().life.fault().is_none_or(|fault| fault.kind != "DMA-fault") {
            return Err("its device's fault was not noticed".to_string());
        }
        handle = back;
        client.is_served(&handle, mode).await?;
        let served = watch.stop(1);
        let [back, reset] = supervise::last_restart();
        let served = if mode == Mode::Time { served.ticks } else { served.busy };
        for (row, ticks) in rows.iter_mut().rev().zip([served, reset, back]).filter(|_| number > 0) {
            row.samples.push(match mode {
                Mode::Time => time::nanoseconds(ticks) as f64 / 1000.0,
                Mode::Instructions => ticks as f64,
            });
        }
    }
    handle.lock().life.forgive();
    Ok(handle)
}
