//! Measures how long a driver that was ended or reloaded is away, by two times. The first time ends
//! when its successor has started the device, is in its place, and has the frames that the old
//! driver did not send. The second ends when the successor has served a client: the router has
//! answered, or a block was read.

use super::{Mode, Row, Stopwatch, nic};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec;
use embassy_futures::yield_now;
use embassy_time::{Duration, with_timeout};
use host::domain::cause::Cause;
use host::domain::{Handle, end};
use host::{module, reload, supervise};
use hw::arch::time;
use hw::console;
use ringfence_abi::manifest::Policy;
use ringfence_core::limits::RESTART_WAIT_MS;
use scsi::disk::Disk;

/// The number of times that each driver is ended, and counted.
const SAMPLES: usize = 15;
/// The maximum time that a driver may be away.
const LIMIT: Duration = Duration::from_secs(5);

/// The client that is served first.
enum Client {
    Router,
    Reader(Arc<Disk>),
}

impl Client {
    /// Lets `handle` serve the client once.
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

/// The way in which a driver is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// As the command `kill` does.
    Killed,
    /// The driver's device accesses memory that was mapped for it, and no longer is.
    DmaFault,
}

/// The drivers that are measured, with their clients: those of the first interface and of the first
/// disk, if they exist.
struct Served {
    handle: Handle,
    client: Client,
    /// The names of the rows about ends, and of those about reloads.
    rows: ([&'static str; 4], [&'static str; 2]),
}

async fn all_served() -> impl Iterator<Item = Served> {
    scsi::scan::settled().await;
    let nic = ["recovery/nic", "recovery/nic-reset", "recovery/nic-served", "recovery/nic-dma"];
    let scsi = ["recovery/scsi", "recovery/scsi-reset", "recovery/scsi-served", "recovery/scsi-dma"];
    let rows = (nic, ["reload/nic", "reload/nic-served"]);
    let interface = net::first_driver().map(|handle| Served { handle, client: Client::Router, rows });
    let rows = (scsi, ["reload/scsi", "reload/scsi-served"]);
    let disk = scsi::scan::disks().into_iter().next();
    let disk = disk.map(|disk| Served { handle: disk.handle(), client: Client::Reader(disk), rows });
    interface.into_iter().chain(disk)
}

/// Repeatedly reloads the drivers. The rows are the time until the new build was in place, and the
/// time until a client was served.
pub async fn reloads(mode: Mode, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    for Served { mut handle, client, rows: (_, names) } in all_served().await {
        let name = handle.lock().name.clone();
        let mut rows = names.map(|name| Row::new(name, mode.unit("us")));
        let mute = console::mute();
        // Discard the first sample, as everywhere.
        for number in 0..=SAMPLES {
            let file = handle.lock().file.clone();
            let watch = Stopwatch::start();
            let reloaded = reload::reload(&handle, file).await.map_err(|error| error.to_string())?;
            handle = module::find(&name).map_err(|error| error.to_string())?;
            client.is_served(&handle, mode).await?;
            let served = watch.stop(1);
            let served = if mode == Mode::Time { served.ticks } else { served.busy };
            for (row, ticks) in rows.iter_mut().zip([reloaded.away_ticks, served]).filter(|_| number > 0) {
                row.samples.push(in_unit(mode, ticks));
            }
        }
        drop(mute);
        rows.iter().for_each(&mut *print);
    }
    Ok(())
}

/// Returns `ticks` in the unit of the rows.
fn in_unit(mode: Mode, ticks: u64) -> f64 {
    match mode {
        Mode::Time => time::nanoseconds(ticks) as f64 / 1000.0,
        Mode::Instructions => ticks as f64,
    }
}

/// Repeatedly ends the drivers.
pub async fn run(mode: Mode, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    for Served { handle, client, rows: (names, _) } in all_served().await {
        if handle.lock().life.policy() != Policy::Restart {
            return Err("the driver's policy must be to restart".to_string());
        }
        let is_fenced = handle.lock().fence().is_some();
        let mut rows = names.map(|name| Row::new(name, mode.unit("us")));
        let [killed @ .., fault] = &mut rows;
        // Print nothing meanwhile: printing takes longer than a restart.
        let mute = console::mute();
        let at_once = RESTART_WAIT_MS.for_now(0);
        let handle = measure(handle, &client, mode, End::Killed, killed).await?;
        if is_fenced {
            // After a DMA fault, only the time until a client is served can be measured.
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
    // Discard the first sample, as everywhere.
    for number in 0..=SAMPLES {
        // Forgive the driver, so that it is not given up for these ends.
        handle.lock().life.forgive();
        let watch = Stopwatch::start();
        match end {
            End::Killed => end::condemn(&handle, Cause::Killed),
            End::DmaFault => {
                handle.lock().cut_device_off();
                // A client that asks now is served by the successor or not at all: the device finds
                // no memory at the addresses that it was given.
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
            row.samples.push(in_unit(mode, ticks));
        }
    }
    handle.lock().life.forgive();
    Ok(handle)
}
