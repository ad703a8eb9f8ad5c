//! The functions of the fuzz targets. They check that no input makes the code panic, and that
//! accepted input is sound.
//!
//! `cargo fuzz run NAME` finds new inputs. `corpus/NAME` has the inputs that are kept; `cargo test`
//! replays them.
#![forbid(unsafe_code)]

use ringfence_abi::manifest::DomainKind;
use ringfence_abi::manifest::Manifest;
use ringfence_abi::queue::{Consumer, Place, Producer, Ring, Words};
use ringfence_abi::scsi as commands;
use ringfence_core::arguments::{Arguments, Patch};
use ringfence_core::evidence::policy::Policy;
use ringfence_core::evidence::record::Chain;
use ringfence_core::evidence::report::Report;
use ringfence_core::evidence::signed::{Purpose, SecretKey, Signed, Trusted, sign};
use ringfence_core::line_editor::{Event, LineEditor, MAX_LINE};
use ringfence_core::module::{Module, symbol_at};
use ringfence_core::sense::Sense;
use ringfence_core::{acpi as tables, cdb, command_line, disassembly, dmar, lines, pci as space};
use std::cell::RefCell;

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 8] = [
    ("loader", loader),
    ("manifest", manifest),
    ("queue", queue),
    ("pci", pci),
    ("acpi", acpi),
    ("scsi", scsi),
    ("shell", shell),
    ("evidence", evidence),
];

/// Parses a module file, and checks the segments and relocations of an accepted one.
pub fn loader(data: &[u8]) {
    if let Ok(module) = Module::parse(data) {
        let mut end = 0;
        for segment in &module.segments {
            assert!(!(segment.writable && segment.executable));
            assert!(segment.pages.start >= end && segment.start >= segment.pages.start);
            end = segment.pages.start + segment.pages.len_bytes;
            assert!(segment.start + segment.bytes.len() as u64 <= end && end <= module.len_bytes);
        }
        for relocation in &module.relocations {
            let inside = |segment: &&ringfence_core::module::Segment| {
                segment.writable
                    && segment.pages.start <= relocation.at
                    && relocation.at + 8 <= segment.pages.start + segment.pages.len_bytes
            };
            assert!(module.segments.iter().find(inside).is_some());
        }
        let is_inside = |at: &u64| {
            let end = at.checked_add(8).expect("a word has an end");
            let holds =
                |pages: &ringfence_core::extent::Extent| pages.start <= *at && end <= pages.start + pages.len_bytes;
            module.segments.iter().any(|segment| segment.writable && holds(&segment.pages))
        };
        assert!(module.zeros.iter().all(is_inside));
    }
    // Reports look up symbols in accepted modules, and in the kernel.
    let _ = symbol_at(data, 0x2000);
    for kind in [DomainKind::Paged, DomainKind::Segmented] {
        let _ = disassembly::instruction(kind, data, 0x8000_0040_0000);
    }
}

/// Reads a signed file as each kind that there is, and a table of source lines. The content that
/// was signed is read back unchanged.
pub fn evidence(data: &[u8]) {
    let trusted = [Trusted { name: String::from("key"), key: SecretKey::from_seed([1; 32]).public() }];
    let _ = Chain::parse(data, &trusted);
    let _ = lines::find(data, 0x1000);
    let Ok(signed) = Signed::parse(data) else { return };
    let _ = signed.signer(Purpose::Module, &trusted);
    if let Ok(text) = core::str::from_utf8(signed.content) {
        let _ = Policy::parse(text);
        let _ = Report::parse(text);
    }
    if let Ok(again) = sign(data, Purpose::Report, &SecretKey::from_seed([1; 32])) {
        let again = Signed::parse(&again).expect("what was signed has signatures");
        assert_eq!(again.content, signed.content);
    }
}

