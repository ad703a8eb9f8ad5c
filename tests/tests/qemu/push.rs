//! Modules that are pushed into a running system: loaded, put in the place of running drivers, and
//! taken back if they are no good.

use ringfence::machine::{Running, connect};
use ringfence::session::{Heard, Session};
use ringfence_link::event::Event;
use ringfence_link::frame::Encoder;
use ringfence_link::request::{MAX_PIECE, Request, What};
use ringfence_link::{EVENTS, REQUESTS};
use ringfence_tests::{
    TIME_LIMIT, assert_says, at_prompt, bare, boot_well, leave, machine, outcome, run_well, runner, system,
    wait_for_address,
};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::mpsc;

/// Returns a module in C. It runs `body` in each upcall, and its answer to a command is its version
/// plus 100 times its parameter `size`.
pub fn answering(name: &str, version: u32, body: &str) -> Vec<u8> {
    let source = format!(
        r#"#include <ringfence.h>
        RF_MANIFEST = {{
            RF_VERSIONS, .kind = RfKind_Other, .name = "{name}", .version = "{version}", .pci_ids = RF_NO_PCI_IDS,
            .stack_bytes = 16384, .upcall_ms = 100,
        }};
        RF_PARAMETER size = {{
            .name = "size", .what = "some number", .kind = RfParameterKind_Number,
            .value = 5, .least = 1, .most = 9,
        }};
        int64_t rf_upcall(uint64_t operation, uint64_t a, uint64_t b, uint64_t c)
        {{
            (void)a, (void)b, (void)c;
            {body}
            return operation == RF_COMMAND ? {version} + 100 * (int64_t)RF_READ(size.value) : 0;
        }}
        "#
    );
    built(name, &source).0
}

/// Builds a module in C called `name`. Returns its file, and its debug information.
fn built(name: &str, source: &str) -> (Vec<u8>, PathBuf, tempfile::TempDir) {
    system();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.c"));
    std::fs::write(&path, source).unwrap();
    // Modules of one name are built in one place.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock();
    let module = ringfence::build::module_in_c(&path).unwrap();
    let debug = folder.path().join("debug");
    std::fs::copy(module.debug, &debug).unwrap();
    (std::fs::read(module.packed).unwrap(), debug, folder)
}

/// Returns a build of the driver rtl8139-c whose source was changed.
fn changed_nic(from: &str, to: &str) -> (Vec<u8>, PathBuf, tempfile::TempDir) {
    let path = ringfence::project().join("drivers/rtl8139-c/rtl8139-c.c");
    let source = std::fs::read_to_string(path).unwrap();
    assert!(source.contains(from));
    built("rtl8139-c", &source.replace(from, to))
}

/// Returns the number of the line that has `part`.
fn source_line(source: &str, part: &str) -> usize {
    source.lines().position(|line| line.contains(part)).unwrap() + 1
}

/// Pushes a module; returns the kernel's description of the result, or the reason for a failure.
pub fn push(running: &Running, name: &str, bytes: &[u8]) -> Result<String, String> {
    let mut session = Session::connect(&running.session()).unwrap();
    session.push(name, bytes, None, &[], false, |_| ()).unwrap()
}

/// Types `tell NAME x`, and returns the driver's answer.
fn answer(running: &mut Running, name: &str) -> u64 {
    answer_to(running, &format!("tell {name} x"))
}

/// Types a command, and returns the driver's answer.
fn answer_to(running: &mut Running, line: &str) -> u64 {
    running.type_line(line).unwrap();
    running
        .wait_for_event("an answer", |event| match event {
            Event::Answer { value, .. } => Some(value),
            _ => None,
        })
        .unwrap()
}

/// Waits until a reload is undone; returns the reason.
pub fn undone(running: &mut Running, wanted: &str) -> String {
    running
        .wait_for_event("a reload that is undone", |event| match event {
            Event::ReloadUndone { name, why } if name == wanted => Some(why.into_owned()),
            _ => None,
        })
        .unwrap()
}

