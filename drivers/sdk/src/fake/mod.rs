//! A simulated kernel and a simulated device, to test a driver's logic on the host. This is the
//! feature `fake`, for `[dev-dependencies]` alone.
//!
//! A test gives [`Kernel::new`] a model of the driver's device ([`Device`]), or a [`Script`] of
//! the accesses to the device; [`replay`] has a driver repeat a recorded run. The test calls the
//! driver's own functions in [`Kernel::run`]. There, all services, registers, ports and DMA memory
//! belong to the simulation. The model reads and writes the driver's memory with [`dma_read`] and
//! [`dma_write`], at the addresses that the driver has given to the device. The time advances by a
//! microsecond with each request for it, so that every loop with a deadline ends.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../../../template/src/tests.rs")]
#![doc = "```"]

mod disk;
mod network;
mod requests;
mod script;

pub use disk::Disk;
pub use network::Net;
pub use requests::{Asks, Data, Requests};
pub use script::{Recorder, Script, replay};

use crate::Refusal;
use crate::block::Block;
use crate::scsi::Scsi;
use ringfence_abi::layout::{DMA, PAGE_SIZE};
use ringfence_abi::net::Hearing;
use ringfence_abi::queue::Words;
use ringfence_abi::{block, net, scsi};
use std::cell::{Cell, RefCell};
use std::string::{String, ToString};
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

/// A register of a device, or a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// The register's BAR.
    pub bar: u64,
    /// The register's offset in the BAR.
    pub offset: u64,
    /// The width of the access in bytes.
    pub width_bytes: usize,
}

/// A simulated device.
pub trait Device {
    /// Returns the value of a register.
    fn read(&mut self, register: Register) -> u64;

    /// Writes a register.
    fn write(&mut self, register: Register, value: u64);

    /// Returns whether a BAR has ports, and the BAR's length.
    fn bar(&self, bar: u64) -> (bool, u64);

    /// Reads configuration space.
    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        let _ = (offset, width_bytes);
        0
    }

    /// Returns how many interrupts of its own the device has, of `wanted`.
    fn vectors(&self, wanted: u64) -> u64 {
        let _ = wanted;
        0
    }

    /// Returns `len` bytes that the device has written to the driver's memory at `address`, or
    /// `None` if it leaves the memory as it is. The driver reads the memory next.
    fn memory(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        let _ = (address, len);
        None
    }

    /// Notices that the driver has written bytes into a frame, from `offset` on.
    fn frame_written(&mut self, offset: usize, from: &[u8]) {
        let _ = (offset, from);
    }
}

/// The absence of a device.
impl Device for () {
    fn read(&mut self, register: Register) -> u64 {
        panic!("there is no device, but {register:x?} is read")
    }

    fn write(&mut self, register: Register, value: u64) {
        panic!("there is no device, but {register:x?} is set to {value:#x}")
    }

    fn bar(&self, _: u64) -> (bool, u64) {
        (false, 0)
    }
}

/// A device that the driver shares with the test.
impl<D: Device> Device for std::rc::Rc<RefCell<D>> {
    fn read(&mut self, register: Register) -> u64 {
        self.borrow_mut().read(register)
    }

    fn write(&mut self, register: Register, value: u64) {
        self.borrow_mut().write(register, value);
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        self.borrow().bar(bar)
    }

    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        self.borrow().configuration(offset, width_bytes)
    }

    fn vectors(&self, wanted: u64) -> u64 {
        self.borrow().vectors(wanted)
    }

    fn memory(&mut self, address: u64, len: usize) -> Option<Vec<u8>> {
        self.borrow_mut().memory(address, len)
    }

    fn frame_written(&mut self, offset: usize, from: &[u8]) {
        self.borrow_mut().frame_written(offset, from);
    }
}

