//! The C header for drivers, generated from `kernel/abi`: types and constants by cbindgen, services
//! from their table.

use crate::build::write_if_changed;
use crate::{project, target};
use anyhow::{Context, Result};
use cbindgen::{Builder, Config, EnumConfig, ExportConfig, Language, Style};
use ringfence_abi::manifest::{self, MAGIC};
use ringfence_abi::service::{Argument, Kind, SERVICES, Service};
use std::fmt::Write;
use std::path::PathBuf;

/// Files of the ABI that C can use as they are.
const SOURCES: [&str; 8] =
    ["lib.rs", "layout.rs", "manifest.rs", "reset.rs", "upcall.rs", "net.rs", "scsi.rs", "block.rs"];

/// Types that no exported function names, and that drivers need all the same.
const TYPES: [&str; 11] = [
    "Manifest",
    "PciId",
    "Policy",
    "Reset",
    "ResetMethod",
    "NetInfo",
    "ScsiInfo",
    "Request",
    "Outcome",
    "BlockInfo",
    "BlockRequest",
];

/// Writes `ringfence.h`; returns the folder that has it.
pub fn write() -> Result<PathBuf> {
    let config = Config {
        language: Language::C,
        style: Style::Type,
        include_guard: Some("RINGFENCE_H".to_string()),
        documentation: true,
        cpp_compat: false,
        no_includes: true,
        sys_includes: vec!["stdint.h".to_string()],
        usize_is_size_t: false,
        trailer: Some(services()?),
        export: ExportConfig {
            prefix: Some("Rf".to_string()),
            include: TYPES.map(String::from).to_vec(),
            ..ExportConfig::default()
        },
        enumeration: EnumConfig { prefix_with_name: true, ..EnumConfig::default() },
        ..Config::default()
    };
    let mut builder = Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(project().join("kernel/abi/src").join(source));
    }
    let mut header = Vec::new();
    builder.generate().context("generating the C header")?.write(&mut header);
    // Constants are shouted in C, where they are defined and where they are the length of an array.
    let header = String::from_utf8(header)?.replace("#define Rf", "#define RF_").replace("[Rf", "[RF_");
    let folder = target().join("include");
    write_if_changed(&folder.join("ringfence.h"), &header)?;
    Ok(folder)
}

/// Declarations of the services, and the constants that only Rust can compute.
fn services() -> Result<String> {
    let mut text = String::new();
    writeln!(text, "/** First field of every manifest. */\n#define RF_MAGIC {MAGIC:#x}ULL")?;
    // cbindgen sees no types that macros make.
    let kinds = manifest::Kind::ALL.iter().map(|kind| format!("RfKind_{kind:?} = {}", *kind as u32));
    writeln!(
        text,
        "/** What a module is: the kind in its manifest. */\ntypedef enum {{ {} }} RfKind;",
        kinds.collect::<Vec<_>>().join(", ")
    )?;
    for (level, name) in (1..).zip(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]) {
        writeln!(text, "#define RF_LOG_{name} {level}")?;
    }
    writeln!(text)?;
    for service in SERVICES {
        let arguments: Vec<String> = service.arguments.iter().map(in_c).collect();
        let arguments = if arguments.is_empty() { "void".to_string() } else { arguments.join(", ") };
        let Service { what, value, refuses, symbol, .. } = service;
        writeln!(text, "/** {what}.\n * Returns: {value}. Refuses: {refuses}. */\nint64_t {symbol}({arguments});")?;
    }
    text += MEMORY_FUNCTIONS;
    Ok(text)
}

/// A parameter, or two for what is passed as an address and a length.
fn in_c(argument: &Argument) -> String {
    let Argument { name, kind } = argument;
    match kind {
        Kind::Text => format!("const char *{name}, uint64_t {name}_len"),
        Kind::Bytes => format!("const void *{name}, uint64_t {name}_len"),
        _ => format!("uint64_t {name}"),
    }
}

/// What gcc and clang call by themselves, to copy a structure for example: there is no C library
/// that has it. Each file of a module may have them; the linker keeps one. In assembly, as the
/// compiler would make a loop into a call of what the loop is the body of.
const MEMORY_FUNCTIONS: &str = r#"
#define RF_FOR_THE_COMPILER __attribute__((weak, visibility("hidden")))

/** Copies len_bytes bytes; the two must not overlap. */
RF_FOR_THE_COMPILER void *memcpy(void *to, const void *from, __SIZE_TYPE__ len_bytes)
{
    void *end = to;
    __asm__ volatile("rep movsb" : "+D"(end), "+S"(from), "+c"(len_bytes) : : "memory");
    return to;
}

/** Copies len_bytes bytes; the two may overlap. */
RF_FOR_THE_COMPILER void *memmove(void *to, const void *from, __SIZE_TYPE__ len_bytes)
{
    char *last = (char *)to + len_bytes - 1;
    const char *last_from = (const char *)from + len_bytes - 1;
    if ((__UINTPTR_TYPE__)to - (__UINTPTR_TYPE__)from >= len_bytes)
        return memcpy(to, from, len_bytes);
    __asm__ volatile("std\n\trep movsb\n\tcld" : "+D"(last), "+S"(last_from), "+c"(len_bytes) : : "memory", "cc");
    return to;
}

/** Sets len_bytes bytes to value. */
RF_FOR_THE_COMPILER void *memset(void *to, int value, __SIZE_TYPE__ len_bytes)
{
    void *end = to;
    __asm__ volatile("rep stosb" : "+D"(end), "+c"(len_bytes) : "a"(value) : "memory");
    return to;
}

/** Compares len_bytes bytes: 0 if they are alike, or which of the first two that differ is more. */
RF_FOR_THE_COMPILER int memcmp(const void *one, const void *other, __SIZE_TYPE__ len_bytes)
{
    const unsigned char *a = one, *b = other;
    for (; len_bytes > 0; len_bytes--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}
"#;
