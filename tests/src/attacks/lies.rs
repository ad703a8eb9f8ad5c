//! Attacks on services and queues, by drivers that lie about their queues, ask for memory or
//! registers of others, and pass arguments that no good driver would.

use super::Attack;
use crate::times;
use ringfence_abi::layout::{IMAGE, MAX_DOMAINS, SLOT_SIZE, STACK_TOP, slot_base, slot_of};
use ringfence_abi::manifest::DomainKind;
use ringfence_abi::service::by_symbol;

/// Commands of `rogue-nic`, and their answers: the service's refusal, or the amount that it gave.
const REFUSED: &[(&str, u64)] = &[
    ("free-frames", 3),
    ("phys-frames", 3),
    ("register-twice", 4),
    ("register-group", 1),
    ("register-long", 1),
    ("register-queues", 1),
    ("register-offload", 1),
    ("register-length 0", 1),
    ("register-length 8", 1),
    ("move-bar", 5),
    ("move-line", 5),
    ("beyond-config", 1),
    ("odd-config", 1),
    ("no-such-bar", 3),
    ("huge-bar", 3),
    ("dma-all", 2),
    // The whole budget of 64 KiB.
    ("dma-forever", 16),
    ("move-frames", 0),
    // The driver gets the same memory again, zeroed.
    ("dma-again", 1),
];

/// Returns the commands of `rogue-nic` that a service answers with a refusal or an amount.
pub fn refused() -> Vec<Attack> {
    REFUSED.iter().map(|(verb, answer)| Attack::answer("rogue-nic", *verb, Some(*answer))).collect()
}

/// Commands of `rogue-nic`, and the fault of each, at once or at the kernel's next check.
const NIC_FAULTS: &[(&str, &str)] = &[
    (
        "dma-freed",
        "rogue-nic: #PF reading 0x10010* (own slot, unmapped), in command, at rf_rogue_nic::RogueNic::alone+",
    ),
    ("log-registers", "bad pointer to rf_log: 0x10 bytes at 0x100201a0000 (own device's registers), in command"),
    ("received-ahead", "lied about the received queue: position 0x3e8, but 0x0 is counted"),
    ("empty-ahead", "lied about the empty queue: position 0xffffffffffffffff, but 0x80 is counted"),
    ("transmitted-ahead", "lied about the transmitted queue: position 0xffffffffffffffff, but 0x0 is counted"),
    ("no-such-frame", "bad entry 0x3c0000ffff in the received queue"),
    ("huge-frame", "bad entry 0xffff00000000 in the received queue"),
    ("no-such-queue", "bad entry 0x3c00010000 in the received queue (frame 0, 60 bytes, queue 1)"),
    ("not-checked", "bad entry 0x1003c00000000 in the received queue (frame 0, 60 bytes, checked)"),
    ("no-such-frame-sent", "bad entry 0xc8 in the transmitted queue"),
    ("frame-not-lent", "bad entry 0x3f in the transmitted queue"),
    ("log-freed", "bad pointer to rf_log: 0x10 bytes at 0x10010* (own slot, unmapped), in command"),
    ("frame-twice", "bad entry 0x3c00000000 in the received queue (frame 0, 60 bytes)"),
    ("neighbour-frame", "bad entry 0x3c00000001 in the received queue (frame 1, 60 bytes)"),
];

