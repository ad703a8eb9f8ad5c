//! Frames through a network driver: ARP requests to the router, which answers each request at once.

use super::{Cost, Mode, Plan, Row, Stopwatch, announce, wait_for_interrupt};
use alloc::string::{String, ToString};
use embassy_futures::yield_now;
use host::domain::cause::Cause;
use host::domain::{Handle, end};
use host::poll::{self, Polled};
use hw::arch::time;
use net::SHORTEST_FRAME;
use net::queues::Queues;
use ringfence_abi::net::FRAME_BYTES;
use ringfence_abi::upcall::Events;
use smoltcp::wire::Ipv4Address;

/// The number of frames in one sample, and the number of samples.
const EACH: usize = 256;
const SAMPLES: usize = 15;
/// The numbers of frames handed over in one crossing.
const BATCHES: [usize; 3] = [1, 8, 32];

/// Measures frames per second, if there is a network interface.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    let mode = plan.mode;
    if net::first_driver().is_some() {
        // Go on even without an address: frames can be sent and received without one.
        let _ = net::wait_for_address().await;
    }
    let Some(handle) = net::first_driver() else { return Ok(()) };
    announce(&handle);
    let unknown = frame(&handle, false);
    for batch in BATCHES.into_iter().filter(|batch| plan.wants("nic/tx", *batch)) {
        let sample = || Ok(send(mode, &handle, &unknown, batch)?.value(mode, 1.0));
        let row = || Row::new("nic/tx", mode.unit("frames/s")).batch(batch);
        let rows = plan.measure(&handle, SAMPLES, sample, row)?;
        rows.iter().for_each(&mut *print);
        // Let other tasks see a Ctrl-C.
        yield_now().await;
    }
    let request = frame(&handle, true);
    for batch in BATCHES.into_iter().filter(|batch| plan.wants("nic/rx", *batch)) {
        let sample = || Ok(exchange(mode, &handle, &request, batch, EACH)?.value(mode, 1.0));
        let row = || Row::new("nic/rx", mode.unit("frames/s")).batch(batch);
        let rows = plan.measure(&handle, SAMPLES, sample, row)?;
        rows.iter().for_each(&mut *print);
    }
    if !plan.wants("nic/rtt", 1) {
        return Ok(());
    }
    let sample = || {
        let cost = exchange(mode, &handle, &request, 1, 1)?;
        Ok(match mode {
            Mode::Time => time::nanoseconds(cost.ticks) as f64 / 1000.0,
            Mode::Instructions => cost.value(mode, 1.0),
        })
    };
    let rows = plan.measure(&handle, 101, sample, || Row::new("nic/rtt", mode.unit("us")).batch(1))?;
    rows.iter().for_each(&mut *print);
    Ok(())
}

/// An ARP request for the router's address (RFC 826), or a frame of a type that no host knows.
fn frame(handle: &Handle, request: bool) -> [u8; SHORTEST_FRAME] {
    let mac = handle.lock().offered::<Queues>().map(|queues| queues.mac).unwrap_or_default();
    let mut frame = net::arp_request(mac, Ipv4Address::new(10, 0, 2, 15), Ipv4Address::new(10, 0, 2, 2));
    if !request {
        // An experimental type (IEEE 802, 9.2.3).
        [frame[12], frame[13]] = [0x88, 0xb5];
    }
    frame
}

/// Runs `look` with a driver's queues. A lie that it finds there ends the driver.
fn with_queues<T>(handle: &Handle, look: impl FnOnce(&mut Queues) -> Result<T, Cause>) -> Result<T, String> {
    let result = look(handle.lock().offered_mut::<Queues>().ok_or("the driver is gone")?);
    result.map_err(|cause| {
        end::condemn(handle, cause);
        "the driver lied".to_string()
    })
}

/// Hands a batch of frames to the driver to be sent. If the queue has no room for all frames, waits
/// for the device: it may have fewer descriptors than the batch has frames.
fn hand_over(mode: Mode, handle: &Handle, frame: &[u8], batch: usize) -> Result<(), String> {
    let mut left = batch;
    loop {
        with_queues(handle, |queues| {
            while left > 0 && queues.send(frame, None)? {
                left -= 1;
            }
            queues.before_poll(0);
            Ok(())
        })?;
        if poll::poll(handle, Events::QUEUE) == Polled::Ended {
            return Err("the driver was ended".to_string());
        }
        if left == 0 {
            return Ok(());
        }
        if !wait_for_interrupt(mode, &Stopwatch::start()) {
            return Err("the driver does not send".to_string());
        }
    }
}

/// Sends frames in batches.
fn send(mode: Mode, handle: &Handle, frame: &[u8], batch: usize) -> Result<Cost, String> {
    let watch = Stopwatch::start();
    for _ in 0..EACH / batch {
        hand_over(mode, handle, frame, batch)?;
    }
    Ok(watch.stop(EACH))
}

/// Asks the router for its address, and waits for the answer.
pub fn ask_router(mode: Mode, handle: &Handle) -> Result<(), String> {
    exchange(mode, handle, &frame(handle, true), 1, 1).map(drop)
}

/// Sends requests in batches and waits for the answers of each.
fn exchange(mode: Mode, handle: &Handle, frame: &[u8], batch: usize, count: usize) -> Result<Cost, String> {
    let mut buffer = [0; FRAME_BYTES];
    let watch = Stopwatch::start();
    for _ in 0..count / batch {
        hand_over(mode, handle, frame, batch)?;
        let (mut missing, since) = (batch, Stopwatch::start());
        while missing > 0 {
            with_queues(handle, |queues| {
                while missing > 0 && queues.receive(&mut buffer)?.is_some() {
                    missing -= 1;
                }
                Ok(())
            })?;
            if missing > 0 && !wait_for_interrupt(mode, &since) {
                return Err("the router does not answer".to_string());
            }
        }
    }
    Ok(watch.stop(count))
}
