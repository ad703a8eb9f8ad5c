//! `cargo run -- bench` prints every row that it promises. The measured times are not checked here.

use ringfence::bench::files;
use ringfence::profile::{Options, measure};
use ringfence::toolchain::Toolchain;
use ringfence_abi::manifest::DomainKind;
use ringfence_link::event::Row;
use ringfence_tests::{boot_badly, boot_well, machine, system};
use std::process::Command;
use tempfile::TempDir;

/// The benchmark does not wait for ever for a device that keeps interrupting and delivers nothing.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_driver_without_answers_does_not_hold_the_benchmark() {
    let mut machine = machine("insmod rogue-nic; tell rogue-nic silent; bench nic/rx; lsmod; bench nope");
    machine.contents.autoload = false;
    let run = boot_badly(&machine, 2);
    let errors: Vec<&str> = run.errors().into_iter().map(|(_, error)| error).collect();
    let nope = "no row was measured whose name begins with 'nope': is its driver loaded?";
    assert_eq!(errors, ["the router does not answer", nope]);
}

/// Both drivers serve again within five million instructions after their end, and after a reload.
/// At one instruction per nanosecond, as QEMU counts, these are 5 ms. A reload takes 4.7 million on
/// QEMU 10. A guest that waits for the disk of a busy host takes interrupts of its clock meanwhile,
/// so that the median of the reloads is compared, and the slowest of the restarts.
#[test]
fn drivers_serve_again_within_five_million_instructions() {
    let mut machine = machine("ip; lsblk; bench recovery --instructions; bench reload --instructions");
    machine.icount = true;
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_well(&machine);
    let rows = text.rows();
    let served: Vec<_> = rows.iter().filter(|row| row.name.ends_with("-served")).collect();
    assert_eq!(served.len(), 4, "{text}");
    let most = |row: &Row| if row.name.starts_with("reload/") { row.median } else { row.p99 };
    assert!(served.iter().all(|row| (10_000.0..5_000_000.0).contains(&most(row))), "{served:?}");
}

/// At one instruction per nanosecond, this is a millisecond.
#[test]
fn no_service_keeps_interrupts_off_for_a_million_instructions() {
    let mut machine = machine("bench off --instructions");
    machine.icount = true;
    let text = boot_well(&machine);
    let longest: Vec<f64> = text.rows().iter().map(|row| row.p99).collect();
    assert!(longest.len() >= 4 && longest.iter().all(|count| (1000.0..1_000_000.0).contains(count)), "{text}");
}

/// Instructions of an operation by a driver in ring 1: the row of `bench`, its batch, the count.
/// `cargo run -- profile ROW --batch N` says where they go.
const INSTRUCTIONS: [(&str, &str, Option<u64>, f64); 19] = [
    ("call/gate", "paged", None, 53.1),
    ("upcall", "paged", None, 239.0),
    ("nic/tx", "paged", Some(1), 654.1),
    ("nic/tx", "paged", Some(8), 207.1),
    ("nic/tx", "paged", Some(32), 159.1),
    ("nic/rx", "paged", Some(1), 898.3),
    ("nic/rx", "paged", Some(8), 390.8),
    ("nic/rx", "paged", Some(32), 334.3),
    ("nic/rtt", "paged", Some(1), 884.0),
    ("icmp/rtt", "paged", Some(1), 7307.0),
    ("scsi/read4k/depth32", "paged", Some(32), 1190.9),
    ("call/gate", "segmented", None, 71.2),
    ("upcall", "segmented", None, 230.0),
    ("nic/tx", "segmented", Some(1), 675.1),
    ("nic/tx", "segmented", Some(32), 170.5),
    ("nic/rx", "segmented", Some(1), 959.5),
    ("nic/rx", "segmented", Some(32), 372.7),
    ("icmp/rtt", "segmented", Some(1), 7356.0),
    ("scsi/read4k/depth32", "segmented", Some(32), 1267.4),
];