/// A new module is loaded. A second build takes the first one's place with its parameters, and
/// `insmod` loads that build from then on.
#[test]
fn a_push_loads_a_module_or_replaces_it() {
    let mut running = at_prompt(bare(""));
    let mut session = Session::connect(&running.session()).unwrap();
    let parameters = ["size=7".to_string()];
    let one = answering("greets", 1, "");
    let loaded = session.push("greets", &one, None, &parameters, false, |_| ()).unwrap();
    assert_eq!(loaded, Ok("greets: loaded into ring 1, slot 0".to_string()));
    assert_eq!(answer(&mut running, "greets"), 701);
    run_well(&mut running, "insmod greets");
    assert_eq!(answer(&mut running, "greets.2"), 501);
    let two = answering("greets", 2, "");
    let both = push(&running, "greets", &two).unwrap();
    let both: Vec<&str> = both.split("; ").map(|one| one.split(", after").next().unwrap()).collect();
    assert_eq!(both, ["greets: greets#2 2 serves in ring 1", "greets.2: greets#2 2 serves in ring 1"]);
    assert_eq!((answer(&mut running, "greets"), answer(&mut running, "greets.2")), (702, 502));
    let refused = session.push("greets", &one, None, &parameters, false, |_| ()).unwrap();
    let why = "greets is loaded, and a reload keeps its parameters; rmmod unloads it";
    assert_eq!(refused, Err(why.to_string()));
    ["rmmod greets", "rmmod greets.2", "insmod greets"].iter().for_each(|line| run_well(&mut running, line));
    assert_eq!(answer(&mut running, "greets"), 502);
    leave(running);
}

/// Echoes `count` bytes over a connection that stays open.
fn echo(stream: &mut TcpStream, count: usize) {
    let data: Vec<u8> = (0..count).map(|index| (index * 7) as u8).collect();
    let mut came = vec![0; count];
    let mut writing = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writing.write_all(&data).unwrap());
        stream.read_exact(&mut came).unwrap();
    });
    assert!(came == data, "the echo differs");
}

/// One connection lives through builds in two languages, a build that refuses to start, and a build
/// that faults as soon as it serves. The last two are undone, with their reasons.
#[test]
fn a_connection_outlives_good_and_bad_builds() {
    let mut machine = machine("");
    let port = ringfence::machine::free_port().unwrap();
    (machine.nic, machine.hba) = ("rtl8139".into(), "none".into());
    machine.forwards = vec![(ringfence::machine::Protocol::Tcp, port, 7)];
    let mut running = at_prompt(machine);
    wait_for_address(&mut running, [10, 0, 2, 15]);
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
    echo(&mut stream, 100_000);
    run_well(&mut running, "reload rtl8139 rtl8139-c");
    echo(&mut stream, 100_000);
    let good = changed_nic("\"RTL8139, in C\"", "\"a new build\"");
    let done = push(&running, "rtl8139-c", &good.0).unwrap();
    assert!(done.starts_with("rtl8139: rtl8139-c#1 0.1.0 serves in ring 1, after "), "{done}");
    echo(&mut stream, 100_000);

    let refuses = changed_nic("    return rf_irq_enable();", "    return -RF_REFUSED_NO_ANSWER;");
    let why = push(&running, "rtl8139-c", &refuses.0).unwrap_err();
    let expected = "rtl8139: the new build does not start, and the one before it serves again: \
                    init: refused: the device does not answer";
    assert_eq!(why.lines().next(), Some(expected));
    assert_says(&undone(&mut running, "rtl8139"), "the device does not answer");
    echo(&mut stream, 100_000);

    let faults = changed_nic(
        "    transmit();\n",
        "    if (done > 5) { volatile uintptr_t at = 16; *(volatile int *)at = 1; }\n    transmit();\n",
    );
    let mut session = Session::connect(&running.session()).unwrap();
    session.push("rtl8139-c", &faults.0, Some(&faults.1), &[], false, |_| ()).unwrap().unwrap();
    // The connection's frames make it fault.
    echo(&mut stream, 100_000);
    assert_says(&undone(&mut running, "rtl8139"), "#PF writing 0x10");
    echo(&mut stream, 100_000);
    // A build that was undone is not loaded again, and a later fault restarts the good build.
    run_well(&mut running, "reload rtl8139");
    echo(&mut stream, 100_000);
    run_well(&mut running, "kill rtl8139");
    echo(&mut stream, 100_000);
    running.type_line("shutdown").unwrap();
    let text = running.finish(|_| ()).unwrap().text();
    // The source line is that of the build that faulted.
    let line = source_line(&std::fs::read_to_string(faults.2.path().join("rtl8139-c.c")).unwrap(), "if (done > 5)");
    let place = text.lines().find(|line| line.contains("(rtl8139-c#3+0x")).expect("a place in the build");
    assert!(place.ends_with(&format!("rtl8139-c.c:{line}")), "{place}");
    assert_says(&text, "version 0.1.0, build 3, ring 1");
}

