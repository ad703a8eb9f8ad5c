//! Has an LSI 53C895A access memory that does not belong to its driver: `tell rogue-lsi VERB
//! ADDRESS`. The device's processor copies data between any two addresses (*LSI53C895A Technical
//! Manual*, chapter 5). This makes it the best attacker on a fence around devices.
//!
//! None of this takes unsafe code, because the driver only passes numbers to the device.
#![no_std]
#![forbid(unsafe_code)]

use ringfence_sdk::device::{self, Mmio};
use ringfence_sdk::dma::{self, Dma};
use ringfence_sdk::{Driver, Kind, Manifest, Refusal, Reset, Result, driver, number};

driver!(
    RogueLsi,
    Manifest::new("rogue-lsi", env!("CARGO_PKG_VERSION"))
        .kind(Kind::Other)
        .by_hand()
        .pci(&[(0x1000, 0x0012)])
        .dma_kib(64)
        .reset(Reset::register(1, ISTAT as u32, 4).sets(1 << 6).waits_for(1 << 6, 0).within_us(10_000))
);

/// Registers: interrupt status, the address of SCRIPTS, the address of their table, the cause for
/// which they stopped, and the DMA mode, which selects I/O space.
const ISTAT: usize = 0x14;
const DSP: usize = 0x2c;
const DSA: usize = 0x10;
const DSTAT: usize = 0x0c;
const DMODE: usize = 0x38;
/// ISTAT: reset; SCRIPTS have stopped.
const RESET: u8 = 1 << 6;
const STOPPED: u8 = 1;

/// Offsets in the driver's memory: SCRIPTS, and the data to move. `MEMORY` is the memory's length,
/// two pages.
const SCRIPT: usize = 0;
const DATA: usize = 0x800;
const MEMORY: usize = 0x2000;
/// The value of the data before a read, to see whether the device has read anything.
const UNTOUCHED: u64 = 0x5555_5555_5555_5555;

/// Instructions.
const MOVE_MEMORY: u32 = 0xc000_0000;
const STOP: [u32; 2] = [0x9808_0000, 0];
const JUMP: u32 = 0x8008_0000;
/// Load and store 4 bytes of the processor's register SCRATCHA, from and to memory.
const LOAD_SCRATCH: u32 = 0xe134_0004;
const STORE_SCRATCH: u32 = 0xe034_0004;

struct RogueLsi {
    registers: Mmio,
    memory: Dma,
    has_dma: bool,
    /// The address that the device reads when the driver is unloaded.
    at_exit: Option<u32>,
}

/// A program under construction.
struct Script<'a> {
    memory: &'a mut Dma,
    at: usize,
}

impl Script<'_> {
    fn word(&mut self, word: u32) -> &mut Self {
        self.memory.write(self.at, word);
        self.at += 4;
        self
    }

    fn instruction(&mut self, [first, second]: [u32; 2]) -> &mut Self {
        self.word(first).word(second)
    }

    /// Adds an instruction that copies `len_bytes` bytes between two addresses of the device.
    fn copy(&mut self, from: u32, to: u32, len_bytes: u32) -> &mut Self {
        self.word(MOVE_MEMORY | len_bytes).word(from).word(to)
    }

    fn stop(&mut self) {
        self.instruction(STOP);
    }
}

impl RogueLsi {
    fn reset(&self) {
        self.registers.write8(ISTAT, RESET);
        self.registers.write8(ISTAT, 0);
    }

    fn script(&mut self) -> Script<'_> {
        Script { memory: &mut self.memory, at: SCRIPT }
    }

    fn at(&self, offset: usize) -> u32 {
        self.memory.address(offset) as u32
    }

    /// Has the device run SCRIPTS at the device's address `address`. Returns the first word of the
    /// data area afterwards.
    fn run(&mut self, address: u32) -> Result<u64> {
        if !self.has_dma {
            device::enable_dma()?;
            self.has_dma = true;
        }
        self.run_without_dma(address)
    }

    fn run_without_dma(&mut self, address: u32) -> Result<u64> {
        dma::write_barrier();
        self.registers.write32(DSP, address);
        // QEMU runs SCRIPTS during this write.
        if self.registers.read8(ISTAT) & STOPPED != 0 {
            self.registers.read8(DSTAT);
        }
        Ok(self.memory.read(DATA))
    }

    fn start(&mut self) -> Result<u64> {
        let script = self.at(SCRIPT);
        self.run(script)
    }

    /// Has the device read 64 bytes at `address`. Returns the first word.
    fn read(&mut self, address: u32) -> Result<u64> {
        let data = self.at(DATA);
        self.memory.write(DATA, UNTOUCHED);
        self.script().copy(address, data, 64).stop();
        self.start()
    }

    /// Has the device write the 4 bytes of `value` to `address`.
    fn write(&mut self, address: u32, value: u32) -> Result<u64> {
        let data = self.at(DATA);
        self.memory.write(DATA, u64::from(value));
        self.script().copy(data, address, 4).stop();
        self.start()
    }
}

