//! The runner's command line: exit statuses, and one clear line for each mistake.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn run(arguments: &[&str]) -> Output {
    ringfence_tests::system();
    Command::new(ringfence_tests::runner()).args(arguments).output().expect("the runner runs")
}

/// Runs the runner; returns its status and the one line that it must print.
fn mistake(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    (output.status.code().unwrap(), text.trim().to_string())
}

#[test]
fn statuses_tell_how_a_run_ended() {
    let status = |commands: &str, more: &[&str]| {
        let arguments = [&["--hba", "none", "--exec", commands], more].concat();
        run(&arguments).status.code()
    };
    assert_eq!(status("help; lspci", &[]), Some(0));
    assert_eq!(status("help; nonsense; lspci", &[]), Some(1));
    assert_eq!(status("nonsense; shutdown; lspci", &[]), Some(1));
    assert_eq!(status("panic", &[]), Some(2));
    assert_eq!(status("sleep 100000", &["--timeout", "3"]), Some(3));
    assert_eq!(status("help", &["--memory", "1"]), Some(4));
    assert_eq!(status("help", &["--nic", "nonsense"]), Some(4));
    assert_eq!(status("help", &["--nonsense"]), Some(4));
}

/// A user at the console leaves with Ctrl-] X; QEMU ends with the same status after a triple fault.
#[test]
fn a_triple_fault_at_the_console_is_told_from_leaving() {
    ringfence_tests::system();
    for (typed, status) in [("\x1dx", 0), ("insmod rogue --ring 0; tell rogue lidt\r", 2)] {
        let mut child = Command::new(ringfence_tests::runner())
            .args(["--nic", "none", "--hba", "none", "--timeout", "60"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the runner runs");
        let (mut input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut lines = BufReader::new(output).lines();
        lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("Type 'help'"))).expect("the prompt").unwrap();
        input.write_all(typed.as_bytes()).unwrap();
        // The lines end when QEMU ends.
        let rest: Vec<String> = lines.map_while(Result::ok).collect();
        assert_eq!(child.wait().unwrap().code(), Some(status), "{rest:#?}");
    }
}

#[test]
fn mistakes_are_one_clear_line() {
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let (status, line) = mistake(&["--exec", "help", "--forward", &format!("{port}:7")]);
    assert!(status == 4 && line.starts_with(&format!("ringfence: port {port} cannot be used")), "{line}");
    let (status, line) = mistake(&["--exec", "help", "--disk", "/nowhere/disk.img"]);
    assert_eq!((status, line.as_str()), (4, "ringfence: there is no file /nowhere/disk.img"));
    let (status, line) = mistake(&["--exec", "help", "--module", "/nowhere/driver.rfm"]);
    assert_eq!((status, line.as_str()), (4, "ringfence: there is no file /nowhere/driver.rfm"));
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("mine.rfm");
    std::fs::copy(other_e1000(folder.path()), &other).unwrap();
    let (status, line) = mistake(&["--exec", "help", "--module", other.to_str().unwrap()]);
    assert!(
        status == 4 && line.ends_with("the module in this file is called 'e1000': call the file e1000.rfm"),
        "{line}"
    );
    let (status, line) = mistake(&["--exec", "help", "--qemu-arg=-version"]);
    assert_eq!(
        (status, line.as_str()),
        (4, "ringfence: with -version QEMU says something and ends: run it by itself for that")
    );
    let (status, line) = mistake(&["--exec", "help", "--pcap", "/dev/full"]);
    assert_eq!((status, line.as_str()), (4, "ringfence: /dev/full is no file that a capture can be written to"));
    let (status, line) = mistake(&["bench", "nonsense"]);
    let said = "ringfence: no row that is measured has a name that begins with 'nonsense'";
    assert_eq!((status, line.as_str()), (4, said));
}

#[test]
fn a_missing_qemu_is_said() {
    ringfence_tests::system();
    let output = Command::new(ringfence_tests::runner())
        .args(["--exec", "help"])
        .env("RINGFENCE_QEMU", "no-such-qemu")
        .output()
        .expect("the runner runs");
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(4));
    assert!(text.starts_with("ringfence: cannot start no-such-qemu: is it installed?"), "{text}");
    assert_eq!(text.lines().count(), 1);
}

