//! How long a driver that was ended is away: until another instance has started its device, is in its place, and has the
//! frames that the one before did not send; commands that wait for it go next.

use super::{Mode, Row};
use crate::arch::time;
use crate::domain::Handle;
use crate::domain::fault::Cause;
use crate::limits::RESTART_WAIT_MS;
use crate::{console, module, net, scsi, supervise};
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use embassy_time::{Duration, Timer, with_timeout};
use ringfence_abi::manifest::Policy;

/// Ends of each driver.
const SAMPLES: usize = 15;
/// Longest time that it may be away.
const LIMIT: Duration = Duration::from_secs(5);

/// Ends the drivers of the first interface and of the first disk over and over, if there are some.
pub async fn run(mode: Mode, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    scsi::settled().await;
    let disk = scsi::disks().into_iter().next().map(|disk| disk.handle());
    let drivers =
        [("recovery/nic", "recovery/nic-reset", net::first_driver()), ("recovery/scsi", "recovery/scsi-reset", disk)];
    for (name, reset, handle) in drivers {
        let Some(handle) = handle else { continue };
        if handle.lock().policy != Policy::Restart {
            return Err("the driver's policy must be to restart".to_string());
        }
        let mut rows = [name, reset].map(|name| Row::new(name, mode.unit("us")));
        // Nothing is printed meanwhile: that takes longer than a restart.
        let mute = console::mute();
        let at_once = RESTART_WAIT_MS.for_now(0);
        measure(handle, mode, &mut rows).await?;
        drop((mute, at_once));
        rows.iter().for_each(&mut *print);
    }
    Ok(())
}

async fn measure(mut handle: Handle, mode: Mode, rows: &mut [Row; 2]) -> Result<(), String> {
    let name = handle.lock().name.clone();
    // The first one is thrown away, as everywhere.
    for number in 0..=SAMPLES {
        // It is not to be given up for this.
        handle.lock().faults_at.clear();
        module::condemn(&handle, Cause::Killed);
        let back = with_timeout(LIMIT, async {
            loop {
                match module::find(&name) {
                    Ok(other) if !Arc::ptr_eq(&other, &handle) => break other,
                    _ => Timer::after_millis(1).await,
                }
            }
        });
        handle = back.await.map_err(|_| "the driver does not come back".to_string())?;
        let ticks = supervise::last_restart();
        for (row, ticks) in rows.iter_mut().zip(ticks).filter(|_| number > 0) {
            row.samples.push(match mode {
                Mode::Time => time::nanoseconds(ticks) as f64 / 1000.0,
                Mode::Instructions => ticks as f64,
            });
        }
    }
    handle.lock().faults_at.clear();
    Ok(())
}