/// A copy and its check go on while the driver of both disks is reloaded again and again.
#[test]
fn disks_and_their_commands_outlive_reloads() {
    for hba in ["virtio-scsi-pci", "lsi53c895a", "virtio-blk-pci"] {
        let driver = hba.trim_end_matches("-pci");
        let reload = format!("repeat 10 reload {driver}");
        let commands = format!("blkcheck disk0 0 2000 1 &; {reload}; wait; lsmod");
        let mut machine = machine(&commands);
        (machine.nic, machine.hba) = ("none".into(), hba.into());
        let disk = ringfence::machine::empty_disk().unwrap();
        machine.disks = vec![disk.path().to_path_buf().into()];
        let ran = boot_well(&machine);
        let times = ran.events().iter().filter(|event| matches!(event, Event::Reloaded { .. })).count();
        assert_eq!((times, ran.restarts(driver)), (10, 0), "{hba}");
    }
}

/// A fault in the time of probation brings the build before back, under any policy. After that
/// time, the policy decides. A driver that a person kills has not failed its probation.
#[test]
fn a_build_that_faults_soon_is_undone() {
    let faulty = |version| {
        answering(
            "greets",
            version,
            "if (operation == RF_COMMAND) { volatile uintptr_t at = 16; *(volatile int *)at = 1; }",
        )
    };
    let mut running = at_prompt(bare(""));
    push(&running, "greets", &answering("greets", 1, "")).unwrap();
    push(&running, "greets", &faulty(2)).unwrap();
    assert_says(&outcome(&mut running, "tell greets x").unwrap(), "the driver was ended");
    assert_says(&undone(&mut running, "greets"), "greets: #PF writing 0x10");
    assert_eq!(answer(&mut running, "greets"), 501);
    run_well(&mut running, "rmmod greets");
    run_well(&mut running, "insmod greets");
    assert_eq!(answer(&mut running, "greets"), 501);

    // The policy of this module is to stay ended.
    run_well(&mut running, "limits reload-s 0");
    push(&running, "greets", &faulty(3)).unwrap();
    assert_says(&outcome(&mut running, "tell greets x").unwrap(), "the driver was ended");
    assert_says(&outcome(&mut running, "tell greets x").unwrap(), "greets was ended before");
    // A reload is possible after that.
    push(&running, "greets", &answering("greets", 4, "")).unwrap();
    assert_eq!(answer(&mut running, "greets"), 504);

    for line in ["limits reload-s 100", "policy greets restart"] {
        run_well(&mut running, line);
    }
    push(&running, "greets", &answering("greets", 5, "")).unwrap();
    run_well(&mut running, "kill greets");
    assert_eq!(answer(&mut running, "greets"), 505);
    push(&running, "greets", &faulty(6)).unwrap();
    run_well(&mut running, "kill greets");
    assert_says(&outcome(&mut running, "tell greets x").unwrap(), "the driver was ended");
    assert_says(&undone(&mut running, "greets"), "#PF");
    assert_eq!(answer(&mut running, "greets"), 505);
    leave(running);
}

/// A new build starts in ring 1, as nobody knows it. If it does not start, the old one is in its
/// ring again.
#[test]
fn a_new_build_starts_in_ring_1() {
    let mut running = at_prompt(bare(""));
    push(&running, "greets", &answering("greets", 1, "")).unwrap();
    run_well(&mut running, "ring greets 0");
    let refuses = answering("greets", 2, "if (operation == RF_INIT) return -RF_REFUSED_BUSY;");
    assert_says(&push(&running, "greets", &refuses).unwrap_err(), "init: refused: busy");
    running.type_line("lsmod").unwrap();
    let ring = |event: Event<'static>| match event {
        Event::Drivers(drivers) => Some(drivers[0].ring),
        _ => None,
    };
    assert_eq!(running.wait_for_event("the drivers", ring).unwrap(), 0);
    push(&running, "greets", &answering("greets", 3, "")).unwrap();
    running.type_line("lsmod").unwrap();
    assert_eq!(running.wait_for_event("the drivers", ring).unwrap(), 1);
    leave(running);
}

