//! The scheduling of drivers: each is polled when its device has interrupted, or when its queues
//! have work for it.
//!
//! **All throttled drivers together share one half of the CPU.** Nothing else runs during a poll, a
//! driver may use its whole budget in each poll, and a device may interrupt for ever. So the time
//! of each poll is added to the driver's debt ([`ringfence_core::debt`]), and time in which no
//! driver runs pays it off. A driver that owes more than
//! [`TURN_MS`](ringfence_core::limits::TURN_MS) is throttled (`resting` in `lsmod`): its interrupts
//! are held back, and it is not polled until as much time has gone by.
//!
//! The kernel's work for a driver is added to its debt as well ([`charge_work`]): the network
//! stack's work on its frames, the search for its units. A client may want that work done, so this
//! part of the debt is dropped when the CPU is idle ([`idle`]).
//!
//! **Interrupts wait for a few turns of the tasks** that can go on
//! ([`ringfence_core::patience`]).
//!
//! Not taken:
//! * *Interrupts that run driver code.* A driver could be entered at any instruction of the kernel,
//!   and a driver that never returns would hold up the code that it interrupted. Here an interrupt
//!   only notes its line.
//! * *A time slice for each driver, by priority.* It needs a second context for each driver, and a
//!   driver could be stopped in the middle of a write to a queue. Here an upcall runs to its end,
//!   and a driver that uses up the upcall's budget is ended.
//! * *A limit on interrupts a second* (as Linux' `irqpoll` and NAPI have). It says nothing about
//!   how long each interrupt takes.

use crate::domain::cause::{Cause, UpcallError};
use crate::domain::hardware::Which;
use crate::domain::trace::{self, What};
use crate::domain::turn::free_clock;
use crate::domain::{Domain, Handle, end, registry, sleep, timer, whose};
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::{Pin, pin};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use core::task::Poll;
use embassy_futures::select::select;
use embassy_futures::yield_now;
use embassy_sync::waitqueue::AtomicWaker;
use embassy_time::{Instant, Timer};
use hw::arch::interrupts::Fired;
use hw::arch::{interrupts, time};
use hw::{iommu, pci};
use ringfence_abi::layout::MAX_DOMAINS;
use ringfence_abi::upcall::{Events, INIT, POLL, Reply};
use ringfence_core::patience;

/// The TSC reading until which a driver that has used too much of the CPU rests.
static REST_UNTIL: AtomicU64 = AtomicU64::new(0);
/// The TSC reading until which a driver rests because the kernel has worked too much for it. It
/// counts only while the CPU has other work.
static WORK_UNTIL: AtomicU64 = AtomicU64::new(0);
static ON_IDLE: AtomicWaker = AtomicWaker::new();
static ON_WAITING: AtomicWaker = AtomicWaker::new();
/// Lines that have fired, and stay masked until their drivers are polled.
static TO_UNMASK: AtomicU64 = AtomicU64::new(0);
/// Turns of the tasks since a line fired, and the TSC reading after the first of them.
static TURNS: AtomicU32 = AtomicU32::new(0);
static FIRST_TURN: AtomicU64 = AtomicU64::new(0);
/// The time in microseconds after which an interrupt waits for no other turn, which may be as long
/// as the longest polls of other drivers.
const LONGEST_WAIT_US: u64 = 250;
static ON_FIRED: AtomicWaker = AtomicWaker::new();

/// Returns whether `domain` must wait for its next turn.
fn rests(domain: &Domain) -> bool {
    domain.turn.owes_too_much() && time::tsc() < rest_until()
}

/// Returns the end of the rest of drivers that owe too much.
fn rest_until() -> u64 {
    REST_UNTIL.load(Ordering::Relaxed).max(WORK_UNTIL.load(Ordering::Relaxed))
}

/// Adds the kernel's work for a driver since [`free_clock`] was `since` to the driver's debt.
pub fn charge_work(handle: &Handle, since: u64) {
    let ticks = free_clock().saturating_sub(since);
    let rest = handle.lock().turn.charge_work(ticks, since);
    if rest > 0 {
        let from = WORK_UNTIL.load(Ordering::Relaxed).max(time::tsc());
        WORK_UNTIL.store(from.saturating_add(rest), Ordering::Relaxed);
    }
}

