//! Drivers that use a disk: the kernel carries out their requests. The disk may be behind any
//! driver.
//!
//! A driver's requests go through the same disk as a person's commands, so that they outlive the
//! driver below, too. **When the driver that asks is ended, its requests are abandoned, and nothing
//! overtakes its writes** ([`host::requests`]); its successor asks anew. Giving the driver the
//! disk's own queue was not taken: a queue has one user, and the successor of the driver below
//! would not know the requests to its predecessor.

use super::cache::{self, Cache, room_for};
use super::disk::{self, Disk, overlaps};
use super::request::Blocks;
use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::future::{Future, poll_fn};
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Poll;
use embassy_sync::waitqueue::AtomicWaker;
use host::domain::cause::Cause;
use host::domain::offer::{Offer, Use, map_used};
use host::domain::{Domain, Handle, end, registry};
use host::poll;
use hw::memory::frames::Lent;
use ringfence_abi::block::{
    BLOCK_ERROR, BLOCK_FLUSH, BLOCK_MAX_DATA, BLOCK_OK, BLOCK_READ, BLOCK_READ_ONLY, BLOCK_UNSUPPORTED, BlockInfo,
    BlockRequest, Order, USED_BYTES, USED_DATA, USED_REQUESTS, read_request, write_status, write_used,
};
use ringfence_abi::manifest::{Kind, ManifestError};
use ringfence_abi::service::Refusal;
use ringfence_core::parameter::flag;
use ringfence_core::requests::Data;
use ringfence_core::requests::client::Asked;
use spin::Mutex;

/// The most requests of one driver that are carried out at once: each takes a buffer from the
/// kernel's heap. Those of a filesystem are carried out one by one, in their order.
const MOST_AT_ONCE: usize = 4;

/// Woken when a driver has submitted a request, or was ended.
static ON_WORK: AtomicWaker = AtomicWaker::new();

/// The disks that a person's command writes to right now.
static WRITTEN_TO: Mutex<Vec<Arc<dyn Disk>>> = Mutex::new(Vec::new());

/// A driver's use of a disk.
pub struct Client {
    /// A weak reference: neither the disk nor its driver is kept for its users.
    disk: Weak<dyn Disk>,
    /// The disk's cache, for a filesystem.
    cache: Option<Arc<Cache>>,
    /// Whether it may not write.
    is_read_only: bool,
    asked: Asked<Blocks, Lent>,
    /// Rings, requests and data.
    memory: Lent,
    /// Requests that are not being carried out yet.
    fresh: Vec<(usize, BlockRequest)>,
    /// Number of requests that are being carried out.
    worked_at: usize,
    /// Set when the driver is ended.
    is_over: Arc<AtomicBool>,
}

impl Client {
    /// Opens the disk called `name` for `domain`. A driver cannot open its own disk, although a
    /// restarted driver may find it: the driver's requests would wait for the driver itself.
    pub fn open(domain: &mut Domain, name: &str) -> Result<Client, Refusal> {
        let is_anothers =
            |disk: &Arc<dyn Disk>| disk.handle().try_lock().is_some_and(|below| below.name != domain.name);
        let disk = disk::all().into_iter().find(|disk| disk.name() == name).filter(is_anothers);
        let disk = disk.ok_or(Refusal::NotFound)?;
        let is_filesystem = domain.manifest.kind() == Ok(Kind::Fs);
        // The kernel holds a driver to a person's parameter `ro`, from its first request on.
        let is_read_only =
            domain.parameters.iter().filter_map(|given| given.strip_prefix("ro=")).any(|word| flag(word) == Some(true));
        let is_used = user_of(&*disk, &domain.name, |kind| is_filesystem || kind == Ok(Kind::Fs)).is_some();
        if is_used || is_filesystem && is_written_to(&*disk) {
            return Err(Refusal::Busy);
        }
        let memory = map_used(domain, USED_BYTES)?;
        write_used(
            &memory,
            &BlockInfo {
                blocks: disk.blocks(),
                block_bytes: disk.block_bytes() as u32,
                queue_depth: MOST_AT_ONCE as u32,
                flags: if disk.is_read_only() { BLOCK_READ_ONLY } else { 0 },
                reserved: 0,
                model: model_of(&*disk),
            },
        );
        let asked = Asked::new(memory.clone(), USED_REQUESTS);
        let cache = is_filesystem.then(|| cache::of(&disk));
        let disk = Arc::downgrade(&disk);
        Ok(Client {
            disk,
            cache,
            is_read_only,
            asked,
            memory,
            fresh: Vec::new(),
            worked_at: 0,
            is_over: Arc::default(),
        })
    }
}