/// A driver that saves its state has it after a reload, and after a reload that is undone. A build
/// that refuses the state starts afresh, and so does the successor of a build that says nonsense
/// about its own state. A build that faults over the state is undone. After a fault there is no
/// state.
#[test]
fn a_state_outlives_a_reload() {
    let keeps = |version, more: &str| {
        let body = format!(
            r#"static uint32_t kept = 7;
            if (operation == RF_COMMAND) return ++kept;
            if (operation == RF_SAVE) {{ memcpy(rf_mailbox(), &kept, 4); return rf_saved(4, {version}); }}
            if (operation == RF_RESTORE && b == 3) return -RF_REFUSED_INVALID;
            if (operation == RF_RESTORE && a == 4) {{ memcpy(&kept, rf_mailbox(), 4); kept += 1000 * (uint32_t)b; }}
            {more}"#
        );
        answering("greets", version, &body)
    };
    let mut running = at_prompt(bare(""));
    push(&running, "greets", &keeps(1, "")).unwrap();
    assert_eq!(answer(&mut running, "greets"), 8);
    push(&running, "greets", &keeps(2, "")).unwrap();
    assert_eq!(answer(&mut running, "greets"), 1009, "the state has the version of the build that saved it");
    let faults = "if (operation == RF_RESTORE) { volatile uintptr_t at = 16; *(volatile int *)at = 1; }";
    let why = push(&running, "greets", &keeps(3, faults)).unwrap_err();
    assert_says(
        &why,
        "the new build does not start, and the one before it serves again: restore: the driver was ended",
    );
    assert_eq!(answer(&mut running, "greets"), 3010);
    let why = push(&running, "greets", &keeps(4, "if (operation == RF_INIT) return -RF_REFUSED_BUSY;")).unwrap_err();
    assert_says(&why, "init: refused: busy");
    assert_eq!(answer(&mut running, "greets"), 5011);
    push(&running, "greets", &keeps(3, "")).unwrap();
    assert_eq!(answer(&mut running, "greets"), 7012);
    // The state is of version 3 now, which the builds refuse.
    push(&running, "greets", &keeps(5, "")).unwrap();
    assert_eq!(answer(&mut running, "greets"), 8);
    for nonsense in ["return 4097;", "return -RF_REFUSED_BUSY;", "return INT64_MIN;", "return rf_saved(0, 3);"] {
        let body = format!("if (operation == RF_SAVE) {nonsense}");
        push(&running, "greets", &answering("greets", 6, &body)).unwrap();
        push(&running, "greets", &keeps(7, "")).unwrap();
        assert_eq!(answer(&mut running, "greets"), 8, "{nonsense}");
    }
    for line in ["limits reload-s 0", "reload greets", "policy greets restart", "kill greets"] {
        run_well(&mut running, line);
    }
    assert_eq!(answer(&mut running, "greets"), 8);
    leave(running);
}

/// The sample driver keeps its rounds.
#[test]
fn the_sample_keeps_its_rounds() {
    let mut running = at_prompt(bare(""));
    run_well(&mut running, "insmod watchman period-ms=10");
    run_well(&mut running, "sleep 300");
    run_well(&mut running, "tell watchman stop");
    let rounds = answer_to(&mut running, "tell watchman rounds");
    assert!(rounds > 10, "{rounds}");
    run_well(&mut running, "reload watchman");
    run_well(&mut running, "tell watchman stop");
    assert!((rounds..rounds + 50).contains(&answer_to(&mut running, "tell watchman rounds")));
    leave(running);
}

