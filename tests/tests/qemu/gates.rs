//! Services with arguments that no driver would pass: every one at every extreme, at random, and pointers that are not the
//! driver's own; and devices that interrupt for ever.

use ringfence::machine::{End, Machine};
use ringfence_abi::layout::{MAX_DOMAINS, SLOT_SIZE, STACK_TOP, slot_base};
use ringfence_abi::service::by_symbol;
use ringfence_tests::{HEALTH, assert_says, assert_unharmed, bare, boot, boot_well, machine};

/// Services without pointers, which no arguments may end the driver with.
const WITHOUT_POINTERS: [&str; 12] = [
    "rf_null",
    "rf_heap_grow",
    "rf_time_ns",
    "rf_dma_alloc",
    "rf_dma_free",
    "rf_dma_phys",
    "rf_bar_map",
    "rf_bar_len",
    "rf_pci_read",
    "rf_pci_write",
    "rf_irq_enable",
    "rf_irq_ack",
];

fn with_nic(script: &str) -> Machine {
    let mut machine = machine(script);
    machine.hba = "none".into();
    machine.contents.autoload = false;
    machine
}

fn number(symbol: &str) -> usize {
    by_symbol(symbol.as_bytes()).expect("there is such a service")
}

/// Runs `attack` on a fresh `rogue-nic`; afterwards it, another driver and the kernel are as they were.
fn survive(attack: &str) -> String {
    let text = boot_well(&with_nic(&format!(
        "insmod rogue-nic; tell rogue-nic extremes 0; rmmod rogue-nic; insmod template; tell template x; {HEALTH}; \
         insmod rogue-nic; {attack}; tell rogue-nic extremes 0; rmmod rogue-nic; {HEALTH}"
    )));
    assert_unharmed(&text, 2);
    text
}

#[test]
fn every_argument_at_every_extreme() {
    let calls: Vec<String> =
        WITHOUT_POINTERS.iter().map(|symbol| format!("tell rogue-nic extremes {}", number(symbol))).collect();
    let text = survive(&calls.join("; "));
    // All of them came back, each time: 22 values for each of three arguments.
    assert_eq!(text.matches("rogue-nic: 10648 (0x2998)").count(), WITHOUT_POINTERS.len() + 2, "{text}");
}

/// 20,000 of each here; `limits transmit-ms 600000; insmod rogue-nic; repeat 2500 tell rogue-nic random N` makes ten million.
/// `rf_panic` is left out: each call ends the driver.
#[test]
fn random_calls_of_every_service() {
    let with_pointers = ["rf_log", "rf_net_register"];
    let calls: Vec<String> = WITHOUT_POINTERS
        .iter()
        .chain(&with_pointers)
        .map(|symbol| {
            let count = if *symbol == "rf_log" { 1 } else { 5 };
            format!("repeat {count} tell rogue-nic random {}", number(symbol))
        })
        .collect();
    survive(&calls.join("; "));
    // The only one that the other driver does not have.
    let text = boot_well(&bare(&format!(
        "insmod template; tell template x; insmod rogue-scsi; tell rogue-scsi random; {HEALTH}; \
         repeat 5 tell rogue-scsi random; {HEALTH}; blkread disk0 0 1"
    )));
    assert_unharmed(&text, 2);
    assert_eq!(text.matches("rogue-scsi: 4000 (0xfa0)").count(), 6, "{text}");
}

/// What is not all in the driver's own memory, seen from `slot`.
fn foreign_addresses(slot: usize) -> Vec<u64> {
    let base = slot_base(slot);
    vec![
        0,
        1,
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        0x0000_8000_0000_0000,
        0xffff_7fff_ffff_fff0,
        0xffff_8000_0000_0000,
        0xffff_ffff_8000_0000,
        0xffff_ffff_c000_8000,
        base,
        base - 8,
        base + STACK_TOP - 4,
        base + STACK_TOP,
        base + SLOT_SIZE - 8,
        slot_base(MAX_DOMAINS - 1),
    ]
}

/// Has `module` pass each foreign address to a service, and asserts the fault.
fn assert_bad_pointers(machine: impl Fn(&str) -> Machine, module: &str, verb: &str, symbol: &str) {
    let addresses = foreign_addresses(0);
    let once = |address: &u64| format!("insmod {module}; tell {module} {verb} {address:#x}; rmmod {module}");
    let script: Vec<String> = addresses.iter().map(once).collect();
    let run = boot(&machine(&script.join("; ")));
    assert_eq!(run.end, End::CommandFailed, "{}", run.text());
    let said: Vec<&String> = run.lines.iter().filter(|line| line.contains(&format!("fault: {module}: "))).collect();
    assert_eq!(said.len(), addresses.len(), "{}", run.text());
    for (address, said) in addresses.iter().zip(said) {
        assert!(said.contains(&format!("bad pointer to {symbol}: 0x10 bytes at {address:#x} (")), "{said}");
    }
}

#[test]
fn pointers_to_what_is_not_its_own_end_the_driver() {
    assert_bad_pointers(with_nic, "rogue-nic", "log-at", "rf_log");
    assert_bad_pointers(with_nic, "rogue-nic", "panic-at", "rf_panic");
    assert_bad_pointers(bare, "rogue-scsi", "register-at", "rf_scsi_register");
}

#[test]
fn a_pointer_to_register_a_network_is_looked_at_first() {
    let run = boot(&with_nic("insmod rogue-nic; tell rogue-nic register-at 0xffffffff80000000"));
    assert_says(&run.text(), "bad pointer to rf_net_register: 0x8 bytes at 0xffffffff80000000 (kernel read-only data)");
}

/// A device that is held back does not stop the others, and one whose driver says it is quiet when it is not costs time
/// but stops nobody either.
#[test]
fn interrupts_that_never_end_stop_nobody() {
    for verb in ["interrupt", "interrupt-storm"] {
        let text = boot_well(&with_nic(&format!(
            "insmod template; insmod rogue-nic; tell rogue-nic {verb}; sleep 300; tell template still there; lsmod; \
             rmmod rogue-nic; insmod e1000; ip; ping 10.0.2.2 -c 2"
        )));
        assert_says(&text, "template: 11 (0xb)");
        assert_says(&text, "2 sent, 2 answered");
        let row = text.lines().find(|line| line.starts_with("rogue-nic ")).expect("lsmod lists it");
        let upcalls: u64 = row.split_whitespace().nth(3).unwrap().parse().unwrap();
        // Held back after the first, or polled again and again.
        assert!(if verb == "interrupt" { upcalls < 10 } else { upcalls > 10 }, "{verb}: {row}");
    }
}