/// Returns the name of a driver that uses a disk, or will again, if it is of a kind that `matters`.
/// A driver called `except` is left out: it may be one's own predecessor.
fn user_of(disk: &dyn Disk, except: &str, matters: impl Fn(Result<Kind, ManifestError>) -> bool) -> Option<String> {
    let is_used = |domain: &Domain| {
        let stays = domain.is_alive() || domain.life.will_be_back();
        let client = domain.used::<Client>().filter(|_| stays && domain.name != except)?;
        let is_this = client.disk.upgrade().is_some_and(|other| overlaps(disk, &*other));
        (is_this && matters(domain.manifest.kind())).then(|| domain.name.clone())
    };
    registry::find_in_service(is_used)
}

/// Returns the name of the driver whose filesystem is on a disk, or will be again: it alone changes
/// the disk's blocks.
pub fn filesystem_on(disk: &dyn Disk) -> Option<String> {
    user_of(disk, "", |kind| kind == Ok(Kind::Fs))
}

/// A person's command that writes to a disk. No filesystem begins to use the disk until this is
/// dropped.
pub struct Writing(Arc<dyn Disk>);

/// Returns whether a person's command writes to a disk right now.
pub fn is_written_to(disk: &dyn Disk) -> bool {
    WRITTEN_TO.lock().iter().any(|other| overlaps(disk, &**other))
}

impl Writing {
    /// Begins to write to a disk.
    ///
    /// # Errors
    /// The name of the driver whose filesystem is on the disk: it would not know of the writes.
    pub fn begin(disk: &Arc<dyn Disk>) -> Result<Writing, String> {
        if let Some(driver) = filesystem_on(&**disk) {
            return Err(driver);
        }
        WRITTEN_TO.lock().push(disk.clone());
        Ok(Writing(disk.clone()))
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        cache::changed(&*self.0);
        let mut all = WRITTEN_TO.lock();
        if let Some(at) = all.iter().position(|disk| Arc::ptr_eq(disk, &self.0)) {
            all.swap_remove(at);
        }
    }
}

/// Returns a disk's description of itself, cut off where there is no more room.
fn model_of(disk: &dyn Disk) -> [u8; 24] {
    let mut model = [0; 24];
    model.iter_mut().zip(disk.model().bytes()).for_each(|(to, byte)| *to = byte);
    model
}

impl Client {
    /// Returns the cache of its disk, if the driver is a filesystem's.
    pub fn cache(&self) -> Option<Arc<Cache>> {
        self.cache.clone()
    }

    /// Refuses all writes from now on: the driver has said that it makes none.
    pub fn set_read_only(&mut self) {
        self.is_read_only = true;
    }

    /// Returns whether two drivers use the same disk, and not just disks of the same name.
    pub fn has_disk_of(&self, other: &Client) -> bool {
        Weak::ptr_eq(&self.disk, &other.disk)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.cache = None;
        cache::let_go();
    }
}

impl Use for Client {
    fn take(&mut self) -> Result<(), Cause> {
        while let Some(number) = self.asked.take()? {
            // The request is copied, because the driver may change it.
            let request = read_request(self.asked.queues(), number)
                .ok_or(Cause::QueueEntry { queue: "submit", entry: number as u64 })?;
            self.fresh.push((number, request));
        }
        Ok(())
    }

    fn begin(&mut self) {
        if !self.fresh.is_empty() {
            ON_WORK.wake();
        }
    }

