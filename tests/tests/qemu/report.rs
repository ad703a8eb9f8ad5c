//! Reports about ended drivers: the printed and the stored ones.

use ringfence::machine::End;
use ringfence_tests::{assert_says, bare, boot, boot_badly, machine, times};

/// Returns the lines of the first report in `lines`, without the time of the log.
fn report(lines: &[String]) -> Vec<String> {
    let first = lines.iter().position(|line| line.contains("fault: ")).expect("a report");
    let (_, headline) = lines[first].split_once("fault: ").unwrap();
    let rest = lines[first + 1..].iter().take_while(|line| line.starts_with("    "));
    std::iter::once(headline.to_string()).chain(rest.cloned()).collect()
}

#[test]
fn a_report_has_all_that_is_known() {
    let run = boot_badly(&bare("insmod rogue; tell rogue read 0; faults; faults 1"), 1);
    let report = report(run.console());
    assert_eq!(report[0], "rogue: #PF reading 0x0 (null), in command");
    assert!(report[1].starts_with("    at rf_rogue::attacks::read+0x"), "{report:?}");
    // The runner adds the source line.
    assert!(report[1].contains(", drivers/rogue/src/attacks.rs:"), "{report:?}");
    assert!(report[2].contains("  mov ") && report[2].contains("["), "{report:?}");
    let has = |part: &str| assert!(report.iter().any(|line| line.contains(part)), "no '{part}' in {report:#?}");
    has("version 0.1.0, ring 1, slot 0, upcall 2, up ");
    has("rdi=0000000000000000");
    has("    stack: ");
    has("        rf_upcall+0x");
    has("    held: 5 gates, image ");
    has("        rf_heap_grow(0x4000) = 0x");
    has("    then: it stays ended: its policy is to stop");
    // The stored report is the printed one, word for word.
    let kept: Vec<&String> = run.console().iter().skip_while(|line| !line.ends_with("faults 1")).skip(1).collect();
    assert!(report.iter().zip(kept).all(|(printed, kept)| printed == kept), "{}", run.to_string());
}

/// A fault in a service: the report has the place and the arguments of the call.
#[test]
fn a_report_of_a_gate_has_the_call() {
    let run = boot_badly(&bare("insmod rogue; tell rogue log-pointer 0x8"), 1);
    let report = report(run.console());
    assert_eq!(report[0], "rogue: bad pointer to rf_log: 0x10 bytes at 0x8 (null), in command");
    assert!(report[1].starts_with("    at rf_upcall+0x") && report[2].contains("  call "), "{report:?}");
    let has = |part: &str| assert!(report.iter().any(|line| line.contains(part)), "no '{part}' in {report:#?}");
    has("    rdi=0000000000000003 rsi=0000000000000008 rdx=0000000000000010");
    has(" rsp=00000080017f");
    has("    held: 5 gates, image ");
}

/// The report has the driver's registers at the call, as far as a call keeps them.
#[test]
fn a_report_of_a_gate_has_the_registers() {
    let report = report(boot_badly(&bare("insmod rogue; tell rogue log-registers"), 1).console());
    let first = report.iter().position(|line| line.starts_with("    rdi=")).expect("registers");
    let without_rsp: Vec<String> =
        report[first..first + 4].iter().map(|line| line.split(" rsp=").next().unwrap_or_default().into()).collect();
    let without_rip = without_rsp[3].split(" rip=").next().unwrap_or_default().to_string();
    let expected = [
        "    rdi=0000000000000003 rsi=0000000000000000 rdx=0000000000000010",
        "    rbx=000000000000000b rbp=00000000000000bb",
        "    r12=000000000000000c r13=000000000000000d r14=000000000000000e",
        "    r15=000000000000000f",
    ];
    assert_eq!(without_rsp[..3], expected[..3]);
    assert_eq!(without_rip, expected[3]);
}