/// A change that makes an operation longer by more than 3 % is noticed here. A change that makes it
/// shorter by as much asks for a new count in the table, as the old count would let it grow again.
/// The fastest sample is compared, and no smaller batch of reads: a guest that waits for the disk
/// of a busy host takes interrupts of its clock meanwhile.
#[test]
fn no_operation_needs_more_instructions_than_it_did() {
    let mut machine = machine("bench --instructions");
    machine.icount = true;
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_well(&machine);
    let rows = text.rows();
    let has_32 = Toolchain::find().unwrap().has_32();
    let off: Vec<String> = INSTRUCTIONS
        .iter()
        .filter(|(_, kind, ..)| *kind == "paged" || has_32)
        .filter_map(|(name, kind, batch, before)| {
            let is_it = |row: &&&Row| row.name == *name && row.batch == *batch && row.kind.as_deref() == Some(kind);
            let now = rows.iter().find(is_it).map(|row| row.range[0]);
            // The busier the host is, the more reads are done at once, and the fewer interrupts
            // come. An echo request took 7,440 instructions on QEMU 10 when it took 8,880 on 7.2;
            // nobody has looked for the reason.
            let differs = name.starts_with("scsi/") || name.starts_with("icmp/");
            let least = if differs { 0.0 } else { before * 0.97 };
            let is_near = now.is_some_and(|now| (least..=before * 1.03).contains(&now));
            (!is_near).then(|| format!("{name}, {kind}, batch {batch:?}: {before} before, {now:?} now"))
        })
        .collect();
    assert!(off.is_empty(), "instructions of an operation:\n{}", off.join("\n"));
    // The loss is that of ring 1 against ring 0, for each kind, in percent.
    let frames = |ring: u8| rows.iter().filter(move |row| row.name == "nic/tx" && row.ring == Some(ring));
    assert!(frames(1).count() >= 3);
    for row in frames(1) {
        let trusted = frames(0).find(|trusted| trusted.batch == row.batch).unwrap();
        let loss = 100.0 * (row.median / trusted.median - 1.0);
        assert!(row.loss.is_some_and(|said| (said - loss).abs() < 1.0), "{row:?} beside {trusted:?}");
    }
}

/// Instructions of an operation on files through paged domains: the row of `bench`, the count.
/// `cargo run -- profile ROW --outermost` says where they go.
const INSTRUCTIONS_OF_FILES: [(&str, f64); 4] =
    [("fs/fat/write", 103_000.0), ("fs/fat/read", 51_600.0), ("fs/fat/names", 21_700.0), ("fs/ext/read", 81_400.0)];

/// As above, for files, but a tenth more is allowed: a guest that waits for the disk of a busy host
/// takes interrupts meanwhile, in all samples.
#[test]
fn no_operation_on_files_needs_more_instructions_than_it_did() {
    let directory = TempDir::new().unwrap();
    let mut machine = files::add(&machine(""), directory.path()).unwrap();
    machine.contents.exec = Some(format!("{}; bench fs --instructions --ring 1 --kind paged", files::mount(&machine)));
    machine.icount = true;
    let text = boot_well(&machine);
    let rows = text.rows();
    let counts = INSTRUCTIONS_OF_FILES.map(|(name, before)| {
        let row = rows.iter().find(|row| row.name == name).unwrap_or_else(|| panic!("no {name} in\n{text}"));
        (name, before, row.range[0])
    });
    assert!(counts.iter().all(|(_, before, now)| (1000.0..before * 1.1).contains(now)), "{counts:?}");
}

/// The documents promise less than 15 % of the instructions of reads. The fastest sample with a
/// trace is compared: a guest that waits for the disk of a busy host takes interrupts meanwhile.
#[test]
fn a_trace_costs_a_seventh_at_most() {
    let mut machine = machine("bench trace/ --instructions");
    machine.icount = true;
    let disk = ringfence::machine::empty_disk().unwrap();
    machine.disks = vec![disk.path().to_path_buf().into()];
    let text = boot_well(&machine);
    let rows = text.rows();
    let row = |name: &str| *rows.iter().find(|row| row.name == name && row.ring == Some(1)).unwrap();
    let cost = row("trace/on").range[0] / row("trace/off").median;
    assert!(cost < 1.15, "{cost}: {:?}", [row("trace/off"), row("trace/on")]);
}

