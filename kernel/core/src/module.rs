//! Reads a module file. There are two kinds, one for each kind of domain:
//!
//! * *paged*: an ELF64 shared object (`ET_DYN`). Its undefined symbols are its requests for
//!   services.
//! * *segmented*: an ELF32 executable (`ET_EXEC`), linked at the image's place in a slot, without
//!   relocations. Its requests for services are the absolute symbols with their names, whose values
//!   are the addresses of their stubs.
//!
//! [`Module::parse`] checks all properties of the file on which the loader later relies, and
//! refuses a bad file with the reason. It maps nothing and runs nothing. **It returns for any
//! bytes**: it never panics, and takes no more memory than a small multiple of the file's length.

use crate::evidence::signed::Signed;
use crate::extent::{Extent, align_up};
use crate::parameter::Declared;
use crate::tcg::{self, Hole};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use object::LittleEndian as LE;
use object::elf;
use object::read::SectionIndex;
use object::read::elf::{Dyn, FileHeader, ProgramHeader, Rela, SectionHeader, SectionTable, Sym, SymbolTable};
use ringfence_abi::layout::{IMAGE, IMAGE_MAX, PAGE_SIZE, STUB_BYTES, STUBS};
use ringfence_abi::manifest::{self, DomainKind, Kind, Manifest, ManifestError, SEGMENTED_SUFFIX};
use ringfence_abi::parameter::{self, MAX_PARAMETERS, Parameter};
use ringfence_abi::register::{self, MAX_REGISTERS, RegisterName};
use ringfence_abi::service::{self, SERVICE_COUNT, SERVICES};
use ringfence_abi::upcall::ENTRY;
use zerocopy::FromBytes;

type Header = elf::FileHeader64<LE>;
type Header32 = elf::FileHeader32<LE>;

/// Returns the kind of domain that a module file is for, by its ELF class. A file that is none is
/// for neither, and refused later.
pub fn kind_of(file: &[u8]) -> DomainKind {
    const CLASS: usize = 4;
    match file.get(CLASS) {
        Some(class) if *class == elf::ELFCLASS32.0 => DomainKind::Segmented,
        _ => DomainKind::Paged,
    }
}

/// Returns the kind of domain that a module's file of this name is for.
pub fn kind_of_name(name: &str) -> DomainKind {
    if name.ends_with(SEGMENTED_SUFFIX) { DomainKind::Segmented } else { DomainKind::Paged }
}

/// Returns the name of a module's file for domains of this kind, from that for either kind.
pub fn file_name(name: &str, kind: DomainKind) -> String {
    [name.strip_suffix(SEGMENTED_SUFFIX).unwrap_or(name), kind.suffix()].concat()
}

/// The most `PT_LOAD` segments that a module may have.
pub const MAX_SEGMENTS: usize = 16;

/// The most relocations that a module may have.
pub const MAX_RELOCATIONS: usize = 1 << 15;

/// The most sections that a module may have. Some tables are searched once for each entry of
/// another, and **the time of a search must not grow with the square of a file's length**.
pub const MAX_SECTIONS: usize = 256;
/// The most program headers that a module may have; see [`MAX_SECTIONS`].
pub const MAX_PROGRAM_HEADERS: usize = 64;
/// The most dynamic symbols that a module may have; see [`MAX_SECTIONS`].
pub const MAX_SYMBOLS: usize = 1 << 12;

/// The most functions that [`symbol_at`] looks at; later ones have no name.
const MAX_FUNCTIONS: usize = 1 << 16;

/// Longest name that is searched for, in bytes.
const MAX_NAME: usize = 64;
/// Longest name of a function, in bytes.
const MAX_FUNCTION_NAME: usize = 1024;

/// A module file that may be loaded. Addresses are offsets from the image's base.
#[derive(Debug)]
pub struct Module<'a> {
    /// The kind of domain that it is for.
    pub domain: DomainKind,
    /// The module's description of itself.
    pub manifest: Manifest,
    /// The segments to map, in ascending order, no two on the same page.
    pub segments: Vec<Segment<'a>>,
    /// The places to patch after mapping; each lies in a writable segment.
    pub relocations: Vec<Relocation>,
    /// Words that become 0 at the same time, in writable segments as well: references to undefined
    /// weak symbols.
    pub zeros: Vec<u64>,
    /// Whole pages that become read-only after relocation.
    pub relro: Option<Extent>,
    /// Length of the image in bytes, whole pages.
    pub len_bytes: u64,
    /// The entry point.
    pub entry: u64,
    /// The services that the module asks for, by number.
    pub imports: Imports,
    /// The parameters that a person can set.
    pub parameters: Vec<Declared>,
    /// Names of the device's registers.
    pub registers: Vec<RegisterName>,
}

