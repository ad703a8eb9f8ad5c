//! Segmented domains: drivers as 32-bit code, which serve as paged ones do and reach no more.

use crate::changed::with_other_manifest;
use crate::push::{answering, push, undone};
use crate::sandbox::{by_this_qemu, under_bochs};
use ringfence::build::System;
use ringfence::campaign::Outcome;
use ringfence::machine::{End, Machine, Running};
use ringfence::session::Session;
use ringfence::toolchain;
use ringfence::{campaign, conform, soak};
use ringfence_abi::manifest::{DomainKind, MAGIC, Manifest, PREFERS_PAGED, PREFERS_SEGMENTED};
use ringfence_link::event::Event;
use ringfence_tests::attacks::{self, assert_all, carry_out, segment};
use ringfence_tests::filesystem;
use ringfence_tests::gdb::Gdb;
use ringfence_tests::{
    Ran, assert_intact, assert_says, at_prompt, bare, boot, boot_well, leave, machine, paged, run_well, runner, system,
};
use std::mem::offset_of;
use std::process::Command;
use std::time::Duration;

/// Returns whether there are modules for segmented domains: they need a target of the compiler that
/// cannot be had everywhere (`boot/setup.sh` says so). Where `RINGFENCE_NEEDS_32` is set, there
/// must be.
pub fn are_built() -> bool {
    let are_built = toolchain::Toolchain::find().unwrap().has_32();
    assert!(are_built || std::env::var_os("RINGFENCE_NEEDS_32").is_none(), "boot/setup.sh could not add the target");
    if !are_built {
        eprintln!("not tried: no modules for segmented domains are built");
    }
    are_built
}

/// Returns the kinds of the driver called `name` that `lsmod` has shown, one after the other.
fn kinds(text: &Ran, name: &str) -> Vec<String> {
    text.drivers(name).iter().map(|driver| driver.kind.to_string()).collect()
}

/// Network card and disk are served by 32-bit code, also after it was ended.
#[test]
fn segmented_drivers_serve_and_come_back() {
    if !are_built() {
        return;
    }
    let mut machine = machine(
        "insmod e1000 --kind segmented; insmod virtio-scsi --kind segmented; policy e1000 restart; \
         policy virtio-scsi restart; ping 10.0.2.2 -c 2; blkcheck disk0 0 3000 1; kill e1000; kill virtio-scsi; \
         ping 10.0.2.2 -c 2; blkcheck disk0 0 3000 2; lsmod; modinfo e1000.32; modinfo e1000",
    );
    machine.contents.autoload = false;
    machine.scratch = true;
    let text = boot_well(&machine);
    assert_eq!(text.matches("2 sent, 2 answered, 0 lost").count(), 2, "{text}");
    assert_eq!(text.matches("3000 blocks were written and read back").count(), 2, "{text}");
    for name in ["e1000", "virtio-scsi"] {
        assert_eq!(kinds(&text, name), ["segmented"], "{text}");
    }
    assert_eq!((text.restarts("e1000"), text.restarts("virtio-scsi")), (1, 1), "{text}");
    assert_says(&text, "kind      segmented");
    assert_says(&text, "kind      paged");
}

/// A reload puts the build for the other kind in a driver's place. Its users notice nothing, and no
/// memory is gone.
#[test]
fn a_running_driver_moves_between_the_kinds() {
    if !are_built() {
        return;
    }
    let round = "reload e1000 e1000.32; reload virtio-scsi virtio-scsi.32; wait; ping 10.0.2.2 -c 1; lsmod; \
                 blkcopy disk0 0 disk0 40000 8000 &; reload virtio-scsi virtio-scsi; reload e1000 e1000; wait; \
                 ping 10.0.2.2 -c 1; lsmod; mem; ";
    let mut machine = machine(&format!(
        "lsblk; blkwrite disk0 0 8000 5; blkcopy disk0 0 disk0 20000 8000 &; {round}{round}{round}blkread disk0 0 8000; \
         blkread disk0 20000 8000; blkread disk0 40000 8000"
    ));
    machine.scratch = true;
    let text = boot_well(&machine);
    assert_eq!(text.matches("1 sent, 1 answered, 0 lost").count(), 6, "{text}");
    // Each may be throttled for the time that its start took.
    for name in ["e1000", "virtio-scsi"] {
        assert_eq!(kinds(&text, name), ["segmented", "paged"].repeat(3), "{text}");
    }
    let data = text.data();
    let [first, .., other, last] = &data[data.len() - 3..] else { panic!("{text}") };
    assert!(first == other && other == last, "{data:?}");
    let free = text.free_frames();
    assert!(free.len() == 3 && free[1] == free[2], "{free:?}");
}

