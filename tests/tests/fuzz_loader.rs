//! Runs the module loader on damaged files. For any bytes, the loader returns, and accepts only
//! sound modules.

use proptest::prelude::*;
use ringfence_abi::layout::IMAGE_MAX;
use ringfence_core::extent::Extent;
use ringfence_core::module::{MAX_RELOCATIONS, MAX_SECTIONS, MAX_SYMBOLS, Module, ModuleError, Value, symbol_at};
use std::sync::OnceLock;

/// Returns the built modules, which the tests then damage.
fn modules() -> &'static [Vec<u8>] {
    static MODULES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MODULES.get_or_init(|| {
        let modules = &ringfence_tests::system().modules;
        modules.iter().map(|module| std::fs::read(&module.packed).expect("it is built")).collect()
    })
}

/// Asserts the properties that the kernel relies on when it maps an accepted module.
fn assert_sound(file: &[u8]) {
    let Ok(module) = Module::parse(file) else { return };
    let image = Extent::new(0, module.len_bytes);
    assert!(module.len_bytes <= IMAGE_MAX && module.len_bytes % 4096 == 0);
    let mut end = 0;
    for segment in &module.segments {
        assert!(segment.pages.start >= end, "segments overlap");
        assert!(image.encloses(segment.pages));
        assert!(segment.pages.encloses(Extent::new(segment.start, segment.bytes.len() as u64)));
        assert!(!(segment.writable && segment.executable));
        end = segment.pages.end().unwrap();
    }
    for relocation in &module.relocations {
        let target = Extent::new(relocation.at, 8);
        assert!(module.segments.iter().any(|segment| segment.writable && segment.pages.encloses(target)));
        match relocation.value {
            Value::Image(offset) => assert!(offset <= module.len_bytes),
            Value::Stub(number) => assert!(module.imports.contains(number)),
        }
    }
    assert!(module.segments.iter().any(|segment| segment.executable && segment.pages.contains(module.entry)));
    let _ = symbol_at(file, module.entry);
}

#[test]
fn the_modules_themselves_are_accepted() {
    for file in modules() {
        Module::parse(file).expect("a module that was built is accepted");
        assert_sound(file);
    }
}

const HEADER_BYTES: usize = 64;
const RELA: u32 = 4;
const DYNSYM: u32 = 11;

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Returns the section headers of a file.
fn section_headers(file: &[u8]) -> Vec<Vec<u8>> {
    let (table, count) = (word(file, 40) as usize, u16::from_le_bytes(file[60..62].try_into().unwrap()) as usize);
    file[table..table + count * HEADER_BYTES].chunks(HEADER_BYTES).map(<[u8]>::to_vec).collect()
}

/// Returns the first of `headers` with this type.
fn of_type(headers: &mut [Vec<u8>], kind: u32) -> &mut Vec<u8> {
    headers.iter_mut().find(|header| header[4..8] == kind.to_le_bytes()).expect("there is such a section")
}

/// Replaces a section by `content`, which is appended to the file.
fn replace_section(file: &mut Vec<u8>, header: &mut [u8], content: &[u8]) {
    header[24..32].copy_from_slice(&(file.len() as u64).to_le_bytes());
    header[32..40].copy_from_slice(&(content.len() as u64).to_le_bytes());
    file.extend(content);
    file.resize(file.len().next_multiple_of(8), 0);
}

/// Gives a file new section headers.
fn with_section_headers(mut file: Vec<u8>, headers: &[Vec<u8>]) -> Vec<u8> {
    let at = file.len() as u64;
    file[40..48].copy_from_slice(&at.to_le_bytes());
    file[60..62].copy_from_slice(&(headers.len() as u16).to_le_bytes());
    file.extend(headers.concat());
    file
}

fn refusal(file: &[u8]) -> ModuleError {
    Module::parse(file).map(|_| ()).expect_err("it is refused")
}

/// Relocations that do nothing are processed again and again, which would cost time at each load.
#[test]
fn relocations_that_do_nothing_are_counted() {
    const EACH: usize = 1000;
    let mut file = modules()[0].clone();
    let mut headers = section_headers(&file);
    // Type 0 is R_X86_64_NONE.
    replace_section(&mut file, of_type(&mut headers, RELA), &[0; 24 * EACH]);
    let rela = of_type(&mut headers, RELA).clone();
    headers.extend(vec![rela; MAX_RELOCATIONS / EACH + 1]);
    let refused = refusal(&with_section_headers(file, &headers));
    assert!(matches!(refused, ModuleError::TooMany("relocations", total, _) if total > MAX_RELOCATIONS), "{refused:?}");
}

/// Tables are searched for each entry of other tables, and a name without an end is scanned for
/// each symbol. Without limits, the time would grow with the square of the file's length.
#[test]
fn tables_have_an_end() {
    let mut file = modules()[0].clone();
    let mut headers = section_headers(&file);
    let with_sections = |count| {
        let mut headers = headers.clone();
        headers.resize(count, vec![0; HEADER_BYTES]);
        with_section_headers(modules()[0].clone(), &headers)
    };
    Module::parse(&with_sections(MAX_SECTIONS)).expect("so many are allowed");
    let refused = refusal(&with_sections(MAX_SECTIONS + 1));
    assert_eq!(refused, ModuleError::TooMany("sections", MAX_SECTIONS + 1, MAX_SECTIONS));

    // All symbols have the same name, a megabyte long and without an end.
    let symbol = [&[1, 0, 0, 0, 0x12, 0, 1, 0][..], &0x1000u64.to_le_bytes(), &[0; 8]].concat();
    let link = u32::from_le_bytes(of_type(&mut headers, DYNSYM)[40..44].try_into().unwrap()) as usize;
    replace_section(&mut file, &mut headers[link], &[b'a'; 1 << 20]);
    let with_symbols = |count| {
        let (mut file, mut headers) = (file.clone(), headers.clone());
        of_type(&mut headers, RELA)[32..40].fill(0);
        replace_section(&mut file, of_type(&mut headers, DYNSYM), &symbol.repeat(count));
        refusal(&with_section_headers(file, &headers))
    };
    assert_eq!(with_symbols(MAX_SYMBOLS), ModuleError::NoEntry);
    assert_eq!(with_symbols(MAX_SYMBOLS + 1), ModuleError::TooMany("dynamic symbols", MAX_SYMBOLS + 1, MAX_SYMBOLS));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn changed_bytes(which in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
        let mut file = which.get(modules()).clone();
        for (place, value) in changes {
            let place = place.index(file.len());
            file[place] = value;
        }
        assert_sound(&file);
    }

    /// Damage matters most in the headers and tables, which are at the front and at the end.
    #[test]
    fn changed_words_of_the_tables(which in any::<prop::sample::Index>(), front in any::<bool>(), word in 0usize..512, value in prop_oneof![any::<u64>(), 0u64..0x10000, Just(u64::MAX), Just(1u64 << 63)]) {
        let mut file = which.get(modules()).clone();
        let place = if front { word * 8 } else { file.len().saturating_sub((word + 1) * 8) & !7 };
        if let Some(bytes) = file.get_mut(place..place + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        assert_sound(&file);
    }

    #[test]
    fn cut_off(which in any::<prop::sample::Index>(), len in any::<prop::sample::Index>()) {
        let file = which.get(modules());
        assert_sound(&file[..len.index(file.len())]);
    }
}
