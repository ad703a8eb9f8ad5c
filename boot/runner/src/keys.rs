//! Keys, signatures and signed files: `cargo run -- keygen`, `sign` and `verify FILE`.

use crate::output;
use crate::target;
use anyhow::{Context, Result, bail};
use ringfence_core::evidence::policy::Policy;
use ringfence_core::evidence::record::Chain;
use ringfence_core::evidence::report::Report;
use ringfence_core::evidence::signed::{PublicKey, Purpose, SecretKey, Signature, Signed, Trusted, sign as signed_by};
use ringfence_core::evidence::{grouped, hex, record, short};
use serde_json::json;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file of the key that signs, if no other is named.
pub const KEY: &str = "ringfence.key";
/// The ending of a public key's file.
const PUBLIC: &str = "pub";

/// Returns random bytes that nobody can guess.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let read = File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes));
    read.context("cannot read /dev/urandom")?;
    Ok(bytes)
}

/// Makes a key and writes it to `path`, which only its owner may read.
fn make(path: &Path) -> Result<SecretKey> {
    let key = SecretKey::from_seed(random()?);
    // A key that exists is never overwritten: its signatures would be worth nothing.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(key.text().as_bytes()));
    written.with_context(|| format!("cannot make {}", path.display()))?;
    Ok(key)
}

/// Makes a key at `path`, and its public key beside it.
pub fn keygen(path: &Path) -> Result<()> {
    let public = path.with_extension(PUBLIC);
    if public == path {
        bail!("{} is to be the secret key's file, and '.{PUBLIC}' is for the public one", path.display());
    }
    if public.exists() {
        bail!("cannot make {}: it exists", public.display());
    }
    let key = make(path)?;
    fs::write(&public, key.public().text()).with_context(|| format!("cannot write {}", public.display()))?;
    output::line(format_args!("{}  signs: keep it to yourself", path.display()));
    output::line(format_args!("{}  checks: give it to those who trust you", public.display()));
    Ok(())
}

/// Reads the secret key in `path`.
pub fn secret(path: &Path) -> Result<SecretKey> {
    let text = fs::read_to_string(path).with_context(|| {
        let hint = if path == Path::new(KEY) { " ('cargo run -- keygen' makes it)" } else { "" };
        format!("cannot read the key {}{hint}", path.display())
    })?;
    SecretKey::parse(&text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))
}

/// Returns the file of this checkout's machine key, which is made if there is none.
pub fn of_machine() -> Result<PathBuf> {
    let path = target().join("machine.key");
    match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(target())?;
            make(&path)?;
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        Ok(_) => drop(secret(&path)?),
    }
    Ok(path)
}

/// Returns the public keys in files.
fn trusted(paths: &[PathBuf]) -> Result<Vec<Trusted>> {
    let read = |path: &PathBuf| {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let key = PublicKey::parse(&text).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
        Ok(Trusted { name: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), key })
    };
    paths.iter().map(read).collect()
}

/// The content of a file that can be signed.
enum Content {
    Module,
    Policy(Policy),
    Report(Box<Report>),
    Record,
}

impl Content {
    fn of(content: &[u8]) -> Result<Content> {
        if content.starts_with(b"\x7fELF") {
            return Ok(Content::Module);
        }
        let Ok(text) = std::str::from_utf8(content) else { bail!("it is no module, report, record or policy") };
        if text.starts_with("ringfence-record ") {
            return Ok(Content::Record);
        }
        let not_policy = match Policy::parse(text) {
            Ok(policy) => return Ok(Content::Policy(policy)),
            Err(why) => why,
        };
        match Report::parse(text) {
            Ok(report) => Ok(Content::Report(Box::new(report))),
            Err(not_report) => bail!("it is no policy ({not_policy}) and no report ({not_report})"),
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Content::Module => Purpose::Module,
            Content::Policy(_) => Purpose::Policy,
            Content::Report(_) => Purpose::Report,
            Content::Record => Purpose::Record,
        }
    }
}

/// Signs a module, a report, a policy or a record in place.
pub fn sign(path: &Path, key: &Path) -> Result<()> {
    let secret = secret(key)?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let about = |why: String| anyhow::anyhow!("{}: {why}", path.display());
    let signed = Signed::parse(&bytes).map_err(|why| about(why.to_string()))?;
    let content = Content::of(signed.content).with_context(|| path.display().to_string())?;
    let bytes = signed_by(&bytes, content.purpose(), &secret).map_err(|why| about(why.to_string()))?;
    replace(path, &bytes)?;
    let (purpose, key) = (content.purpose(), secret.public());
    output::line(format_args!("{}: signed as a {purpose} by key {}", path.display(), short(key.bytes())));
    Ok(())
}

/// Writes a file, of which an interrupted write leaves the old content.
pub fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(bytes)?;
    if let Ok(before) = fs::metadata(path) {
        fs::set_permissions(new.path(), before.permissions())?;
    }
    new.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Checks the signatures of a file, and prints its statements. Returns whether a key in `keys` has
/// signed it; without keys, whether it is signed, and by all whose signatures it has.
pub fn verify(path: &Path, keys: &[PathBuf], json: bool) -> Result<bool> {
    let trusted = trusted(keys)?;
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let signed = Signed::parse(&bytes).map_err(|why| anyhow::anyhow!("{}: {why}", path.display()))?;
    let content = Content::of(signed.content).with_context(|| path.display().to_string())?;
    let purpose = content.purpose();
    // Without keys, those in the file are taken.
    let own =
        |signature: &Signature| Trusted { name: format!("key {}", short(signature.key.bytes())), key: signature.key };
    let all: Vec<Trusted> = match trusted.is_empty() {
        true => signed.signatures.iter().map(own).collect(),
        false => trusted,
    };
    let mut signer = signed.signer(purpose, &all).map(|key| key.name.clone()).map_err(|why| why.to_string());
    let mut lines = Vec::new();
    match &content {
        Content::Module => {}
        Content::Policy(policy) => lines.extend(policy.to_string().lines().map(String::from)),
        Content::Report(report) => {
            lines.push(format!("of {} {}, file {}", report.module.name, report.module.version, report.module.sha256));
            lines.push(report.to_string());
        }
        Content::Record => match Chain::parse(&bytes, &all) {
            Ok((chain, _)) => lines.extend(chain.tallies().iter().map(|(file, tally)| {
                let faults = record::faults_in_words(tally);
                let (operations, seconds) = (grouped(tally.operations), grouped(tally.ms / 1000));
                format!("{} {}: {operations} operations in {seconds} s of ring 1{faults}", tally.name, short(file))
            })),
            Err(why) => signer = Err(why.to_string()),
        },
    }
    if json {
        let (signer, why) = (signer.as_ref().ok(), signer.as_ref().err());
        let object = json!({ "file": path, "purpose": purpose.to_string(), "sha256": hex(&signed.hash()),
                             "signer": signer, "why": why, "says": lines });
        output::line(format_args!("{object}"));
    } else {
        output::line(format_args!("{}: a {purpose}, sha256 {}", path.display(), hex(&signed.hash())));
        lines.iter().for_each(|line| output::line(format_args!("    {line}")));
        match &signer {
            Ok(name) => output::line(format_args!("signed by {name}")),
            Err(why) => output::line(format_args!("does not count: {why}")),
        }
    }
    Ok(signer.is_ok())
}