/// A simulated kernel.
#[derive(Default)]
pub struct Kernel {
    device: Option<Box<dyn Device>>,
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Lines that the driver has logged.
    pub log: Vec<String>,
    /// The driver's answers to commands.
    pub answer: String,
    /// The last setting of the driver's timer: delay and period in nanoseconds.
    pub timer: Option<(u64, u64)>,
    /// Whether the driver has enabled DMA of its device.
    pub uses_dma: bool,
    /// Whether the driver has enabled the interrupts of its device.
    pub has_interrupts: bool,
    /// The kernel's end of the driver's network interface, if the driver offers one.
    pub net: Option<Net>,
    /// The kernel's end of the driver's SCSI adapter, if the driver offers one.
    pub scsi: Option<Requests<Scsi>>,
    /// The kernel's end of the driver's block device, if the driver offers one.
    pub block: Option<Requests<Block>>,
    /// The disk that the driver uses, if it may use one.
    pub disk: Option<Disk>,
    /// The empty frames that the driver is lent, and the frames and groups that its card is to
    /// hear, as soon as the driver offers a network interface.
    at_start: (Vec<u64>, Hearing, Vec<[u8; 6]>),
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

impl Kernel {
    /// Creates a kernel with a device.
    pub fn new(device: impl Device + 'static) -> Kernel {
        Kernel { device: Some(Box::new(device)), ..Kernel::default() }
    }

    /// Calls functions of a driver, with `self` as the driver's kernel.
    pub fn run<T>(&mut self, driver: impl FnOnce() -> T) -> T {
        KERNEL.with(|kernel| kernel.swap(&RefCell::new(std::mem::take(self))));
        crate::service::start_logging();
        let result = driver();
        *self = KERNEL.with(|kernel| kernel.take());
        result
    }

    /// Polls a driver for an interrupt and for its queues.
    pub fn poll(&mut self, driver: &mut impl crate::Driver) {
        self.run(|| driver.poll(crate::Events::INTERRUPT | crate::Events::QUEUE));
    }

    /// Allocates memory for the driver, and returns its address for the driver: a multiple of the
    /// page size.
    fn allocate(len_bytes: u64) -> u64 {
        let mut memory = vec![0u64; (len_bytes as usize).div_ceil(8) + 512];
        let start = (memory.as_mut_ptr() as usize).next_multiple_of(4096) as u64;
        MEMORY.lock().unwrap().push(memory);
        start
    }

    /// Allocates memory for the driver and its device, and returns its address for the driver.
    fn allocate_dma(len_bytes: u64) -> u64 {
        let start = Kernel::allocate(len_bytes);
        REGIONS.with(|regions| {
            let mut regions = regions.borrow_mut();
            // As in a slot of the kernel's, a page is left out after each region.
            let end = |region: &Region| (region.address + region.len_bytes).next_multiple_of(PAGE_SIZE) + PAGE_SIZE;
            let address = regions.last().map_or(DMA, end);
            regions.push(Region { start, address, len_bytes });
        });
        start
    }
}

/// All memory that drivers were given. It is never freed: a driver may have it for longer than
/// there is a kernel.
static MEMORY: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());

/// Memory that a driver has allocated.
#[derive(Clone, Copy)]
struct Region {
    /// The region's address for the driver (`start`) and for the device (`address`).
    start: u64,
    address: u64,
    len_bytes: u64,
}

thread_local! {
    static REGIONS: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
}

/// Returns the driver's address of the memory at the device's address `address`. Panics if there is
/// no such memory: on real hardware, the access would be a DMA fault.
fn seen_by_driver(address: u64, len: usize) -> u64 {
    let holds =
        |region: &&Region| region.address <= address && address + len as u64 <= region.address + region.len_bytes;
    let region = REGIONS.with(|regions| regions.borrow().iter().find(holds).copied());
    let region = region.unwrap_or_else(|| panic!("DMA fault: {len} bytes at {address:#x}"));
    region.start + (address - region.address)
}

/// Reads `len` bytes of the driver's memory by DMA, for a model of a device. Panics if the driver
/// has not allocated that memory.
pub fn dma_read(address: u64, len: usize) -> Vec<u8> {
    bytes(seen_by_driver(address, len), len as u64)
}

/// Writes into the driver's memory by DMA, for a model of a device. Panics as [`dma_read`] does.
pub fn dma_write(address: u64, from: &[u8]) {
    let start = seen_by_driver(address, from.len());
    for (index, byte) in from.iter().enumerate() {
        // SAFETY: `seen_by_driver` has checked that the byte is inside a region, which is never
        // freed.
        unsafe { (start as *mut u8).add(index).write_volatile(*byte) };
    }
}