/// The policy says into which kind of domain modules go, at boot too. A module's manifest has
/// precedence, and a person's word before both. A request that needs a paged driver chooses that
/// kind.
#[test]
fn policy_manifest_and_person_choose_the_kind() {
    if !are_built() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "kind = \"segmented\"\ndevelopment = true\n").unwrap();
    let preferring = |name: &str, flag: u32| {
        let built = system().modules.iter().find(|module| module.name == name).expect("the module");
        let mut bytes = std::fs::read(&built.packed).unwrap();
        let magic = bytes.windows(8).position(|bytes| bytes == MAGIC.to_le_bytes()).expect("a manifest");
        let flags = magic + offset_of!(Manifest, flags);
        bytes[flags..flags + 4].copy_from_slice(&flag.to_le_bytes());
        let path = folder.path().join(format!("{name}.rfm"));
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let mut machine = machine(
        "insmod null; insmod null --kind paged; insmod null --ring 0; insmod template; policy; lsmod; \
         reload template --kind segmented; reload null --kind paged; fails reload null --kind flat; lsmod",
    );
    machine.contents.modules.extend(["template", "template.32"].map(|name| preferring(name, PREFERS_PAGED)));
    machine.contents.etc_files.push(("policy.toml".into(), policy));
    let text = boot_well(&machine);
    for (name, expected) in [
        ("e1000", ["segmented", "segmented"]),
        ("virtio-scsi", ["segmented", "segmented"]),
        ("null", ["segmented", "paged"]),
        ("null.2", ["paged", "paged"]),
        ("null.3", ["paged", "paged"]),
        ("template", ["paged", "segmented"]),
    ] {
        assert_eq!(kinds(&text, name), expected, "{name}\n{text}");
    }
    assert_says(&text, "domains are segmented, unless a module or a person prefers others");
    // Without a policy, a module's preference is enough.
    let mut machine = paged(bare("insmod template; insmod null; lsmod"));
    machine.contents.modules.extend(["template", "template.32"].map(|name| preferring(name, PREFERS_SEGMENTED)));
    let text = boot_well(&machine);
    assert_eq!(text.drivers("template")[0].kind, "segmented");
    assert_eq!(text.drivers("null")[0].kind, "paged");
}

/// `bench` measures both kinds of domain, and leaves the driver as it was.
#[test]
fn both_kinds_are_measured_in_one_run() {
    if !are_built() {
        return;
    }
    let mut machine = paged(machine(
        "bench nic/tx --batch 32; bench scsi/read4k/depth1; bench nic/tx --batch 8 --kind segmented; \
         bench nic/tx --batch 8 --ring 0; lsmod; fails bench nic/tx --kind segmented --ring 0",
    ));
    machine.scratch = true;
    let text = boot_well(&machine);
    let rows = text.rows().into_iter().map(|row| (&*row.name, row.batch.unwrap_or(0), row.ring, row.kind.as_deref()));
    let all = |name, batch| {
        [(Some(0), None), (Some(1), Some("paged")), (Some(1), Some("segmented"))]
            .map(|(ring, kind)| (name, batch, ring, kind))
    };
    let only = [("nic/tx", 8, Some(1), Some("segmented")), ("nic/tx", 8, Some(0), None)];
    let expected: Vec<_> = all("nic/tx", 32).into_iter().chain(all("scsi/read4k/depth1", 1)).chain(only).collect();
    assert_eq!(rows.collect::<Vec<_>>(), expected, "{text}");
    assert_eq!((&*text.drivers("e1000")[0].kind, &*text.drivers("virtio-scsi")[0].kind), ("paged", "paged"));
    assert_says(&text, "a segmented driver is not in ring 0");
    // Not every driver is built for both.
    let mut other = ringfence_tests::machine("bench nic/tx --batch 8; fails bench nic/tx --kind segmented");
    other.nic = "rtl8139".into();
    let given = system().modules.iter().find(|module| module.name == "rtl8139").expect("the module");
    other.contents.modules.push(given.packed.clone());
    let text = boot_well(&other);
    assert_eq!(text.rows().len(), 2, "{text}");
    assert_says(&text, "there is no module 'rtl8139.32' in the ramdisk");
    // A filesystem and its disk are measured in both kinds, and are of their own afterwards.
    let directory = tempfile::tempdir().unwrap();
    let image = filesystem::fat(directory.path(), 8 << 10, 16);
    let script = "mount disk0 /fat; bench fs/fat/names; lsmod; umount /fat; fails bench fs";
    let mut files = paged(ringfence_tests::machine(script));
    files.disks = vec![std::path::PathBuf::from(image.path().unwrap()).into()];
    let text = boot_well(&files);
    let rows: Vec<_> = text.rows().into_iter().map(|row| (&*row.name, row.ring, row.kind.as_deref())).collect();
    let expected = [(Some(0), None), (Some(1), Some("paged")), (Some(1), Some("segmented"))];
    assert_eq!(rows, expected.map(|(ring, kind)| ("fs/fat/names", ring, kind)), "{text}");
    assert_eq!((&*text.drivers("fat")[0].kind, &*text.drivers("virtio-scsi")[0].kind), ("paged", "paged"));
    filesystem::assert_clean(&image);
    // A segmented driver is not in ring 0, and its paged build is.
    let mut other = ringfence_tests::machine(
        "insmod e1000.32; bench nic/tx --batch 8 --ring 0; lsmod; fails bench recovery --kind paged; \
         fails bench fs --kind segmented",
    );
    other.contents.autoload = false;
    let text = boot_well(&other);
    let rows: Vec<_> = text.rows().into_iter().map(|row| (row.ring, row.kind.as_deref())).collect();
    assert_eq!((rows, &*text.drivers("e1000")[0].kind), (vec![(Some(0), None)], "segmented"), "{text}");
    assert_says(&text, "no row was measured in paged domains whose name begins with 'recovery'");
    assert_says(&text, "no filesystem is mounted");
}

