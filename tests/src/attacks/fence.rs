//! Attacks on the fence around devices. The attackers' drivers tell their devices where to reach:
//! an LSI 53C895A, which copies anything to anywhere below 4 GiB; an e1000, which has 64-bit
//! addresses; an RTL8139, which takes addresses from registers; and a virtio network device.

use super::Attack;

/// Parts of the kernel: their names in `%NAME`, and in the report.
const KERNEL: &[(&str, &str)] = &[
    ("kernel-text", "kernel text"),
    ("kernel-read-only-data", "kernel read-only data"),
    ("kernel-data", "kernel data"),
    ("kernel-heap", "kernel heap"),
    ("kernel-stack", "kernel stack"),
    ("interrupt-stack", "interrupt stack"),
    ("exception-stack", "exception stack"),
    ("critical-stack", "critical stack"),
    ("page-tables", "page tables"),
    ("ramdisk", "ramdisk"),
    ("entry-text", "entry text"),
    ("gdt", "GDT"),
    ("idt", "IDT"),
    ("tss", "TSS"),
    ("io-bitmap", "I/O bitmap"),
    ("iommu:registers", "the IOMMU's own registers, queue or tables"),
    ("iommu:queue", "the IOMMU's own registers, queue or tables"),
    ("iommu:status", "the IOMMU's own registers, queue or tables"),
    ("iommu:root-table", "the IOMMU's own registers, queue or tables"),
    ("iommu:context-table", "the IOMMU's own registers, queue or tables"),
];

/// Parts of drivers: of the attacker itself that its device was not given, of a second driver, and
/// of a driver with a card.
const DRIVERS: &[(&str, &str)] = &[
    ("rogue-lsi:text", "text of rogue-lsi"),
    ("rogue-lsi:stack", "stack of rogue-lsi"),
    ("rogue-lsi:mailbox", "mailbox of rogue-lsi"),
    ("rogue-lsi:entry-stacks", "entry stacks of rogue-lsi"),
    ("rogue-lsi:page-tables", "page tables of rogue-lsi"),
    ("rogue-lsi:iommu-tables", "IOMMU tables of rogue-lsi"),
    ("template:text", "text of template"),
    ("template:stack", "stack of template"),
    ("template:entry-stacks", "entry stacks of template"),
    ("template:page-tables", "page tables of template"),
];
const CARD: &[(&str, &str)] = &[
    ("e1000:dma-memory", "DMA memory of e1000"),
    ("e1000:queues", "queues of e1000"),
    ("e1000:stack", "stack of e1000"),
    ("e1000:iommu-tables", "IOMMU tables of e1000"),
    // The registers: an access from one device to another.
    ("e1000:device", "device's registers of e1000"),
];

/// Ways in which an LSI 53C895A reads or writes elsewhere: the command, the access in the report,
/// and the place in the report.
const WAYS: &[(&str, &str, &str)] = &[
    ("fetch %kernel-text", "reading", "kernel text"),
    ("table %kernel-data", "reading", "kernel data"),
    ("indirect %kernel-heap", "reading", "kernel heap"),
    ("load %gdt", "reading", "GDT"),
    ("store %idt", "writing", "IDT"),
    ("scatter %entry-text", "reading", "entry text"),
    ("rewrite %kernel-text", "reading", "kernel text"),
    ("copy %kernel-text %kernel-data", "reading", "kernel text"),
    ("flood %kernel-text", "reading", "kernel text"),
    ("read 0", "reading", "*"),
    ("read %kernel-text+0xff0", "reading", "kernel text"),
];

/// Accesses at the ends of the device's own memory, or to places where nothing lies.
const EDGES: &[(&str, &str)] = &[
    ("straddle-read", "reading 0x100c2000 (own slot, unmapped)"),
    ("straddle-write", "writing 0x100c2000 (own slot, unmapped)"),
    ("straddle-start", "reading 0x100bf000 (own slot, unmapped)"),
    ("read-freed", "reading 0x100c3000 (own slot, unmapped)"),
    ("write-freed", "writing 0x100c3000 (own slot, unmapped)"),
    ("read 0xfffffff0", "reading 0xfffff000 (own slot, unmapped)"),
    ("write 0x80000000 1", "writing 0x80000000 (own slot, unmapped)"),
];