/// Adds each step of the kernel's work for a driver to the driver's debt, as long as there is a
/// driver.
pub async fn charged<T>(handle: impl Fn() -> Option<Handle>, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    poll_fn(|context| {
        let since = free_clock();
        let done = work.as_mut().poll(context);
        if let Some(handle) = handle() {
            charge_work(&handle, since);
        }
        done
    })
    .await
}

/// Called when the CPU has nothing to do: drivers that rest only because of the kernel's work for
/// them need not rest. Returns whether a driver goes on now.
pub fn idle() -> bool {
    let rests = WORK_UNTIL.swap(0, Ordering::Relaxed) > time::tsc();
    if rests {
        ON_IDLE.wake();
    }
    rests
}

/// Called after each turn of the tasks, of which some can go on at once if the CPU `is_busy`.
/// Returns whether interrupts are served now.
#[inline]
pub fn turn_ended(is_busy: bool) -> bool {
    interrupts::fired() != 0 && is_served_now(is_busy)
}

/// The part of [`turn_ended`] for lines that have fired.
fn is_served_now(is_busy: bool) -> bool {
    let (turns, now) = (TURNS.load(Ordering::Relaxed), time::tsc());
    if turns == 0 {
        FIRST_TURN.store(now, Ordering::Relaxed);
    }
    let ticks = now.saturating_sub(FIRST_TURN.load(Ordering::Relaxed));
    let can_wait = is_busy && ticks < LONGEST_WAIT_US * time::tsc_per_ms() / 1000;
    let turns = patience::waited(turns, interrupts::unheard(), can_wait);
    TURNS.store(turns.unwrap_or(0), Ordering::Relaxed);
    if turns.is_none() {
        ON_FIRED.wake();
    }
    turns.is_none()
}

/// The outcome of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// The driver had its turn.
    Now,
    /// The driver rests or sleeps, and has its turn later.
    Later,
    /// The driver was ended, by this poll or before.
    Ended,
}

/// Lets a driver look after its device and its queues, and passes on the entries that it left in
/// the queues. A driver that rests is polled later.
pub fn poll(handle: &Handle, events: Events) -> Polled {
    let mut domain = handle.lock();
    if !domain.life.is_running() || rests(&domain) {
        return wait_if_alive(&mut domain, events);
    }
    run(&mut domain, events);
    if domain.is_alive() { Polled::Now } else { Polled::Ended }
}

/// The part of [`poll`] for a driver that must not be entered now.
#[cold]
fn wait_if_alive(domain: &mut Domain, events: Events) -> Polled {
    if domain.is_alive() {
        wait(domain, events);
        return Polled::Later;
    }
    // This stops its device, if that is still to be done.
    after(domain);
    Polled::Ended
}

/// Notes that `domain` must be polled when it has rested, or has slept.
fn wait(domain: &mut Domain, events: Events) {
    let sleeps = domain.life.asleep_until().is_some();
    trace::note(domain, || if sleeps { What::Sleeps(events) } else { What::Rests(events) });
    if let Some(device) = domain.device.as_ref().filter(|_| events.contains(Events::INTERRUPT)) {
        device.mask();
    }
    domain.turn.wait_for(events);
    ON_WAITING.wake();
}

/// Polls a driver that runs, also for the events that it has waited for.
#[inline(always)]
fn run(domain: &mut Domain, mut events: Events) {
    let mut waited = Events::empty();
    if let Some(for_these) = domain.turn.take_waits() {
        waited = for_these;
        events |= waited;
    }
    if interrupts::unheard() != 0 {
        events |= hear(domain);
    }
    let reply = domain.upcall_running(POLL, [events.bits(), 0, 0]);
    charge(domain, domain.turn.last_ticks, domain.turn.last_began);
    take_reply(domain, reply, events, waited);
}

/// Returns the events of the lines of the domain's device that have fired. They count as heard, and
/// stay masked until [`serve_interrupts`] has taken them. A line may be another driver's as well,
/// which is polled then.
fn hear(domain: &mut Domain) -> Events {
    let Some(device) = &domain.device else { return Events::empty() };
    let lines = interrupts::unheard() & device.active_lines();
    if lines == 0 {
        return Events::empty();
    }
    interrupts::hear(lines);
    domain.turn.heard |= lines;
    device.events(lines)
}