/// The report lists all resources of its device that a driver had.
#[test]
fn a_report_says_what_was_held() {
    let mut machine = machine("insmod rogue-nic; tell rogue-nic interrupt; tell rogue-nic other-ports");
    machine.contents.autoload = false;
    let report = report(boot_badly(&machine, 1).console());
    let held = report.iter().position(|line| line.starts_with("    held: ")).expect("it had something");
    let device = report[held].split_once(".0, 2 BARs, ports 0xc").expect("a device").1;
    let (ports, line) = device.split_once(", line ").expect("a line");
    let (first, last) = ports.split_once(" to 0xc").expect("ports");
    let number = |digits| u16::from_str_radix(digits, 16).expect("a number");
    assert_eq!(number(last) - number(first), 63, "{report:?}");
    assert!(line.strip_suffix(',').is_some_and(|line| line.parse::<u8>().is_ok()), "{report:?}");
    assert!(
        report[held + 1].trim().starts_with("19 gates, ") && report[held + 1].contains(" frames to send, image "),
        "{report:?}"
    );
}

#[test]
fn all_of_the_last_calls_are_kept_and_the_last_are_shown() {
    let run = boot(&bare("insmod null; tell null calls 40; kill null; faults 1"));
    assert_eq!(run.end(), End::Done, "{}", run);
    let shown = report(run.console()).iter().filter(|line| line.ends_with("rf_null() = 0x0")).count();
    let kept = run.console().iter().skip_while(|line| !line.ends_with("faults 1"));
    assert_eq!((shown, kept.filter(|line| line.ends_with("rf_null() = 0x0")).count()), (8, 32));
}

#[test]
fn a_report_says_what_was_done() {
    let run = boot(&machine("kill e1000; sleep 300; faults 1"));
    assert_eq!(run.end(), End::Done, "{}", run);
    assert!(report(run.console()).last().unwrap().starts_with("    then: it was restarted in ring 1 after "));
    assert_says(&run.to_string(), "    then: it was restarted in ring 1 after ");
    assert_says(&run.to_string(), "    held: device 0000:00:0");
}

/// With a clock that counts instructions, times, addresses, registers and calls are the same each
/// time.
#[test]
fn a_report_is_the_same_each_time_under_icount() {
    // A page fault, a fault in a gate, and an overrun of the time budget.
    for attack in &["log-registers", "recurse", "loop"][..times(3, 1)] {
        let mut machine = bare(&format!("insmod template; insmod rogue; tell rogue {attack}; tell rogue.9 x"));
        machine.icount = true;
        let reports = [(); 2].map(|()| report(boot(&machine).console()));
        assert!(reports[0].len() > 10, "{:#?}", reports[0]);
        assert_eq!(reports[0], reports[1]);
    }
}

/// The ring is right even if the driver had entered a gate and nothing was done yet: the driver was
/// in ring 1.
#[test]
fn a_report_has_the_ring_of_the_driver() {
    let report = report(boot_badly(&bare("insmod rogue; tell rogue trap-flag-gate"), 1).console());
    assert_eq!(report[1], "    at gate_0+0x0 (entry text)");
    assert!(report.iter().any(|line| line.contains("version 0.1.0, ring 1, slot 0")), "{report:?}");
}

/// Printed lines fit a terminal, except for a fault's headline and the source line after a place.
#[test]
fn what_is_printed_fits_80_columns() {
    let mut machine = machine(
        "help; lsmod; modinfo; modinfo e1000; modinfo virtio-scsi; insmod rogue; lspci; ip; ping 10.0.2.2 -c 1; lsblk; \
         blkread disk0 0 8; blkwrite disk0 0 8 1; blkcheck disk0 0 8 1; blkcopy disk0 0 disk0 64 8; tell rogue read 0; \
         kill e1000; kill virtio-scsi; sleep 300; faults; faults 1; faults 2; limits; ring e1000 0; mem; irqs; integrity; \
         bench call; nonsense; insmod; insmod nope; blkread disk9 0 1; ping x; help ping; vmmap; vmmap e1000; trace e1000 ping 10.0.2.2 -c 1; dmesg",
    );
    let directory = tempfile::tempdir().unwrap();
    machine.disks = vec![directory.path().join("disk.img").into()];
    std::fs::File::create(&machine.disks[0].path).unwrap().set_len(1 << 20).unwrap();
    let run = boot_badly(&machine, 6);
    assert!(run.console().len() > 200, "{}", run.to_string());
    let allowed =
        |line: &&String| line.starts_with("ringfence> ") || line.contains("fault: ") || line.contains(", drivers/");
    let wide: Vec<&String> = run.console().iter().filter(|line| line.len() > 80 && !allowed(line)).collect();
    assert!(wide.is_empty(), "{wide:#?}");
}
