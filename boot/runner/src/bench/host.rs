//! Keeps the host's CPUs awake while a benchmark runs, and the guest's CPU on one of them.
//!
//! An idle CPU of a shared host wakes milliseconds late, which a guest that waits for a disk would
//! pay for. So a thread a CPU spins at the lowest priority there is; what it cannot have (priority,
//! pinning) it does without.

use std::process::{Child, Command, Stdio};

/// Spinning processes, ended when this is dropped.
pub struct Awake(Vec<Child>);

impl Awake {
    /// Starts to keep all CPUs awake, if `chrt` is there to give the spinners SCHED_IDLE.
    pub fn new() -> Awake {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let spin = |_| {
            let mut command = Command::new("chrt");
            command.args(["--idle", "0", "sh", "-c", "while :; do :; done"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
        };
        Awake((0..cpus).filter_map(spin).collect())
    }

    /// Keeps the guest's CPU, a thread of QEMU's `process`, on the last CPU.
    pub fn pin(&self, process: u32) {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        let Ok(threads) = std::fs::read_dir(format!("/proc/{process}/task")) else { return };
        for thread in threads.flatten() {
            let name = std::fs::read_to_string(thread.path().join("comm")).unwrap_or_default();
            if name.starts_with("CPU ") {
                let id = thread.file_name();
                // Where it may not be pinned it is not.
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

impl Drop for Awake {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It only ends when it is killed.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
