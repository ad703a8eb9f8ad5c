//! Traces in Perfetto's format, read by Perfetto's own classes. They take a minute to compile, so
//! these tests have a feature of their own.

use crate::collect::{collect, end, tshark, until};
use perfetto_protos::trace::Trace;
use perfetto_protos::track_event::TrackEvent;
use perfetto_protos::track_event::track_event::Type;
use protobuf::Message;
use ringfence_link::event::Event;
use ringfence_tests::{at_prompt, bare, leave, machine, outcome, run_well};
use std::collections::BTreeMap;

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