/// Acts on the end of a poll for `events`, some of which had waited. A driver that sleeps has not
/// acknowledged an interrupt yet.
#[inline(always)]
fn take_reply(domain: &mut Domain, reply: Result<u64, UpcallError>, events: Events, waited: Events) {
    if let Ok(reply) = reply
        && Reply::from_bits_truncate(reply).intersects(NEWS)
    {
        note_news(domain, Reply::from_bits_truncate(reply));
    }
    if events.contains(Events::INTERRUPT)
        && let Some(device) = &domain.device
    {
        if !reply.is_ok_and(|reply| Reply::from_bits_truncate(reply).contains(Reply::ACKNOWLEDGED)) {
            device.mask();
        } else {
            if waited.contains(Events::INTERRUPT) && device.active_lines() != 0 {
                device.unmask();
            }
            // Other work of the same poll may have raised the line anew.
            let others = Events::QUEUE | Events::TIMER | Events::HEARING;
            if domain.turn.acknowledge() && !events.intersects(others) {
                look_at_line(domain);
            }
        }
    }
    after(domain);
}

/// Tells the author of a driver that it is polled again and again because of a line that stays
/// raised.
#[cold]
fn look_at_line(domain: &mut Domain) {
    let is_raised = domain.device.as_ref().is_some_and(|device| device.raises_its_line());
    if !domain.turn.note_line(is_raised) {
        return;
    }
    log::warn!(
        "{}: acknowledges its interrupts, and its device's line stays raised: it leaves a cause set, or does less than \
         the device asks for",
        domain.name
    );
}

/// Ends a driver whose device reached beyond its fence. The other devices are checked for the same.
#[cold]
fn blame_for_dma(domain: &mut Domain) {
    if domain.is_alive()
        && let Some(cause) = dma_fault(domain)
    {
        domain.condemn(cause);
    }
    ON_DMA_FAULT.wake();
}

/// Takes the records about the domain's device, and notes the owner of the memory that the device
/// reached for.
fn dma_fault(domain: &mut Domain) -> Option<Cause> {
    let cause = domain.take_dma_fault()?;
    if let Cause::Dma { address, .. } = cause {
        domain.lies_there = whose::whose(address, domain);
    }
    Some(cause)
}

/// Woken when a device may have reached beyond its fence, other than the device of the driver
/// polled last.
static ON_DMA_FAULT: AtomicWaker = AtomicWaker::new();
/// The interval in milliseconds between two checks for faults of devices. Each poll is followed by
/// a check as well.
const LOOK_MS: u64 = 50;

/// The task that ends drivers whose devices reach beyond their fences.
pub async fn serve_dma_faults() {
    if !iommu::is_on() {
        return;
    }
    loop {
        let mut first = true;
        let woken = poll_fn(|context| {
            ON_DMA_FAULT.register(context.waker());
            if core::mem::take(&mut first) { Poll::Pending } else { Poll::Ready(()) }
        });
        select(woken, Timer::after_millis(LOOK_MS)).await;
        if !iommu::note_faults() {
            continue;
        }
        for address in iommu::sources() {
            let is_its = |handle: &Handle| {
                let drives = handle.lock().drives;
                drives.and_then(Which::function).is_some_and(|function| pci::requester(function.address) == address)
            };
            let Some(handle) = registry::all().into_iter().find(is_its) else {
                iommu::forget_unowned(address);
                continue;
            };
            let cause = dma_fault(&mut handle.lock());
            match cause {
                Some(cause) => end::condemn(&handle, cause),
                None => iommu::forget(address),
            }
        }
    }
}

/// The news in a driver's reply, besides its answer to the interrupt. The driver's class knows
/// their meaning.
const NEWS: Reply = Reply::all().difference(Reply::ACKNOWLEDGED);

/// Passes on the news of a driver.
#[cold]
fn note_news(domain: &mut Domain, news: Reply) {
    if let Some(offer) = &mut domain.offer {
        offer.take_news(news);
    }
}

/// Adds an upcall that took `tsc_ticks`, and began when the TSC was `began`, to the driver's debt.
#[inline(always)]
fn charge(domain: &mut Domain, tsc_ticks: u64, began: u64) {
    let rest = domain.turn.charge(tsc_ticks, began);
    if rest > 0 {
        let from = REST_UNTIL.load(Ordering::Relaxed).max(time::tsc());
        REST_UNTIL.store(from.saturating_add(rest), Ordering::Relaxed);
    }
}

