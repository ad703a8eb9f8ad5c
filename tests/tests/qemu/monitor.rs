//! QEMU's machine protocol (QMP), through which a test does what a person does at the machine
//! itself; and its test protocol, through which it writes to registers without the guest.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long QEMU may take until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to a socket that QEMU listens on, a line at a time.
struct Connection {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Connection {
    fn new(socket: &Path) -> Connection {
        // The socket is there a moment before QEMU listens on it.
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < until, "QEMU does not listen: {error}"),
            }
            std::thread::yield_now();
        };
        let answers = BufReader::new(stream.try_clone().unwrap());
        Connection { stream, answers }
    }

    fn send(&mut self, line: &str) {
        writeln!(self.stream, "{line}").unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line
    }
}

/// A connection to QEMU's monitor.
pub struct Monitor(Connection);

impl Monitor {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Monitor {
        let mut monitor = Monitor(Connection::new(socket));
        monitor.0.line();
        monitor.execute(r#"{"execute": "qmp_capabilities"}"#);
        monitor
    }

    /// Has a command executed, which must succeed.
    pub fn execute(&mut self, command: &str) {
        self.0.send(command);
        loop {
            let line = self.0.line();
            assert!(!line.contains("\"error\"") && !line.is_empty(), "{command}: {line}");
            if line.contains("\"return\"") {
                return;
            }
        }
    }
}

/// A connection to QEMU's test protocol (qtest): a hand on the bus, past the guest's CPU.
pub struct Bus(Connection);

impl Bus {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Bus {
        Bus(Connection::new(socket))
    }

    fn ask(&mut self, command: &str) -> String {
        self.0.send(command);
        let line = self.0.line();
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