/// A part of the file to map.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// The pages it takes.
    pub pages: Extent,
    /// Where `bytes` go; the rest of the pages is zero.
    pub start: u64,
    /// The bytes in the file.
    pub bytes: &'a [u8],
    /// Whether the driver may write it.
    pub writable: bool,
    /// Whether the driver may execute it.
    pub executable: bool,
}

/// Eight bytes to patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Relocation {
    /// Offset of the bytes in the image.
    pub at: u64,
    /// The value to put there.
    pub value: Value,
}

/// A value to patch in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value {
    /// The address of this offset into the image.
    Image(u64),
    /// The address of the stub of this service.
    Stub(usize),
}

/// A set of services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Imports(u64);

const _: () = assert!(SERVICE_COUNT <= 64);

impl Imports {
    /// Returns whether service `number` is in the set.
    pub fn contains(self, number: usize) -> bool {
        number < SERVICE_COUNT && self.0 & 1 << number != 0
    }

    /// Adds service `number`, if there is a service of that number.
    pub fn insert(&mut self, number: usize) {
        if number < SERVICE_COUNT {
            self.0 |= 1 << number;
        }
    }

    /// Returns the services in the set, ascending.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..SERVICE_COUNT).filter(move |number| self.contains(*number))
    }
}

/// The reason why a module file is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModuleError {
    /// The file is no ELF file, or its tables do not lie within it.
    NotElf,
    /// The file is an ELF file, but neither a 64-bit x86-64 shared object nor a 32-bit executable.
    NotSharedObject,
    /// The symbol of service `.0` does not have its stub's address.
    ServiceAddress(usize),
    /// The file has no `.ringfence` section.
    NoManifest,
    /// The manifest is wrong.
    Manifest(ManifestError),
    /// The file has no segments to load, or too many.
    SegmentCount(usize),
    /// Segment `.0` lies outside the file, or has more bytes in the file than in memory.
    SegmentBounds(usize),
    /// Segment `.0` may be written and executed.
    WritableAndExecutable(usize),
    /// Segment `.0` shares a page with the one before it, or comes before it.
    Overlap(usize),
    /// The image is larger than a slot has room for.
    TooLarge(u64),
    /// The file has a feature that is not supported.
    Unsupported(&'static str),
    /// The file has so many of something (second field), and at most so many are allowed (third
    /// field).
    TooMany(&'static str, usize, usize),
    /// A relocation of this type is not supported.
    RelocationType(u32),
    /// A relocation patches bytes that are not in a writable segment.
    RelocationTarget(u64),
    /// A relocation points outside the image.
    RelocationValue(u64),
    /// A relocation names a symbol that does not exist.
    Symbol(usize),
    /// The module asks for a service that does not exist; the first bytes of its name.
    UnknownService([u8; 32]),
    /// The module asks for a service that its kind is not granted.
    NotGranted(usize),
    /// The module has no entry point, or not in executable code.
    NoEntry,
    /// The section of parameters is not in writable memory, is empty, or does not hold whole
    /// parameters.
    Parameters,
    /// The parameter of this name makes no sense, or has the name of another.
    Parameter([u8; 24]),
    /// The section of register names does not hold whole names, or one of them makes no sense.
    Registers,
}

impl fmt::Display for ModuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModuleError::NotElf => write!(f, "not a well-formed ELF file"),
            ModuleError::NotSharedObject => {
                write!(f, "neither a 64-bit x86-64 shared object nor a 32-bit executable")
            }
            ModuleError::ServiceAddress(number) => {
                let name = SERVICES.get(*number).map_or("?", |service| service.symbol);
                write!(f, "is linked for another place of {name}")
            }
            ModuleError::NoManifest => write!(f, "no {} section", manifest::SECTION),
            ModuleError::Manifest(error) => write!(f, "{error}"),
            ModuleError::SegmentCount(count) => write!(f, "{count} segments to load (1 to {MAX_SEGMENTS} are allowed)"),
            ModuleError::SegmentBounds(index) => write!(f, "segment {index} lies outside the file"),
            ModuleError::WritableAndExecutable(index) => write!(f, "segment {index} is writable and executable"),
            ModuleError::Overlap(index) => write!(f, "segment {index} overlaps the one before it"),
            ModuleError::TooLarge(bytes) => write!(f, "image of {bytes:#x} bytes is too large (most: {IMAGE_MAX:#x})"),
            ModuleError::Unsupported(what) => write!(f, "{what} is not supported"),
            ModuleError::TooMany(what, count, most) => write!(f, "{count} {what} (most: {most})"),
            ModuleError::RelocationType(kind) => write!(f, "relocation type {kind} is not supported"),
            ModuleError::RelocationTarget(at) => write!(f, "relocation at {at:#x} is not in a writable segment"),
            ModuleError::RelocationValue(value) => write!(f, "relocation to {value:#x} is outside the image"),
            ModuleError::Symbol(index) => write!(f, "relocation names symbol {index}, which does not exist"),
            ModuleError::UnknownService(name) => {
                let name = name.split(|byte| *byte == 0).next().unwrap_or(&[]);
                write!(f, "asks for unknown service ")?;
                name.iter().try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))
            }
            ModuleError::NotGranted(number) => {
                let name = SERVICES.get(*number).map_or("?", |service| service.symbol);
                let hint = match name {
                    "rf_offer" => "; the manifest says its kind",
                    "rf_use" => "; the manifest says what it uses",
                    _ => "; the manifest names its device",
                };
                write!(f, "asks for {name}, which its kind is not granted{hint}")
            }
            ModuleError::NoEntry => write!(f, "no function {ENTRY} in its code"),
            ModuleError::Parameters => {
                write!(f, "{} does not hold whole parameters in memory that may be written", parameter::SECTION)
            }
            ModuleError::Registers => write!(f, "{} does not hold whole names of registers", register::SECTION),
            ModuleError::Parameter(name) => {
                write!(f, "parameter '")?;
                name.iter().take_while(|byte| **byte != 0).try_for_each(|byte| write!(f, "{}", byte.escape_ascii()))?;
                write!(f, "' makes no sense, or has the name of another")
            }
        }
    }
}

