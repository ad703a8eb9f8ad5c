//! Has an LSI 53C895A reach for memory that is not its driver's: `tell rogue-lsi VERB ADDRESS`. The
//! device's processor copies anything to anywhere (*LSI53C895A Technical Manual*, chapter 5), which
//! makes it the best attacker on a fence around devices.
//!
//! Nothing of that takes unsafe code: what is told to a device is numbers.
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

/// Registers: interrupt status, where SCRIPTS are, their table, why they stopped, what is moved
/// into I/O space.
const ISTAT: usize = 0x14;
const DSP: usize = 0x2c;
const DSA: usize = 0x10;
const DSTAT: usize = 0x0c;
const DMODE: usize = 0x38;
/// ISTAT: reset; SCRIPTS have stopped.
const RESET: u8 = 1 << 6;
const STOPPED: u8 = 1;

/// What is where in its memory, which is two pages long: SCRIPTS, what comes and goes, and where
/// that is put by itself.
const SCRIPT: usize = 0;
const DATA: usize = 0x800;
const MEMORY: usize = 0x2000;
/// What it reads is compared with this.
const UNTOUCHED: u64 = 0x5555_5555_5555_5555;

/// Instructions.
const MOVE_MEMORY: u32 = 0xc000_0000;
const STOP: [u32; 2] = [0x9808_0000, 0];
const JUMP: u32 = 0x8008_0000;
/// Loads and stores of 4 bytes of a register of the processor's own (SCRATCHA), from and to memory.
const LOAD_SCRATCH: u32 = 0xe134_0004;
const STORE_SCRATCH: u32 = 0xe034_0004;

struct RogueLsi {
    registers: Mmio,
    memory: Dma,
    has_dma: bool,
    /// What it reads when it is unloaded.
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

    /// Moves `len_bytes` bytes from one address of the device to another.
    fn copy(&mut self, from: u32, to: u32, len_bytes: u32) -> &mut Self {
        self.word(MOVE_MEMORY | len_bytes).word(from).word(to)
    }

    fn stop(&mut self) {
        self.instruction(STOP);
    }
}

impl RogueLsi {
    fn script(&mut self) -> Script<'_> {
        Script { memory: &mut self.memory, at: SCRIPT }
    }

    fn at(&self, offset: usize) -> u32 {
        self.memory.address(offset) as u32
    }

    /// Has the device run SCRIPTS at its address `address`, and says what it then has of what it
    /// read.
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
        // QEMU runs SCRIPTS in the write.
        if self.registers.read8(ISTAT) & STOPPED != 0 {
            self.registers.read8(DSTAT);
        }
        Ok(self.memory.read(DATA))
    }

    fn start(&mut self) -> Result<u64> {
        let script = self.at(SCRIPT);
        self.run(script)
    }

    /// Has the device read 64 bytes at `address`; what it brought of the first word.
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
        registers.write8(ISTAT, RESET);
        registers.write8(ISTAT, 0);
        Ok(RogueLsi { registers, memory: Dma::new(MEMORY)?, has_dma: false, at_exit: None })
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
            // The program itself lies there.
            "fetch" => {
                let address = argument()?;
                self.run(address)
            }
            // A move whose length and place are in a table there.
            "table" => {
                let address = argument()?;
                self.registers.write32(DSA, address);
                self.script().instruction([0x1900_0000, 0]).stop();
                self.start()
            }
            // A move whose place is in a word there.
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
            // The last bytes of its memory, and as many behind them.
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
            // Three moves, the one in the middle from elsewhere.
            "scatter" => {
                let address = argument()?;
                self.script().copy(data, data + 64, 64).copy(address, data, 64).copy(data, data + 128, 64).stop();
                self.start()
            }
            // A program that writes over its next instruction: that reads elsewhere then.
            "rewrite" => {
                let address = argument()?;
                let [from, to] = [script + 0x400, script + 12];
                let mut new = Script { memory: &mut self.memory, at: 0x400 };
                new.copy(address, data, 64);
                self.script().copy(from, to, 12).copy(data, data + 64, 64).stop();
                self.start()
            }
            // From elsewhere to elsewhere.
            "copy" => {
                let (from, to) = (argument()?, argument()?);
                self.script().copy(from, to, 64).stop();
                self.start()
            }
            // For ever. QEMU stops a program after 10,000 instructions.
            "flood" => {
                let address = argument()?;
                self.script().copy(address, data, 64).instruction([JUMP, script]);
                self.start()
            }
            // Before it has asked for DMA.
            "read-before-dma" => {
                let address = argument()?;
                self.memory.write(DATA, UNTOUCHED);
                self.script().copy(address, data, 64).stop();
                self.run_without_dma(script)
            }
            // Memory that it has given back.
            "read-freed" | "write-freed" => {
                let freed = Dma::new(0x1000)?;
                let address = freed.address(0) as u32;
                // So that the device, or what is in between, remembers it.
                self.read(address)?;
                self.write(address, 1)?;
                drop(freed);
                if verb == "read-freed" { self.read(address) } else { self.write(address, 2) }
            }
            // The device goes on when its driver has ended.
            "panic-while-it-runs" => {
                let address = argument()?;
                self.flood(address)?;
                panic!("while the device runs");
            }
            // When it is unloaded, and nobody asks it anything any more.
            "read-at-exit" => {
                self.at_exit = Some(argument()?);
                Ok(0)
            }
            // The processor's own I/O space: ports, not memory.
            "write-port" => {
                let port = argument()?;
                const DESTINATION_IS_IO: u8 = 1 << 4;
                self.registers.write8(DMODE, DESTINATION_IS_IO);
                let result = self.write(port, 0);
                self.registers.write8(DMODE, 0);
                result
            }
            // Where its own memory is, for the device.
            "where" => Ok(data.into()),
            // Its own memory there and back: what it has to be able to do.
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
