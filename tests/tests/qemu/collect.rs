//! Traces that the runner collects over the link, and the files that it writes for other tools.

use ringfence::machine::Running;
use ringfence::session::Session;
use ringfence_link::request::{BEGUN, GOES_ON, TRACE_SECONDS, What};
use ringfence_tests::{TIME_LIMIT, at_prompt, bare, leave, machine, outcome, run_well, runner};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `cargo run -- trace` with these arguments, and waits until the drivers are traced.
pub fn collect(running: &Running, arguments: &[&str]) -> Child {
    let system = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let mut child = Command::new(runner())
        .arg("trace")
        .args(arguments)
        .args(["--system", &system])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(line.starts_with("tracing ") && line.ends_with(": Ctrl-C ends\n"), "{line}");
    child
}

/// Ends a collection that has lost nothing; returns its output.
pub fn end(child: Child) -> String {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

/// Calls `read` until it returns a value.
pub fn until<T>(what: &str, mut read: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + TIME_LIMIT;
    loop {
        if let Some(value) = read() {
            return value;
        }
        assert!(Instant::now() < end, "{what}");
        // The files grow as events come: there is nothing else to wait for.
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns the lines that tshark prints of a capture, after its number and time.
pub fn tshark(path: &Path, arguments: &[&str]) -> Vec<String> {
    let output =
        Command::new("tshark").arg("-r").arg(path).args(arguments).output().expect("boot/setup.sh installs it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// A capture has the target of a command, and the sense data of one that fails.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_capture_tells_targets_apart_and_has_sense_data() {
    let folder = tempfile::tempdir().unwrap();
    let [pcap, failing] = ["t.pcapng", "failing"].map(|name| folder.path().join(name));
    std::fs::write(&failing, "[inject-error]\nevent = \"read_aio\"\nerrno = \"5\"\nsector = \"100\"\n").unwrap();
    let mut machine = machine("");
    let disks = [(); 2].map(|()| ringfence::machine::empty_disk().unwrap());
    machine.disks = disks.iter().map(|disk| disk.path().to_path_buf().into()).collect();
    machine.disk_errors = Some(failing);
    let mut running = at_prompt(machine);
    run_well(&mut running, "lsblk");
    let child = collect(&running, &["virtio-scsi", "--pcap", pcap.to_str().unwrap()]);
    for line in ["fails blkread disk0 100 1", "blkread disk1 101 1"] {
        run_well(&mut running, line);
    }
    let fields = ["frame.interface_name", "_ws.col.Info", "scsi.sns.key", "scsi.sns.ascascq"];
    let shown = |packet: &&String| packet.contains("LBA: 0x00000064") || packet.contains("LBA: 0x00000065");
    let arguments: Vec<&str> = ["-T", "fields"].into_iter().chain(fields.iter().flat_map(|of| ["-e", of])).collect();
    until("commands and responses", || {
        let packets = tshark(&pcap, &arguments);
        let place = packets.iter().position(|packet| packet.contains("LBA: 0x00000065"))?;
        let commands: Vec<&String> = packets.iter().filter(shown).collect();
        let [first, .., last] = commands[..] else { return None };
        assert!(first.starts_with("virtio-scsi target 0 SCSI: Read(10) LUN: 0x00"), "{packets:#?}");
        assert!(last.starts_with("virtio-scsi target 1 SCSI: Read(10) LUN: 0x00"), "{packets:#?}");
        // QEMU 7.2 reports an aborted command, later ones a medium error.
        let sense = |packet: &String| {
            packet.strip_prefix("virtio-scsi target 0 SCSI Response (Check Condition) LUN:0x00 ").map(str::to_string)
        };
        let sense = packets[..place].iter().find_map(sense).unwrap_or_else(|| panic!("{packets:#?}"));
        assert!(["0x0b 0x0006", "0x03 0x1100"].contains(&&*sense), "{packets:#?}");
        let read = "virtio-scsi target 1 SCSI: Response LUN: 0x00 (Read(10)) (Good)";
        packets[place..].iter().any(|packet| packet == read).then_some(())
    });
    leave(running);
    assert!(child.wait_with_output().unwrap().status.success());
}

/// Two programs may have one driver traced: each gets the bytes of frames that it wants, and the
/// end of one is not the end of the other.
#[test]
fn two_programs_trace_one_driver() {
    let pcap = tempfile::Builder::new().suffix(".pcapng").tempfile().unwrap();
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let first = collect(&running, &["e1000"]);
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let second = collect(&running, &["e1000", "--pcap", pcap.path().to_str().unwrap()]);
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    end(second);
    let lengths = tshark(pcap.path(), &["-Y", "icmp", "-T", "fields", "-e", "frame.len", "-e", "frame.cap_len"]);
    assert_eq!(lengths, ["98 98"; 2], "the frames since it has asked, with all their bytes");
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let text = end(first);
    assert_eq!((text.matches("ICMP echo request").count(), text.matches("ICMP echo reply").count()), (3, 3), "{text}");
    // The kernel traces it for neither of them any more.
    run_well(&mut running, "trace e1000 help");
    leave(running);
}

/// What a program does not get is counted: events, and the content of others.
#[test]
fn what_comes_too_fast_is_counted() {
    let pcap = tempfile::Builder::new().suffix(".pcapng").tempfile().unwrap();
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let child = collect(&running, &["e1000", "--pcap", pcap.path().to_str().unwrap()]);
    run_well(&mut running, "bench nic/tx-1514");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    for text in [" events are missing: they came faster", " events lack their content: they came faster"] {
        assert!(errors.contains(text), "{errors}");
    }
    leave(running);
}

/// A program that takes nothing is disconnected, so that others do not wait for it. It says so once
/// it goes on.
#[test]
fn a_program_that_takes_nothing_is_disconnected_and_says_so() {
    let mut running = at_prompt(machine(""));
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    let pcap = tempfile::Builder::new().suffix(".pcapng").tempfile().unwrap();
    let mut child = collect(&running, &["e1000", "--pcap", pcap.path().to_str().unwrap()]);
    let id = child.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    signal("-STOP");
    // More than its connection holds.
    (0..4).for_each(|_| run_well(&mut running, "bench nic/tx-1514"));
    signal("-CONT");
    until("it ends", || child.try_wait().unwrap());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{errors}");
    let said = "events are missing: this program has not taken them in time, and is connected no more\n";
    assert!(errors.contains(said), "{errors}");
    leave(running);
}

/// Each program that traces a driver takes some of the kernel's memory, so that there is a limit.
#[test]
fn eight_programs_trace_one_driver_and_no_ninth() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod template");
    let mut sessions = [(); 9].map(|()| Session::connect(&running.session()).unwrap());
    let ask = |session: &mut Session| {
        let trace = What::Trace { program: session.number(), driver: "template".into(), frame_bytes: 0 };
        session.request(trace, |_| ()).unwrap()
    };
    let answers: Vec<_> = sessions.iter_mut().map(ask).collect();
    let refused = Err("8 programs trace template already".to_string());
    assert_eq!(answers[..8], [(); 8].map(|()| Ok(BEGUN.to_string())));
    assert_eq!(answers[8], refused);
    // The first one makes room.
    let end = What::EndTrace { program: sessions[0].number(), driver: "template".into() };
    assert!(sessions[0].request(end, |_| ()).unwrap().is_ok());
    assert_eq!(ask(&mut sessions[8]), Ok(BEGUN.to_string()));
    leave(running);
}

/// Programs get each event as an object; mistakes are said.
#[test]
fn events_come_as_json() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod template");
    run_well(&mut running, "tell template x");
    let system = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let mut child = Command::new(runner())
        .args(["trace", "template", "--json", "--system", &system])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // It is traced as soon as the shell cannot trace it.
    until("the driver is traced", || outcome(&mut running, "trace template help"));
    run_well(&mut running, "tell template y");
    let events: Vec<serde_json::Value> =
        (0..3).map(|_| serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap()).collect();
    assert_eq!(events[0]["what"]["Enter"]["upcall"], "command");
    assert_eq!(events[0]["what"]["Enter"]["words"], "\"y\"");
    assert_eq!(events[1]["what"]["Call"]["words"], "rf_log(info, \"was told 'y'\") = 0x0");
    assert_eq!(events[2]["what"]["Leave"]["words"], "0x1");
    assert!(events.iter().all(|event| event["driver"] == "template"));
    assert!(events.is_sorted_by_key(|event| event["at_ns"].as_u64().unwrap()));
    for (driver, why) in [
        ("nope", "ringfence: no domain 'nope' is loaded\n"),
        ("null", "ringfence: null: a trace of it is under way already\n"),
    ] {
        if driver == "null" {
            run_well(&mut running, "insmod null");
            run_well(&mut running, "trace null on");
        }
        let output = Command::new(runner()).args(["trace", driver, "--system", &system]).output().unwrap();
        assert_eq!((output.status.code(), &*String::from_utf8_lossy(&output.stderr)), (Some(4), why));
    }
    leave(running);
    assert!(child.wait().unwrap().success());
}

/// Ctrl-C ends the collection in order, and another program's trace is not shown.
#[test]
fn an_interrupt_ends_it_with_all_that_has_come() {
    let mut running = at_prompt(bare(""));
    ["insmod template", "insmod null"].iter().for_each(|line| run_well(&mut running, line));
    let [child, other] = ["template", "null"].map(|name| collect(&running, &[name]));
    run_well(&mut running, "tell template x");
    run_well(&mut running, "trace template save");
    let [text, others] = [child, other].map(end);
    assert_eq!(text.matches("> command(\"x\")").count(), 1, "{text}");
    assert_eq!((text.matches("< 0x1 ").count(), &*others), (1, ""), "{text}");
    // The kernel traces neither of them any more.
    run_well(&mut running, "trace template help");
    leave(running);
}

/// A trace that no program asks for any more ends by itself. A program that was stopped meanwhile
/// says so.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_program_that_is_gone_is_forgotten() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod template");
    let stopped = collect(&running, &["template"]);
    let id = stopped.id().to_string();
    let signal = |name: &str| assert!(Command::new("kill").args([name, &id]).status().unwrap().success());
    signal("-STOP");
    let mut session = Session::connect(&running.session()).unwrap();
    let program = session.number();
    let trace = What::Trace { program, driver: "template".into(), frame_bytes: 64 };
    let began = Instant::now();
    for answer in [BEGUN, GOES_ON] {
        assert_eq!(session.request(trace.clone(), |_| ()).unwrap(), Ok(answer.to_string()));
    }
    drop(session);
    assert!(outcome(&mut running, "trace template help").is_some());
    until("the trace ends", || outcome(&mut running, "trace template help").is_none().then_some(()));
    assert!(began.elapsed() >= Duration::from_secs(TRACE_SECONDS) - Duration::from_secs(1));
    // A program cannot end a trace that has ended already.
    let mut session = Session::connect(&running.session()).unwrap();
    let end = What::EndTrace { program, driver: "template".into() };
    let why = "template is not traced for this program".to_string();
    assert_eq!(session.request(end.clone(), |_| ()).unwrap(), Err(why));
    assert!(session.request(trace, |_| ()).unwrap().is_ok());
    run_well(&mut running, "tell template x");
    let mut count = 0;
    let ended = session.request(end, |heard| count += heard.piece().map_or(0, |piece| piece.events.len())).unwrap();
    assert_eq!(ended, Ok(format!("{count} events")));
    assert!(count >= 3);
    signal("-CONT");
    // It asks again, and the trace begins anew.
    until("the driver is traced", || outcome(&mut running, "trace template help"));
    signal("-INT");
    let output = stopped.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), &*errors),
        (Some(1), "template: events are missing: the kernel had ended its trace\n")
    );
    leave(running);
}