/// Returns whether a module with `manifest` may have service `number`.
fn grantable(manifest: &Manifest, number: usize) -> bool {
    let has_device = manifest.has_device();
    match SERVICES.get(number).map(|service| service.symbol) {
        None => false,
        Some("rf_offer") => manifest.kind() != Ok(Kind::Other),
        Some("rf_use") => manifest.uses() != Ok(Kind::Other),
        Some(symbol) if ["rf_bar_", "rf_pci_", "rf_irq_", "rf_dma_"].iter().any(|part| symbol.starts_with(part)) => {
            has_device
        }
        Some(_) => true,
    }
}

impl<'a> Module<'a> {
    /// Reads a module file and checks it. Signatures behind its content are no part of the module:
    /// it is known by the hash of the rest.
    pub fn parse(file: &'a [u8]) -> Result<Module<'a>, ModuleError> {
        let file = Signed::parse(file).map_or(file, |signed| signed.content);
        match kind_of(file) {
            DomainKind::Paged => Module::paged(file),
            DomainKind::Segmented => Module::segmented(file),
        }
    }

    fn paged(file: &'a [u8]) -> Result<Module<'a>, ModuleError> {
        let header = Header::parse(file).map_err(|_| ModuleError::NotElf)?;
        if !header.is_little_endian() || header.e_machine(LE) != elf::EM_X86_64 || header.e_type(LE) != elf::ET_DYN {
            return Err(ModuleError::NotSharedObject);
        }
        let parts = Parts::parse(header, file, 0)?;
        let patches = relocations(&parts.sections, file, &parts.image, &parts.manifest)?;
        let entry = entry_point(&parts.sections, file, &parts.image)?;
        Ok(parts.module(DomainKind::Paged, patches, entry))
    }

    fn segmented(file: &'a [u8]) -> Result<Module<'a>, ModuleError> {
        let header = Header32::parse(file).map_err(|_| ModuleError::NotElf)?;
        if !header.is_little_endian() || header.e_machine(LE) != elf::EM_386 || header.e_type(LE) != elf::ET_EXEC {
            return Err(ModuleError::NotSharedObject);
        }
        let parts = Parts::parse(header, file, IMAGE)?;
        let is_relocation = |section: &elf::SectionHeader32<LE>| {
            let kinds = [elf::SHT_REL, elf::SHT_RELA, elf::SHT_RELR];
            kinds.contains(&section.sh_type(LE)) && section.sh_flags(LE).contains(elf::SHF_ALLOC)
        };
        if parts.sections.iter().any(is_relocation) {
            return Err(ModuleError::Unsupported("a relocation of a 32-bit executable"));
        }
        let imports = linked_services(&parts.sections, file, &parts.manifest)?;
        let entry = u64::from(header.e_entry(LE)).checked_sub(IMAGE).filter(|entry| parts.image.has_code(*entry));
        let patches = Patches { relocations: Vec::new(), zeros: Vec::new(), imports };
        Ok(parts.module(DomainKind::Segmented, patches, entry.ok_or(ModuleError::NoEntry)?))
    }
}

/// The parts that both kinds of modules have.
struct Parts<'a, Elf: FileHeader<Endian = LE>> {
    sections: SectionTable<'a, Elf>,
    manifest: Manifest,
    image: Image<'a>,
    parameters: Vec<Declared>,
    registers: Vec<RegisterName>,
}

impl<'a, Elf: FileHeader<Endian = LE>> Parts<'a, Elf> {
    /// Reads the parts of a file that is linked for the address `base`.
    fn parse(header: &Elf, file: &'a [u8], base: u64) -> Result<Parts<'a, Elf>, ModuleError> {
        let sections = header.sections(LE, file).map_err(|_| ModuleError::NotElf)?;
        few("sections", sections.len(), MAX_SECTIONS)?;
        let names = header.section_strings_index(LE, file).ok().and_then(|index| strings(&sections, file, index));
        let find = |wanted: &str| {
            let is_wanted =
                |section: &&Elf::SectionHeader| name(names, section.sh_name(LE), MAX_NAME) == Some(wanted.as_bytes());
            sections.iter().find(is_wanted)
        };
        let section = find(manifest::SECTION).ok_or(ModuleError::NoManifest)?;
        let manifest =
            Manifest::parse(section.data(LE, file).map_err(|_| ModuleError::NotElf)?).map_err(ModuleError::Manifest)?;
        let image = Image::parse(header, file, base)?;
        let parameters = match find(parameter::SECTION) {
            Some(section) => {
                let bytes = section.data(LE, file).map_err(|_| ModuleError::NotElf)?;
                let start: u64 = section.sh_addr(LE).into();
                parameters(bytes, start.checked_sub(base).ok_or(ModuleError::Parameters)?, &image)?
            }
            None => Vec::new(),
        };
        let registers = match find(register::SECTION) {
            Some(section) => registers(section.data(LE, file).map_err(|_| ModuleError::NotElf)?)?,
            None => Vec::new(),
        };
        Ok(Parts { sections, manifest, image, parameters, registers })
    }

    fn module(self, domain: DomainKind, patches: Patches, entry: u64) -> Module<'a> {
        let Parts { manifest, image: Image { segments, relro, len_bytes }, parameters, registers, .. } = self;
        let Patches { relocations, zeros, imports } = patches;
        Module {
            domain,
            manifest,
            segments,
            relocations,
            zeros,
            relro,
            len_bytes,
            entry,
            imports,
            parameters,
            registers,
        }
    }
}

/// Returns the services whose stubs a 32-bit executable is linked with. The linker defines the
/// symbol of a service only if the module refers to it.
fn linked_services(
    sections: &SectionTable<Header32>,
    file: &[u8],
    manifest: &Manifest,
) -> Result<Imports, ModuleError> {
    let symbols = sections.symbols(LE, file, elf::SHT_SYMTAB).map_err(|_| ModuleError::NotElf)?;
    few("symbols", symbols.len(), MAX_FUNCTIONS)?;
    let names = strings(sections, file, symbols.string_section());
    let mut imports = Imports::default();
    for symbol in symbols.iter().filter(|symbol| symbol.st_shndx(LE) == elf::SHN_ABS) {
        let Some(number) = name(names, symbol.st_name(LE), MAX_NAME).and_then(service::by_symbol) else { continue };
        if u64::from(symbol.st_value(LE)) != STUBS + number as u64 * STUB_BYTES {
            return Err(ModuleError::ServiceAddress(number));
        }
        if !grantable(manifest, number) {
            return Err(ModuleError::NotGranted(number));
        }
        imports.insert(number);
    }
    Ok(imports)
}

/// Reads the names of registers in `bytes`.
fn registers(bytes: &[u8]) -> Result<Vec<RegisterName>, ModuleError> {
    let (whole, rest) = bytes.as_chunks::<{ size_of::<RegisterName>() }>();
    few("registers", whole.len(), MAX_REGISTERS)?;
    let read = |bytes: &[u8; size_of::<RegisterName>()]| {
        let name: RegisterName = zerocopy::transmute!(*bytes);
        name.name().is_some().then_some(name).ok_or(ModuleError::Registers)
    };
    if rest.is_empty() { whole.iter().map(read).collect() } else { Err(ModuleError::Registers) }
}

/// Reads the parameters in `bytes`, which lie at `start` in the image.
fn parameters(bytes: &[u8], start: u64, image: &Image) -> Result<Vec<Declared>, ModuleError> {
    let place = Extent::new(start, bytes.len() as u64);
    let may_be_written = image.segments.iter().any(|segment| segment.writable && segment.pages.encloses(place));
    let whole = bytes.chunks(size_of::<Parameter>()).take(MAX_PARAMETERS + 1);
    let read = |bytes| Parameter::read_from_bytes(bytes).map_err(|_| ModuleError::Parameters);
    let found: Vec<Parameter> = whole.map(read).collect::<Result<_, _>>()?;
    if !may_be_written || found.is_empty() {
        return Err(ModuleError::Parameters);
    }
    few("parameters", found.len(), MAX_PARAMETERS)?;
    for (index, parameter) in found.iter().enumerate() {
        let is_named_before = found.iter().take(index).any(|other| other.name() == parameter.name());
        if !parameter.is_sound() || is_named_before {
            return Err(ModuleError::Parameter(parameter.name));
        }
    }
    let places = (start..).step_by(size_of::<Parameter>());
    let mut declared: Vec<Declared> = places.zip(found).map(|(at, parameter)| Declared { at, parameter }).collect();
    // The linker chooses their order; they are sorted by name.
    declared.sort_unstable_by_key(|declared| declared.parameter.name);
    Ok(declared)
}

type Sections<'a> = SectionTable<'a, Header>;

/// Refuses the file if it has more than `most` of `what`.
fn few(what: &'static str, count: usize, most: usize) -> Result<(), ModuleError> {
    if count > most { Err(ModuleError::TooMany(what, count, most)) } else { Ok(()) }
}

/// Returns the bytes of the string table in section `index`.
fn strings<'a, Elf: FileHeader<Endian = LE>>(
    sections: &SectionTable<'a, Elf>,
    file: &'a [u8],
    index: SectionIndex,
) -> Option<&'a [u8]> {
    sections.section(index).ok()?.data(LE, file).ok()
}

