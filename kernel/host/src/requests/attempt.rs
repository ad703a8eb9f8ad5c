//! Sends a request to a server's driver, and to its successor if the driver is ended meanwhile.
//!
//! A driver that does not carry out a request in time is asked for the remedies of its class
//! ([`Protocol::remedies`]) before it is ended. The driver may be able to put its device right, and
//! its other requests go on.

use super::queue::{Moves, Queues, Ticket};
use super::{Lost, Protocol, Server};
use crate::domain::cause::Cause;
use crate::domain::{Handle, end};
use crate::poll;
use core::future::{Future, poll_fn};
use core::marker::PhantomData;
use core::pin::{Pin, pin};
use core::sync::atomic::Ordering;
use core::task::Poll;
use embassy_futures::select::{Either, select};
use embassy_time::{Duration, Instant, with_timeout};
use hw::console;
use log::Level;
use ringfence_abi::upcall::Events;
use ringfence_core::limits::{COMMAND_MS, PAUSE_MS, RESTARTS};
use ringfence_core::requests::Wrong;
use ringfence_core::requests::repeat::Place;

/// A request of a server, with its place in the order, from its first sending to its end.
pub struct Attempt<'a, P> {
    server: &'a Server,
    number: u64,
    place: Place<'a>,
    /// Whether the request must be sent again, and whether a driver had the request.
    again: bool,
    was_sent: bool,
    /// Whether a driver had it that was ended.
    may_be_done: bool,
    /// The number of drivers that were ended while they had the request, and the time that it has
    /// waited for drivers.
    sent: u64,
    waited: Duration,
    protocol: PhantomData<P>,
}

/// The outcome of a request.
pub enum Done<O> {
    /// A driver has carried it out.
    Now(O),
    /// A driver that was ended meanwhile had carried it out.
    Before,
}

impl<'a, P: Protocol> Attempt<'a, P> {
    /// Returns the next request of `server`.
    pub fn new(server: &'a Server) -> Attempt<'a, P> {
        let number = server.count.fetch_add(1, Ordering::Relaxed);
        Attempt {
            server,
            number,
            place: server.repeats.place(number),
            again: false,
            was_sent: false,
            may_be_done: false,
            sent: 0,
            waited: Duration::MIN,
            protocol: PhantomData,
        }
    }

    /// Returns the number of drivers that were ended meanwhile.
    pub fn drivers_lost(&self) -> u64 {
        self.sent
    }

    /// Sends `request` and waits for its outcome; data that comes in goes to `data_in`.
    ///
    /// If the driver is ended meanwhile and comes back, the requests under way are sent again in
    /// their order. A request may have been done without an answer, so `is_done` is asked before it
    /// is sent again. No other request of the server's order is sent meanwhile.
    pub async fn outcome(
        &mut self,
        request: &P::Request,
        data_out: &[u8],
        data_in: &mut [u8],
        is_done: impl AsyncFn() -> bool,
    ) -> Result<Done<P::Outcome>, Lost> {
        loop {
            if core::mem::take(&mut self.again) {
                self.place.come().await;
                // A driver may have done it although its successors did not get so far as to be
                // asked.
                self.may_be_done |= core::mem::take(&mut self.was_sent);
                if self.may_be_done && is_done().await {
                    return Ok(Done::Before);
                }
            }
            let handle = self.server.handle();
            let place = Some((&self.place, &mut self.was_sent));
            match send::<P>(&handle, Some(self.number), request, data_out, data_in, place).await {
                Ok(outcome) => return Ok(Done::Now(outcome)),
                Err(Lost) => self.wait_for_another(&handle).await?,
            }
        }
    }

    /// Requests that were under way are sent again in the order in which they were first sent.
    async fn wait_for_another(&mut self, old: &Handle) -> Result<(), Lost> {
        self.place.join();
        self.again = true;
        self.sent += u64::from(self.was_sent);
        let since = Instant::now();
        let is_back = self.server.another_than(old).await;
        self.waited += since.elapsed();
        // A request that ends each driver that takes it must be given up in the end.
        let is_over = !is_back || self.waited.as_millis() > PAUSE_MS.get() || self.sent > RESTARTS.get();
        if is_over { Err(Lost) } else { Ok(()) }
    }
}

/// Abandons a request when the future that waits for it is dropped.
struct Waiting<'a, P: Protocol> {
    handle: &'a Handle,
    ticket: Option<Ticket>,
    protocol: PhantomData<P>,
}

impl<P: Protocol> Drop for Waiting<'_, P> {
    fn drop(&mut self) {
        if let (Some(ticket), Some(queues)) = (self.ticket, self.handle.lock().offered_mut::<Queues<P>>()) {
            queues.abandon(ticket);
        }
    }
}