#[test]
fn json_is_one_object_a_line() {
    let output = run(&["--json", "--nic", "none", "--hba", "none", "--exec", "lspci"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(lines.iter().any(|line| line["console"].as_str().is_some_and(|text| text.contains("Host bridge"))));
    assert_eq!(lines.last().unwrap()["end"], "done");
    assert_eq!(lines.last().unwrap()["status"], 0);
}

/// The parts that another bootloader needs can be written to files. The ramdisk contains the kernel
/// as well, for the project's own loader.
#[test]
fn the_parts_are_written_for_other_bootloaders() {
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("parts");
    let output = run(&["build", "--out", out.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |name: &str| std::fs::read(out.join(name)).unwrap();
    let (kernel, ramdisk, loader) = (read("kernel"), read("ramdisk.tar"), read("loader"));
    assert!(kernel.starts_with(b"\x7fELF") && loader.starts_with(b"\x7fELF"));
    assert!(ramdisk.len() > kernel.len() && ramdisk.windows(5).any(|bytes| bytes == b"e1000"));
}

/// gdb finds a module's functions in the given slot. If gdb is not installed, only the script is
/// checked.
#[test]
fn gdb_finds_the_functions_of_a_module() {
    let system = ringfence_tests::system();
    let script = ringfence::gdb::machine::symbols(system);
    assert!(script.contains("  add-symbol-file $arg0 -o 0x8000430000+($arg1)*0x8000000000\n"), "{script}");
    let module = system.modules.iter().find(|module| module.name == "e1000").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    let ask = format!("{script}set confirm off\nrf-symbols {} 1\ninfo symbol rf_upcall\n", module.debug.display());
    std::fs::write(file.path(), ask + "info address rf_upcall\n").unwrap();
    let Ok(output) = Command::new("gdb").args(["-q", "-batch", "-x"]).arg(file.path()).output() else { return };
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("with all sections offset by 0x10000430000"), "{text}");
    assert!(text.contains("rf_upcall in section .text"), "{text}");
}

fn spawn(arguments: &[&str]) -> Child {
    ringfence_tests::system();
    let mut runner = Command::new(ringfence_tests::runner());
    runner.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    runner.spawn().expect("the runner runs")
}

/// As in `printf 'lsmod\nlsblk\n' | cargo run`: all commands run, and the end of the input ends the
/// machine.
#[test]
fn commands_can_be_piped_in() {
    for end in ["", "shutdown\n"] {
        let mut child = spawn(&["--nic", "none", "--hba", "none", "--timeout", "60"]);
        let typed = format!("echo one of three\necho two\ninsmod template\n{end}");
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(0), "{text}");
        assert!(text.lines().any(|line| line.trim_end() == "one of three"), "{text}");
        assert!(text.contains("template: loaded into ring 1"), "{text}");
    }
}

/// Each line of a pipe is run, with or without a line end. No command waits for a key or for ever.
#[test]
fn a_pipe_is_read_to_its_end() {
    for (typed, expected) in [
        ("echo one\necho the last", "the last"),
        ("help --all | more\necho the last\n", "the last"),
        ("dmesg -w\necho the last\n", "the last"),
    ] {
        let mut child = spawn(&["--nic", "none", "--hba", "none", "--timeout", "60"]);
        child.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.lines().any(|line| line.trim_end() == expected), "{typed:?}: {text}");
        assert_ne!(output.status.code(), Some(3), "{typed:?}: {text}");
    }
}

/// As in `cargo run -- --exec ... | head -1`.
#[test]
fn who_stops_reading_ends_the_run() {
    let mut child = spawn(&["--nic", "none", "--hba", "none", "--timeout", "60", "--exec", "repeat 100000 help"]);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().is_some());
    drop(lines);
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()),
        (Some(141), String::new())
    );
}