/// Returns the name that begins at `offset` in a string table, if it is at most `most` bytes long.
/// The limit keeps a table without an end from being searched for each name in it.
fn name(strings: Option<&[u8]>, offset: u32, most: usize) -> Option<&[u8]> {
    let rest = strings?.get(offset as usize..)?;
    rest.get(..rest.iter().take(most + 1).position(|byte| *byte == 0)?)
}

/// The places to patch, and the services that the relocations ask for.
struct Patches {
    relocations: Vec<Relocation>,
    zeros: Vec<u64>,
    imports: Imports,
}

/// Reads the relocations: the places to patch, and the services to ask for.
fn relocations<'a>(
    sections: &Sections<'a>,
    file: &'a [u8],
    image: &Image,
    manifest: &Manifest,
) -> Result<Patches, ModuleError> {
    let mut imports = Imports::default();
    let (mut relocations, mut zeros) = (Vec::new(), Vec::new());
    let mut total = 0;
    for section in sections.iter() {
        match section.sh_type(LE) {
            elf::SHT_REL | elf::SHT_RELR if section.sh_flags(LE).contains(elf::SHF_ALLOC) => {
                return Err(ModuleError::Unsupported("a REL or RELR relocation section"));
            }
            elf::SHT_RELA if section.sh_flags(LE).contains(elf::SHF_ALLOC) => {}
            _ => continue,
        }
        let Some((entries, link)) = section.rela(LE, file).map_err(|_| ModuleError::NotElf)? else { continue };
        let symbols = match link {
            SectionIndex(0) => None,
            link => {
                let symbols = sections.symbol_table_by_index(LE, file, link).map_err(|_| ModuleError::NotElf)?;
                Some((strings(sections, file, symbols.string_section()), symbols))
            }
        };
        // Relocations that do nothing count as well, because they take time, too.
        total += entries.len();
        let has_room =
            relocations.try_reserve_exact(entries.len()).is_ok() && zeros.try_reserve_exact(entries.len()).is_ok();
        if total > MAX_RELOCATIONS || !has_room {
            return Err(ModuleError::TooMany("relocations", total, MAX_RELOCATIONS));
        }
        for entry in entries {
            let value = match entry.r_type(LE, false) {
                elf::R_X86_64_NONE => continue,
                elf::R_X86_64_RELATIVE => Some(image.value(entry.r_addend(LE) as u64)?),
                elf::R_X86_64_GLOB_DAT | elf::R_X86_64_JUMP_SLOT | elf::R_X86_64_64 => {
                    symbol_value(entry, symbols.as_ref(), image, manifest)?
                }
                other => return Err(ModuleError::RelocationType(other.0)),
            };
            let at = entry.r_offset(LE);
            let patched = Extent::new(at, 8);
            if !image.segments.iter().any(|segment| segment.writable && segment.pages.encloses(patched)) {
                return Err(ModuleError::RelocationTarget(at));
            }
            let Some(value) = value else {
                zeros.push(at);
                continue;
            };
            if let Value::Stub(service) = value {
                imports.insert(service);
            }
            relocations.push(Relocation { at, value });
        }
    }
    Ok(Patches { relocations, zeros, imports })
}

