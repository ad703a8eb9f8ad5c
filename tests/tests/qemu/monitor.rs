//! QEMU's machine protocol (QMP), through which a test does what a person does at the machine itself.

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
