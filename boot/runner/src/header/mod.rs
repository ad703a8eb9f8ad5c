//! The C header for drivers, generated from `kernel/abi`: types and constants by cbindgen, services
//! from their table, and the constants that only Rust can compute. `driver.h` adds the functions
//! with which a driver uses them.

use crate::build::write_if_changed;
use crate::{project, target};
use anyhow::{Context, Result};
use cbindgen::{Builder, Config, EnumConfig, ExportConfig, Language, Style};
use ringfence_abi::manifest::{self, MAGIC};
use ringfence_abi::queue::Place;
use ringfence_abi::service::{Argument, Kind, Refusal, SERVICES, Service};
use ringfence_abi::upcall::{Events, Reply};
use ringfence_abi::{block, net, scsi};
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

/// Source files of the ABI that cbindgen can translate.
const SOURCES: [&str; 9] =
    ["lib.rs", "layout.rs", "manifest.rs", "parameter.rs", "reset.rs", "upcall.rs", "net.rs", "scsi.rs", "block.rs"];

/// Constants of the ABI that C has under another name or does not need.
const LEFT_OUT: [&str; 11] = [
    "QUEUE_BYTES",
    "HEARING",
    "GROUPS",
    "MAX_GROUPS",
    "USED_BYTES",
    "USED_DATA",
    "USED_REQUESTS",
    "FIRST_REQUEST",
    "REQUEST_WORDS",
    "FUNCTIONS",
    "NUMBERS",
];

/// Types that drivers need although no exported function names them.
const TYPES: [&str; 14] = [
    "Manifest",
    "PciId",
    "Parameter",
    "ParameterKind",
    "Policy",
    "Reset",
    "ResetMethod",
    "NetInfo",
    "Counter",
    "ScsiInfo",
    "Request",
    "Outcome",
    "BlockInfo",
    "BlockRequest",
];