/// A machine that lacks a property on which segmented domains rely is found at boot, and refuses
/// the kind: here the code of the self-test finds something else than it expects.
#[test]
fn a_machine_that_does_not_confine_32_bit_code_refuses_it() {
    if !are_built() {
        return;
    }
    // The reason, and the change of the code: old bytes, the index of their place, and new bytes.
    let compares = [0x3d, 0x47, 0x4e, 0x49, 0x52];
    let other = [0x3d, 0x45, 0x4e, 0x49, 0x52];
    let changes: [(&str, &[u8], usize, &[u8]); 9] = [
        ("32-bit code is decoded as 64-bit code", &[0x3c, 1], 0, &[0x3c, 2]),
        ("a base and a displacement are not cut off to 32 bits", &compares, 0, &other),
        ("a base and an index are not cut off to 32 bits", &compares, 1, &other),
        ("a scaled index is not cut off to 32 bits", &compares, 2, &other),
        // JC, then JNC.
        ("the place of a bit is not cut off to 32 bits", &[0x72, 3, 0x83, 0xca, 0x10], 0, &[0x73]),
        ("the code segment is another one", &[0x83, 0xf8, 0x0d], 0, &[0x83, 0xf8, 0x1d]),
        // The own segment cannot be looked at; each segment of code is one of 64 bits.
        ("ring 1 can have a segment of 64-bit or conforming code", &[0x74, 3, 0x83, 0xca, 0x40], 0, &[0x75]),
        ("ring 1 can have a segment of 64-bit or conforming code", &[0xa9, 0, 4, 0x20, 0], 0, &[0xa9, 0, 0x10, 0, 0]),
        // An address that names nothing, as one above 4 GiB does.
        ("the self-test: the driver was ended", &[0xbb, 0, 1, 0x43, 0xc0], 0, &[0xbb, 0, 1, 0x53, 0xc0]),
    ];
    for (why, before, number, after) in changes {
        let text = refusing(before, number, after, &bare("fails insmod null.32; insmod null; policy"));
        assert_says(&text, &format!("warning: segmented domains are refused: {why}"));
        assert_says(&text, &format!("as expected: null.32: segmented domains are refused on this machine: {why}"));
        assert_says(&text, &format!("segments  refused: {why}"));
    }
    // Drivers that the policy would have segmented are paged, and measured as such.
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "kind = \"segmented\"\ndevelopment = true\n").unwrap();
    let mut machine = machine(
        "fails insmod null --kind segmented; insmod null; fails reload null --kind segmented; lsmod; rmmod null; \
         bench nic/tx --batch 8; bench call/gate; fails bench call/gate --kind segmented",
    );
    machine.contents.etc_files.push(("policy.toml".into(), policy));
    let text = refusing(&compares, 0, &other, &machine);
    assert_eq!(text.drivers("e1000")[0].kind, "paged", "{text}");
    assert_eq!(text.drivers("null")[0].kind, "paged", "{text}");
    assert!(text.rows().len() > 4 && text.rows().iter().all(|row| row.kind.as_deref() != Some("segmented")), "{text}");
    // The unchanged code says that all is well, also before modules that only a person loads.
    assert_says(&boot_well(&bare("policy")), "segments  32-bit code stays below 4 GiB, by 7 checks at boot");
}

/// Runs a machine with a kernel in whose self-test the `number`th place with the bytes `before` has
/// `after` in their place.
fn refusing(before: &[u8], number: usize, after: &[u8], machine: &Machine) -> Ran {
    let mut kernel = std::fs::read(&system().packed_kernel).unwrap();
    // The code ends with this word, and is shorter than that.
    const MOST_BYTES: usize = 256;
    let end = kernel.windows(8).position(|bytes| bytes == b"confined").expect("the self-test");
    let code = &kernel[end - MOST_BYTES..end];
    let mut places = code.windows(before.len()).enumerate().filter(|(_, bytes)| *bytes == before);
    let place = end - MOST_BYTES + places.nth(number).expect("the instruction").0;
    kernel[place..place + after.len()].copy_from_slice(after);
    let folder = tempfile::tempdir().unwrap();
    let packed_kernel = folder.path().join("kernel");
    std::fs::write(&packed_kernel, kernel).unwrap();
    let run = machine.run(&System { packed_kernel, ..system().clone() }, |_| ()).unwrap();
    assert_eq!(run.end, End::Done, "{}", run.text());
    Ran::from(run)
}

/// A driver sleeps in a service and goes on behind it. A time has more than 32 bits.
#[test]
fn a_segmented_driver_sleeps_and_goes_on() {
    if !are_built() {
        return;
    }
    let text = boot_well(&bare("insmod watchman --kind segmented; tell watchman nap 20; tell watchman nap 4500"));
    let slept = |line: &str| line.strip_prefix("watchman| slept for ")?.strip_suffix(" ms")?.parse::<u64>().ok();
    let slept: Vec<u64> = text.lines().filter_map(slept).collect();
    assert!(slept.len() == 2 && slept[0] >= 20 && slept[1] >= 4500, "{slept:?}");
}