/// Queue memory.
#[derive(Clone, Copy)]
struct Memory {
    start: *mut u64,
    words: usize,
}

impl Memory {
    fn new(start: u64, len_bytes: usize) -> Memory {
        Memory { start: start as *mut u64, words: len_bytes / 8 }
    }
}

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        assert!(index < self.words);
        // SAFETY: the word is inside the allocated memory, which is never freed.
        unsafe { self.start.add(index).read_volatile() }
    }

    fn store(&self, index: usize, value: u64) {
        assert!(index < self.words);
        // SAFETY: as above.
        unsafe { self.start.add(index).write_volatile(value) };
    }
}

/// Returns the simulated address of a memory BAR, or the first port of an I/O BAR.
fn place_of(bar: u64, is_ports: bool) -> u64 {
    if is_ports { 0xc000 + (bar << 8) } else { (bar + 1) << 32 }
}

fn with_device<T>(then: impl FnOnce(&mut dyn Device) -> T) -> T {
    KERNEL.with(|kernel| {
        let mut kernel = kernel.borrow_mut();
        then(kernel.device.as_deref_mut().expect("a driver runs in `Kernel::run`"))
    })
}

/// Reads the register at a simulated address.
pub(crate) fn read(address: u64, width_bytes: usize) -> u64 {
    let (bar, offset) = ((address >> 32) - 1, address & 0xffff_ffff);
    with_device(|device| device.read(Register { bar, offset, width_bytes }))
}

/// Writes the register at a simulated address.
pub(crate) fn write(address: u64, width_bytes: usize, value: u64) {
    let (bar, offset) = ((address >> 32) - 1, address & 0xffff_ffff);
    with_device(|device| device.write(Register { bar, offset, width_bytes }, value));
}

/// Has the device write the memory that the driver reads next.
pub(crate) fn before_read(address: u64, len: usize) {
    let written = KERNEL.with(|kernel| kernel.borrow_mut().device.as_deref_mut()?.memory(address, len));
    if let Some(written) = written {
        dma_write(address, &written);
    }
}

/// Tells the device about bytes that the driver has written into a frame.
pub(crate) fn frame_written(offset: usize, from: &[u8]) {
    KERNEL.with(|kernel| {
        if let Some(device) = kernel.borrow_mut().device.as_deref_mut() {
            device.frame_written(offset, from);
        }
    });
}

fn port(port: u16, width_bytes: usize) -> Register {
    Register { bar: u64::from(port >> 8 & 0x3f), offset: u64::from(port & 0xff), width_bytes }
}

/// Reads a port.
pub(crate) fn read_port(number: u16, width_bytes: usize) -> u64 {
    with_device(|device| device.read(port(number, width_bytes)))
}

/// Writes a port.
pub(crate) fn write_port(number: u16, width_bytes: usize, value: u64) {
    with_device(|device| device.write(port(number, width_bytes), value));
}

/// Copies the bytes that a driver has passed.
fn bytes(address: u64, len_bytes: u64) -> Vec<u8> {
    // SAFETY: the SDK passes the address and the length of a slice.
    (0..len_bytes as usize).map(|index| unsafe { (address as *const u8).add(index).read() }).collect()
}

thread_local! {
    /// Length of the queues that the driver is about to offer, in bytes. The real kernel knows the
    /// class by the manifest; here the length tells it.
    static OFFERED: Cell<usize> = const { Cell::new(0) };
}

const _: () = assert!(net::QUEUE_BYTES != scsi::QUEUE_BYTES && scsi::QUEUE_BYTES != block::QUEUE_BYTES);

/// Notes that the driver is about to offer queues of this length.
pub(crate) fn offers(len_bytes: usize) {
    OFFERED.set(len_bytes);
}