/// Writes `ringfence.h`; returns its folder. A header that is made from these sources already is
/// left alone: cbindgen takes as long as all of a build in which nothing has changed.
pub fn write() -> Result<PathBuf> {
    let folder = target().join("include");
    let (header, made_from) = (folder.join("ringfence.h"), folder.join("ringfence.made"));
    let services = services()?;
    let mut hasher = DefaultHasher::new();
    (include_str!("mod.rs"), &services).hash(&mut hasher);
    let sources = SOURCES.map(|source| project().join("kernel/abi/src").join(source));
    for source in &sources {
        fs::read(source).with_context(|| format!("reading {}", source.display()))?.hash(&mut hasher);
    }
    // The header itself belongs to what is remembered: something else may have written it.
    let state = |header: &str| {
        let mut hasher = hasher.clone();
        header.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    let is_there = fs::read_to_string(&header)
        .is_ok_and(|header| fs::read_to_string(&made_from).is_ok_and(|before| before == state(&header)));
    if !is_there {
        let text = make(services, &sources)?;
        write_if_changed(&header, &text)?;
        write_if_changed(&made_from, &state(&text))?;
    }
    Ok(folder)
}

/// Makes the header from these sources of the ABI.
fn make(services: String, sources: &[PathBuf]) -> Result<String> {
    let config = Config {
        language: Language::C,
        style: Style::Type,
        // The matching `#endif` is at the end of `driver.h`.
        header: Some("#ifndef RINGFENCE_H\n#define RINGFENCE_H".to_string()),
        documentation: true,
        cpp_compat: true,
        no_includes: true,
        sys_includes: vec!["stdint.h".to_string()],
        usize_is_size_t: false,
        trailer: Some(services),
        export: ExportConfig {
            prefix: Some("Rf".to_string()),
            include: TYPES.map(String::from).to_vec(),
            exclude: LEFT_OUT.map(String::from).to_vec(),
            ..ExportConfig::default()
        },
        enumeration: EnumConfig { prefix_with_name: true, ..EnumConfig::default() },
        ..Config::default()
    };
    let mut builder = Builder::new().with_config(config);
    for source in sources {
        builder = builder.with_src(source);
    }
    let mut header = Vec::new();
    builder.generate().context("generating the C header")?.write(&mut header);
    Ok(constants_in_upper_case(&String::from_utf8(header)?))
}

/// Returns the declarations of the services, and the constants that only Rust can compute.
fn services() -> Result<String> {
    let mut text = String::new();
    writeln!(text, "/** First field of every manifest. */\n#define RF_MAGIC {MAGIC:#x}ULL")?;
    // cbindgen does not see types that macros make.
    let kinds = manifest::Kind::ALL.iter().map(|kind| format!("RfKind_{kind:?} = {}", *kind as u32));
    writeln!(
        text,
        "/** What a module is: the kind in its manifest. */\ntypedef enum {{ {} }} RfKind;",
        kinds.collect::<Vec<_>>().join(", ")
    )?;
    for (name, event) in Events::all().iter_names() {
        writeln!(text, "/** Why RF_POLL is asked. */\n#define RF_EVENT_{name} {:#x}", event.bits())?;
    }
    for (name, reply) in Reply::all().iter_names() {
        writeln!(text, "/** What RF_POLL answers. */\n#define RF_REPLY_{name} {:#x}", reply.bits())?;
    }
    for (name, offload) in net::Offload::all().iter_names() {
        writeln!(
            text,
            "/** What a card does in the kernel's place. */\n#define RF_OFFLOAD_{name} {:#x}",
            offload.bits()
        )?;
    }
    for (name, hearing) in net::Hearing::all().iter_names() {
        writeln!(text, "/** What a card hears besides. */\n#define RF_HEARS_{name} {:#x}", hearing.bits())?;
    }
    writeln!(text, "/** The word of the queue memory that says so. */\n#define RF_NET_HEARING {}", net::HEARING)?;
    writeln!(text, "/** The first of the words with groups to hear. */\n#define RF_NET_GROUPS {}", net::GROUPS)?;
    writeln!(text, "/** The most groups to hear. */\n#define RF_NET_MAX_GROUPS {}", net::MAX_GROUPS)?;
    for refusal in Refusal::ALL {
        let name = shouted(&format!("{refusal:?}"));
        writeln!(
            text,
            "/** Why not: {refusal}. As a result it is negative. */\n#define RF_REFUSED_{name} {}",
            refusal as u64
        )?;
    }
    let rings = [
        ("NET_TRANSMIT", net::TRANSMIT),
        ("NET_TRANSMITTED", net::TRANSMITTED),
        ("NET_EMPTY", net::EMPTY),
        ("NET_RECEIVED", net::RECEIVED),
        ("SCSI_SUBMIT", scsi::SUBMIT),
        ("SCSI_COMPLETE", scsi::COMPLETE),
        ("BLOCK_SUBMIT", block::SUBMIT),
        ("BLOCK_COMPLETE", block::COMPLETE),
    ];
    for (name, Place { base, capacity }) in rings {
        writeln!(text, "/** A ring that is empty (RfRing). */\n#define RF_{name} {{{base}, {capacity}, 0}}")?;
    }
    let requests =
        [("SCSI", scsi::FIRST_REQUEST, scsi::REQUEST_WORDS), ("BLOCK", block::FIRST_REQUEST, block::REQUEST_WORDS)];
    for (name, first, words) in requests {
        writeln!(text, "/** Word of the first request, and words from one to the next. */")?;
        writeln!(text, "#define RF_{name}_FIRST {first}\n#define RF_{name}_WORDS {words}")?;
    }
    for (level, name) in (1..).zip(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]) {
        writeln!(text, "#define RF_LOG_{name} {level}")?;
    }
    writeln!(text, "\n#ifdef __cplusplus\nextern \"C\" {{\n#endif\n")?;
    for service in SERVICES {
        let arguments: Vec<String> = service.arguments.iter().map(in_c).collect();
        let arguments = if arguments.is_empty() { "void".to_string() } else { arguments.join(", ") };
        let Service { what, value, refuses, symbol, .. } = service;
        writeln!(text, "/** {what}.\n * Returns: {value}. Refuses: {refuses}. */")?;
        match passed(service) {
            None => writeln!(text, "int64_t {symbol}({arguments});")?,
            Some((words, passed)) => {
                writeln!(text, "/* The same, with an address as a number. */")?;
                writeln!(text, "int64_t {symbol}_words({words}) __asm__(\"{symbol}\");\n#ifdef __i386__")?;
                writeln!(text, "static inline int64_t {symbol}({arguments}) __asm__(\"{symbol}_of_32_bits\");")?;
                writeln!(text, "static inline int64_t {symbol}({arguments})\n{{")?;
                writeln!(text, "    return {symbol}_words({passed});\n}}\n#else")?;
                writeln!(text, "int64_t {symbol}({arguments});\n#endif")?;
            }
        }
    }
    text += MEMORY_FUNCTIONS;
    text += "\n#ifdef __cplusplus\n}\n#endif\n";
    text += include_str!("driver.h");
    Ok(text)
}