/// Adds the start of a driver that replaces `dead` to its debt, and the debt of `dead` that was not
/// rested for. The restart waits for a rest before ([`rest_ns`]).
pub fn succeed(fresh: &mut Domain, dead: &Domain) {
    fresh.turn.take_over(&dead.turn);
    let ticks = fresh.turn.all_ticks;
    charge(fresh, ticks, time::tsc().saturating_sub(ticks));
}

/// Returns the time that a driver still has to rest, in nanoseconds.
pub fn rest_ns(domain: &Domain) -> u64 {
    match rests(domain) {
        true => time::nanoseconds(rest_until().saturating_sub(time::tsc())),
        false => 0,
    }
}

/// Called after an upcall: takes the entries that the driver put into its queues. Stops the device
/// if the driver was ended, by the upcall or because of these entries. The entries of a driver that
/// was ended in the same upcall are not believed: its requests count as still under way.
#[inline]
pub fn after(domain: &mut Domain) {
    if iommu::note_faults() {
        blame_for_dma(domain);
    }
    if domain.is_alive()
        && let Some(offer) = &mut domain.offer
        && let Err(cause) = offer.after_upcall()
    {
        condemn(domain, cause);
    }
    if domain.used.is_some() {
        take_asked(domain);
    }
    if !domain.is_alive() {
        end::quiesce(domain);
    }
}

/// Takes the requests that a driver has made to the device that it uses.
#[inline(never)]
fn take_asked(domain: &mut Domain) {
    if domain.is_alive()
        && let Some(used) = &mut domain.used
    {
        match used.take() {
            Ok(()) => used.begin(),
            Err(cause) => condemn(domain, cause),
        }
    }
}

/// Ends a driver that has left an entry in its queues that cannot be true.
#[cold]
fn condemn(domain: &mut Domain, cause: Cause) {
    domain.condemn(cause);
}

/// The task that polls drivers whose devices raised their line. Other tasks have their turn after
/// each driver.
pub async fn serve_interrupts() {
    loop {
        let fired = poll_fn(|context| {
            ON_FIRED.register(context.waker());
            match interrupts::take_fired() {
                Fired { lines: 0, .. } => Poll::Pending,
                fired => Poll::Ready(fired),
            }
        })
        .await;
        TO_UNMASK.fetch_or(fired.lines, Ordering::Relaxed);
        // The references are weak: a driver that is ended meanwhile must be freed.
        let mut waiting = heapless::Vec::new();
        on_lines(fired, Arc::downgrade, &mut waiting);
        // The list is not moved into a loop: it has room for all domains.
        for (waiting, events) in &waiting {
            if let Some(handle) = waiting.upgrade() {
                poll(&handle, *events);
            }
            yield_now().await;
        }
        unmask();
    }
}

/// Polls the drivers of all devices on lines that have fired, one after the other, and unmasks the
/// lines. Returns whether there are such lines.
pub fn lines() -> bool {
    let fired = interrupts::take_fired();
    TO_UNMASK.fetch_or(fired.lines, Ordering::Relaxed);
    let mut waiting = heapless::Vec::new();
    on_lines(fired, Handle::clone, &mut waiting);
    for (handle, events) in &waiting {
        poll(handle, *events);
    }
    unmask();
    fired.lines != 0
}

/// Finds the drivers of all devices on the lines in `fired`, as `refer` refers to them, with the
/// events that each is polled for. A driver that was polled for its lines already is left out.
fn on_lines<T>(fired: Fired, refer: impl Fn(&Handle) -> T, found: &mut heapless::Vec<(T, Events), MAX_DOMAINS>) {
    registry::select(found, |handle, domain| {
        let lines = patience::left(fired.lines, fired.unheard, core::mem::take(&mut domain.turn.heard));
        let device = domain.device.as_ref().filter(|device| device.active_lines() & lines != 0)?;
        Some((refer(handle), device.events(lines)))
    });
}

/// Unmasks the lines of drivers that were polled or are about to be. A line that is still raised is
/// masked again at once.
fn unmask() {
    interrupts::unmask(TO_UNMASK.swap(0, Ordering::Relaxed));
}

