//! A kernel and a device that are made up, so that a driver's logic is tested on the host: the
//! feature `fake`, for `[dev-dependencies]` alone.
//!
//! A test gives [`Kernel::new`] a model of its device ([`Device`]), or a [`Script`] of what it is
//! asked and answers. [`Kernel::run`] is where the driver's own functions are called: there all
//! services, registers, ports and DMA memory are the fake's. The model reads and writes the
//! driver's memory with [`dma_read`] and [`dma_write`], at the addresses that it was told. Time
//! goes on by a microsecond each time that it is asked for, so that no loop with a deadline is
//! endless.
//!
#![doc = "```rust,ignore"]
#![doc = include_str!("../../template/src/tests.rs")]
#![doc = "```"]

use crate::Refusal;
use ringfence_abi::net::{self, FRAME_BYTES, NetInfo, RX_FRAMES, TX_FRAMES, entry, split};
use ringfence_abi::queue::{Consumer, Producer, Words};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::format;
use std::string::{String, ToString};
use std::sync::Mutex;
use std::vec;
use std::vec::Vec;

/// A register of a device, or a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register {
    /// Its BAR.
    pub bar: u64,
    /// Its offset in that.
    pub offset: u64,
    /// How many bytes of it are read or written.
    pub width_bytes: usize,
}

/// A device that is made up.
pub trait Device {
    /// What a register says.
    fn read(&mut self, register: Register) -> u64;

    /// A register is written.
    fn write(&mut self, register: Register, value: u64);

    /// Whether a BAR has ports, and its length.
    fn bar(&self, bar: u64) -> (bool, u64);

    /// What configuration space says.
    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        let _ = (offset, width_bytes);
        0
    }
}

/// No device.
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

/// A device that is shared with the test.
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
}

/// A device that is asked and told exactly this, in this order: what a [`Recorder`] has written, or
/// a person. A line each, `r BAR OFFSET WIDTH VALUE` or `w BAR OFFSET WIDTH VALUE` with numbers in
/// hexadecimal; before them, `bar BAR ports|memory LENGTH`.
pub struct Script {
    bars: BTreeMap<u64, (bool, u64)>,
    lines: VecDeque<(bool, Register, u64)>,
}

impl Script {
    /// Reads a script. Panics if it is none.
    pub fn new(text: &str) -> Script {
        let mut script = Script { bars: BTreeMap::new(), lines: VecDeque::new() };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |word: &str| u64::from_str_radix(word, 16).unwrap_or_else(|_| panic!("no number: {line}"));
            match words[..] {
                ["bar", bar, kind, len] => {
                    script.bars.insert(number(bar), (kind == "ports", number(len)));
                }
                [way @ ("r" | "w"), bar, offset, width, value] => {
                    let (bar, offset, width_bytes) = (number(bar), number(offset), number(width) as usize);
                    script.lines.push_back((way == "w", Register { bar, offset, width_bytes }, number(value)));
                }
                _ => panic!("no line of a script: {line}"),
            }
        }
        script
    }

    /// What it was not asked and told.
    pub fn left(&self) -> usize {
        self.lines.len()
    }

    fn next(&mut self, is_write: bool, register: Register) -> u64 {
        let way = if is_write { "written" } else { "read" };
        let (writes, wanted, value) =
            self.lines.pop_front().unwrap_or_else(|| panic!("{register:x?} is {way} behind the script's end"));
        assert!(
            (writes, wanted) == (is_write, register),
            "{register:x?} is {way}; the script has {wanted:x?}, {}",
            if writes { "written" } else { "read" }
        );
        value
    }
}

impl Device for Script {
    fn read(&mut self, register: Register) -> u64 {
        self.next(false, register)
    }

    fn write(&mut self, register: Register, value: u64) {
        let wanted = self.next(true, register);
        assert!(value == wanted, "{register:x?} is set to {value:#x}; the script has {wanted:#x}");
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        self.bars.get(&bar).copied().unwrap_or((false, 0))
    }
}

/// A device that writes down what it is asked and told, as a [`Script`] has it.
pub struct Recorder<D> {
    /// The device.
    pub device: D,
    /// The script.
    pub script: String,
}