/// Sends a request to one driver and waits for its outcome; data that comes in goes to `data_in`.
/// `number` is the request's place in the order, if it has one. A request that writes keeps its
/// `place` after it is sent, because the next request may read the data; other requests leave it.
/// The flag in `place` is set when a driver has the request.
pub async fn send<P: Protocol>(
    handle: &Handle,
    number: Option<u64>,
    request: &P::Request,
    data_out: &[u8],
    data_in: &mut [u8],
    place: Option<(&Place<'_>, &mut bool)>,
) -> Result<P::Outcome, Lost> {
    let in_bytes = data_in.len();
    let mut begun = begun::<P>(handle, |queues| {
        let moves = match (data_out.is_empty(), in_bytes) {
            (false, _) => Moves::Out(data_out),
            (true, 1..) => Moves::In(in_bytes),
            (true, 0) => Moves::None,
        };
        queues.begin(number, request, moves)
    });
    // There is room at once most of the time, and no time limit is needed then.
    let at_once = poll_fn(|context| Poll::Ready(Pin::new(&mut begun).poll(context)));
    // As long as the driver gets on with its oldest request, this request only waits for its turn.
    // If not, the requests in the queue are stuck, and maybe no task waits for them any more.
    let oldest = || handle.lock().offered::<Queues<P>>().and_then(|queues| queues.oldest());
    let ticket = match at_once.await {
        Poll::Ready(begun) => begun?,
        Poll::Pending => in_time::<P, _>(handle, begun, oldest, None).await?,
    };
    if let Some((place, was_sent)) = place {
        *was_sent = true;
        if data_out.is_empty() {
            place.leave();
        }
    }
    let mut waiting = Waiting::<P> { handle, ticket: Some(ticket), protocol: PhantomData };
    poll::poll(handle, Events::QUEUE);
    let outcome = finished::<P>(handle, ticket, data_in);
    let outcome = in_time::<P, _>(handle, outcome, || Some(0), Some((request, ticket))).await?;
    waiting.ticket = None;
    Ok(outcome)
}

/// Puts a request into a driver's queue whose outcome nobody needs. The driver sees it when it is
/// polled for the next request. Returns `false`, and does nothing, if there is no room for both.
pub fn post<P: Protocol>(handle: &Handle, request: &P::Request) -> bool {
    let mut domain = handle.lock();
    if !domain.is_alive() {
        return false;
    }
    let Some(queues) = domain.offered_mut::<Queues<P>>().filter(|queues| queues.free() > 1) else { return false };
    match queues.begin(None, request, Moves::None) {
        Ok(Some(ticket)) => {
            queues.abandon(ticket);
            true
        }
        // A lie of the driver is found with the next request.
        Ok(None) | Err(_) => false,
    }
}

/// Waits until `begin` has put a request into the driver's queue. If `begin` finds a lie of the
/// driver, the driver is ended.
fn begun<P: Protocol>(
    handle: &Handle,
    mut begin: impl FnMut(&mut Queues<P>) -> Result<Option<Ticket>, Wrong>,
) -> impl Future<Output = Result<Ticket, Lost>> {
    poll_fn(move |context| {
        let mut domain = handle.lock();
        if !domain.is_alive() {
            return Poll::Ready(Err(Lost));
        }
        let Some(queues) = domain.offered_mut::<Queues<P>>() else { return Poll::Ready(Err(Lost)) };
        match begin(queues) {
            Ok(Some(ticket)) => Poll::Ready(Ok(ticket)),
            Ok(None) => {
                queues.wake_when_free(context.waker());
                Poll::Pending
            }
            Err(wrong) => {
                domain.condemn(wrong.into());
                end::quiesce(&mut domain);
                Poll::Ready(Err(Lost))
            }
        }
    })
}

/// Waits for the outcome of a request; data that comes in goes to `data_in`.
fn finished<P: Protocol>(
    handle: &Handle,
    ticket: Ticket,
    data_in: &mut [u8],
) -> impl Future<Output = Result<P::Outcome, Lost>> {
    poll_fn(move |context| {
        let mut domain = handle.lock();
        let Some(queues) = domain.offered_mut::<Queues<P>>() else { return Poll::Ready(Err(Lost)) };
        match queues.finish(ticket, data_in, Some(context.waker()), |outcome| *outcome) {
            Some(outcome) => Poll::Ready(outcome),
            None if !domain.is_alive() => Poll::Ready(Err(Lost)),
            None => Poll::Pending,
        }
    })
}

/// Sends an urgent request, which is about other requests, and waits for its outcome without a time
/// limit. `which` is its place among the urgent requests.
pub async fn send_urgent<P: Protocol>(handle: &Handle, which: usize, request: &P::Request) -> Result<P::Outcome, Lost> {
    let ticket = begun::<P>(handle, |queues| queues.begin_urgent(which, request)).await?;
    let mut waiting = Waiting::<P> { handle, ticket: Some(ticket), protocol: PhantomData };
    poll::poll(handle, Events::QUEUE);
    let outcome = finished::<P>(handle, ticket, &mut []).await?;
    waiting.ticket = None;
    Ok(outcome)
}

/// Sends the driver the class's urgent requests for a request that it has not done in time, one
/// after the other, until the request is `done`. Each may take `limit`.
async fn remedy<P: Protocol, T>(
    handle: &Handle,
    (request, ticket): (&P::Request, Ticket),
    mut done: Pin<&mut impl Future<Output = Result<T, Lost>>>,
    limit: Duration,
) -> Option<Result<T, Lost>> {
    let info = handle.lock().offered::<Queues<P>>().map(|queues| queues.info)?;
    for (which, remedy) in P::remedies(&info, request, ticket.number()).into_iter().enumerate() {
        let Some((remedy, name)) = remedy else { continue };
        let [what, _] = P::NAMES;
        let source = handle.lock().source();
        let text = format_args!("a {what} is not done after {} ms; it is asked to {name}", limit.as_millis());
        console::say_about(&source, Level::Warn, text);
        let urgent = with_timeout(limit, send_urgent::<P>(handle, which, &remedy));
        if let Either::First(done) = select(done.as_mut(), urgent).await {
            return Some(done);
        }
        // The driver completes both at once, or the request first.
        if let Poll::Ready(done) = poll_fn(|context| Poll::Ready(done.as_mut().poll(context))).await {
            return Some(done);
        }
    }
    None
}

/// Waits until a driver is `done`. A driver that is late, and has had a few turns since, is ended,
/// and restarted if its policy says so.
///
/// A driver that rests is not to blame: its turns come later. A driver that `is_at` another point
/// by then is not to blame either. A driver that waits for another driver has the time once more,
/// because the other driver's time began later; and a few times more, if the other driver has
/// answered it meanwhile. A driver that was `given` a request is asked for
/// the remedies first.
async fn in_time<P: Protocol, T>(
    handle: &Handle,
    done: impl Future<Output = Result<T, Lost>>,
    is_at: impl Fn() -> Option<u64>,
    given: Option<(&P::Request, Ticket)>,
) -> Result<T, Lost> {
    // One turn to see the request, one when the device has done it, and one to spare.
    const TURNS: u64 = 3;
    const LOOK_AGAIN: Duration = Duration::from_millis(1);
    // One request may need several of another driver, one after the other.
    const EXCUSES: u32 = 6;
    let mut done = pin!(done);
    let limit_ms = COMMAND_MS.get();
    let (mut may_wait, mut excuses) = (true, EXCUSES);
    let answers = || handle.lock().sleep.answers;
    let mut answers_before = answers();
    let mut before = is_at();
    // A driver that a debugger stops is slow, and not to blame.
    let stops = || {
        let domain = handle.lock();
        (domain.debugged.stops, domain.stands())
    };
    'again: loop {
        loop {
            let (stopped, _) = stops();
            if let Ok(done) = with_timeout(Duration::from_millis(limit_ms), done.as_mut()).await {
                return done;
            }
            let now = is_at();
            let waits = || handle.lock().used.as_ref().is_some_and(|used| used.in_hand().0 > 0);
            let was_answered = core::mem::replace(&mut answers_before, answers()) != answers();
            let gets_on = was_answered && excuses > 0;
            excuses -= u32::from(gets_on);
            let is_excused = (core::mem::take(&mut may_wait) || gets_on) && waits();
            let (stopped_now, stands) = stops();
            if stands || stopped_now != stopped {
                (before, may_wait) = (now, true);
                continue;
            }
            if now.is_some() && now == before && !is_excused {
                break;
            }
            before = now;
        }
        let upcalls = handle.lock().upcalls;
        let (stopped, _) = stops();
        let was_stopped = || {
            let (now, stands) = stops();
            stands || now != stopped
        };
        loop {
            poll::poll(handle, Events::QUEUE);
            let turns = handle.lock().upcalls - upcalls;
            if let Ok(done) = with_timeout(LOOK_AGAIN, done.as_mut()).await {
                return done;
            }
            if turns < TURNS {
                continue;
            }
            if was_stopped() {
                continue 'again;
            }
            let limit = Duration::from_millis(limit_ms);
            if let Some(given) = given
                && let Some(done) = remedy::<P, _>(handle, given, done.as_mut(), limit).await
            {
                return done;
            }
            if was_stopped() {
                continue 'again;
            }
            let [what, _] = P::NAMES;
            end::condemn(handle, Cause::Stuck { what, limit_ms });
            return Err(Lost);
        }
    }
}
