//! Frames through a network driver: to nobody, and ARP requests to the router, which answers each
//! request at once. Through the network stack too: ICMP echo requests.

use super::kinds::Done;
use super::{
    Cost, Mode, Plan, Row, Stopwatch, check_trust, kinds, put_into, sample_begins, sample_ends, wait_for_interrupt,
};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use embassy_futures::yield_now;
use embassy_time::Duration;
use host::domain::cause::Cause;
use host::domain::{Handle, Ring, end};
use host::poll::{self, Polled};
use hw::arch::time;
use net::SHORTEST_FRAME;
use net::client::Pinger;
use net::queues::Queues;
use ringfence_abi::net::FRAME_BYTES;
use ringfence_abi::upcall::Events;
use smoltcp::wire::Ipv4Address;

/// The number of frames in one sample, and the number of samples.
const EACH: usize = 256;
const SAMPLES: usize = 15;
/// The number of round trips.
const TRIPS: usize = 101;
/// The number of echo requests after which the ring changes. One more is sent before, and
/// discarded.
const TRIPS_IN_A_ROW: usize = 10;
/// The router of QEMU's user network, and the data of an echo request in bytes.
const ROUTER: Ipv4Address = Ipv4Address::new(10, 0, 2, 2);
const ECHO_BYTES: usize = 56;
/// The longest frame without its check sequence, in bytes.
const LONGEST_FRAME: usize = 1514;
/// The numbers of frames handed over in one crossing.
const BATCHES: [usize; 3] = [1, 8, 32];

/// Measures frames per second, if there is a network interface.
pub async fn run(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    if net::first_driver().is_some() {
        // Go on even without an address: frames can be sent and received without one.
        let _ = net::wait_for_address().await;
    }
    kinds::each(plan, net::first_driver, print, of_driver).await
}

async fn of_driver(plan: Plan<'_>, handle: Handle, done: &mut Done) -> Result<(), String> {
    let mode = plan.mode;
    let short = frame(&handle, false);
    let mut long = [0; LONGEST_FRAME];
    for (to, byte) in long.iter_mut().zip(short) {
        *to = byte;
    }
    sends(plan, &handle, "nic/tx", &short, done).await?;
    sends(plan, &handle, "nic/tx-1514", &long, done).await?;
    let request = frame(&handle, true);
    for batch in BATCHES.into_iter().filter(|batch| plan.wants("nic/rx", *batch)) {
        let sample = || Ok(exchange(mode, &handle, &request, batch, EACH)?.value(mode, 1.0));
        let row = || Row::new("nic/rx", mode.unit("frames/s")).batch(batch);
        done.add(plan.measure(&handle, SAMPLES, sample, row)?);
    }
    if plan.wants("nic/rtt", 1) {
        let sample = || Ok(trip(mode, &exchange(mode, &handle, &request, 1, 1)?));
        done.add(plan.measure(&handle, TRIPS, sample, || Row::new("nic/rtt", mode.unit("us")).batch(1))?);
    }
    Ok(())
}

/// Measures frames out.
async fn sends(
    plan: Plan<'_>,
    handle: &Handle,
    name: &'static str,
    frame: &[u8],
    done: &mut Done,
) -> Result<(), String> {
    for batch in BATCHES.into_iter().filter(|batch| plan.wants(name, *batch)) {
        let sample = || Ok(send(plan.mode, handle, frame, batch)?.value(plan.mode, 1.0));
        let row = || Row::new(name, plan.mode.unit("frames/s")).batch(batch);
        done.add(plan.measure(handle, SAMPLES, sample, row)?);
        // Let other tasks see a Ctrl-C.
        yield_now().await;
    }
    Ok(())
}

/// Returns the value of one round trip.
fn trip(mode: Mode, cost: &Cost) -> f64 {
    match mode {
        Mode::Time => time::nanoseconds(cost.ticks) as f64 / 1000.0,
        Mode::Instructions => cost.value(mode, 1.0),
    }
}

/// Moves a driver back into its ring when it is dropped, also if a person stops the measurement.
struct Back<'a> {
    handle: &'a Handle,
    ring: Ring,
}

impl Drop for Back<'_> {
    fn drop(&mut self) {
        put_into(self.handle, self.ring);
    }
}

/// Measures the round trips of ICMP echo requests to the router, if there is a network interface.
/// Unlike frames, they go through the network stack and its task.
pub async fn echo(plan: Plan<'_>, print: &mut impl FnMut(&Row)) -> Result<(), String> {
    if net::first_driver().is_none() || !plan.wants("icmp/rtt", 1) {
        return Ok(());
    }
    net::wait_for_address().await?;
    kinds::each(plan, net::first_driver, print, round_trips).await
}

async fn round_trips(plan: Plan<'_>, handle: Handle, done: &mut Done) -> Result<(), String> {
    check_trust(&plan.rings().collect::<Vec<Ring>>(), &handle)?;
    let mut rows: Vec<Row> =
        plan.rings().map(|ring| Row::new("icmp/rtt", plan.mode.unit("us")).batch(1).driver(&handle, ring)).collect();
    let mut pinger = Pinger::open(ROUTER, ECHO_BYTES).await?;
    let _back = Back { handle: &handle, ring: handle.lock().ring() };
    let mut numbers = 0..=u16::MAX;
    let trips = plan.samples(TRIPS);
    let in_a_row = trips.min(TRIPS_IN_A_ROW);
    for _ in 0..trips.div_ceil(in_a_row) {
        for (ring, row) in plan.rings().zip(&mut rows) {
            put_into(&handle, ring);
            for (number, sequence) in numbers.by_ref().take(1 + in_a_row).enumerate() {
                sample_begins();
                let watch = Stopwatch::start();
                let answered = pinger.ping(sequence, Duration::from_secs(5)).await;
                let cost = watch.stop(1);
                sample_ends();
                // A successor would answer in another ring.
                if !handle.lock().is_alive() {
                    return Err("the driver was ended".to_string());
                }
                if answered?.is_none() {
                    return Err("the router does not answer an echo request".to_string());
                }
                // The first sample fills caches, as elsewhere.
                if number > 0 {
                    row.samples.push(trip(plan.mode, &cost));
                }
            }
        }
    }
    done.add(rows);
    Ok(())
}

/// An ARP request for the router's address (RFC 826), or a frame of a type that no host knows.
fn frame(handle: &Handle, request: bool) -> [u8; SHORTEST_FRAME] {
    let mac = handle.lock().offered::<Queues>().map(|queues| queues.mac).unwrap_or_default();
    let mut frame = net::arp_request(mac, Ipv4Address::new(10, 0, 2, 15), ROUTER);
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