impl<D: Device> Recorder<D> {
    /// One that has written nothing.
    pub fn new(device: D) -> Recorder<D> {
        Recorder { device, script: String::new() }
    }

    fn note(&mut self, way: char, Register { bar, offset, width_bytes }: Register, value: u64) {
        self.script += &format!("{way} {bar:x} {offset:x} {width_bytes:x} {value:x}\n");
    }
}

impl<D: Device> Device for Recorder<D> {
    fn read(&mut self, register: Register) -> u64 {
        let value = self.device.read(register);
        self.note('r', register, value);
        value
    }

    fn write(&mut self, register: Register, value: u64) {
        self.device.write(register, value);
        self.note('w', register, value);
    }

    fn bar(&self, bar: u64) -> (bool, u64) {
        self.device.bar(bar)
    }

    fn configuration(&self, offset: u64, width_bytes: u64) -> u64 {
        self.device.configuration(offset, width_bytes)
    }
}

/// A kernel that is made up.
#[derive(Default)]
pub struct Kernel {
    device: Option<Box<dyn Device>>,
    /// Nanoseconds since boot.
    pub time_ns: u64,
    /// Lines that the driver has logged.
    pub log: Vec<String>,
    /// What it has answered to commands.
    pub answer: String,
    /// What its timer was set to last: delay and period in nanoseconds.
    pub timer: Option<(u64, u64)>,
    /// Whether its device may use DMA, and whether its interrupts are let through.
    pub uses_dma: bool,
    /// See `uses_dma`.
    pub has_interrupts: bool,
    /// Its interface, if it offers one.
    pub net: Option<Net>,
}

thread_local! {
    static KERNEL: RefCell<Kernel> = RefCell::default();
}

impl Kernel {
    /// A kernel with a device.
    pub fn new(device: impl Device + 'static) -> Kernel {
        Kernel { device: Some(Box::new(device)), ..Kernel::default() }
    }

    /// Calls functions of a driver, whose kernel this is meanwhile.
    pub fn run<T>(&mut self, driver: impl FnOnce() -> T) -> T {
        KERNEL.with(|kernel| kernel.swap(&RefCell::new(std::mem::take(self))));
        crate::service::start_logging();
        let result = driver();
        *self = KERNEL.with(|kernel| kernel.take());
        result
    }

    /// Memory that the driver sees at what is returned.
    fn allocate(len_bytes: u64) -> i64 {
        let mut memory = vec![0u64; (len_bytes as usize).div_ceil(8) + 512];
        // At a multiple of a page, as for the device.
        let start = (memory.as_mut_ptr() as usize).next_multiple_of(4096) as u64;
        MEMORY.lock().unwrap().push(memory);
        REGIONS.with(|regions| {
            let mut regions = regions.borrow_mut();
            let end = regions.last().map_or(FIRST_ADDRESS, |region| region.address + region.len_bytes);
            regions.push(Region { start, address: end.next_multiple_of(ALIGNED), len_bytes });
        });
        start as i64
    }
}

/// All memory that drivers were given. It is never freed: a driver may have it for longer than
/// there is a kernel.
static MEMORY: Mutex<Vec<Vec<u64>>> = Mutex::new(Vec::new());

/// Where the device sees the first of the memory that drivers are given.
const FIRST_ADDRESS: u64 = 0x1000_0000;
const ALIGNED: u64 = 0x1_0000;

/// Memory that a driver was given.
#[derive(Clone, Copy)]
struct Region {
    /// Where the driver sees it, and where the device does.
    start: u64,
    address: u64,
    len_bytes: u64,
}

thread_local! {
    static REGIONS: RefCell<Vec<Region>> = const { RefCell::new(Vec::new()) };
}

/// Where the driver sees what the device sees at `address`. Panics if that has no such memory: it
/// would be a DMA fault.
fn seen_by_driver(address: u64, len: usize) -> u64 {
    let holds =
        |region: &&Region| region.address <= address && address + len as u64 <= region.address + region.len_bytes;
    let region = REGIONS.with(|regions| regions.borrow().iter().find(holds).copied());
    let region = region.unwrap_or_else(|| panic!("DMA fault: {len} bytes at {address:#x}"));
    region.start + (address - region.address)
}