    fn answer_at_once(&mut self, offer: Option<&dyn Offer>) -> Result<(), Cause> {
        let Some((cache, disk)) = self.cache.clone().zip(self.disk.upgrade()) else { return Ok(()) };
        // Requests that are carried out already come first.
        while self.worked_at == 0
            && !disk.is_in_doubt()
            && let Some((number, request)) = self.fresh.first()
            && !(self.is_read_only && Order::of(request.operation).is_some())
            && let Some(place) = place_of(&self.memory, offer, *number, request)
            && let Some(status) = at_once(&cache, &*disk, place, request)
        {
            let (number, _) = self.fresh.remove(0);
            self.asked.complete(number, |queues| write_status(queues, number, status))?;
        }
        Ok(())
    }

    fn driver_ended(&mut self) {
        self.is_over.store(true, Ordering::Release);
        ON_WORK.wake();
    }

    fn in_hand(&self) -> (usize, &'static str) {
        (self.asked.count(), "requests to a disk")
    }
}

/// A request that is being carried out, and whether its driver was ended.
struct Work {
    is_over: Arc<AtomicBool>,
    done: Pin<Box<dyn Future<Output = ()>>>,
}

/// Carries out the requests of drivers, for ever. Each request has its own future, so that a
/// waiting request holds up no other.
pub async fn run() {
    let mut works: Vec<Work> = Vec::new();
    poll_fn(|context| {
        ON_WORK.register(context.waker());
        // Drop the requests of ended drivers first, so that none of them comes after the requests
        // of a successor.
        works.retain(|work| !work.is_over.load(Ordering::Acquire));
        // A driver may already use its disk while it starts.
        registry::in_slots().iter().for_each(|handle| works.extend(taken_from(handle)));
        works.retain_mut(|work| work.done.as_mut().poll(context) == Poll::Pending);
        Poll::<()>::Pending
    })
    .await;
}

/// Takes new requests from a driver, up to the number that may be carried out at once, and begins
/// them.
fn taken_from(handle: &Handle) -> Vec<Work> {
    let mut domain = handle.lock();
    let Some(client) = domain.used_mut::<Client>() else { return Vec::new() };
    let most = if client.cache.is_some() { 1 } else { MOST_AT_ONCE };
    let count = most.saturating_sub(client.worked_at).min(client.fresh.len());
    client.worked_at += count;
    let fresh: Vec<(usize, BlockRequest)> = client.fresh.drain(..count).collect();
    let Some(client) = domain.used::<Client>() else { return Vec::new() };
    let work = |(number, request)| Work {
        is_over: client.is_over.clone(),
        done: Box::pin(serve(
            Arc::downgrade(handle),
            (client.disk.clone(), client.cache.clone(), client.is_read_only),
            place_of(&client.memory, domain.offer.as_deref(), number, &request)
                .map(|(memory, at)| (memory.clone(), at)),
            number,
            request,
        )),
    };
    fresh.into_iter().map(work).collect()
}

async fn serve(
    domain: Weak<Mutex<Domain>>,
    (disk, cache, is_read_only): (Weak<dyn Disk>, Option<Arc<Cache>>, bool),
    place: Option<(Lent, usize)>,
    number: usize,
    request: BlockRequest,
) {
    let is_write = Order::of(request.operation).is_some();
    // The work for a driver is charged to it.
    let status = match &place {
        Some((memory, at)) if !(is_write && is_read_only) => {
            let carry_out = carry_out(disk, cache.clone(), (memory, *at), &request);
            poll::charged(|| domain.upgrade(), carry_out).await
        }
        _ => BLOCK_ERROR,
    };
    if let Some(cache) = cache.filter(|_| is_write && status != BLOCK_OK) {
        cache.write_failed();
    }
    let Some(handle) = domain.upgrade() else { return };
    let cause = {
        let mut domain = handle.lock();
        let is_alive = domain.is_alive();
        let Some(client) = domain.used_mut::<Client>().filter(|_| is_alive) else { return };
        client.worked_at -= 1;
        if !client.fresh.is_empty() {
            ON_WORK.wake();
        }
        client.asked.complete(number, |queues| write_status(queues, number, status)).err()
    };
    match cause {
        Some(wrong) => end::condemn(&handle, wrong.into()),
        None => poll::answered(&handle),
    }
}