/// Gives constants the prefix `RF_`, wherever they are named: cbindgen gives them that of types.
fn constants_in_upper_case(header: &str) -> String {
    let mut parts = header.split("Rf");
    let mut renamed = parts.next().unwrap_or_default().to_string();
    for part in parts {
        // A type has a small letter behind its first one, and so has an enumeration's value.
        let is_constant = part.chars().take_while(|c| c.is_ascii_uppercase() || *c == '_').count() > 1;
        renamed += if is_constant { "RF_" } else { "Rf" };
        renamed += part;
    }
    renamed
}

/// Converts `LikeThis` to `LIKE_THIS`.
fn shouted(name: &str) -> String {
    let mut shouted = String::new();
    for letter in name.chars() {
        if letter.is_uppercase() && !shouted.is_empty() {
            shouted.push('_');
        }
        shouted.push(letter.to_ascii_uppercase());
    }
    shouted
}

/// Returns a C parameter, or two parameters for an argument that is an address and a length.
fn in_c(argument: &Argument) -> String {
    let Argument { name, kind } = argument;
    match kind {
        Kind::Text => format!("const char *{name}, uint64_t {name}_len"),
        Kind::Bytes => format!("const void *{name}, uint64_t {name}_len"),
        _ => format!("uint64_t {name}"),
    }
}

/// Returns the parameters in words of 64 bits of a service that takes an address, and how 32-bit
/// code passes them: its addresses have fewer bits than the service's stub takes. `None` if the
/// service takes none.
fn passed(service: &Service) -> Option<(String, String)> {
    let has_address = |argument: &Argument| matches!(argument.kind, Kind::Text | Kind::Bytes);
    service.arguments.iter().any(has_address).then(|| {
        let [mut words, mut passed] = [Vec::new(), Vec::new()];
        for argument in service.arguments {
            let name = &argument.name;
            words.push(format!("uint64_t {name}"));
            match has_address(argument) {
                true => {
                    words.push(format!("uint64_t {name}_len"));
                    passed.extend([format!("(__UINTPTR_TYPE__){name}"), format!("{name}_len")]);
                }
                false => passed.push(name.to_string()),
            }
        }
        (words.join(", "), passed.join(", "))
    })
}

/// Functions that gcc and clang call by themselves, for example to copy a structure: there is no C
/// library to provide them. Each file of a module may define them; the linker keeps one copy. The
/// functions that write memory are in assembly, because a compiler could turn the loop in `memcpy`
/// into a call of `memcpy`.
const MEMORY_FUNCTIONS: &str = r#"
#define RF_FOR_THE_COMPILER __attribute__((weak, visibility("hidden"), unused))

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
    const unsigned char *a = (const unsigned char *)one, *b = (const unsigned char *)other;
    for (; len_bytes > 0; len_bytes--, a++, b++)
        if (*a != *b)
            return *a - *b;
    return 0;
}
"#;