/// What a device does: reads `len` bytes of the driver's memory by DMA. Panics at an address that
/// the driver was not given.
pub fn dma_read(address: u64, len: usize) -> Vec<u8> {
    bytes(seen_by_driver(address, len), len as u64)
}

/// What a device does: writes into the driver's memory by DMA. Panics as [`dma_read`] does.
pub fn dma_write(address: u64, from: &[u8]) {
    let start = seen_by_driver(address, from.len());
    for (index, byte) in from.iter().enumerate() {
        // SAFETY: inside of what was allocated, for good.
        unsafe { (start as *mut u8).add(index).write_volatile(*byte) };
    }
}

/// The kernel's end of a network interface.
pub struct Net {
    memory: Memory,
    transmit: Producer,
    transmitted: Consumer,
    empty: Producer,
    received: Consumer,
    next: u64,
}

/// Queue memory.
#[derive(Clone, Copy)]
struct Memory(*mut u64);

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        assert!(index < net::QUEUE_BYTES / 8);
        // SAFETY: inside of what was allocated, for good.
        unsafe { self.0.add(index).read_volatile() }
    }

    fn store(&self, index: usize, value: u64) {
        assert!(index < net::QUEUE_BYTES / 8);
        // SAFETY: as above.
        unsafe { self.0.add(index).write_volatile(value) };
    }
}

impl Net {
    /// Has the driver send a frame.
    pub fn transmit(&mut self, frame: &[u8]) {
        let number = self.next % TX_FRAMES as u64;
        self.next += 1;
        let place = self.memory.load(net::TX_START) + number * FRAME_BYTES as u64;
        for (index, byte) in frame.iter().enumerate() {
            assert!(index < FRAME_BYTES);
            // SAFETY: inside of the frame.
            unsafe { (place as *mut u8).add(index).write(*byte) };
        }
        assert_eq!(self.transmit.put(&self.memory, entry(number as u32, frame.len() as u32)), Ok(true));
    }

    /// How many frames it has given back that it has sent.
    pub fn take_transmitted(&mut self) -> usize {
        std::iter::from_fn(|| self.transmitted.take(&self.memory).expect("a position that can be")).count()
    }

    /// Gives it empty frames, from number `first` on.
    pub fn lend(&mut self, first: usize, count: usize) {
        for number in first..first + count {
            assert!(number < RX_FRAMES);
            assert_eq!(self.empty.put(&self.memory, entry(number as u32, 0)), Ok(true));
        }
    }

    /// What it has counted.
    pub fn counted(&self, counter: net::Counter) -> u64 {
        self.memory.load(net::COUNTERS + counter as usize)
    }

    /// The frames that it has delivered.
    pub fn take_received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        while let Some(delivered) = self.received.take(&self.memory).expect("a position that can be") {
            let (number, len_bytes) = split(delivered);
            assert!((number as usize) < RX_FRAMES && (len_bytes as usize) <= FRAME_BYTES);
            let place = self.memory.load(net::RX_START) + u64::from(number) * FRAME_BYTES as u64;
            // SAFETY: inside of the frame.
            frames
                .push((0..len_bytes as usize).map(|index| unsafe { (place as *const u8).add(index).read() }).collect());
        }
        frames
    }
}

/// Where a memory BAR seems to lie; and its first port.
fn place_of(bar: u64, is_ports: bool) -> u64 {
    if is_ports { 0xc000 + (bar << 8) } else { (bar + 1) << 32 }
}

fn with_device<T>(then: impl FnOnce(&mut dyn Device) -> T) -> T {
    KERNEL.with(|kernel| {
        let mut kernel = kernel.borrow_mut();
        then(kernel.device.as_deref_mut().expect("a driver runs in `Kernel::run`"))
    })
}