/// A build that cannot take a driver's place is refused before the driver is touched, with the
/// reason, and no file is kept.
#[test]
fn what_does_not_fit_is_refused_and_nothing_changes() {
    let mut machine = machine("");
    machine.hba = "none".into();
    let mut running = at_prompt(machine);
    let commands = [
        ("reload e1000 virtio-net", "e1000: refused: it does not drive 0000:00:01.0"),
        ("reload e1000 nope", "there is no module 'nope' in the ramdisk"),
        ("reload nope", "no domain 'nope' is loaded"),
        ("reload", "the domain's name is missing; usage: reload NAME [FILE] [OPTION]"),
        ("reload e1000 e1000 e1000", "'e1000' is not known; usage: reload NAME [FILE] [OPTION]"),
    ];
    for (line, why) in commands {
        assert_eq!(outcome(&mut running, line).as_deref(), Some(why), "{line}");
    }
    let greets = answering("greets", 1, "");
    let long = vec![0; (1 << 20) + 1];
    let pushes: [(&str, &[u8], &str); 6] = [
        ("e1000", b"no module", "e1000: refused: not a well-formed ELF file"),
        ("e1000", b"", "e1000: refused: not a well-formed ELF file"),
        (
            "e1000",
            &greets,
            "e1000: refused: the module in this file is called 'greets', and what is trusted goes by the file's name",
        ),
        ("", &greets, "a module's name has 1 to 31 bytes"),
        ("a-name-that-no-manifest-has-room-for", &greets, "a module's name has 1 to 31 bytes"),
        ("long", &long, "a module file may have 1048576 bytes"),
    ];
    for (name, bytes, why) in pushes {
        assert_eq!(push(&running, name, bytes), Err(why.to_string()), "{name}");
    }
    let insmod = outcome(&mut running, "insmod e1000").unwrap();
    let hint = "no free device that it drives, as e1000 has it; 'reload e1000 e1000' replaces that";
    assert_eq!(insmod, format!("e1000: {hint}"));
    // The driver and its file are still those of the boot.
    run_well(&mut running, "reload e1000");
    run_well(&mut running, "ping 10.0.2.2 -c 1 -W 5000");
    leave(running);
}

/// A sender of garbage, of too much, or of the same again gets answers to all requests that can be
/// answered, and loads nothing twice.
#[test]
fn a_hostile_sender_harms_nobody() {
    let mut running = at_prompt(bare(""));
    let mut raw = connect(&running.session()).unwrap();
    // Garbage, endless frames, frames that hold no request, and channels that do not exist.
    let mut encoder = Box::new(Encoder::new());
    for round in 0..200u32 {
        let noise: Vec<u8> = (0..997).map(|index: u32| ((index * (round + 1)) >> 3) as u8).collect();
        raw.write_all(&noise).unwrap();
        for channel in [REQUESTS, EVENTS, 200] {
            let frame = encoder.frame(channel, |room| {
                room[..noise.len()].copy_from_slice(&noise);
                Some(noise.len())
            });
            raw.write_all(frame.unwrap()).unwrap();
        }
    }
    drop(raw);
    let mut session = Session::connect(&running.session()).unwrap();
    let mut ask = |what| session.request(what, |_| ()).unwrap();
    let piece = |file, offset, bytes: &'static [u8]| What::Piece { file, offset, bytes: bytes.into() };
    let load = |file| What::Load { file, parameters: Vec::new(), stops: false };
    let unknown = Err("the file is not known: others have come since".to_string());
    assert_eq!(ask(piece(1, 0, b"x")), unknown);
    assert_eq!(ask(load(1)), unknown);
    assert_eq!(ask(What::File { file: 1, name: "one".into(), len_bytes: 4 }), Ok("1".to_string()));
    assert_eq!(ask(piece(1, 1, b"x")), Err("a piece is missing between bytes 0 and 1".to_string()));
    assert_eq!(ask(piece(1, 0, b"ab")), Ok(String::new()));
    assert_eq!(ask(piece(1, 1, b"bcde")), Err("more than 4 bytes came".to_string()));
    assert_eq!(ask(piece(1, u32::MAX, b"")), Err("a piece is missing between bytes 2 and 4294967295".to_string()));
    assert_eq!(ask(load(1)), Err("2 of 4 bytes came".to_string()));
    // Each of many files that are begun and never sent takes memory only until others come.
    for file in 10..40 {
        let build = (file - 8).to_string();
        assert_eq!(ask(What::File { file, name: "many".into(), len_bytes: 1 << 20 }), Ok(build));
    }
    assert_eq!(push(&running, "greets", &answering("greets", 1, "")).unwrap(), "greets: loaded into ring 1, slot 0");
    assert_eq!(answer(&mut running, "greets"), 501);
    leave(running);
}

