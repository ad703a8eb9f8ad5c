//! QEMU's machine protocol (QMP), through which a test does what a person does at the machine itself; and its test protocol, through which
//! it writes to registers without the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// A connection to QEMU's monitor.
pub struct Monitor {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Monitor {
        let stream = UnixStream::connect(socket).expect("QEMU listens");
        let answers = BufReader::new(stream.try_clone().unwrap());
        let mut monitor = Monitor { stream, answers };
        monitor.line();
        monitor.execute(r#"{"execute": "qmp_capabilities"}"#);
        monitor
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }

    /// Has a command executed, which must succeed.
    pub fn execute(&mut self, command: &str) {
        writeln!(self.stream, "{command}").unwrap();
        loop {
            let line = self.line();
            assert!(!line.contains("\"error\"") && !line.is_empty(), "{command}: {line}");
            if line.contains("\"return\"") {
                return;
            }
        }
    }
}

/// A connection to QEMU's test protocol (qtest): a hand on the bus, past the guest's CPU.
pub struct Bus {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Bus {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Bus {
        let stream = UnixStream::connect(socket).expect("QEMU listens");
        let answers = BufReader::new(stream.try_clone().unwrap());
        Bus { stream, answers }
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.stream, "{command}").unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim_end().strip_prefix("OK").unwrap_or_else(|| panic!("{command}: {line}")).trim().to_string()
    }

    /// Reads the 32 bits at physical address `address`.
    pub fn read(&mut self, address: u64) -> u32 {
        let answer = self.ask(&format!("readl {address:#x}"));
        u64::from_str_radix(answer.trim_start_matches("0x"), 16).unwrap() as u32
    }

    /// Writes the 32 bits at physical address `address`.
    pub fn write(&mut self, address: u64, value: u32) {
        self.ask(&format!("writel {address:#x} {value:#x}"));
    }
}