/// Reads a register at `address`, as it seems to lie.
pub(crate) fn read(address: u64, width_bytes: usize) -> u64 {
    let (bar, offset) = ((address >> 32) - 1, address & 0xffff_ffff);
    with_device(|device| device.read(Register { bar, offset, width_bytes }))
}

/// Writes one.
pub(crate) fn write(address: u64, width_bytes: usize, value: u64) {
    let (bar, offset) = ((address >> 32) - 1, address & 0xffff_ffff);
    with_device(|device| device.write(Register { bar, offset, width_bytes }, value));
}

fn port(port: u16, width_bytes: usize) -> Register {
    Register { bar: u64::from(port >> 8 & 0x3f), offset: u64::from(port & 0xff), width_bytes }
}

/// Reads a port.
pub(crate) fn read_port(number: u16, width_bytes: usize) -> u64 {
    with_device(|device| device.read(port(number, width_bytes)))
}

/// Writes one.
pub(crate) fn write_port(number: u16, width_bytes: usize, value: u64) {
    with_device(|device| device.write(port(number, width_bytes), value));
}

/// Bytes that a driver has passed.
fn bytes(address: u64, len_bytes: u64) -> Vec<u8> {
    // SAFETY: the SDK passes slices.
    (0..len_bytes as usize).map(|index| unsafe { (address as *const u8).add(index).read() }).collect()
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
            "rf_dma_alloc" => return Kernel::allocate(argument(0)),
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
            "rf_irq_enable" => kernel.has_interrupts = true,
            "rf_sleep" => kernel.time_ns = kernel.time_ns.saturating_add(argument(0)),
            "rf_timer" => kernel.timer = Some((argument(0), argument(1))),
            "rf_answer" => kernel.answer += &text(0),
            "rf_offer" if argument(1) as usize == size_of::<NetInfo>() => return offer_net(kernel),
            "rf_offer" | "rf_use" => return refused(Refusal::Denied),
            _ => {}
        }
        0
    })
}

/// Where the device sees what the driver sees at `start`.
fn seen_by_device(start: u64) -> u64 {
    let holds = |region: &&Region| (region.start..region.start + region.len_bytes.max(1)).contains(&start);
    let region = REGIONS.with(|regions| regions.borrow().iter().find(holds).copied());
    region.map_or(0, |region| region.address + (start - region.start))
}

/// Makes the queues of a network interface.
fn offer_net(kernel: &mut Kernel) -> i64 {
    let start = Kernel::allocate(net::QUEUE_BYTES as u64);
    let tx = Kernel::allocate((TX_FRAMES * FRAME_BYTES) as u64);
    let rx = Kernel::allocate((RX_FRAMES * FRAME_BYTES) as u64);
    let memory = Memory(start as *mut u64);
    for (address, start, place) in [(net::TX_ADDRESS, net::TX_START, tx), (net::RX_ADDRESS, net::RX_START, rx)] {
        memory.store(address, seen_by_device(place as u64));
        memory.store(start, place as u64);
    }
    kernel.net = Some(Net {
        memory,
        transmit: Producer::new(net::TRANSMIT),
        transmitted: Consumer::new(net::TRANSMITTED),
        empty: Producer::new(net::EMPTY),
        received: Consumer::new(net::RECEIVED),
        next: 0,
    });
    start
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

    /// As behind an IOMMU: below 4 GiB, and nothing else.
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

    /// A number of bytes beyond the memory ends the driver, with its line.
    #[test]
    #[should_panic(expected = "4 bytes at 0x62 outside DMA memory (0x64 bytes)")]
    fn what_is_outside_of_dma_memory_is_not_reached() {
        Kernel::new(()).run(|| Dma::new(100).unwrap().write(98, 0_u32));
    }

    #[test]
    #[should_panic(expected = "is read; the script has")]
    fn a_script_is_followed_to_the_letter() {
        let mut script = Script::new("bar 0 memory 100\nr 0 10 4 1\nr 0 14 4 2");
        assert_eq!(script.read(Register { bar: 0, offset: 0x10, width_bytes: 4 }), 1);
        script.read(Register { bar: 0, offset: 0x14, width_bytes: 2 });
    }
}
