//! A network driver that lies about its queues or asks for what is not its own: it is refused or ended, with the exact
//! reason, and the real driver can take its device afterwards.

use ringfence::machine::{End, Machine};
use ringfence_tests::{assert_says, boot, machine};

/// Verb, and the refusal that the service answers.
const REFUSED: &[(&str, u64)] = &[
    ("free-frames", 3),
    ("phys-frames", 3),
    ("register-twice", 4),
    ("register-group", 1),
    ("move-bar", 5),
    ("move-line", 5),
    ("beyond-config", 1),
    ("odd-config", 1),
    ("no-such-bar", 3),
    ("huge-bar", 3),
    ("dma-all", 1),
    // All of its budget of 64 KiB.
    ("dma-forever", 16),
    ("move-frames", 0),
];

/// Verb, and the fault that the driver ends with: at once, or when the kernel next looks.
const FAULTS: &[(&str, &str)] = &[
    ("log-registers", "bad pointer to rf_log: 0x10 bytes at 0x"),
    ("received-ahead", "lied about the received queue: position 0x3e8, but 0x0 is counted"),
    ("empty-ahead", "lied about the empty queue: position 0xffffffffffffffff, but 0x80 is counted"),
    ("transmitted-ahead", "lied about the transmitted queue: position 0xffffffffffffffff, but 0x0 is counted"),
    ("no-such-frame", "bad entry 0x3cffffffff in the received queue"),
    ("huge-frame", "bad entry 0xffffffff00000000 in the received queue"),
    ("frame-not-lent", "bad entry 0xc8 in the transmitted queue"),
    ("frame-twice", "bad entry 0x3c00000000 in the received queue"),
];

fn with_nic(script: &str) -> Machine {
    let mut machine = machine(script);
    machine.hba = "none".into();
    machine.contents.autoload = false;
    machine
}

#[test]
fn what_is_not_its_own_is_refused() {
    let verbs: Vec<String> = REFUSED.iter().map(|(verb, _)| format!("tell rogue-nic {verb}")).collect();
    let run = boot(&with_nic(&format!("insmod rogue-nic; {}; rmmod rogue-nic; insmod e1000; ip", verbs.join("; "))));
    assert_eq!(run.end, End::Done, "{}", run.text());
    for (verb, answer) in REFUSED {
        let mut lines = run.lines.iter().skip_while(|line| !line.ends_with(&format!("tell rogue-nic {verb}")));
        let said = lines.nth(1).expect("an answer");
        assert_eq!(said, &format!("rogue-nic: {answer} ({answer:#x})"), "{verb}");
    }
}

#[test]
fn each_lie_ends_it_with_the_exact_fault() {
    let once = |(verb, fault): &(&str, &str)| {
        // The kernel only asks for frames back when it has none left: the bench sends all it has.
        let then = if fault.contains("transmitted") { "bench nic" } else { "sleep 20" };
        format!("insmod rogue-nic; tell rogue-nic {verb}; {then}; rmmod rogue-nic")
    };
    let all: Vec<String> = FAULTS.iter().map(once).collect();
    let run = boot(&with_nic(&format!("mem; {}; mem; insmod e1000; ip", all.join("; "))));
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let mut wrong = Vec::new();
    for (verb, fault) in FAULTS {
        let text = run.text();
        let start = text.find(&format!("tell rogue-nic {verb}\n")).expect("it was run");
        let report = &text[start..];
        let report = &report[..report.find("> rmmod").expect("it goes on")];
        let said = report.lines().find(|line| line.contains("fault: rogue-nic: "));
        if !said.is_some_and(|line| line.contains(fault)) {
            wrong.push(format!("{verb}\n    should say {fault}\n    but says   {}", said.unwrap_or(report)));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_says(&run.text(), "eth0: 10.0.2.15/24 via e1000");
    let free: Vec<&String> = run.lines.iter().filter(|line| line.starts_with("frames ")).collect();
    assert_eq!(free[0], free[1], "frames were lost");
}

#[test]
fn a_driver_that_floods_the_log_is_cut_short() {
    let run = boot(&ringfence_tests::bare("insmod null; tell null log 1000; insmod template; tell template a"));
    assert_eq!(run.end, End::Done, "{}", run.text());
    assert_says(&run.text(), "null: 936 more lines in one upcall were dropped");
    assert!(!run.text().contains("line 64"));
}