/// Reads ACPI tables: firmware's memory from 0xf0000 on, which begins with the root pointer, and
/// each kind of table.
pub fn acpi(data: &[u8]) {
    const AT: u64 = 0xf0000;
    let read = |address: u64, len_bytes: usize| {
        let from = usize::try_from(address.checked_sub(AT)?).ok()?;
        data.get(from..from.checked_add(len_bytes)?)
    };
    let found = tables::Tables::at(AT, read);
    let found = |signature| found.as_ref().and_then(|tables| tables.find(signature));
    let tables = [b"FACP", b"HPET", b"MCFG", b"DMAR", b"APIC"].map(found);
    for table in tables.into_iter().chain([Some(data)]).flatten() {
        let _ = dmar::Dmar::parse(table);
        let wiring = tables::Wiring::parse(table);
        let _ = (0..16).map(|line| wiring.of_line(line)).count();
        let _ = (tables::hpet(table), tables::pm_timer(table), tables::buses(table).count());
    }
}

/// Parses a manifest.
pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::parse(data) {
        assert!(!manifest.name().is_empty() && manifest.name() != "?");
        assert!(manifest.pci_ids().count() <= 8 && manifest.reset.method().is_some());
    }
}

/// Shared memory of a queue whose other side writes the bytes of the input.
struct Memory(RefCell<Vec<u64>>);

impl Words for Memory {
    fn load(&self, index: usize) -> u64 {
        self.0.borrow().get(index).copied().unwrap_or(0)
    }
    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.0.borrow_mut().get_mut(index) {
            *word = value;
        }
    }
}

/// Shared memory that has another value at each read, taken from the input.
struct Changing<'a>(RefCell<std::slice::ChunksExact<'a, u8>>);

impl Words for Changing<'_> {
    fn load(&self, _: usize) -> u64 {
        let next = self.0.borrow_mut().next().and_then(|bytes| bytes.try_into().ok());
        next.map_or(0, u64::from_le_bytes)
    }
    fn store(&self, _: usize, _: u64) {}
}

/// Uses both ends of a queue while another party writes to its memory: between two operations, and
/// during one.
pub fn queue(data: &[u8]) {
    const CAPACITY: usize = 8;
    const PLACE: Place = Place::new(0, CAPACITY);
    struct Tested;
    impl Ring for Tested {
        const PLACE: Place = PLACE;
    }
    let changing = Changing(RefCell::new(data.chunks_exact(8)));
    let (mut producer, mut consumer) = (Producer::<Tested>::new(), Consumer::<Tested>::new());
    while changing.0.borrow().len() > 0 {
        let _ = (consumer.take(&changing), producer.put(&changing, 1));
        assert!(consumer.len(&changing).unwrap_or(0) <= CAPACITY);
        assert!(producer.room(&changing).unwrap_or(0) <= CAPACITY);
        let _ = commands::read_outcome(&changing, 0);
    }
    let memory = Memory(RefCell::new(vec![0; PLACE.end()]));
    let (mut producer, mut consumer) = (Producer::<Tested>::new(), Consumer::<Tested>::new());
    let mut steps = data.chunks_exact(10);
    for step in &mut steps {
        let value = u64::from_le_bytes(step[2..].try_into().unwrap_or_default());
        match step[0] % 4 {
            0 => memory.store(usize::from(step[1]) % PLACE.end(), value),
            1 => {
                let _ = producer.put(&memory, value);
            }
            2 => {
                let _ = consumer.take(&memory);
            }
            _ => {
                // For any claim of the other side, neither count exceeds the ring's capacity.
                assert!(consumer.len(&memory).unwrap_or(0) <= CAPACITY);
                assert!(producer.room(&memory).unwrap_or(0) <= CAPACITY);
            }
        }
    }
    let words = Memory(RefCell::new(
        data.chunks_exact(8).map(|chunk| u64::from_le_bytes(chunk.try_into().unwrap_or_default())).collect(),
    ));
    let _ = (commands::read_outcome(&words, 0), commands::read_request(&words, commands::REQUESTS - 1));
}