/// A report has the source line and the 32-bit instruction, and a trace the text that was passed.
#[test]
fn reports_and_traces_know_32_bit_code() {
    if !are_built() {
        return;
    }
    let mut machine = machine(
        "insmod rogue-segment; fails tell rogue-segment cli; insmod template.32; trace template tell template x; modinfo template.32; top; \
         insmod rogue-nic.32; fails tell rogue-nic over-dma",
    );
    machine.contents.autoload = false;
    let text = boot_well(&machine);
    // The registers and the words of the stack are those of 32-bit code.
    let report: Vec<&str> = text.lines().skip_while(|line| !line.contains("fault: rogue-nic: #PF")).take(16).collect();
    let starts = |start: &str| report.iter().any(|line| line.starts_with(start));
    assert!(starts("    eax=") && starts("    eip=004") && starts("    err=00000000"), "{report:#?}");
    assert!(!report.iter().any(|line| line.contains("r15=")), "{report:#?}");
    let stack = report.iter().find_map(|line| line.strip_prefix("    stack: ")).expect("a stack");
    assert!(stack.split(' ').count() == 6 && stack.split(' ').all(|word| word.len() == 8), "{stack}");
    assert!(report.iter().any(|line| line.starts_with("        rf_rogue_nic::RogueNic::alone+")), "{report:#?}");
    let exception = text.faults("rogue-nic")[0].exception.as_ref().expect("an exception");
    // For programs, RSP is the kernel's address of the driver's stack, as RIP and the fault's
    // address are.
    const RSP: usize = 4;
    let mut others = exception.registers.iter().enumerate().filter(|(number, _)| *number != RSP);
    assert!(others.all(|(_, register)| *register < 1 << 32), "{exception:x?}");
    assert_says(&text, "), drivers/rogue-segment/rogue-segment.c:");
    assert_says(&text, "    fa  cli");
    assert_says(&text, ", ring 1, segmented, slot 0, upcall ");
    assert_eq!(text.faults("rogue-segment")[0].domain_kind, "segmented");
    assert_says(&text, "ring 0    refused: it is segmented, and ring 0 is for 64-bit code");
    assert_says(&text, "template        other 1.32 ");
    assert_says(&text, "rf_log(info, \"was told 'x'\") = 0x0");
}

/// A request that a segmented driver cannot meet is refused, and the way to it is named.
#[test]
fn what_is_for_paged_drivers_is_refused() {
    if !are_built() {
        return;
    }
    let mut machine = machine(
        "insmod template; lsmod; fails ring template 0; fails promote template; lsmod; \
         fails insmod null.32 --ring 0; fails insmod null --kind segmented --debug; fails insmod null --kind flat; \
         fails insmod rogue-segment --kind paged",
    );
    machine.contents.autoload = false;
    // A given module takes the place of both builds of the project's.
    let template = system().modules.iter().find(|module| module.name == "template.32").expect("the module");
    machine.contents.modules.push(template.packed.clone());
    let text = boot_well(&machine);
    assert_eq!(kinds(&text, "template"), ["segmented", "segmented"]);
    assert_eq!(text.matches("template is segmented, and has no paged build").count(), 2, "{text}");
    assert_says(&text, "ring 0 is for 64-bit code: a segmented driver runs in ring 1 only");
    assert_says(&text, "gdb knows 64-bit code: a debugger stops paged drivers only");
    assert_says(&text, "'flat' is no kind; there are paged and segmented");
}

/// A driver that goes to ring 0 gets its paged build first, and says so. It stays as it is if the
/// policy does not admit that build, if a person has banned the module, or if its driver faulted,
/// in a domain of either kind.
#[test]
fn ring_0_gets_the_paged_build() {
    if !are_built() {
        return;
    }
    let commands = "ring e1000 0; lsmod; ping 10.0.2.2 -c 1; reload e1000 --kind segmented; lsmod; promote e1000; \
                    lsmod; insmod null; policy null ring0-never; fails ring null 0; lsmod; reload null --kind paged; \
                    fails ring null 0; rmmod e1000; insmod rogue-nic; policy rogue-nic restart; \
                    fails tell rogue-nic over-dma; fails ring rogue-nic 0; lsmod; policy rogue-nic restart; \
                    ring rogue-nic 0; fails tell rogue-nic over-dma; sleep 100; lsmod; policy rogue-nic restart; ring rogue-nic 0";
    let mut machine = machine(commands);
    machine.contents.kind = Some(DomainKind::Segmented);
    let text = boot_well(&machine);
    let shown: Vec<_> = text.drivers("e1000").iter().map(|driver| (driver.ring, driver.kind.to_string())).collect();
    let [paged, segmented] = ["paged", "segmented"].map(String::from);
    assert_eq!(shown, [(0, paged.clone()), (1, segmented), (0, paged.clone()), (0, paged)], "{text}");
    let says = "e1000: is paged now; 'reload e1000 --kind segmented' takes it back";
    assert_eq!(text.matches(says).count(), 2, "{text}");
    assert_eq!(text.matches("null stays in ring 1: it is for ring 1 only").count(), 2, "{text}");
    assert_eq!(kinds(&text, "null"), ["segmented", "paged", "paged"]);
    assert_says(&text, "rogue-nic stays in ring 1: it faulted once, in ring 1");
    // The paged build faulted in ring 0, and the one before it is back.
    assert_eq!(kinds(&text, "rogue-nic"), ["segmented", "segmented"]);
    assert_eq!(text.matches("rogue-nic: now in ring 0").count(), 2, "{text}");
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "kind = \"segmented\"\nadmit = [[\"signature\"]]\n").unwrap();
    let mut machine = ringfence_tests::machine("fails ring e1000 0; lsmod; policy");
    machine.contents.etc_files.push(("policy.toml".into(), policy));
    let text = boot_well(&machine);
    assert_says(&text, "e1000 stays in ring 1: its paged build may not run in ring 0: it is not signed");
    assert_eq!(kinds(&text, "e1000"), ["segmented"]);
}

