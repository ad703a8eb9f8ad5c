//! QEMU's machine protocol (QMP), which acts as a user does at the machine itself, and QEMU's test
//! protocol (qtest), which accesses registers without the guest.

use anyhow::{Context, Result, bail};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long to wait until QEMU listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// A line-based connection to a socket that QEMU listens on.
struct Connection {
    stream: UnixStream,
    answers: BufReader<UnixStream>,
}

impl Connection {
    fn new(socket: &Path) -> Result<Connection> {
        // The socket exists a moment before QEMU listens on it.
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= until => return Err(error).context("QEMU does not listen"),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        let answers = BufReader::new(stream.try_clone()?);
        Ok(Connection { stream, answers })
    }

    fn send(&mut self, line: &str) -> Result<()> {
        Ok(writeln!(self.stream, "{line}")?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(line)
    }
}

/// A connection to QEMU's monitor.
pub struct Monitor(Connection);

impl Monitor {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Result<Monitor> {
        let mut monitor = Monitor(Connection::new(socket)?);
        monitor.0.line()?;
        monitor.execute(r#"{"execute": "qmp_capabilities"}"#)?;
        Ok(monitor)
    }

    /// Executes a command; fails if QEMU reports an error.
    pub fn execute(&mut self, command: &str) -> Result<()> {
        self.0.send(command)?;
        loop {
            let line = self.0.line()?;
            if line.contains("\"error\"") || line.is_empty() {
                bail!("{command}: {line}");
            }
            if line.contains("\"return\"") {
                return Ok(());
            }
        }
    }
}

/// A connection to QEMU's test protocol (qtest), which accesses the bus without the guest's CPU.
pub struct Bus(Connection);

impl Bus {
    /// Connects to the socket that QEMU listens on.
    pub fn new(socket: &Path) -> Result<Bus> {
        Ok(Bus(Connection::new(socket)?))
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.send(command)?;
        let line = self.0.line()?;
        let answer = line.trim_end().strip_prefix("OK").with_context(|| format!("{command}: {line}"))?;
        Ok(answer.trim().to_string())
    }

    /// Reads the 32 bits at physical address `address`.
    pub fn read(&mut self, address: u64) -> Result<u32> {
        let answer = self.ask(&format!("readl {address:#x}"))?;
        Ok(u64::from_str_radix(answer.trim_start_matches("0x"), 16)? as u32)
    }

    /// Writes the 32 bits at physical address `address`.
    pub fn write(&mut self, address: u64, value: u32) -> Result<()> {
        self.ask(&format!("writel {address:#x} {value:#x}")).map(|_| ())
    }
}