/// Returns the value of a relocation that names a symbol: the stub of a service if the symbol is
/// undefined. `None` stands for 0, the value of an undefined weak symbol (ELF, "Symbol Table").
fn symbol_value(
    entry: &elf::Rela64<LE>,
    symbols: Option<&(Option<&[u8]>, SymbolTable<Header>)>,
    image: &Image,
    manifest: &Manifest,
) -> Result<Option<Value>, ModuleError> {
    let index = entry.r_sym(LE, false) as usize;
    let missing = ModuleError::Symbol(index);
    let (strings, symbols) = symbols.ok_or(missing)?;
    let symbol = symbols.symbols().get(index).ok_or(missing)?;
    if !symbol.is_undefined(LE) {
        return image.value(symbol.st_value(LE).wrapping_add(entry.r_addend(LE) as u64)).map(Some);
    }
    let offset = symbol.st_name(LE);
    let rest = strings.and_then(|strings| strings.get(offset as usize..)).ok_or(missing)?;
    let number = name(*strings, offset, MAX_NAME).and_then(service::by_symbol);
    if number.is_none() && symbol.st_bind() == elf::STB_WEAK && entry.r_addend(LE) == 0 {
        // No service has this name. The symbol is weak, so the module can do without it.
        return Ok(None);
    }
    let number = number.ok_or_else(|| unknown_service(rest))?;
    if grantable(manifest, number) { Ok(Some(Value::Stub(number))) } else { Err(ModuleError::NotGranted(number)) }
}