/// The task that polls drivers whose timers go off.
pub async fn serve_timers() {
    loop {
        let due = |handle: &Handle| {
            let domain = handle.lock();
            domain.timer.due_ns().filter(|_| domain.is_alive())
        };
        // Take only the time: a handle would keep a driver from being freed during the wait.
        let next = registry::all().iter().filter_map(due).min();
        match next {
            Some(at_ns) => {
                let goes_off = Timer::at(Instant::from_micros(at_ns.div_ceil(1000)));
                select(goes_off, timer::until_set()).await;
            }
            None => timer::until_set().await,
        }
        let now_ns = time::uptime_ns();
        let is_due = |handle: &Handle| {
            let mut domain = handle.lock();
            domain.is_alive() && domain.timer.take(now_ns)
        };
        let waiting: Vec<Weak<_>> =
            registry::all().iter().filter(|handle| is_due(handle)).map(Arc::downgrade).collect();
        for waiting in waiting {
            if let Some(handle) = waiting.upgrade() {
                poll(&handle, Events::TIMER);
            }
            yield_now().await;
        }
    }
}

/// The task that wakes sleeping drivers, each at its time.
pub async fn serve_sleepers() {
    loop {
        let first = sleep::first_due_ns();
        match first {
            Some(at_ns) => {
                let is_time = Timer::at(Instant::from_micros(at_ns.div_ceil(1000)));
                select(is_time, sleep::changed(first)).await;
            }
            None => sleep::changed(first).await,
        }
        for handle in sleep::take_due(time::uptime_ns()) {
            wake(&handle);
            drop(handle);
            yield_now().await;
        }
    }
}

/// Tells a driver that the device which it uses has answered: a driver that waits for that in an
/// upcall continues, another is polled.
pub fn answered(handle: &Handle) {
    let waits = handle.lock().end_wait();
    if waits {
        wake(handle);
    } else {
        // If the driver was ended, it needs no poll.
        let _ = poll(handle, Events::QUEUE);
    }
}

/// Continues the upcall of a driver that sleeps. A driver that owes too much of the CPU sleeps on
/// until it has rested.
fn wake(handle: &Handle) {
    let mut domain = handle.lock();
    if domain.life.asleep_until().is_none() {
        return;
    }
    if rests(&domain) {
        let until_ns = time::uptime_ns().saturating_add(rest_ns(&domain));
        domain.life.sleep(until_ns);
        sleep::put_off(handle, until_ns);
        return;
    }
    drop(domain);
    go_on(handle);
}

/// Continues the upcall of a driver that slept, or stood still for a debugger.
pub fn go_on(handle: &Handle) {
    let mut domain = handle.lock();
    let (began, before) = (time::tsc(), domain.turn.all_ticks);
    let result = domain.wake();
    let ticks = domain.turn.all_ticks.wrapping_sub(before);
    charge(&mut domain, ticks, began);
    if domain.upcall == POLL {
        let events = domain.events;
        take_reply(&mut domain, result, events, events);
        end::note();
    } else if result != Err(UpcallError::Asleep) {
        // The task that waits for the upcall may have given up.
        if domain.upcall != INIT {
            after(&mut domain);
        }
        sleep::woke(&mut domain, result);
    }
    if domain.turn.is_due() {
        ON_WAITING.wake();
    }
}

/// The task that polls drivers that have rested; the driver that has waited longest is the first.
pub async fn serve_rested() {
    loop {
        let handle = poll_fn(|context| {
            ON_WAITING.register(context.waker());
            longest_waiting().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let rest = rest_until().saturating_sub(time::tsc());
        if rest > 0 {
            drop(handle);
            let mut slept = Timer::after_nanos(time::nanoseconds(rest));
            poll_fn(|context| {
                ON_IDLE.register(context.waker());
                match rest_until() <= time::tsc() {
                    true => Poll::Ready(()),
                    false => Pin::new(&mut slept).poll(context),
                }
            })
            .await;
            continue;
        }
        // The events that it waits for are noted.
        poll_waiting(&mut handle.lock());
        drop(handle);
        yield_now().await;
    }
}

/// Polls a driver that has rested. A driver that was ended meanwhile waits no more.
fn poll_waiting(domain: &mut Domain) {
    if domain.life.is_running() {
        run(domain, Events::empty());
    } else {
        domain.turn.take_waits();
        after(domain);
    }
}

fn longest_waiting() -> Option<Handle> {
    let waiting = registry::all().into_iter().filter_map(|handle| {
        let (since, _) = {
            let domain = handle.lock();
            domain.turn.waits().filter(|_| domain.life.asleep_until().is_none())?
        };
        Some((since, handle))
    });
    waiting.min_by_key(|(since, _)| *since).map(|(_, handle)| handle)
}