/// Accesses with 64-bit addresses: the command for the e1000, and the text of the report.
const WIDE: &[(&str, &str)] = &[
    ("dma-read %kernel-text", "reading 0x* (own slot, unmapped): it may not read there"),
    ("dma-write %kernel-text 1", "writing 0x* (own slot, unmapped): it may not write there"),
    ("dma-write %entry-text 1", "writing 0x* (own slot, unmapped): it may not write there"),
    ("dma-write-read-only", "writing 0x100c1000 (own DMA memory): it may not write there"),
    ("dma-read 0x100000000", "reading 0x100000000 (own slot, unmapped): it may not read there"),
    ("dma-write 0x7ffffff000 1", "writing 0x7ffffff000 (own slot, unmapped): it may not write there"),
    ("dma-read 0x8000000000", "reading 0x8000000000 (no address of its own): no address is as long"),
    ("dma-write 0xffffffffff000 1", "writing 0xffffffffff000 (no address of its own): no address is as long"),
    ("dma-read 0xffffffffffffffe0", "reading 0xfffffffffffff000 (no address of its own): no address is as long"),
    ("device-writes %kernel-text", "reading 0x* (own slot, unmapped): it may not read there"),
    ("device-writes 0x2060000", "reading 0x2060000 (own queues): it may not read there"),
    ("device-writes 0x1000", "reading 0x1000 (own slot, unmapped): it may not read there"),
];

/// Accesses by the cards of the other network drivers: the module, its command, the access in the
/// report, and the place in the report.
const CARDS: &[(&str, &str, &str, &str)] = &[
    ("rogue-rtl8139", "transmit-from %kernel-text", "reading", "kernel text"),
    ("rogue-rtl8139", "transmit-from %kernel-heap", "reading", "kernel heap"),
    ("rogue-rtl8139", "receive-to %kernel-data", "writing", "kernel data"),
    ("rogue-rtl8139", "receive-to %idt", "writing", "IDT"),
    ("rogue-virtio-net", "send %kernel-text", "reading", "kernel text"),
    ("rogue-virtio-net", "send %page-tables", "reading", "page tables"),
    ("rogue-virtio-net", "header %kernel-heap", "reading", "kernel heap"),
    ("rogue-virtio-net", "acknowledge %gdt", "writing", "GDT"),
    ("rogue-virtio-net", "acknowledge %kernel-data", "writing", "kernel data"),
];

fn fault(module: &'static str, tell: String, what: &str) -> Attack {
    Attack::fault(module, tell, format!("{module}: DMA fault: its device {what}"))
}

/// Returns the report's text for a fault at a place that has an owner.
fn at(does: &str, lies_there: &str) -> String {
    let verb = if does == "reading" { "read" } else { "write" };
    format!(
        "{does} 0x* (own slot, unmapped): it may not {verb} there, after command, its addresses begin with the slot; physical \
         address 0x* is {lies_there}"
    )
}

/// Returns a read and a write of each place that does not belong to the device.
pub fn places() -> Vec<Attack> {
    let each = |(name, lies_there): &(&str, &str), beside: &'static str| {
        [(format!("read %{name}"), "reading"), (format!("write %{name} 1"), "writing")]
            .map(|(tell, does)| fault("rogue-lsi", tell, &at(does, lies_there)).beside(beside))
    };
    let alone = KERNEL.iter().chain(DRIVERS).flat_map(|place| each(place, ""));
    alone.chain(CARD.iter().flat_map(|place| each(place, "e1000"))).collect()
}

/// Returns other ways to read and write, and accesses at the ends of the device's own memory.
pub fn ways() -> Vec<Attack> {
    let ways = WAYS.iter().map(|(tell, does, lies_there)| match *lies_there {
        "*" => fault("rogue-lsi", tell.to_string(), &format!("{does} 0x0 (own slot, unmapped): it may not read there")),
        _ => fault("rogue-lsi", tell.to_string(), &at(does, lies_there)),
    });
    let edges = EDGES.iter().map(|(tell, what)| fault("rogue-lsi", tell.to_string(), what));
    ways.chain(edges).collect()
}

/// Returns the accesses with 64-bit addresses. At first the card receives nothing for a second.
pub fn wide() -> Vec<Attack> {
    let first = Attack::answer("rogue-nic", "loop-back", Some(0)).then("sleep 1200");
    let rest = WIDE.iter().map(|(tell, what)| fault("rogue-nic", tell.to_string(), what));
    core::iter::once(first).chain(rest).collect()
}

/// Returns the accesses by the other cards.
pub fn cards() -> Vec<Attack> {
    CARDS.iter().map(|(module, tell, does, there)| fault(module, tell.to_string(), &at(does, there))).collect()
}

/// Returns accesses that are stopped before they fault, or that are to the device's own memory.
pub fn harmless() -> Vec<Attack> {
    const UNTOUCHED: u64 = 0x5555_5555_5555_5555;
    vec![
        Attack::answer("rogue-lsi", "own", Some(0x1234)),
        Attack::answer("rogue-rtl8139", "own-frame 0", Some(0)),
        Attack::answer("rogue-lsi", "read-before-dma %kernel-text", Some(UNTOUCHED)),
        Attack::fault("rogue-lsi", "panic-while-it-runs %kernel-text", "rogue-lsi: gave up, in command: "),
    ]
}