/// Returns whether the length of a request, which may be any number, is allowed.
fn has_good_length(disk: &dyn Disk, request: &BlockRequest) -> bool {
    let len = request.data_len as usize;
    (1..=BLOCK_MAX_DATA).contains(&len) && len.is_multiple_of(disk.block_bytes())
}

/// Returns the memory of a request's data, and where in it the data is. `None` if the request names
/// an address that is not in the data of the requests to its driver.
fn place_of<'a>(
    memory: &'a Lent,
    offer: Option<&'a dyn Offer>,
    number: usize,
    request: &BlockRequest,
) -> Option<(&'a Lent, usize)> {
    match request.data {
        _ if request.operation == BLOCK_FLUSH => Some((memory, 0)),
        0 => Some((memory, USED_DATA + number * BLOCK_MAX_DATA)),
        address => offer?.data_at(address, request.data_len as usize),
    }
}

/// Carries out a request, whose fields may have any values, if the cache can do that by itself.
/// `memory` has its data from the byte at `at` on. Returns its status.
fn at_once(cache: &Cache, disk: &dyn Disk, (memory, at): (&Lent, usize), request: &BlockRequest) -> Option<u32> {
    let (lba, len) = (request.lba, request.data_len as usize);
    let is_done = has_good_length(disk, request)
        && match (request.operation, Order::of(request.operation)) {
            (BLOCK_READ, _) => cache.read_at_once(lba, len, |place, bytes| {
                Data::write(memory, at + place, bytes);
            }),
            (_, Some(order)) => {
                !disk.is_read_only()
                    && cache.write_at_once(lba, len, order, |bytes| {
                        Data::read(memory, at, bytes);
                    })
            }
            _ => false,
        };
    is_done.then_some(BLOCK_OK)
}

/// Carries out a request, whose fields may have any values. `memory` has its data from the byte at
/// `at` on. Returns its status.
async fn carry_out(
    disk: Weak<dyn Disk>,
    cache: Option<Arc<Cache>>,
    (memory, at): (&Lent, usize),
    request: &BlockRequest,
) -> u32 {
    let Some(disk) = disk.upgrade() else { return BLOCK_ERROR };
    if disk.is_in_doubt() {
        disk::settled().await;
    }
    let (lba, len) = (request.lba, request.data_len as usize);
    let order = Order::of(request.operation);
    if (request.operation == BLOCK_READ || order.is_some()) && !has_good_length(&*disk, request) {
        return BLOCK_ERROR;
    }
    if cache.is_none() {
        cache::written(&*disk).await;
    }
    let outcome = match (request.operation, cache, order) {
        // After a failed read the driver gets no data, because a buffer may hold more than was
        // read.
        (BLOCK_READ, None, _) => {
            let Ok(mut data) = room_for(len).await else { return BLOCK_ERROR };
            disk.read(lba, &mut data).await.map(|()| {
                Data::write(memory, at, &data);
            })
        }
        (BLOCK_READ, Some(cache), _) => {
            let read = cache.read(lba, len, |place, bytes| {
                Data::write(memory, at + place, bytes);
            });
            read.await
        }
        (_, None, Some(_)) => {
            let Ok(mut data) = room_for(len).await else { return BLOCK_ERROR };
            Data::read(memory, at, &mut data);
            let outcome = disk.write(lba, &data).await;
            cache::changed(&*disk);
            outcome
        }
        (_, Some(_), Some(_)) if disk.is_read_only() => return BLOCK_ERROR,
        (_, Some(cache), Some(order)) => {
            let write = cache.write(lba, len, order, |bytes| {
                Data::read(memory, at, bytes);
            });
            write.await
        }
        (BLOCK_FLUSH, None, _) => disk.flush().await,
        (BLOCK_FLUSH, Some(cache), _) => cache.flush().await,
        _ => return BLOCK_UNSUPPORTED,
    };
    if outcome.is_ok() { BLOCK_OK } else { BLOCK_ERROR }
}