/// Commands of `rogue-nic` that access memory or ports over the ends of its own, or execute its
/// data, and the fault of each.
const REACHES: &[(&str, &str)] = &[
    ("execute-dma", "#PF executing 0x10010* (own DMA memory), in command, at 0x10010* (own DMA memory)"),
    ("execute-queues", "#PF executing 0x10002060000 (own queues), in command, at 0x10002060000 (own queues)"),
    (
        "execute-registers",
        "#PF executing 0x100201a0000 (own device's registers), in command, at 0x100201a0000 (own device's registers)",
    ),
    ("over-dma", "#PF reading 0x10010* (own slot, unmapped), in command, at rf_rogue_nic::reach::read+"),
    ("over-registers", "#PF reading 0x100201c0000 (own slot, unmapped), in command, at rf_rogue_nic::reach::read+"),
    ("before-registers", "#PF reading 0x1002019fffc (own slot, unmapped), in command, at rf_rogue_nic::reach::read+"),
    ("over-ports", "#GP general protection, in command, at rf_rogue_nic::reach::port_in32+"),
    ("before-ports", "#GP general protection, in command, at rf_rogue_nic::reach::port_in8+"),
    ("behind-ports", "#GP general protection, in command, at rf_rogue_nic::reach::port_in8+"),
    ("other-ports", "#GP general protection, in command, at rf_rogue_nic::reach::port_in8+"),
    ("open-ports", "#PF writing 0xffffffffc0005000 (I/O bitmap), in command, at rf_rogue_nic::reach::write+"),
];

/// Returns the accesses of `rogue-nic` over the ends of its own memory and ports. 32-bit code does
/// not reach the I/O bitmap: its address is cut off.
pub fn reaches(kind: DomainKind) -> Vec<Attack> {
    const CUT_OFF: &str = "#PF writing 0x100c000500* (own slot, unmapped), in command, at rf_rogue_nic::reach::write+";
    let fault = |(verb, fault): &(&str, &str)| match (*verb, kind) {
        ("open-ports", DomainKind::Segmented) => Attack::fault("rogue-nic", *verb, CUT_OFF),
        _ => Attack::fault("rogue-nic", *verb, *fault),
    };
    REACHES.iter().map(fault).collect()
}