impl Driver for RogueLsi {
    fn init() -> Result<RogueLsi> {
        let registers = Mmio::map(1)?;
        let lsi = RogueLsi { registers, memory: Dma::new(MEMORY)?, has_dma: false, at_exit: None };
        lsi.reset();
        Ok(lsi)
    }

    fn command(&mut self, text: &str) -> Result<u64> {
        let mut words = text.split_whitespace();
        let verb = words.next().unwrap_or("");
        let mut argument = || words.next().ok_or(Refusal::Invalid).and_then(number).map(|number| number as u32);
        let (script, data) = (self.at(SCRIPT), self.at(DATA));
        match verb {
            "read" => {
                let address = argument()?;
                self.read(address)
            }
            "write" => {
                let (address, value) = (argument()?, argument()?);
                self.write(address, value)
            }
            // Runs a program at the given address.
            "fetch" => {
                let address = argument()?;
                self.run(address)
            }
            // Runs a move whose length and address are in a table at the given address.
            "table" => {
                let address = argument()?;
                self.registers.write32(DSA, address);
                self.script().instruction([0x1900_0000, 0]).stop();
                self.start()
            }
            // Runs a move whose address is in a word at the given address.
            "indirect" => {
                let address = argument()?;
                self.script().instruction([0x2900_0004, address]).stop();
                self.start()
            }
            "load" => {
                let address = argument()?;
                self.script().instruction([LOAD_SCRATCH, address]).instruction([STORE_SCRATCH, data]).stop();
                self.start()
            }
            "store" => {
                let address = argument()?;
                self.script().instruction([STORE_SCRATCH, address]).stop();
                self.start()
            }
            // Reads the last 32 bytes of the driver's memory, and 32 bytes behind them.
            "straddle-read" => {
                let end = self.at(MEMORY - 32);
                self.read(end)
            }
            "straddle-write" => {
                let end = self.at(MEMORY - 32);
                self.script().copy(data, end, 64).stop();
                self.start()
            }
            "straddle-start" => {
                let start = self.at(0);
                self.read(start - 32)
            }
            // Runs three moves; the one in the middle reads from the given address.
            "scatter" => {
                let address = argument()?;
                self.script().copy(data, data + 64, 64).copy(address, data, 64).copy(data, data + 128, 64).stop();
                self.start()
            }
            // Runs a program that overwrites its next instruction with a read from the given
            // address.
            "rewrite" => {
                let address = argument()?;
                let [from, to] = [script + 0x400, script + 12];
                let mut new = Script { memory: &mut self.memory, at: 0x400 };
                new.copy(address, data, 64);
                self.script().copy(from, to, 12).copy(data, data + 64, 64).stop();
                self.start()
            }
            // Copies from any address to any other.
            "copy" => {
                let (from, to) = (argument()?, argument()?);
                self.script().copy(from, to, 64).stop();
                self.start()
            }
            // Reads in an endless loop. QEMU stops a program after 10,000 instructions.
            "flood" => {
                let address = argument()?;
                self.script().copy(address, data, 64).instruction([JUMP, script]);
                self.start()
            }
            // Reads before the driver has asked for DMA.
            "read-before-dma" => {
                let address = argument()?;
                self.memory.write(DATA, UNTOUCHED);
                self.script().copy(address, data, 64).stop();
                let read = self.run_without_dma(script);
                // The program that the device cannot read is no program with an end: QEMU 10 goes
                // on with it by a timer, into the memory that the next command lets it read.
                self.reset();
                read
            }
            // Accesses memory that the driver has given back.
            "read-freed" | "write-freed" => {
                let freed = Dma::new(0x1000)?;
                let address = freed.address(0) as u32;
                // These accesses bring the address into caches of the device or of the IOMMU.
                self.read(address)?;
                self.write(address, 1)?;
                drop(freed);
                if verb == "read-freed" { self.read(address) } else { self.write(address, 2) }
            }
            // Ends the driver while the device continues.
            "panic-while-it-runs" => {
                let address = argument()?;
                self.flood(address)?;
                panic!("while the device runs");
            }
            // Reads while the driver is being unloaded.
            "read-at-exit" => {
                self.at_exit = Some(argument()?);
                Ok(0)
            }
            // Writes to I/O space, which is ports and not memory.
            "write-port" => {
                let port = argument()?;
                const DESTINATION_IS_IO: u8 = 1 << 4;
                self.registers.write8(DMODE, DESTINATION_IS_IO);
                let result = self.write(port, 0);
                self.registers.write8(DMODE, 0);
                result
            }
            // Returns the address of the driver's data area for the device.
            "where" => Ok(data.into()),
            // Copies inside the driver's own memory and back, which must succeed.
            "own" => {
                self.memory.write(DATA, 0x1234_u64);
                self.script().copy(data, data + 64, 64).copy(data + 64, data, 64).stop();
                self.start()
            }
            _ => Err(Refusal::NotFound),
        }
    }

    fn exit(&mut self) {
        if let Some(address) = self.at_exit {
            let _ = self.read(address);
        }
    }
}

impl RogueLsi {
    fn flood(&mut self, address: u32) -> Result<u64> {
        let (script, data) = (self.at(SCRIPT), self.at(DATA));
        self.script().copy(data, address, 64).instruction([JUMP, script]);
        self.start()
    }
}
