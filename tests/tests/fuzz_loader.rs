//! The module loader against damaged files: whatever the bytes are, it returns, and what it accepts is sound.

use proptest::prelude::*;
use ringfence_abi::layout::IMAGE_MAX;
use ringfence_core::extent::Extent;
use ringfence_core::module::{MAX_RELOCATIONS, Module, ModuleError, Value, symbol_at};
use std::sync::OnceLock;

/// The modules as they are built: what damage is done to.
fn modules() -> &'static [Vec<u8>] {
    static MODULES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    MODULES.get_or_init(|| {
        let modules = &ringfence_tests::system().modules;
        modules.iter().map(|module| std::fs::read(&module.packed).expect("it is built")).collect()
    })
}

/// What the kernel relies on when it maps an accepted module.
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

/// Relocations that do nothing, looked at over and over: that would take the machine's time at each load.
#[test]
fn relocations_that_do_nothing_are_counted() {
    const HEADER_BYTES: usize = 64;
    const RELA: u32 = 4;
    let mut file = modules()[0].clone();
    let word = |file: &[u8], at: usize| u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let (table, count) = (word(&file, 40), u16::from_le_bytes(file[60..62].try_into().unwrap()) as usize);
    let mut headers = file[table..table + count * HEADER_BYTES].to_vec();
    let rela =
        headers.chunks(HEADER_BYTES).find(|header| header[4..8] == RELA.to_le_bytes()).expect("relocations").to_vec();
    let (start, len) = (word(&rela, 24), word(&rela, 32));
    // Type 0 is R_X86_64_NONE.
    file[start..start + len].chunks_mut(24).for_each(|entry| entry[8..16].fill(0));
    let copies = MAX_RELOCATIONS / (len / 24) + 1;
    (0..copies).for_each(|_| headers.extend(&rela));
    let at = file.len() as u64;
    file[40..48].copy_from_slice(&at.to_le_bytes());
    file[60..62].copy_from_slice(&((count + copies) as u16).to_le_bytes());
    file.extend(headers);
    let refused = Module::parse(&file).map(|_| ()).expect_err("too many relocations");
    assert!(matches!(refused, ModuleError::RelocationCount(total) if total > MAX_RELOCATIONS), "{refused:?}");
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

    /// The headers and tables at the front and at the end are where damage matters most.
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