/// A tool that knows 64-bit code only reloads a driver as paged, and says so: a watch of registers
/// or of memory, and gdb, for its driver or for all. A build that is pushed takes the place of
/// either kind.
#[test]
fn what_knows_paged_drivers_only_makes_them_paged() {
    if !are_built() {
        return;
    }
    let mut machine = machine("");
    machine.contents.autoload = false;
    let mut running = at_prompt(machine);
    let kind = |running: &mut Running, name: &str| {
        running.type_line("lsmod").unwrap();
        let kind = |event| match event {
            Event::Drivers(drivers) => {
                drivers.iter().find(|driver| driver.name == name).map(|one| one.kind.to_string())
            }
            _ => None,
        };
        running.wait_for_event("the driver", kind).unwrap()
    };
    run_well(&mut running, "insmod e1000 --kind segmented");
    run_well(&mut running, "insmod template --kind segmented");
    // A driver that cannot be watched stays as it is.
    assert_eq!(running.command("watch template mmio help").unwrap().as_deref(), Some("template has no device"));
    assert_eq!(kind(&mut running, "template"), "segmented");
    running.type_line("watch e1000 mmio ping 10.0.2.2 -c 1").unwrap();
    let says = "e1000: is paged now; 'reload e1000 --kind segmented' takes it back";
    running.wait_for(says).unwrap();
    running.wait_for("    * writes TDT 0x1").unwrap();
    assert_eq!(kind(&mut running, "e1000"), "paged");
    run_well(&mut running, "reload e1000 --kind segmented");
    assert_eq!(kind(&mut running, "e1000"), "segmented");
    let said = running.command("trace e1000 --watch 0x8000400000 help").unwrap();
    let refused = "e1000 is segmented, and its paged build has other addresses: 'reload e1000 --kind paged'";
    assert_eq!(said.as_deref(), Some(refused));
    running.type_line("trace e1000 --watch TDT ping 10.0.2.2 -c 1").unwrap();
    running.wait_for(says).unwrap();
    running.wait_for("    * TDT").unwrap();
    run_well(&mut running, "reload e1000 --kind segmented");
    assert_eq!(kind(&mut running, "e1000"), "segmented");
    let mut gdb = Gdb::start(&running, Some("e1000"));
    let set = gdb.run("break rf_e1000::E1000::transmit");
    assert!(set.contains("Breakpoint 1 at 0x80004"), "{set}");
    // gdb complains of a library of 32-bit code.
    let libraries = gdb.run("info sharedlibrary");
    assert!(libraries.contains("e1000") && !libraries.contains("template"), "{libraries}");
    gdb.give("continue");
    running.type_line("ping 10.0.2.2 -c 1 &").unwrap();
    let stopped = gdb.wait();
    assert!(stopped.contains("hit Breakpoint 1, rf_e1000::E1000::transmit") && stopped.contains(says), "{stopped}");
    gdb.leave();
    assert_eq!(kind(&mut running, "e1000"), "paged");
    assert_eq!(kind(&mut running, "template"), "segmented");
    run_well(&mut running, "reload e1000 --kind segmented");
    let mut gdb = Gdb::start(&running, None);
    let threads = gdb.run("info threads");
    assert!(threads.contains("template"), "{threads}");
    gdb.kill();
    assert_eq!(kind(&mut running, "e1000"), "paged");
    assert_eq!(kind(&mut running, "template"), "paged");
    run_well(&mut running, "reload template --kind segmented");
    let built = system().modules.iter().find(|module| module.name == "template").expect("the module");
    let mut session = Session::connect(&running.session()).unwrap();
    let bytes = std::fs::read(&built.packed).unwrap();
    let pushed = session.push("template", &bytes, None, &[], false, |_| ()).unwrap();
    assert!(pushed.is_ok_and(|done| done.starts_with("template: template#1 ")));
    assert_eq!(kind(&mut running, "template"), "paged");
    // Nor is a driver watched that becomes segmented meanwhile. It says so.
    running.type_line("watch e1000 mmio reload e1000 --kind segmented").unwrap();
    running.wait_for("e1000: it is segmented, where no registers are watched").unwrap();
    run_well(&mut running, "rmmod e1000");
    leave(running);
}