/// A request that comes again, because its answer was lost, is answered again and has no second
/// effect.
#[test]
fn a_request_that_comes_twice_is_carried_out_once() {
    let running = at_prompt(bare(""));
    let bytes = answering("greets", 1, "");
    let mut session = Session::connect(&running.session()).unwrap();
    let mut raw = connect(&running.session()).unwrap();
    let mut encoder = Box::new(Encoder::new());
    let mut send_twice = |id, what: What| {
        for _ in 0..2 {
            let request = Request { id, what: what.clone() };
            raw.write_all(encoder.frame(REQUESTS, |room| request.write(room)).unwrap()).unwrap();
        }
    };
    send_twice(1, What::File { file: 1, name: "greets".into(), len_bytes: bytes.len() as u32 });
    for (index, piece) in bytes.chunks(MAX_PIECE).enumerate() {
        send_twice(index as u64 + 2, What::Piece { file: 1, offset: (index * MAX_PIECE) as u32, bytes: piece.into() });
    }
    let mut load_twice = || send_twice(1000, What::Load { file: 1, parameters: Vec::new(), stops: false });
    load_twice();
    let (mut answers, mut loaded) = (Vec::new(), 0);
    // The second request has no answer of its own if it comes while the first is carried out. All
    // later requests have one.
    while answers.len() < 3 {
        match session.hear(TIME_LIMIT).unwrap().and_then(Heard::event).expect("an answer") {
            Event::Answered { id: 1000, result } => {
                answers.push(result.unwrap());
                if answers.len() == 1 {
                    load_twice();
                }
            }
            Event::Answered { id: 1, result } => assert_eq!(result, Ok("1".into())),
            Event::Answered { result, .. } => assert_eq!(result, Ok("".into())),
            Event::Loaded(_) => loaded += 1,
            _ => {}
        }
    }
    assert_eq!(loaded, 1);
    assert_eq!(answers, ["greets: loaded into ring 1, slot 0"; 3]);
    assert!(session.request(What::Load { file: 1, parameters: Vec::new(), stops: false }, |_| ()).unwrap().is_err());
    leave(running);
}

/// The command, as a person uses it: the system, the module, and the outcome.
#[test]
fn the_command_finds_the_system_and_says_what_happened() {
    let push = |arguments: &[&str]| {
        let output = Command::new(runner()).arg("push").args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let mut running = at_prompt(bare(""));
    let name = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let (status, out, err) = push(&["null", "--system", &name]);
    assert_eq!(status, Some(0), "{err}");
    assert!(out.starts_with("null: loaded into ring 1, slot 0 ("), "{out}");
    let (status, out, _) = push(&["null", "--system", &name, "--json"]);
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((status, &object["module"], &object["error"]), (Some(0), &"null".into(), &serde_json::Value::Null));
    assert_says(object["done"].as_str().unwrap(), "null: null#2 0.1.0 serves in ring 1");
    assert!(object["times"]["all_ms"].as_u64().unwrap() >= object["times"]["build_ms"].as_u64().unwrap());
    let (status, _, err) = push(&["null", "size=4", "--system", &name]);
    assert_eq!(status, Some(1));
    assert_says(&err, "null is loaded, and a reload keeps its parameters");
    for (module, why) in [("nope", "there is no module 'nope' in drivers/"), ("./nope", "there is no folder ./nope")] {
        let (status, _, err) = push(&[module, "--system", &name]);
        assert_eq!(status, Some(4), "{err}");
        assert_says(&err, why);
    }
    let (status, _, err) = push(&["null", "--system", "nope"]);
    assert_eq!(status, Some(4));
    assert_says(&err, "no system 'nope' runs, but ");
    run_well(&mut running, "lsmod");
    leave(running);
}

/// A driver that `new` makes outside of the project's folder of drivers builds, loads, passes its
/// test and the linters, and is formatted.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_new_driver_of_each_kind_builds_loads_and_has_a_test() {
    system();
    let folder = tempfile::tempdir().unwrap();
    let mut running = at_prompt(bare(""));
    let run = |program: &mut Command| {
        let output = program.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned()).concat();
        assert!(output.status.success(), "{program:?}: {said}");
        said
    };
    // The filesystem is on the disk of the block device.
    for kind in ["nic", "scsi", "block", "fs", "other"] {
        let path = folder.path().join(format!("new-{kind}"));
        let made = Command::new(runner()).args(["new", "--kind", kind]).arg(&path).output().unwrap();
        assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
        let target = ringfence::target().join("new");
        let cargo = |arguments: &[&str]| {
            run(Command::new("cargo").args(arguments).current_dir(&path).env("CARGO_TARGET_DIR", &target))
        };
        cargo(&["test", "-q", "--lib"]);
        cargo(&["clippy", "-q", "--lib", "--profile", "test", "--", "-D", "warnings"]);
        run(Command::new(runner()).arg("lint").arg(&path));
        let config = ringfence::project().join("rustfmt.toml");
        cargo(&["fmt", "--check", "--", "--config-path", config.to_str().unwrap()]);
        let module = ringfence::build::module(&path).unwrap();
        let bytes = std::fs::read(module.packed).unwrap();
        assert_says(&push(&running, &module.name, &bytes).unwrap(), &format!("new-{kind}: loaded into ring 1"));
        let again = Command::new(runner()).args(["new", "--kind", kind]).arg(&path).output().unwrap();
        assert_eq!(again.status.code(), Some(4));
        assert_says(&String::from_utf8_lossy(&again.stderr), "is there already");
    }
    // A warning in a folder of one's own is an error, in Rust as in C.
    let path = folder.path().join("new-other");
    let file = path.join("src/lib.rs");
    let source = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, source.replace("Ok(NewOther)", "return Ok(NewOther);")).unwrap();
    let c = folder.path().join("in-c");
    std::fs::create_dir(&c).unwrap();
    std::fs::write(c.join("in-c.c"), "#include <ringfence.h>\nint f(void) { int unused; return 0; }\n").unwrap();
    for (path, why) in [(path, "needless_return"), (c, "unused-variable")] {
        let output = Command::new(runner()).arg("lint").arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(4), "{}", path.display());
        assert_says(&String::from_utf8_lossy(&output.stderr), why);
    }
    for line in [
        "ip addr add 10.9.0.1/24 dev eth0",
        "ip",
        "rmmod new-fs",
        "mount disk0 /mnt -t new-fs -o ro",
        "ls -l /mnt",
        "sha256sum /mnt/first",
        "reload new-fs",
        "umount /mnt",
        "blkcheck disk0 0 256 1",
        "tell new-other x",
        "reload new-nic",
        "reload new-block",
    ] {
        run_well(&mut running, line);
    }
    leave(running);
}

