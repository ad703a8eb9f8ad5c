//! Traces that the runner collects over the link, and the files that it writes for other tools.

use perfetto_protos::trace::Trace;
use perfetto_protos::track_event::TrackEvent;
use perfetto_protos::track_event::track_event::Type;
use protobuf::Message;
use ringfence::machine::Running;
use ringfence::session::Session;
use ringfence_link::event::Event;
use ringfence_link::request::{BEGUN, GOES_ON, TRACE_SECONDS, What};
use ringfence_tests::{TIME_LIMIT, at_prompt, bare, leave, machine, outcome, run_well, runner};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `cargo run -- trace` with these arguments, and waits until the drivers are traced.
fn collect(running: &Running, arguments: &[&str]) -> Child {
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
fn end(child: Child) -> String {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
    assert_eq!(output.status.code(), Some(0), "{text}");
    text
}

/// Calls `read` until it returns a value.
fn until<T>(what: &str, mut read: impl FnMut() -> Option<T>) -> T {
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
fn tshark(path: &Path, arguments: &[&str]) -> Vec<String> {
    let output =
        Command::new("tshark").arg("-r").arg(path).args(arguments).output().expect("boot/setup.sh installs it");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Returns the events of a trace by the names of their tracks, and checks the rest of the trace.
fn tracks(bytes: &[u8]) -> BTreeMap<String, Vec<(u64, TrackEvent)>> {
    let trace = Trace::parse_from_bytes(bytes).unwrap();
    let mut names = BTreeMap::new();
    let mut tracks: BTreeMap<String, Vec<(u64, TrackEvent)>> = BTreeMap::new();
    for packet in &trace.packet {
        if packet.has_track_descriptor() {
            let track = packet.track_descriptor();
            let is_new = names.insert(track.uuid(), track.name().to_string()).is_none();
            assert!(is_new, "{track}");
        } else {
            let event = packet.track_event();
            let name = names.get(&event.track_uuid()).expect("a track is declared before its events");
            tracks.entry(name.clone()).or_default().push((packet.timestamp(), event.clone()));
        }
    }
    for (name, events) in &mut tracks {
        events.sort_by_key(|(at, _)| *at);
        let mut depth = 0;
        for (_, event) in events {
            match event.type_() {
                Type::TYPE_SLICE_BEGIN => depth += 1,
                Type::TYPE_SLICE_END => depth -= 1,
                _ => {}
            }
            assert!((0..=1).contains(&depth), "{name}: {event}");
        }
    }
    tracks
}

/// Other people's tools open the files, and show frames, commands and the end of a driver.
#[test]
fn perfetto_and_wireshark_open_what_is_collected() {
    let folder = tempfile::tempdir().unwrap();
    let [out, pcap] = ["t.pftrace", "t.pcapng"].map(|name| folder.path().join(name));
    let mut machine = machine("");
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let mut running = at_prompt(machine);
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    run_well(&mut running, "lsblk");
    let arguments = ["e1000", "virtio-scsi", "--out", out.to_str().unwrap(), "--pcap", pcap.to_str().unwrap()];
    let child = collect(&running, &arguments);
    for line in ["ping 10.0.2.2 -c 1", "blkcheck disk0 8 16 1", "kill e1000", "ping 10.0.2.2 -c 2"] {
        run_well(&mut running, line);
    }
    let packets = until("three answers", || {
        let packets = tshark(&pcap, &[]);
        (packets.iter().filter(|packet| packet.contains("Echo (ping) reply")).count() == 3).then_some(packets)
    });
    let has = |text: &str| packets.iter().any(|packet| packet.contains(text));
    for text in [
        "10.0.2.15 → 10.0.2.2 ICMP 98 Echo (ping) request",
        "10.0.2.2 → 10.0.2.15 ICMP 98 Echo (ping) reply",
        "SCSI: Write(10) LUN: 0x00 (LBA: 0x00000008, Len: 16)",
        "SCSI: Response LUN: 0x00 (Write(10)) (Good)",
        "SCSI: Read(10) LUN: 0x00 (LBA: 0x00000008, Len: 16)",
        "SCSI: Response LUN: 0x00 (Read(10)) (Good)",
    ] {
        assert!(has(text), "no '{text}' in {packets:#?}");
    }
    assert!(!has("Malformed"), "{packets:#?}");
    let fields = ["-Y", "frame.comment", "-T", "fields", "-e", "frame.interface_name", "-e", "frame.comment"];
    let comment = "e1000 the driver was ended before this: killed, a successor has taken its place";
    assert_eq!(tshark(&pcap, &fields), [comment]);

    leave(running);
    let output = child.wait_with_output().unwrap();
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}{errors}");
    assert!(said.contains("t.pftrace: ") && said.contains("t.pcapng: "), "{said}");

    let tracks = tracks(&std::fs::read(&out).unwrap());
    let slices = |track: &str| tracks[track].iter().filter(|(_, event)| event.type_() == Type::TYPE_SLICE_BEGIN);
    let init = slices("e1000").find(|(_, event)| event.name() == "init").expect("the successor's init");
    let called: Vec<&str> = slices("kernel: services")
        .filter(|(_, event)| event.flow_ids == init.1.flow_ids)
        .map(|(_, event)| event.name())
        .collect();
    assert!(
        called.contains(&"rf_log") && called.contains(&"rf_offer") && called.contains(&"rf_irq_enable"),
        "{called:?}"
    );
    assert!(slices("virtio-scsi").any(|(_, event)| event.name() == "poll"));
    let instants: Vec<&str> = tracks["e1000"].iter().map(|(_, event)| event.name()).collect();
    let place = |name: &str| instants.iter().position(|instant| *instant == name).unwrap_or_else(|| panic!("{name}"));
    assert!(place("ended") < place("init") && place("init") < place("replaced"), "{instants:?}");
    let counts: Vec<i64> = tracks["virtio-scsi: in hand"].iter().map(|(_, event)| event.counter_value()).collect();
    assert!(counts.chunks(2).all(|two| two == [1, 0]), "{counts:?}");
}

/// A capture has the target of a command, and the sense data of one that fails.
#[test]
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

/// A driver sleeps in a service, and another one calls services meanwhile: the slices of a track do
/// not overlap.
#[test]
fn services_that_overlap_have_tracks_of_their_own() {
    let out = tempfile::Builder::new().suffix(".pftrace").tempfile().unwrap();
    let mut running = at_prompt(bare(""));
    ["insmod watchman", "insmod template"].iter().for_each(|line| run_well(&mut running, line));
    let child = collect(&running, &["watchman", "template", "--out", out.path().to_str().unwrap()]);
    running.type_line("tell watchman nap 4000 &").unwrap();
    let asleep = |event| match event {
        Event::Drivers(drivers) => drivers.into_iter().find(|driver| driver.name == "watchman"),
        _ => None,
    };
    until("it sleeps", || {
        running.type_line("lsmod").unwrap();
        let driver = running.wait_for_event("its state", asleep).unwrap();
        (driver.state == "asleep").then_some(())
    });
    run_well(&mut running, "tell template x");
    run_well(&mut running, "wait");
    end(child);
    leave(running);
    let tracks = tracks(&std::fs::read(out.path()).unwrap());
    let names = |track: &str| tracks[track].iter().map(|(_, event)| event.name().to_string()).collect::<Vec<_>>();
    assert!(names("kernel: services").contains(&"rf_log".to_string()), "{:?}", names("kernel: services"));
    assert_eq!(names("kernel: services 2"), ["rf_sleep", ""]);
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

/// A trace that a person saves in the shell is a file for Perfetto.
#[test]
fn a_saved_trace_is_a_file() {
    let path = ringfence::trace::saved_folder().join("null.pftrace");
    let _ = std::fs::remove_file(&path);
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod null --trace");
    run_well(&mut running, "trace null save");
    let text = outcome(&mut running, "trace template save").unwrap();
    assert_eq!(text, "no domain 'template' is loaded");
    let has_end = |bytes: &Vec<u8>| {
        let trace = Trace::parse_from_bytes(bytes);
        trace.is_ok_and(|trace| trace.packet.iter().any(|of| of.track_event().type_() == Type::TYPE_SLICE_END))
    };
    let tracks = tracks(&until("the file", || std::fs::read(&path).ok().filter(has_end)));
    assert_eq!(tracks["null"].iter().filter(|(_, event)| event.name() == "init").count(), 1);
    leave(running);
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