/// Finds the entry point by its name in the dynamic symbols.
fn entry_point<'a>(sections: &Sections<'a>, file: &'a [u8], image: &Image) -> Result<u64, ModuleError> {
    let symbols = sections.symbols(LE, file, elf::SHT_DYNSYM).map_err(|_| ModuleError::NotElf)?;
    few("dynamic symbols", symbols.len(), MAX_SYMBOLS)?;
    let names = strings(sections, file, symbols.string_section());
    let is_entry = |symbol: &&elf::Sym64<LE>| {
        !symbol.is_undefined(LE) && name(names, symbol.st_name(LE), MAX_NAME) == Some(ENTRY.as_bytes())
    };
    let entry = symbols.iter().find(is_entry).map(|symbol| symbol.st_value(LE));
    entry.filter(|entry| image.has_code(*entry)).ok_or(ModuleError::NoEntry)
}

impl Module<'_> {
    /// Returns the name that the module's file must have, without `.rfm`: the module's own, and an
    /// ending if it is for segmented domains.
    pub fn file_name(&self) -> String {
        [self.manifest.name(), self.domain.suffix()].concat()
    }

    /// Returns the places in the image where the code has an instruction that TCG handles as no CPU
    /// does, each with the kind of the instruction ([`tcg`]).
    /// A load of SS in the 32-bit code of a segmented module is none: TCG checks it as a CPU does.
    /// Nor is a load behind a REX prefix, which is an instruction of its own there.
    pub fn holes(&self) -> impl Iterator<Item = (u64, Hole)> {
        let domain = self.domain;
        let counts = move |hole: Hole, first: Option<&u8>| match hole {
            _ if domain == DomainKind::Paged => true,
            Hole::LoadsSs => false,
            Hole::LoadsNoSegment => !matches!(first, Some(0x40..=0x4f)),
            Hole::LocksBitTest => true,
        };
        let executable = self.segments.iter().filter(|segment| segment.executable);
        executable.flat_map(move |segment| {
            let found = tcg::holes(segment.bytes).filter(move |(at, hole)| counts(*hole, segment.bytes.get(*at)));
            found.map(|(at, hole)| (segment.start + at as u64, hole))
        })
    }
}

