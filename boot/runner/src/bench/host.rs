//! Keeps the host's CPUs awake while a benchmark runs, and pins the guest's CPU to one of them.
//!
//! An idle CPU of a shared host wakes milliseconds late, which delays a guest that waits for a
//! disk. So one process per CPU spins at the lowest priority (SCHED_IDLE). Where the host allows no
//! such priority or no pinning, the benchmark runs without it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Spinning processes, killed when this is dropped.
pub struct Awake(Vec<Child>);

impl Awake {
    /// Starts one spinning process per CPU, if `chrt` is installed to give them SCHED_IDLE.
    pub fn new() -> Awake {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| {
            let mut command = Command::new("chrt");
            command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        };
        Awake((0..cpus).filter_map(spin).collect())
    }

    /// Pins the guest's CPU, which is a thread of QEMU's `process`, to the last CPU.
    pub fn pin(&self, process: u32) {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return };
        for thread in threads.flatten() {
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            if name.starts_with("CPU ") {
                let id = thread.file_name();
                // If pinning is not allowed, the thread stays unpinned.
                let _ = Command::new("taskset")
                    .arg("-cp")
                    .arg((cpus - 1).to_string())
                    .arg(id)
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
        }
    }
}

/// Returns the CPU time of a process so far: its fields 14 and 15 in `proc(5)`, in ticks of 10 ms.
pub fn cpu_time(process: u32) -> Option<Duration> {
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in front may have spaces.
    let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u32>().ok();
    Some(TICK * (ticks(11)? + ticks(12)?))
}

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // A spinning process ends only when it is killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