/// Reads the configuration space of a PCI function.
pub fn pci(data: &[u8]) {
    let read = |offset: u16| {
        let bytes = data.get(usize::from(offset)..usize::from(offset) + 4);
        bytes.and_then(|bytes| bytes.try_into().ok()).map_or(u32::MAX, u32::from_le_bytes)
    };
    assert!(space::capabilities(read).len() <= 48);
    let _ = space::virtio_common(read);
    let _ = space::port_count(read(0x10));
}

/// Parses the answers of a SCSI device.
pub fn scsi(data: &[u8]) {
    let _ = Sense::parse(data).map(|sense| sense.to_string());
    let _ = (cdb::identity(data), cdb::capacity_10(data), cdb::capacity_16(data));
    assert!(cdb::luns(data).count() <= data.len() / 8);
}

/// Handles typed input: as keys, as commands, and as a command's arguments.
pub fn shell(data: &[u8]) {
    typed(data.get(..1000).unwrap_or(data));
    let Ok(text) = core::str::from_utf8(data) else { return };
    for command in command_line::commands(text) {
        assert!(!command.is_empty() && !command.contains(';'));
        words(command_line::in_background(command).unwrap_or(command));
        let first = command_line::name_and_arguments(command).0;
        assert!(command_line::most_like(first, ["lsmod", first]).is_none_or(|name| name == first || name == "lsmod"));
        assert!(command_line::in_pages(command).is_none_or(|shown| command.contains(shown)));
    }
    let (_, word) = command_line::last_word(text);
    assert!(text.ends_with(word) && !word.contains(' '));
    // A single candidate is completed as a whole; two candidates up to the end of their common
    // beginning.
    let longer = format!("{word}{text}");
    assert_eq!(command_line::completion(word, &[&longer]), Some(format!("{text} ")));
    assert_eq!(command_line::completion(word, &[&longer, word]), Some(String::new()));
    words(text);
}

/// Parses a command's arguments as the commands do.
fn words(text: &str) {
    let (_, text) = command_line::name_and_arguments(text);
    let lists = command_line::three_lists(text).unwrap_or_default();
    for command in lists.into_iter().flat_map(command_line::list) {
        assert!(text.contains(command));
    }
    let find = |name: &str| Some(name.len() as u64);
    // Fails if the word that is added to a physical address is no number.
    if let Ok(found) = command_line::with_addresses(text, find, find) {
        assert!(found.split(' ').count() == text.split(' ').count());
    }
    let mut arguments = Arguments::new(text, "usage");
    let word = arguments.word("the word").unwrap_or("");
    let _ = (arguments.number::<u64>("the number"), arguments.number::<u8>("the number"));
    let _ = Patch::parse(word).and_then(|patch| patch.apply(&[0; 64]));
    if let Some(watched) = command_line::watched(word) {
        assert!(watched.len_bytes <= 8 && watched.start.is_multiple_of(watched.len_bytes));
    }
    let rest = arguments.rest();
    assert!(text.contains(rest));
}

/// Feeds keys to the line editor, and checks its events.
fn typed(data: &[u8]) {
    const COLUMNS: usize = 10;
    let mut editor = LineEditor::new(COLUMNS);
    editor.begin("> ");
    for byte in data {
        let (_, event) = editor.press(*byte);
        match event {
            Some(Event::Line(line)) => {
                assert!(line.chars().count() <= MAX_LINE && !line.contains(['\r', '\n']));
                editor.begin("> ");
            }
            Some(Event::TooLong | Event::Cancelled | Event::End) => editor.begin("> "),
            Some(Event::Columns(columns)) => editor.set_columns(columns),
            Some(Event::Complete) | None => {}
        }
        assert!(editor.typed().chars().count() <= data.len().max(MAX_LINE));
        let _ = (editor.hide(), editor.show(), editor.leave());
    }
}
