//! gdb, connected to the stub in the kernel of a machine that runs.

use crate::{TIME_LIMIT, runner};
use ringfence::machine::Running;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;
use std::time::Instant;

/// A gdb that reads commands.
pub struct Gdb {
    child: Child,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
    /// How many commands were given.
    given: usize,
    /// The name of the system.
    system: String,
}

/// Returns the processes of this host: their numbers, and their command lines.
fn processes() -> Vec<(String, String)> {
    let folders = std::fs::read_dir("/proc").unwrap().flatten();
    let line = |folder: &std::fs::DirEntry| {
        let line = String::from_utf8_lossy(&std::fs::read(folder.path().join("cmdline")).ok()?).replace('\0', " ");
        let number = folder.file_name().to_string_lossy().into_owned();
        number.parse::<u32>().ok().map(|_| (number, line))
    };
    let mut found: Vec<(String, String)> = folders.filter_map(|folder| line(&folder)).collect();
    // The pipe before gdb, which would have it end in order.
    found.sort_by_key(|(_, line)| line.contains("target remote"));
    found
}

impl Gdb {
    /// Starts gdb for all drivers of a system, or for the one called `name`.
    pub fn start(running: &Running, name: Option<&str>) -> Gdb {
        let system = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
        // Errors in their order among the rest.
        let (hears, said) = std::io::pipe().unwrap();
        let mut child = Command::new(runner())
            .arg("gdb")
            .args(name)
            .args(["--system", &system, "--", "-nx", "-ex", "set width 0", "-ex", "set confirm off"])
            .args(["-ex", "set prompt "])
            .stdin(Stdio::piped())
            .stdout(said.try_clone().unwrap())
            .stderr(said)
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let lines = BufReader::new(hears).lines().map_while(Result::ok);
            lines.for_each(|line| _ = sender.send(line));
        });
        let input = child.stdin.take().unwrap();
        let mut gdb = Gdb { child, input, lines, given: 0, system };
        gdb.run("set pagination off");
        gdb
    }

    /// Gives a command, and does not wait for its end.
    pub fn give(&mut self, command: &str) {
        self.given += 1;
        writeln!(self.input, "{command}\necho \\n<<{}>>\\n", self.given).unwrap();
    }

    /// Waits for the end of the command that was given, and returns gdb's output until then.
    pub fn wait(&mut self) -> String {
        let mark = format!("<<{}>>", self.given);
        let (mut said, end) = (String::new(), Instant::now() + TIME_LIMIT);
        loop {
            let line = self.lines.recv_timeout(end.saturating_duration_since(Instant::now()));
            let line = line.unwrap_or_else(|_| panic!("gdb has not ended {}:\n{said}", self.given));
            if line.contains(&mark) {
                return said;
            }
            said += &line;
            said.push('\n');
        }
    }

    /// Gives a command, and returns gdb's output.
    pub fn run(&mut self, command: &str) -> String {
        self.give(command);
        self.wait()
    }

    /// Waits until gdb has said `text`, before the end of the command that was given.
    pub fn wait_until(&mut self, text: &str) {
        let end = Instant::now() + TIME_LIMIT;
        while !self.lines.recv_timeout(end.saturating_duration_since(Instant::now())).unwrap().contains(text) {}
    }

    /// Interrupts gdb, as Ctrl-C does at a terminal.
    pub fn interrupt(&self) {
        let is_gdb = |line: &str| line.contains(&self.system) && line.contains("target remote");
        for (number, _) in processes().into_iter().filter(|(_, line)| is_gdb(line)) {
            assert!(Command::new("kill").args(["-INT", &number]).status().unwrap().success());
        }
    }

    /// Kills gdb, and first the runner that passes its bytes on.
    pub fn kill(mut self) {
        for process in processes().into_iter().filter(|(_, line)| line.contains(&self.system)) {
            if process.1.contains("--pipe") || process.1.contains("target remote") {
                let _ = Command::new("kill").args(["-9", &process.0]).status();
            }
        }
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Detaches, and ends gdb.
    pub fn leave(mut self) {
        self.run("detach");
        writeln!(self.input, "quit").unwrap();
        self.child.wait().unwrap();
    }
}