/// A build that was pushed comes before one of the ramdisk for the other kind, which may be older.
/// A build that faults on probation is not the module's file any more, whichever kind was there
/// before.
#[test]
fn a_pushed_build_for_the_other_kind_is_the_newest() {
    if !are_built() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "kind = \"segmented\"\ndevelopment = true\n").unwrap();
    let mut machine = bare("");
    machine.contents.etc_files.push(("policy.toml".into(), policy));
    let mut running = at_prompt(machine);
    let template = |running: &mut Running| {
        running.type_line("lsmod").unwrap();
        let found = |event| match event {
            Event::Drivers(drivers) => {
                drivers.iter().find(|driver| driver.name == "template").map(|one| (one.kind.to_string(), one.build))
            }
            _ => None,
        };
        running.wait_for_event("the driver", found).unwrap()
    };
    run_well(&mut running, "insmod template");
    assert_eq!(template(&mut running), ("segmented".into(), 0));
    let good = answering("template", 7, "");
    assert!(push(&running, "template", &good).is_ok());
    run_well(&mut running, "rmmod template");
    run_well(&mut running, "insmod template");
    assert_eq!(template(&mut running), ("paged".into(), 1));
    run_well(&mut running, "reload template --kind segmented");
    let bad = answering("template", 8, "if (operation == RF_COMMAND) __builtin_trap();");
    assert!(push(&running, "template", &bad).is_ok());
    assert_eq!(template(&mut running), ("paged".into(), 2));
    let ended = running.command("tell template x").unwrap();
    assert!(ended.is_some_and(|why| why.contains("the driver was ended")));
    undone(&mut running, "template");
    assert_eq!(template(&mut running), ("segmented".into(), 0));
    run_well(&mut running, "reload template --kind paged");
    assert_eq!(template(&mut running), ("paged".into(), 0));
    leave(running);
}

/// Drivers pass the tests of their class in segmented domains as well, a change of the kind under
/// load among them.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn segmented_drivers_pass_the_tests_of_their_class() {
    if !are_built() {
        return;
    }
    assert_passes("e1000.32", 18);
    assert_passes("virtio-scsi.32", 11);
}

fn assert_passes(name: &str, tests: usize) {
    let (name, machine) = (name.to_string(), Machine::default());
    let options = conform::Options { name, device: None, only: None, ring: None, machine, json: false };
    let outcomes = conform::outcomes(system(), &options, |_| ()).unwrap();
    assert_eq!(outcomes.len(), tests);
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.failure.is_some()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

/// Modules in C are built for both kinds: an address that they pass has 64 bits for the service.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn modules_in_c_run_in_segments() {
    if !are_built() {
        return;
    }
    let text = boot_well(&bare("insmod hello-c --kind segmented; tell hello-c a; lsmod; rmmod hello-c"));
    assert_says(&text, "hello-c| hello from C");
    assert_says(&text, "hello-c: 1 (0x1)");
    assert_says(&text, "hello-c| good-bye from C");
    assert_eq!(text.drivers("hello-c")[0].kind, "segmented");
    assert_passes("rtl8139-c.32", 18);
}

/// `.32` behind the name of a folder of one's own builds its module for segmented domains, in Rust
/// and in C.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn modules_in_folders_of_ones_own_are_built_for_both_kinds() {
    if !are_built() {
        return;
    }
    system();
    let folder = tempfile::tempdir().unwrap();
    let rust = folder.path().join("mine");
    let c = folder.path().join("in-c");
    assert!(Command::new(runner()).args(["new", "--kind", "scsi"]).arg(&rust).output().unwrap().status.success());
    std::fs::create_dir(&c).unwrap();
    let hello = std::fs::read_to_string(ringfence::project().join("drivers/hello-c/hello-c.c")).unwrap();
    std::fs::write(c.join("in-c.c"), hello.replace("\"hello-c\"", "\"in-c\"")).unwrap();
    let mut machine = bare("insmod mine; insmod in-c; lsmod; rmmod mine; rmmod in-c");
    for (path, name) in [(&rust, "mine.32"), (&c, "in-c.32")] {
        let path = path.with_file_name(name);
        let checked = Command::new(runner()).arg("check").arg(&path).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        let built = ringfence::build::module(&path).unwrap();
        assert_eq!(built.name, name);
        machine.contents.modules.push(built.packed);
    }
    let text = boot_well(&machine);
    for name in ["mine", "in-c"] {
        assert_eq!(text.drivers(name)[0].kind, "segmented", "{text}");
    }
    let error = ringfence::build::module(&folder.path().join("other.32")).unwrap_err().to_string();
    assert_eq!(error, format!("there is no folder {}", folder.path().join("other.32").display()));
}

/// A filesystem's driver, which waits for its disk in upcalls, is moved into segments and back: it
/// reads what the host's tools have written, and they read what it writes. Each build leaves the
/// filesystem clean to the next one.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn a_filesystem_is_moved_into_segments() {
    if !are_built() {
        return;
    }
    system();
    let directory = tempfile::tempdir().unwrap();
    let image = filesystem::fat(directory.path(), 8 << 10, 16);
    let content: Vec<u8> = (0..200_123u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    image.put("big", &content).unwrap();
    let script = "mount disk0 /mnt; mkdir /mnt/d; reload fat --kind segmented; lsmod; sha256sum /mnt/big; \
                  cp /mnt/big /mnt/d/copy; mv /mnt/d/copy /mnt/copy; reload fat --kind paged; sha256sum /mnt/copy; \
                  umount /mnt";
    let mut machine = machine(script);
    machine.disks = vec![std::path::PathBuf::from(image.path().unwrap()).into()];
    let text = boot_well(&machine);
    assert_eq!(kinds(&text, "fat"), ["segmented"]);
    let sums: Vec<String> = text.data().into_iter().map(|(_, sum)| sum).collect();
    assert!(sums.len() == 2 && sums[0] == sums[1], "{sums:?}");
    filesystem::assert_clean(&image);
    assert!(image.get("copy").unwrap() == content && image.get("big").unwrap() == content);
}