fn unknown_service(name: &[u8]) -> ModuleError {
    let mut start = [0; 32];
    for (to, from) in start.iter_mut().zip(name) {
        *to = *from;
    }
    ModuleError::UnknownService(start)
}

struct Image<'a> {
    segments: Vec<Segment<'a>>,
    relro: Option<Extent>,
    len_bytes: u64,
}

impl<'a> Image<'a> {
    /// Reads the segments of a file that is linked for the address `base`.
    fn parse<Elf: FileHeader<Endian = LE>>(header: &Elf, file: &'a [u8], base: u64) -> Result<Image<'a>, ModuleError> {
        let headers = header.program_headers(LE, file).map_err(|_| ModuleError::NotElf)?;
        few("program headers", headers.len(), MAX_PROGRAM_HEADERS)?;
        let mut segments: Vec<Segment> = Vec::new();
        let mut relro = None;
        let mut len_bytes = 0;
        for header in headers {
            match header.p_type(LE) {
                elf::PT_LOAD => {}
                elf::PT_TLS => return Err(ModuleError::Unsupported("thread-local storage")),
                elf::PT_INTERP => return Err(ModuleError::Unsupported("an interpreter")),
                elf::PT_DYNAMIC => {
                    check_dynamic(header, file)?;
                    continue;
                }
                elf::PT_GNU_RELRO => {
                    let start: u64 = header.p_vaddr(LE).into();
                    relro = start.checked_sub(base).map(|start| Extent::new(start, header.p_memsz(LE).into()));
                    continue;
                }
                _ => continue,
            }
            let index = segments.len();
            if index == MAX_SEGMENTS {
                return Err(ModuleError::SegmentCount(index + 1));
            }
            let bounds = ModuleError::SegmentBounds(index);
            let bytes = header.data(LE, file).map_err(|()| bounds)?;
            let (start, memory): (u64, u64) = (header.p_vaddr(LE).into(), header.p_memsz(LE).into());
            let start = start.checked_sub(base).ok_or(bounds)?;
            if bytes.len() as u64 > memory {
                return Err(bounds);
            }
            let first_page = start & !(PAGE_SIZE - 1);
            let end = start.checked_add(memory).and_then(|end| align_up(end, PAGE_SIZE)).ok_or(bounds)?;
            if end > IMAGE_MAX {
                return Err(ModuleError::TooLarge(end));
            }
            if first_page < len_bytes {
                return Err(ModuleError::Overlap(index));
            }
            let flags = header.p_flags(LE);
            let (writable, executable) = (flags.contains(elf::PF_W), flags.contains(elf::PF_X));
            if writable && executable {
                return Err(ModuleError::WritableAndExecutable(index));
            }
            len_bytes = end;
            let pages = Extent::new(first_page, end - first_page);
            segments.push(Segment { pages, start, bytes, writable, executable });
        }
        if segments.is_empty() {
            return Err(ModuleError::SegmentCount(0));
        }
        // Only whole pages within a writable segment: other pages are never writable.
        let relro = relro.and_then(|relro| {
            let first = relro.start & !(PAGE_SIZE - 1);
            let end = relro.end()? & !(PAGE_SIZE - 1);
            let pages = Extent::new(first, end.checked_sub(first)?);
            let inside = segments.iter().any(|segment| segment.writable && segment.pages.encloses(pages));
            (inside && pages.len_bytes > 0).then_some(pages)
        });
        Ok(Image { segments, relro, len_bytes })
    }

    /// Returns whether `offset` lies in code.
    fn has_code(&self, offset: u64) -> bool {
        self.segments.iter().any(|segment| segment.executable && segment.pages.contains(offset))
    }

    fn value(&self, offset: u64) -> Result<Value, ModuleError> {
        if offset <= self.len_bytes { Ok(Value::Image(offset)) } else { Err(ModuleError::RelocationValue(offset)) }
    }
}

/// Refuses entries that ask for more than the loader does: other shared objects, constructors and
/// destructors, relocations of code.
fn check_dynamic<Header: ProgramHeader<Endian = LE>>(header: &Header, file: &[u8]) -> Result<(), ModuleError> {
    for entry in header.dynamic(LE, file).map_err(|_| ModuleError::NotElf)?.unwrap_or(&[]) {
        match entry.tag(LE) {
            elf::DT_NEEDED => return Err(ModuleError::Unsupported("another shared object (DT_NEEDED)")),
            elf::DT_INIT | elf::DT_INIT_ARRAY | elf::DT_FINI | elf::DT_FINI_ARRAY => {
                return Err(ModuleError::Unsupported("a constructor or destructor"));
            }
            elf::DT_TEXTREL => return Err(ModuleError::Unsupported("a relocation of code (DT_TEXTREL)")),
            _ => {}
        }
    }
    Ok(())
}

/// Returns the name of the function in which `offset` from the image's base lies, and the offset
/// into it, from the file's symbol table. A name that is too long is cut off.
pub fn symbol_at(file: &[u8], offset: u64) -> Option<(&[u8], u64)> {
    match kind_of(file) {
        DomainKind::Paged => function_at(Header::parse(file).ok()?, file, offset, 0),
        DomainKind::Segmented => function_at(Header32::parse(file).ok()?, file, offset, IMAGE),
    }
}

fn function_at<'a, Elf: FileHeader<Endian = LE>>(
    header: &Elf,
    file: &'a [u8],
    offset: u64,
    base: u64,
) -> Option<(&'a [u8], u64)> {
    let sections = header.sections(LE, file).ok().filter(|sections| sections.len() <= MAX_SECTIONS)?;
    let symbols = sections.symbols(LE, file, elf::SHT_SYMTAB).ok()?;
    let value = |symbol: &Elf::Sym| -> u64 { symbol.st_value(LE).into() };
    let address = offset.checked_add(base)?;
    let symbol = symbols
        .iter()
        .take(MAX_FUNCTIONS)
        .filter(|symbol| symbol.st_type() == elf::STT_FUNC && !symbol.is_undefined(LE))
        .filter(|symbol| value(symbol) <= address)
        .max_by_key(|symbol| value(symbol))?;
    // Symbols of hand-written assembly have size 0: such a function reaches to the next one.
    let (into, size): (u64, u64) = (address - value(symbol), symbol.st_size(LE).into());
    if size != 0 && into >= size {
        return None;
    }
    let rest = strings(&sections, file, symbols.string_section())?.get(symbol.st_name(LE) as usize..)?;
    let name = rest.get(..MAX_FUNCTION_NAME).unwrap_or(rest);
    Some((name.split(|byte| *byte == 0).next()?, into))
}