/// Returns accesses of `rogue-nic` while the registers of its device are watched. Nothing more is
/// open to it, nor does it notice.
pub fn watched() -> Vec<Attack> {
    const IN_MEMORY: &str = "watch rogue-nic mmio ";
    let is_about = |what: &'static str| move |(verb, _): &&(&str, &str)| verb.ends_with(what);
    let fault =
        |under| move |(verb, fault): &(&'static str, &str)| Attack::fault("rogue-nic", *verb, *fault).under(under);
    let in_memory = REACHES.iter().filter(is_about("-registers")).map(fault(IN_MEMORY));
    let ports = REACHES.iter().filter(is_about("-ports")).map(fault("watch rogue-nic ports "));
    let step = ("step-registers", "#DB debug exception, in command, at rf_rogue_nic::reach::step+");
    // The watch lets one access through, and the debug exception behind it is in the gate.
    let call = Attack::answer("rogue-nic", "call-registers", None).under(IN_MEMORY).says(&[
        "rogue-nic: 0 (0x0)",
        "* writes bar0+0x2800 0x0",
        "* writes bar0+0x2804 0x75",
        "* reads bar0+0x2800",
    ]);
    let steps = [fault("")(&step), fault(IN_MEMORY)(&step)];
    in_memory.chain(ports).chain(steps).chain([call]).collect()
}

/// Commands of `rogue-ne2k` for ports beside those of its card, and the function that faults.
const PORTS: &[(&str, &str)] = &[
    ("before", "read8"),
    ("behind", "read8"),
    ("over-the-end", "read32"),
    ("write-behind", "write8"),
    ("string-behind", "read_words"),
    ("keyboard", "read8"),
    ("configuration", "read32"),
];

/// Returns the accesses of `rogue-ne2k` to ports that are not its card's.
pub fn ports() -> Vec<Attack> {
    let fault = |function: &str| format!("#GP general protection, in command, at rf_rogue_ne2k::{function}+");
    let own = Attack::answer("rogue-ne2k", "own", None);
    [own].into_iter().chain(PORTS.iter().map(|(verb, at)| Attack::fault("rogue-ne2k", *verb, fault(at)))).collect()
}

/// Returns an endless loop when the device interrupts.
pub fn endless_poll() -> Attack {
    Attack::fault("rogue-nic", "hog 0xffffffffffffffff", "took longer than 1000 ms, in poll (interrupt), at rf_upcall+")
        .then("sleep 10")
}

/// Returns sleeps of `rogue-nic`: too long at once, too long in sum, and of allowed length.
pub fn sleeps() -> Vec<Attack> {
    let overslept = "slept for more than 5000 ms in one upcall, in command";
    let too_long =
        ["sleep 0xffffffffffffffff", "sleep 5000000001"].map(|verb| Attack::fault("rogue-nic", verb, overslept));
    let overslept = "slept for more than 50 ms in one upcall, in command";
    let bit_by_bit = Attack::fault("rogue-nic", "doze 51", overslept).under("limits sleep-ms 50; ");
    let bit_by_bit = bit_by_bit.then("limits sleep-ms 5000");
    let not_too_long = ["sleep 0", "sleep 1", "doze 5"].map(|verb| Attack::answer("rogue-nic", verb, Some(0)));
    too_long.into_iter().chain([bit_by_bit]).chain(not_too_long).collect()
}

/// Returns the lies of `rogue-nic` about its queues.
pub fn nic_faults() -> Vec<Attack> {
    let attack = |(verb, fault): &(&str, &str)| Attack::fault("rogue-nic", *verb, *fault).then("sleep 20");
    let backwards = "lied about the received queue: position 0x0, but 0x1 is counted";
    let backwards = Attack::fault("rogue-nic", "received-backwards", backwards).times(2).then("sleep 20");
    NIC_FAULTS.iter().map(attack).chain([backwards]).collect()
}

/// Commands of `rogue-scsi`, and the outcome of the next read. The read after that succeeds.
const SCSI_ANSWERS: &[(&str, &str)] = &[
    ("residual", "error: the device moved too little data"),
    ("sense", "error: READ(10): CHECK CONDITION"),
    ("host", "error: the adapter failed (code 77)"),
    ("gone", "error: the adapter failed (code 4294967295)"),
];

/// Returns the lies of `rogue-scsi` about a command's outcome that cause an error for the command's
/// sender, and nothing else.
pub fn scsi_answers() -> Vec<Attack> {
    let attack = |(verb, answer): &(&str, &str)| {
        let attack = Attack::answer("rogue-scsi", *verb, None).then("blkread disk0 0 4; blkread disk0 0 4");
        attack.says(&[answer, "  2048 bytes"])
    };
    let refused = [("register-twice", 4), ("register-huge", 1)];
    let refused = refused.map(|(verb, answer)| Attack::answer("rogue-scsi", verb, Some(answer)));
    // A driver that is slow, but does as it is asked then, goes on; so does the command.
    let asked = [("hold", "abort it"), ("hold-on", "reset the unit")].map(|(verb, what)| {
        let attack = Attack::answer("rogue-scsi", verb, None).then("blkread disk0 0 4; blkread disk0 0 4");
        attack.says(&[
            &format!("a SCSI command is not done after 300 ms; it is asked to {what}"),
            "  2048 bytes",
            "  2048 bytes",
        ])
    });
    SCSI_ANSWERS.iter().map(attack).chain(refused).chain(asked).collect()
}

/// Commands of `rogue-scsi`, and the fault of each.
const SCSI_FAULTS: &[(&str, &str)] = &[
    ("lose", "left a SCSI command undone for 300 ms"),
    ("twice", "bad entry 0x0 in the complete queue"),
    ("another", "bad entry 0x7 in the complete queue"),
    ("beyond", "bad entry 0xffffffffffffffff in the complete queue"),
    ("ahead", "lied about the complete queue: position 0x3e8, but 0x"),
    ("backwards", "lied about the complete queue: position 0x*, but 0x"),
    ("read-ahead", "lied about the submit queue: position 0xffffffffffffffff, but 0x"),
    ("unasked", "bad entry 0x0 in the complete queue"),
    // Cut to 8 bits, this status would be GOOD.
    ("status", "bad entry 0x100 in the complete queue"),
    ("pretend", "left a SCSI command undone for 300 ms"),
    ("deaf", "left a SCSI command undone for 300 ms"),
    ("abort-twice", "bad entry 0x20 in the complete queue"),
    ("unasked-abort", "bad entry 0x20 in the complete queue"),
];

/// Returns the lies of `rogue-scsi` about its queues.
pub fn scsi_faults() -> Vec<Attack> {
    let attack =
        |(verb, fault): &(&str, &str)| Attack::fault("rogue-scsi", *verb, *fault).then("repeat 40 blkread disk0 0 4");
    SCSI_FAULTS.iter().map(attack).collect()
}

/// Commands of `rogue-blk`, and the refusal of the service.
const BLK_REFUSED: &[(&str, u64)] = &[
    ("offer-twice", 4),
    ("open 2", 3),
    ("open 0xffffffffffffffff", 3),
    ("be-bus-master", 3),
    ("read-config", 3),
    ("ask-for-vectors", 0),
    ("address-for-dma", 3),
];

/// Commands of `rogue-blk`, and the fault of each. The driver has opened the first run of ports,
/// but not the second.
const BLK_PORTS: &[(&str, &str)] = &[
    ("port 0x1ef", "port_in8+"),
    ("port 0x1f8", "port_in8+"),
    ("wide-port 0x1f7", "port_in16+"),
    ("port 0x3f6", "port_in8+"),
    ("port 0x170", "port_in8+"),
    ("port 0x64", "port_in8+"),
];

/// Commands of `rogue-blk`, and the fault of each at the next request.
const BLK_FAULTS: &[(&str, &str)] = &[
    ("lose", "left a block request undone for 300 ms"),
    ("twice", "bad entry 0x0 in the complete queue"),
    ("another", "bad entry 0x7 in the complete queue"),
    ("beyond", "bad entry 0xffffffffffffffff in the complete queue"),
    ("ahead", "lied about the complete queue: position 0x3e8, but 0x"),
    ("backwards", "lied about the complete queue: position 0x*, but 0x"),
    ("unasked", "bad entry 0x0 in the complete queue"),
    ("status", "bad entry 0x3 in the complete queue"),
];

/// Returns the attacks of `rogue-blk`: services for devices of another kind, ports beside its own,
/// and lies about its queues.
pub fn block() -> Vec<Attack> {
    let refused = BLK_REFUSED.iter().map(|(verb, answer)| Attack::answer("rogue-blk", *verb, Some(*answer)));
    let ports = BLK_PORTS.iter().map(|(verb, place)| {
        let fault = format!("#GP general protection, in command, at rf_rogue_blk::{place}");
        Attack::fault("rogue-blk", *verb, fault)
    });
    let faults =
        BLK_FAULTS.iter().map(|(verb, fault)| Attack::fault("rogue-blk", *verb, *fault).then("blkread disk0 0 4"));
    let unsupported = Attack::answer("rogue-blk", "unsupported", None).then("blkread disk0 0 4; blkread disk0 0 4");
    let unsupported = unsupported.says(&["error: the device cannot do that", "  2048 bytes"]);
    let used =
        [("use disk0", 0), ("use disk9", 3), ("use a-name-that-is-longer-than-any-disk-has", 1), ("use-twice", 4)];
    let used = used.map(|(verb, answer)| Attack::answer("rogue-blk", verb, Some(answer)).beside("virtio-scsi"));
    let asked = [
        ("ask-beyond", "bad entry 0x20 in the submit queue"),
        ("ask-twice", "bad entry 0x3 in the submit queue"),
        ("ask-ahead", "lied about the submit queue: position 0x3e8, but 0x0 is counted"),
        ("wait-beyond", "bad entry 0xffffffffffffffff in the submit queue"),
    ];
    let asked = asked.map(|(verb, fault)| Attack::fault("rogue-blk", verb, fault).beside("virtio-scsi"));
    let waits = Attack::answer("rogue-blk", "wait", Some(1));
    // The driver's own ports are open, but no disk answers.
    let own = Attack::answer("rogue-blk", "port 0x1f7", Some(0));
    refused.chain(ports).chain(faults).chain([unsupported, waits, own]).chain(used).chain(asked).collect()
}

/// Services without pointers, and the number of calls that they do not refuse out of 22 * 22 * 22
/// calls with extreme arguments. No arguments may end the driver.
const WITHOUT_POINTERS: [(&str, u64); 13] = [
    ("rf_null", ALL),
    // Calls succeed until the budget is used up.
    ("rf_heap_grow", 12),
    ("rf_time_ns", ALL),
    ("rf_dma_alloc", 16),
    ("rf_dma_free", 0),
    ("rf_dma_address", 0),
    // The device has two BARs.
    ("rf_bar_map", 2 * 22 * 22),
    ("rf_bar_len", 2 * 22 * 22),
    // One byte at 0, 1, 2, 4 and 7, two at 0, 2 and 4, four at 0 and 4.
    ("rf_pci_read", 10 * 22),
    // Only the command register may be written; its other bits are ignored.
    ("rf_pci_write", 22),
    ("rf_irq_enable", ALL),
    // There is no interrupt to acknowledge.
    ("rf_irq_ack", 0),
    // Six of the extremes are too short for a period.
    ("rf_timer", 22 * 16 * 22),
];
const ALL: u64 = 22 * 22 * 22;

fn number(symbol: &str) -> usize {
    by_symbol(symbol.as_bytes()).expect("there is such a service")
}

/// Returns calls of every service without pointers, with every argument at 22 extremes. A segmented
/// driver's slot begins at 0 for the driver, so that one more of them is 0: a number of a BAR, and
/// an offset from which one, two or four bytes can be read.
pub fn extremes(kind: DomainKind) -> Vec<Attack> {
    let attack = |(symbol, allowed)| {
        let more = match symbol {
            _ if kind == DomainKind::Paged => 0,
            "rf_bar_map" | "rf_bar_len" => 22 * 22,
            "rf_pci_read" => 3 * 22,
            _ => 0,
        };
        Attack::answer("rogue-nic", format!("extremes {}", number(symbol)), Some(allowed + more))
    };
    WITHOUT_POINTERS.into_iter().map(attack).collect()
}

/// Returns random calls of every service, 4,000 at a time. Each service is called 20,000 times,
/// except for the log, which keeps lines; a fifth of it where the long tests are left out.
///
/// `limits transmit-ms 600000; insmod rogue-nic; repeat 2500 tell rogue-nic random N` makes ten
/// million calls. `rf_panic` is not included, because each call ends the driver ([`random_panics`],
/// and `gates::random_calls_of_rf_panic`). `rogue-scsi` has already registered by then. Before it
/// registers, it makes 1,000 wrong registrations, and it does not load unless all are refused.
pub fn random() -> Vec<Attack> {
    let attack = |symbol| {
        let rounds = if symbol == "rf_log" { 1 } else { times(5, 1) };
        Attack::answer("rogue-nic", format!("random {}", number(symbol)), Some(4000)).times(rounds)
    };
    let mut attacks: Vec<Attack> = WITHOUT_POINTERS
        .into_iter()
        .map(|(symbol, _)| symbol)
        .chain(["rf_log", "rf_offer", "rf_answer", "rf_command"])
        .map(attack)
        .collect();
    attacks.push(Attack::answer("rogue-scsi", "random", Some(4000)).times(times(5, 1)));
    attacks
}

/// Returns random calls of `rf_panic`, each of which ends its driver: with pointers to anywhere,
/// and with pointers into the driver's own stack.
pub fn random_panics() -> Vec<Attack> {
    const EACH: u64 = 50;
    const STACK_BYTES: u64 = 32 << 10;
    let mut state: u64 = 0x1997;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut attacks = Vec::new();
    for _ in 0..EACH {
        // An address in the driver's slot may be its own memory.
        let anywhere = random();
        if slot_of(anywhere) != Some(1) {
            let fault = format!("bad pointer to rf_panic: 0x10 bytes at {anywhere:#x} (");
            attacks.push(Attack::fault("rogue-nic", format!("panic-at {anywhere:#x} 16"), fault));
        }
        let own = slot_base(1) + STACK_TOP - STACK_BYTES + random() % (STACK_BYTES - 16);
        attacks.push(Attack::fault("rogue-nic", format!("panic-at {own:#x} 16"), "gave up, in command"));
    }
    attacks
}

/// Returns addresses at which 16 bytes are not all in the driver's own memory, as seen from slot 1.
fn foreign_addresses() -> [u64; 18] {
    let base = slot_base(1);
    [
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
        // Addresses at which the second driver has memory.
        slot_base(0) + IMAGE,
        slot_base(0) + STACK_TOP - 16,
    ]
}

/// Lengths of text, and whether a line in the log may have this length.
const LENGTHS: [(u64, bool); 6] = [(0, true), (1, true), (16, true), (512, true), (513, false), (u64::MAX, false)];

/// Modules, commands, the service that gets the pointer, and the number of bytes that it copies.
const WITH_POINTERS: [(&str, &str, &str, u64); 2] =
    [("rogue-nic", "register-at", "rf_offer", 16), ("rogue-scsi", "register-at", "rf_offer", 16)];

/// Returns pointers to memory that is not the driver's own, passed to every service that takes a
/// pointer, and with every length if the service takes one. A segmented driver's slot begins at 0
/// for the driver, and the kernel names it by its address there.
pub fn bad_pointers(kind: DomainKind) -> Vec<Attack> {
    let mut attacks = Vec::new();
    let named = |address: u64| match kind {
        DomainKind::Segmented if address < SLOT_SIZE => address + slot_base(1),
        _ => address,
    };
    let fault = |symbol: &str, len_bytes: u64, address: u64| {
        format!("bad pointer to {symbol}: {len_bytes:#x} bytes at {:#x} (", named(address))
    };
    for (module, verb, symbol, len_bytes) in WITH_POINTERS {
        for address in foreign_addresses() {
            attacks.push(Attack::fault(module, format!("{verb} {address:#x}"), fault(symbol, len_bytes, address)));
        }
    }
    const INVALID: u64 = 1;
    const FULL: u64 = 6;
    // Only `init` may name commands, so nothing is read.
    attacks.push(Attack::answer("rogue-nic", "command-at 0 16", Some(INVALID)));
    let slot = slot_base(1)..=slot_base(1) + SLOT_SIZE;
    let stack_end = slot_base(1) + STACK_TOP;
    for address in foreign_addresses() {
        for (len_bytes, allowed) in LENGTHS {
            let is_own = |len_bytes: u64| {
                let end = address.checked_add(len_bytes);
                let nothing = len_bytes == 0 && slot.contains(&named(address));
                nothing || end.is_some_and(|end| (stack_end - 4..stack_end).contains(&address) && end <= stack_end)
            };
            let log = format!("log-at {address:#x} {len_bytes:#x}");
            attacks.push(match allowed {
                false => Attack::answer("rogue-nic", log, Some(INVALID)),
                true if is_own(len_bytes) => Attack::answer("rogue-nic", log, Some(0)),
                true => Attack::fault("rogue-nic", log, fault("rf_log", len_bytes, address)),
            });
            let answer = format!("answer-at {address:#x} {len_bytes:#x}");
            match len_bytes {
                u64::MAX => attacks.push(Attack::answer("rogue-nic", answer, Some(FULL))),
                16 => attacks.push(Attack::fault("rogue-nic", answer, fault("rf_answer", len_bytes, address))),
                _ => {}
            }
            let cut = len_bytes.min(512);
            let end = if is_own(cut) { "gave up, in command".into() } else { fault("rf_panic", cut, address) };
            attacks.push(Attack::fault("rogue-nic", format!("panic-at {address:#x} {len_bytes:#x}"), end));
        }
    }
    attacks
}

/// Returns attacks by devices that interrupt for ever: with a driver that reports the interrupt,
/// with a driver that says that its device is quiet, and with a driver that takes long each time.
/// Other drivers must go on.
pub fn endless_interrupts() -> Vec<Attack> {
    let attack = |verb| {
        Attack::answer("rogue-nic", verb, None).then("sleep 100; tell template busy").says(&["template: 4 (0x4)"])
    };
    ["interrupt", "interrupt-storm", "hog 50"].map(attack).to_vec()
}