/// A stream, and copies of blocks and of files, go on while segmented drivers are ended.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn nothing_is_lost_while_segmented_drivers_are_ended() {
    if !are_built() {
        return;
    }
    let (machine, kind, time) = (Machine::default(), DomainKind::Segmented, Duration::from_secs(10));
    let options = soak::Options { machine, kind, time, seed: 32, json: true };
    let summary = soak::copies::run(system(), &options).unwrap();
    assert!(summary.is_good() && summary.ends.crashes >= 3 && summary.stream_bytes > 1 << 20, "{summary:?}");
    let summary = soak::files::run(system(), &options, 0).unwrap();
    assert!(summary.is_good() && summary.ends.crashes >= 3 && summary.commands > 10, "{summary:?}");
}

/// Drivers that have no build of 32 bits.
#[test]
fn a_soak_without_segmented_drivers_is_refused() {
    // Without the compiler's target, no machine of this kind boots.
    if !are_built() {
        return;
    }
    let (mut machine, _nic) = with_other_manifest("pcnet", "card", &[], "");
    let (with_adapter, _hba) = with_other_manifest("lsi53c895a", "adapter", &[], "");
    machine.contents.modules.extend(with_adapter.contents.modules);
    machine.contents.autoload = true;
    (machine.nic, machine.hba) = ("pcnet".into(), "lsi53c895a".into());
    let options =
        soak::Options { machine, kind: DomainKind::Segmented, time: Duration::from_secs(1), seed: 1, json: true };
    let error = soak::copies::run(system(), &options).unwrap_err().to_string();
    assert_eq!(error, "no driver of the work has a build for segmented domains: adapter, card");
}

/// Broken segmented drivers hurt nobody: their code is changed, one instruction at a time.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn broken_segmented_drivers_hurt_nobody() {
    if !are_built() {
        return;
    }
    // A module is segmented by its name, or as all others are.
    for (modules, kind) in [(&["e1000", "virtio-scsi"][..], DomainKind::Segmented), (&["fat.32"], DomainKind::Paged)] {
        let options = campaign::Options {
            machine: Machine::default(),
            modules: modules.iter().map(|name| name.to_string()).collect(),
            mutants: 120,
            seed: 1997,
            only: None,
            ring: 1,
            kind,
            out: None,
            json: true,
        };
        let outcomes = campaign::outcomes(system(), &options).unwrap();
        let bad: Vec<_> = outcomes.iter().filter(|outcome| !outcome.is_good()).collect();
        assert!(bad.is_empty(), "{bad:#?}");
        for name in modules {
            let name = name.strip_suffix(".32").unwrap_or(name);
            let name = format!("{name}.32");
            // Few changes meet what is left of e1000's checks.
            for outcome in ["masked", "page fault"] {
                let is_it = |other: &Outcome| other.module == name && other.outcome == outcome;
                assert!(outcomes.iter().any(is_it), "there is no '{outcome}' of {name}: {outcomes:#?}");
            }
        }
    }
}

/// Each attack of 32-bit code ends its driver with the exact fault, or has the expected answer.
#[test]
fn every_attack_of_32_bit_code_ends_its_driver_with_the_exact_fault() {
    if !are_built() {
        return;
    }
    let attacks: Vec<_> = segment::all().into_iter().map(by_this_qemu).collect();
    carry_out(&attacks, |script| {
        let run = boot(&bare(&format!("insmod null.32; {script}")));
        run.console().to_vec()
    })
    .assert(&attacks);
}

/// On a CPU of Intel's, 32-bit code has no SYSCALL: upcalls end at the return gate, and SYSCALL is
/// a fault.
#[test]
fn where_32_bit_code_has_no_syscall_upcalls_end_at_a_gate() {
    if !are_built() {
        return;
    }
    let attacks: Vec<_> = segment::differing(segment::WITHOUT_SYSCALL).into_iter().map(by_this_qemu).collect();
    carry_out(&attacks, |script| {
        let mut machine = bare(&format!("policy; insmod null.32; {script}"));
        machine.cpu = Some("max,vendor=GenuineIntel".into());
        let run = boot(&machine);
        assert_says(&run, "its upcalls end at a gate: this CPU has no SYSCALL there");
        run.console().to_vec()
    })
    .assert(&attacks);
    assert_says(&boot_well(&bare("policy")), "its upcalls end by SYSCALL");
}

/// The flags that an upcall leaves are not there when the next one begins: ID, which POPF sets in
/// any ring, or all of them.
#[test]
fn no_upcall_finds_the_flags_of_another() {
    if !are_built() {
        return;
    }
    for cpu in ["max", "max,vendor=GenuineIntel"] {
        // ID alone; and all but TF, among them AC, NT and DF.
        let leaves = [
            "leave-with-flags 200000",
            "leave-with-flags 244cd5",
            "return-gate-with-flags 200000",
            "return-gate-with-flags 244cd5",
        ];
        let tries = leaves.map(|leave| format!("tell rogue-segment {leave}; tell rogue-segment flags")).join("; ");
        let mut machine = bare(&format!("insmod rogue-segment; {tries}"));
        machine.cpu = Some(cpu.into());
        let text = boot_well(&machine);
        // IF, and the bit that is always 1.
        assert_eq!(text.matches("rogue-segment: 514 (0x202)").count(), leaves.len(), "{text}");
    }
}