/// Whichever way the runner ends, QEMU ends as well.
#[test]
fn qemu_ends_with_the_runner() {
    // A parent may have made this process ignore SIGHUP, as nohup does; then the runner ignores it,
    // too.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    let hears_hup = ignored.is_some_and(|ignored| ignored & 1 == 0);
    for signal in ["TERM", "KILL"].into_iter().chain(hears_hup.then_some("HUP")) {
        let mut child = spawn(&["--nic", "none", "--hba", "none", "--timeout", "60", "--exec", "echo up; sleep 50000"]);
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        lines.find(|line| line.as_ref().is_ok_and(|line| line == "up")).expect("it is up").unwrap();
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", child.id())).unwrap();
        let children: Vec<&str> = children.split_whitespace().collect();
        assert!(!children.is_empty());
        let killed = Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert!(!child.wait().unwrap().success());
        // QEMU no longer holds the other end of this pipe.
        assert_eq!(lines.map_while(Result::ok).filter(|line| line.contains("done")).count(), 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let is_there = |process: &&&str| Path::new(&format!("/proc/{process}/exe")).read_link().is_ok();
        while children.iter().any(|process| is_there(&process)) {
            assert!(Instant::now() < deadline, "QEMU is left behind after SIG{signal}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn limits_of_time_may_be_as_long_as_one_likes() {
    let longest = u64::MAX.to_string();
    let output = run(&["--nic", "none", "--hba", "none", "--timeout", &longest, "--exec", "help"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Writes a copy of the project's e1000 that calls its card something else; returns its path.
fn other_e1000(folder: &Path) -> String {
    let module = ringfence_tests::system().modules.iter().find(|module| module.name == "e1000").unwrap();
    let mut bytes = std::fs::read(&module.packed).unwrap();
    let name = b"82540EM";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes[at..at + name.len()].copy_from_slice(b"my card");
    let file = folder.join("e1000.rfm");
    std::fs::write(&file, bytes).unwrap();
    file.to_str().unwrap().to_string()
}

#[test]
fn a_given_module_takes_the_place_of_the_projects() {
    let folder = tempfile::tempdir().unwrap();
    let file = other_e1000(folder.path());
    let output = run(&["--hba", "none", "--module", &file, "--exec", "lsmod; insmod e1000"]);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("e1000| my card at 52:54:00:12:34:56") && !text.contains("82540EM"), "{text}");
    assert!(!text.contains("rogue-nic"), "{text}");
}

/// The frames that the card sends and receives, in tcpdump's format.
#[test]
fn what_goes_over_the_cable_can_be_captured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("with, comma.pcap");
    let output = run(&["--hba", "none", "--pcap", file.to_str().unwrap(), "--exec", "ping 10.0.2.2 -c 1"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let bytes = std::fs::read(&file).unwrap();
    assert_eq!(bytes[..4], 0xa1b2_c3d4u32.to_le_bytes());
    // After the file's header, each frame has a header of its own. The frame that is counted is the
    // router's answer to the ping.
    let is_reply =
        |frame: &[u8]| frame[12..14] == [8, 0] && frame[23] == 1 && frame[26..30] == [10, 0, 2, 2] && frame[34] == 0;
    let (mut at, mut replies) = (24, 0);
    while let Some(len) = bytes.get(at + 8..at + 12) {
        let len = u32::from_le_bytes(len.try_into().unwrap()) as usize;
        replies += usize::from(is_reply(&bytes[at + 16..at + 16 + len]));
        at += 16 + len;
    }
    assert_eq!(replies, 1);
}

/// The benchmark, the campaign and the soak work on other machines and modules as on the project's.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn benchmark_campaign_and_soak_take_other_machines() {
    let folder = tempfile::tempdir().unwrap();
    let file = other_e1000(folder.path());
    let log = folder.path().join("log");
    let machine = ["--machine", "q35", "--memory", "80", "--module", &file, "--qemu-arg=-name", "--qemu-arg=other"];
    let log_to = format!("--qemu-arg={}", log.display());
    let machine = [&machine[..], &["--qemu-arg=-D", &log_to]].concat();
    let mut outputs = Vec::new();
    for arguments in [
        &["bench", "nic/tx", "--json"][..],
        &["campaign", "--modules", "e1000", "--mutants", "2", "--json"],
        &["soak", "--minutes", "0.02", "--json"],
    ] {
        let output = run(&[arguments, &machine].concat());
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
        outputs.push(said);
    }
    assert!(outputs[0].contains("\"nic/tx\""), "{}", outputs[0]);
}