/// Forged interrupts: the address and the data that the device writes to the range of the local
/// APIC, and the meaning of that message. QEMU delivers these interrupts; none of them may do harm.
const MESSAGES: &[(u64, u64, &str)] = &[
    (0xfee0_0000, 0x10, "an exception"),
    (0xfee0_0000, 0x11, "an alignment check, which has an error code"),
    (0xfee0_0000, 0x12, "a machine check"),
    (0xfee0_0000, 0x1e, "an exception with an error code"),
    (0xfee0_0000, 0x20, "the first vector of the 8259s"),
    (0xfee0_0000, 0x25, "a line of the 8259s"),
    (0xfee0_0000, 0x2f, "their last line"),
    (0xfee0_0000, 0x30, "the first vector of messages"),
    (0xfee0_0000, 0x60, "the timer's"),
    (0xfee0_0000, 0x64, "the serial port's"),
    (0xfee0_0000, 0x6b, "a line of devices"),
    (0xfee0_0000, 0x80, "a vector that nobody has"),
    (0xfee0_0000, 0xef, "the vector of the local APIC's timer"),
    (0xfee0_0000, 0xff, "the spurious vector"),
    (0xfee0_0000, 0x400, "an NMI"),
    (0xfee0_0000, 0x8030, "a level"),
    (0xfee0_1000, 0x80, "for another CPU"),
    (0xfee0_0004, 0x80, "in logical mode"),
    (0xfeef_f000, 0x80, "for all CPUs"),
    (0xfee0_0010, 0, "entry 0 of the table"),
    (0xfee0_0ff0, 0, "an entry that nobody has"),
    (0xfeef_fff0, 0xffff, "an entry beyond the table"),
];

/// Returns the attacks of [`MESSAGES`].
pub fn messages() -> Vec<Attack> {
    let attack =
        |(at, data, _): &(u64, u64, _)| Attack::answer("rogue-lsi", format!("write {at:#x} {data:#x}"), Some(*data));
    MESSAGES.iter().map(attack).collect()
}

/// Returns all attacks by devices.
pub fn all() -> Vec<Attack> {
    [places(), ways(), wide(), cards(), messages(), harmless()].concat()
}

/// Describes the attempt of an attack in words.
pub fn explain(tell: &str) -> String {
    let (verb, argument) = tell.split_once(' ').unwrap_or((tell, ""));
    let is_it = |(at, data, _): &&(u64, u64, _)| argument == format!("{at:#x} {data:#x}");
    if let Some((.., what)) = MESSAGES.iter().find(is_it) {
        return format!("makes up an interrupt: {what}");
    }
    let tries = match verb {
        "read" | "dma-read" => "reads ARG",
        "write" | "dma-write" => "writes ARG",
        "fetch" => "fetches SCRIPTS at ARG",
        "table" => "finds a table of lengths and addresses at ARG",
        "indirect" => "finds an address at ARG",
        "load" => "loads a register from ARG",
        "store" => "stores a register to ARG",
        "scatter" => "moves three times, in the middle from ARG",
        "rewrite" => "writes over its next instruction, which reads ARG then",
        "copy" => "copies from elsewhere to elsewhere: ARG",
        "flood" => "reads ARG for ever",
        "straddle-read" => "reads over the end of its memory",
        "straddle-write" => "writes over the end of its memory",
        "straddle-start" => "reads from before its memory on",
        "read-freed" => "reads memory that the driver has given back, and that it has read before",
        "write-freed" => "writes memory that the driver has given back, and that it has written before",
        "dma-write-read-only" => "writes frames that are to be sent, which it only reads",
        "device-writes" => "takes what lies at ARG for its descriptors",
        "transmit-from" => "sends a frame from ARG",
        "receive-to" => "receives frames into a ring at ARG",
        "send" => "sends a frame whose descriptor says ARG",
        "header" => "sends a frame whose header is at ARG",
        "acknowledge" => "acknowledges a command at ARG",
        "own-frame" => "sends its own frame",
        "loop-back" => "sends to itself",
        "own" => "moves its own memory to and fro",
        "read-before-dma" => "reads ARG before the driver has asked for DMA",
        "panic-while-it-runs" => "writes ARG for ever, while its driver ends itself",
        _ => panic!("'{tell}' is not explained"),
    };
    tries.replace("ARG", &argument.replace(" 1", ""))
}