/// **SYSCALL is there for segmented drivers only.** One has run right before, and its root was
/// loaded last: a paged driver and a trusted one get #UD from SYSCALL.
#[test]
fn syscall_is_for_segmented_drivers_only() {
    if !are_built() {
        return;
    }
    let tries = [
        "insmod rogue; tell template x; fails tell rogue syscall",
        "insmod rogue --ring 0; tell template x; fails tell rogue syscall",
        // The root of a space that is freed is left.
        "insmod rogue --ring 0; tell template x; rmmod template; fails tell rogue syscall; insmod template.32",
    ];
    for tried in tries {
        let text = boot_well(&bare(&format!("insmod template.32; {tried}; tell template x")));
        let faults: Vec<&str> = text.faults("rogue").iter().map(|fault| &*fault.headline).collect();
        assert_eq!(faults, ["rogue: #UD invalid opcode, in command"], "{text}");
        assert_eq!(text.matches("template: 1 (0x1)").count(), 2, "{text}");
    }
}

/// Drivers that lie about their queues, pass arguments that no good driver would, reach over the
/// ends of their own, or order their devices to do so: the other kind of domain ends them in the
/// same way.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn attacks_of_other_drivers_end_in_segments_as_well() {
    if are_built() {
        assert_all(&attacks::in_segments());
    }
}

/// **In virtual-8086 mode a segment's base is its selector times 16.** The next 32-bit driver does
/// not get the segments that the mode leaves, though their selectors are its own.
#[test]
fn segments_of_virtual_8086_mode_are_left_to_nobody() {
    if !are_built() {
        return;
    }
    let text = boot(&bare(
        "insmod template.32; tell template x; insmod rogue-segment; fails tell rogue-segment virtual-8086-data; \
         tell template x",
    ));
    assert_eq!(text.matches("template: 1 (0x1)").count(), 2, "{text}");
    assert!(text.faults("template").is_empty(), "{text}");
}

/// An interrupt leaves a driver the segments that it has loaded. The loop of 0x1000000 rounds takes
/// several ticks, and less than an upcall may take.
#[test]
fn interrupts_leave_a_driver_its_segments() {
    if !are_built() {
        return;
    }
    let text = boot_well(&bare("insmod rogue-segment; tell rogue-segment segments-over-interrupts 1000000; irqs"));
    assert_says(&text, "rogue-segment: 1 (0x1)");
    let hit = text.lines().find_map(|line| line.split_once(" in drivers, ")?.0.parse::<u64>().ok());
    assert!(hit.is_some_and(|hit| hit > 0), "{text}");
}

/// Bochs checks the limits and types of segments, and enters no virtual-8086 mode.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn the_same_attacks_of_32_bit_code_fail_under_bochs() {
    if !are_built() {
        return;
    }
    let differ = [segment::WITHOUT_VIRTUAL_8086, segment::WITHOUT_SYSCALL].concat();
    let attacks = segment::differing(&differ);
    carry_out(&attacks, |script| under_bochs(&format!("insmod null.32; limits command-ms 300; {script}")))
        .assert(&attacks);
}

/// **QEMU's way into virtual-8086 mode leaves a frame that says ring 0**, if an interrupt comes
/// before the first fetch. The kernel does not go on there: the driver's next instruction is in
/// ring 1. The driver is slow right before, so that the timer meets about one of 500 tries; more
/// boots try until it has met one.
#[test]
#[ignore = "long: `make test-all` runs it"]
fn an_interrupt_in_virtual_8086_mode_does_not_go_on_in_ring_0() {
    if !are_built() {
        return;
    }
    // Fails when QEMU no longer does it.
    const BOOTS: usize = 6;
    let tries =
        "mute repeat 2000 insmod rogue-segment, fails tell rogue-segment virtual-8086-slowly, rmmod rogue-segment";
    let script = format!("insmod template; integrity; {tries}; tell template x; integrity; irqs");
    let is_met = (0..BOOTS).any(|_| {
        let text = boot_well(&bare(&script));
        assert_intact(&text);
        assert_says(&text, "template: 1 (0x1)");
        let faults: Vec<_> = text.faults("rogue-segment").into_iter().map(|fault| &*fault.headline).collect();
        // The base of CS is 0x80 in virtual-8086 mode, and 0 where the kernel goes on.
        let count = |kind: &str| faults.iter().filter(|headline| headline.contains(kind)).count();
        let met = count("#PF executing 0x10000001234 ");
        assert_eq!(faults.len(), 2000);
        assert_eq!(met + count("#PF executing 0x100000012b4 "), 2000, "{text}");
        if met > 0 {
            assert_says(&text, &format!("{met} in virtual-8086 mode, which QEMU enters and no CPU has here"));
        }
        met > 0
    });
    assert!(is_met, "none of {BOOTS} times 2000 tries");
}