/// Carries out a service.
pub(crate) fn serve(symbol: &str, arguments: &[u64]) -> i64 {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or(0);
    let text = |index: usize| String::from_utf8_lossy(&bytes(argument(index), argument(index + 1))).to_string();
    if symbol == "rf_panic" {
        panic!("{}", text(0));
    }
    let refused = |refusal: Refusal| refusal.to_result();
    KERNEL.with(|kernel| {
        let kernel = &mut *kernel.borrow_mut();
        let bar = |kernel: &Kernel| kernel.device.as_deref().map_or((false, 0), |device| device.bar(argument(0)));
        match symbol {
            "rf_log" => kernel.log.push(text(1)),
            "rf_time_ns" => {
                kernel.time_ns += 1000;
                return kernel.time_ns as i64;
            }
            "rf_dma_alloc" => return Kernel::allocate_dma(argument(0)) as i64,
            "rf_dma_address" => return seen_by_device(argument(0)) as i64,
            "rf_bar_map" | "rf_bar_len" => {
                let (is_ports, len) = bar(kernel);
                return match (symbol, len) {
                    (_, 0) => refused(Refusal::NotFound),
                    ("rf_bar_len", len) => len as i64,
                    _ => place_of(argument(0), is_ports) as i64,
                };
            }
            "rf_pci_read" => {
                let device = kernel.device.as_deref();
                return device.map_or(0, |device| device.configuration(argument(0), argument(1))) as i64;
            }
            "rf_pci_write" => kernel.uses_dma = argument(2) & 4 != 0,
            "rf_irq_vectors" => return kernel.device.as_deref().map_or(0, |device| device.vectors(argument(0))) as i64,
            "rf_irq_enable" => kernel.has_interrupts = true,
            "rf_sleep" => kernel.time_ns = kernel.time_ns.saturating_add(argument(0)),
            "rf_timer" => kernel.timer = Some((argument(0), argument(1))),
            "rf_answer" => kernel.answer += &text(0),
            "rf_offer" => match OFFERED.get() {
                net::QUEUE_BYTES => return network::offer(kernel),
                scsi::QUEUE_BYTES => return kernel.scsi.insert(Requests::new()).start(),
                block::QUEUE_BYTES => return kernel.block.insert(Requests::new()).start(),
                _ => return refused(Refusal::Denied),
            },
            "rf_use" => return kernel.disk.as_ref().map_or(refused(Refusal::NotFound), Disk::start),
            "rf_wait" => {
                return match kernel.disk.as_mut().is_some_and(Disk::wait) {
                    true => 0,
                    false => refused(Refusal::Invalid),
                };
            }
            _ => {}
        }
        0
    })
}

/// Returns the device's address of the memory at the driver's address `start`.
fn seen_by_device(start: u64) -> u64 {
    let holds = |region: &&Region| (region.start..region.start + region.len_bytes.max(1)).contains(&start);
    let region = REGIONS.with(|regions| regions.borrow().iter().find(holds).copied());
    region.map_or(0, |region| region.address + (start - region.start))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Dma;

    #[test]
    fn dma_memory_is_aligned_as_it_was_asked_for() {
        let mut kernel = Kernel::new(());
        kernel.run(|| {
            for align_bytes in [1, 16, 4096, 8192, 65536] {
                let memory = Dma::aligned(100, align_bytes).unwrap();
                assert!(memory.address(0).is_multiple_of(align_bytes as u64));
                memory.write(96, 0x1234_5678_u32);
                assert_eq!(memory.read::<u32>(96), 0x1234_5678);
            }
            assert_eq!(Dma::aligned(100, 24).err(), Some(Refusal::Invalid));
        });
    }

    /// As behind an IOMMU, the device reaches its driver's memory, which is below 4 GiB, and
    /// nothing else.
    #[test]
    fn a_device_reaches_what_its_driver_was_given() {
        Kernel::new(()).run(|| {
            let memory = Dma::within_4_gib(5000).unwrap();
            memory.write(4998, 0x1234_u16);
            assert_eq!(dma_read(memory.address(4998), 2), [0x34, 0x12]);
            dma_write(memory.address(0), &[7; 4]);
            assert_eq!(memory.read::<u32>(0), 0x0707_0707);
            let beyond = memory.address(4998);
            assert!(std::panic::catch_unwind(|| dma_read(beyond, 3)).is_err());
        });
    }

    /// An access beyond the memory ends the driver with a message.
    #[test]
    #[should_panic(expected = "4 bytes at 0x62 outside DMA memory (0x64 bytes)")]
    fn what_is_outside_of_dma_memory_is_not_reached() {
        Kernel::new(()).run(|| Dma::new(100).unwrap().write(98, 0_u32));
    }
}