/// An unbatched frame takes one upcall. In a paged domain that is an IRETQ, a far call through the
/// return gate and two writes of CR3, and no load of a segment register that is null already. In a
/// segmented domain it is a far return and a SYSCALL.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_model_counts_what_a_crossing_executes() {
    ringfence_tests::system();
    let output =
        Command::new(ringfence_tests::runner()).args(["bench", "nic/tx", "--model", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let count = |what: &str, kind: Option<&str>| {
        let is_it = |row: &&serde_json::Value| {
            row["name"] == what && row["batch"] == 1 && row.get("kind").and_then(serde_json::Value::as_str) == kind
        };
        rows.iter().find(is_it).unwrap_or_else(|| panic!("no {what} in\n{text}"))["median"].as_f64().unwrap()
    };
    let has_32 = crate::segments::are_built();
    let expected = [
        ("far-calls", 1.0, 0.0),
        ("far-returns", 0.0, 1.0),
        ("syscalls", 0.0, 1.0),
        ("iretq", 1.0, 0.0),
        ("cr3-writes", 2.0, 0.0),
        ("segment-loads", 0.0, 0.0),
    ];
    for (event, in_paged, in_segmented) in expected {
        let event = format!("model/nic/tx/{event}");
        let is_near = |kind, expected: f64| {
            let counted = count(&event, kind);
            // An interrupt may come in between.
            assert!((counted - expected).abs() < 0.02, "{event} {kind:?}: {counted}");
        };
        is_near(None, 0.0);
        is_near(Some("paged"), in_paged);
        if has_32 {
            is_near(Some("segmented"), in_segmented);
        }
    }
    assert!(count("model/nic/tx", Some("paged")) > count("model/nic/tx", None));
    if has_32 {
        assert!(count("model/nic/tx", Some("segmented")) < count("model/nic/tx", Some("paged")));
    }
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_profile_has_the_functions_of_kernel_and_driver() {
    let profile = |name: &str, batch| {
        let options = Options {
            name: name.to_string(),
            ring: 1,
            kind: DomainKind::Paged,
            batch,
            outermost: false,
            json: false,
            machine: machine(""),
        };
        measure(system(), &options)
    };
    let found = profile("nic/tx", Some(32)).unwrap();
    assert_eq!((found.name.as_str(), found.batch), ("nic/tx", 32));
    let share = |program: &str, part: &str| -> f64 {
        let is_it = |one: &&(String, String, f64)| one.0 == program && one.1.contains(part);
        found.shares.iter().filter(is_it).map(|(.., share)| share).sum()
    };
    assert!((share("kernel", "") + share("e1000", "") - 1.0).abs() < 0.01, "{:?}", found.shares);
    // Both do a part of the work that is worth the name, and inlined functions have their names.
    assert!(share("kernel", "Frames<Q,M>::send") > 0.05 && share("e1000", "FrameRing") > 0.05, "{:?}", found.shares);
    let refused = |name: &str, batch| profile(name, batch).err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused("nic/tx", None).contains("'nic/tx' is more than one row: nic/tx --batch 1, nic/tx --batch 8"));
    assert!(
        refused("nic/tx", Some(7)).contains("no row was measured whose name begins with 'nic/tx' and whose batch is 7")
    );
    for name in ["nope", "call/gate"] {
        assert!(refused(name, None).contains(&format!("'{name}' is no whole operation")));
    }
}

#[test]
#[ignore = "long: `make test-all` runs it"]
fn every_row_is_there() {
    ringfence_tests::system();
    let directory = tempfile::tempdir().unwrap();
    let output = Command::new(ringfence_tests::runner())
        .args(["bench", "--json", "--out"])
        .arg(directory.path())
        .output()
        .expect("the runner runs");
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let rows: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let has = |name: &str, ring: Option<u64>, batch: Option<u64>, unit: &str| {
        rows.iter().any(|row| {
            row["name"] == name && row["ring"].as_u64() == ring && row["batch"].as_u64() == batch && row["unit"] == unit
        })
    };
    let mut missing = Vec::new();
    let mut expect = |name: &str, ring, batch, unit: &str| {
        if !has(name, ring, batch, unit) {
            missing.push(format!("{name}, ring {ring:?}, batch {batch:?}, {unit}"));
        }
    };
    for unit in ["ticks", "instructions"] {
        for (name, ring) in
            [("near", 0), ("trusted", 0), ("cr3", 0), ("gate", 1), ("gate-shared", 1), ("bare", 1), ("int", 1)]
        {
            expect(&format!("call/{name}"), Some(ring), None, unit);
        }
        expect("call/syscall", Some(3), None, unit);
        expect("upcall/syscall", Some(3), None, unit);
    }
    for ring in [0, 1] {
        expect("upcall", Some(ring), None, "ticks");
        for batch in [1, 8, 32] {
            expect("nic/tx", Some(ring), Some(batch), "frames/s");
            expect("nic/tx", Some(ring), Some(batch), "instructions");
            expect("nic/tx-1514", Some(ring), Some(batch), "frames/s");
            expect("nic/rx", Some(ring), Some(batch), "frames/s");
            expect("scsi/read4k/depth32", Some(ring), Some(batch), "reads/s");
        }
        expect("nic/rtt", Some(ring), Some(1), "us");
        expect("scsi/read4k/depth1", Some(ring), Some(1), "reads/s");
        expect("scsi/read4k/depth1", Some(ring), Some(1), "instructions");
        expect("scsi/seq", Some(ring), Some(8), "MB/s");
        expect("icmp/rtt", Some(ring), Some(1), "us");
        expect("scsi/write4k/depth1", Some(ring), Some(1), "writes/s");
        expect("scsi/write4k/depth32", Some(ring), Some(32), "writes/s");
        expect("scsi/seq-write", Some(ring), Some(8), "MB/s");
        for (name, unit) in [("tcp/in", "MB/s"), ("tcp/out", "MB/s"), ("udp/rtt", "us")] {
            expect(name, Some(ring), None, unit);
        }
    }
    for trace in ["trace/off", "trace/on"] {
        expect(trace, Some(1), Some(8), "reads/s");
        expect(trace, Some(1), Some(8), "instructions");
    }
    for batch in [1, 8, 32] {
        expect("loss/nic", None, Some(batch), "%");
        expect("loss/scsi", None, Some(batch), "%");
    }
    for driver in ["nic", "scsi"] {
        for part in ["", "-reset", "-served", "-dma"] {
            expect(&format!("recovery/{driver}{part}"), None, None, "us");
            expect(&format!("recovery/{driver}{part}"), None, None, "instructions");
        }
        for part in ["", "-served"] {
            expect(&format!("reload/{driver}{part}"), None, None, "us");
            expect(&format!("reload/{driver}{part}"), None, None, "instructions");
        }
    }
    for unit in ["ticks", "instructions"] {
        expect("fence/attach", None, None, unit);
        for batch in [1, 32] {
            expect("fence/map", None, Some(batch), unit);
            expect("fence/unmap", None, Some(batch), unit);
            expect("fence/invalidate", None, Some(batch), unit);
        }
    }
    expect("boot/prompt", None, None, "ms");
    expect("boot/cpu", None, None, "ms");
    expect("ratio/gate-bare", None, None, "ratio");
    assert!(missing.is_empty(), "missing:\n{}", missing.join("\n"));
    let has_of_kind = |name: &str, kind: &str, batch: Option<u64>, unit: &str| {
        rows.iter().any(|row| {
            row["name"] == name && row["kind"] == kind && row["batch"].as_u64() == batch && row["unit"] == unit
        })
    };
    let kinds = if Toolchain::find().unwrap().has_32() { &["paged", "segmented"][..] } else { &["paged"] };
    for kind in kinds {
        for (name, batch, unit) in [
            ("call/gate", None, "ticks"),
            ("upcall", None, "instructions"),
            ("upcall/in-turn", None, "ticks"),
            ("nic/tx", Some(32), "frames/s"),
            ("nic/rx", Some(1), "instructions"),
            ("icmp/rtt", Some(1), "us"),
            ("scsi/read4k/depth32", Some(32), "reads/s"),
            ("scsi/seq-write", Some(8), "MB/s"),
            ("tcp/out", None, "MB/s"),
            ("loss/nic", Some(32), "%"),
            ("loss/scsi", Some(1), "% instructions"),
            ("crossings/nic-tx", Some(1), "1/s"),
        ] {
            assert!(has_of_kind(name, kind, batch, unit), "{name}, {kind}, {batch:?}, {unit}");
        }
        let ratio = if *kind == "paged" { "ratio/gate-bare" } else { "ratio/gate-shared" };
        assert!(has_of_kind(ratio, kind, None, "ratio"), "{ratio}");
    }
    // The rows exist for one domain and for all domains.
    for domains in [3, 64] {
        assert!(rows.iter().any(|row| row["name"] == "call/gate" && row["domains"] == domains));
    }
    let page = std::fs::read_to_string(directory.path().join("bench.html")).unwrap();
    assert!(page.contains("<svg") && page.contains("scsi/read4k/depth32"));
}