/// `dev` pushes at each save, and shows the compiler's errors, the driver's log, its faults with
/// their source lines, and the reloads that they undo.
#[test]
fn each_save_is_pushed_and_what_comes_of_it_is_shown() {
    let path = ringfence::project().join("drivers/hello-c/hello-c.c");
    let source = std::fs::read_to_string(path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("hello-c");
    std::fs::create_dir(&own).unwrap();
    let save = |source: &str| std::fs::write(own.join("hello-c.c"), source).unwrap();
    save(&source);
    let mut running = at_prompt(bare(""));
    let name = running.session().parent().unwrap().file_name().unwrap().to_string_lossy().into_owned();
    let mut dev = Command::new(runner());
    dev.arg("dev").arg(&own).args(["--trace", "--system", &name]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut dev = dev.spawn().unwrap();
    let (said, heard) = mpsc::channel();
    for output in [Box::new(dev.stdout.take().unwrap()) as Box<dyn Read + Send>, Box::new(dev.stderr.take().unwrap())] {
        let said = said.clone();
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).all(|line| said.send(line).is_ok())
        });
    }
    let wait = |part: &str| loop {
        let line = heard.recv_timeout(TIME_LIMIT).unwrap_or_else(|_| panic!("'{part}' is not shown"));
        if line.contains(part) {
            return line;
        }
    };
    wait("hello-c: loaded into ring 1, slot 0 (");
    save(&source.replace("int64_t rf_upcall(", "int64_t rf_upcal("));
    wait("not pushed: ");
    let faulty = source
        .replace("case RF_COMMAND:", "case RF_COMMAND: { volatile uintptr_t at = 16; *(volatile int *)at = 1; }\n");
    assert_ne!(faulty, source);
    save(&faulty);
    wait("hello-c#2 ");
    assert_says(&outcome(&mut running, "tell hello-c x").unwrap(), "the driver was ended");
    wait("hello-c: the reload is undone");
    let line = source_line(&faulty, "volatile uintptr_t at");
    wait("fault: hello-c: #PF writing 0x10");
    let place = wait("    at rf_upcall (hello-c#2+0x");
    assert!(place.ends_with(&format!("hello-c.c:{line}")), "{place}");
    run_well(&mut running, "tell hello-c last");
    wait("> command(\"last\")");
    leave(running);
    wait("the system has ended");
    assert_eq!(dev.wait().unwrap().code(), Some(4));
}
