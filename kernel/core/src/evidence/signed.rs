//! Files that carry ed25519 signatures (RFC 8032), and the keys for them.
//!
//! Each signature is a line of text at the end of the file:
//!
//! ```text
//! # ringfence-signature KEY SIGNATURE
//! ```
//!
//! KEY is the public key of the signer in 64 hexadecimal digits, SIGNATURE has 128. The signed
//! bytes are the text `ringfence PURPOSE`, a zero byte, and the SHA-256 of all bytes before the
//! first such line. An ELF file may have bytes behind its sections, and in TOML the line is a
//! comment, so one form fits modules, policies, reports and records. The purpose keeps a signature
//! of one kind of file from being taken for that of another kind.

use super::{Hash, from_hex, hash, hex};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use ed25519_compact as ed25519;

/// The beginning of a signature's line.
const MARK: &str = "# ringfence-signature ";
const KEY_BYTES: usize = ed25519::PublicKey::BYTES;
const SIGNATURE_BYTES: usize = ed25519::Signature::BYTES;
/// The length of a signature's line.
const LINE_BYTES: usize = MARK.len() + 2 * KEY_BYTES + 1 + 2 * SIGNATURE_BYTES + 1;
/// The most signatures of a file.
pub const MOST: usize = 8;

/// The kind of a signed file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A module file.
    Module,
    /// A policy.
    Policy,
    /// A record of the service of modules in ring 1 of a machine, and of their faults.
    Record,
    /// A report of `cargo run -- verify` about a module.
    Report,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Purpose::Module => "module",
            Purpose::Policy => "policy",
            Purpose::Record => "record",
            Purpose::Report => "report",
        }
    }

    /// Returns the bytes that are signed for content with this hash.
    fn message(self, of: &Hash) -> Vec<u8> {
        let mut message = format!("ringfence {}\0", self.word()).into_bytes();
        message.extend_from_slice(of);
        message
    }
}

impl fmt::Display for Purpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// A key that can sign.
pub struct SecretKey(ed25519::KeyPair);

/// A key that signatures are checked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PublicKey([u8; KEY_BYTES]);

/// Returns the rest of a text of one line that begins with `kind`.
fn behind<'a>(text: &'a str, kind: &str) -> Option<&'a str> {
    text.trim().strip_prefix(kind).map(str::trim)
}

impl SecretKey {
    const KIND: &'static str = "ringfence-secret-key";

    /// Makes a key from random bytes.
    pub fn from_seed(seed: [u8; 32]) -> SecretKey {
        SecretKey(ed25519::KeyPair::from_seed(ed25519::Seed::new(seed)))
    }

    /// Reads the text of a key file.
    pub fn parse(text: &str) -> Result<SecretKey, BadKey> {
        behind(text, Self::KIND).and_then(from_hex).map(SecretKey::from_seed).ok_or(BadKey::NotSecret)
    }

    /// Returns the text of a key file.
    pub fn text(&self) -> String {
        format!("{} {}\n", Self::KIND, hex(self.0.sk.seed().as_ref()))
    }

    /// Returns the key that checks the signatures of this one.
    pub fn public(&self) -> PublicKey {
        PublicKey(*self.0.pk)
    }
}

impl PublicKey {
    const KIND: &'static str = "ringfence-public-key";

    /// Reads the text of a key file.
    pub fn parse(text: &str) -> Result<PublicKey, BadKey> {
        if behind(text, SecretKey::KIND).is_some() {
            return Err(BadKey::Secret);
        }
        behind(text, Self::KIND).and_then(from_hex).map(PublicKey).ok_or(BadKey::NotPublic)
    }

    /// Returns the text of a key file.
    pub fn text(&self) -> String {
        format!("{} {self}\n", Self::KIND)
    }

    /// Returns the key's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// The reason why a text is not the key that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadKey {
    /// It is not a secret key.
    NotSecret,
    /// It is not a public key.
    NotPublic,
    /// A public key is wanted, and it is a secret one.
    Secret,
}

impl fmt::Display for BadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadKey::NotSecret => write!(f, "it is no secret key: '{} ' and 64 hexadecimal digits", SecretKey::KIND),
            BadKey::NotPublic => write!(f, "it is no public key: '{} ' and 64 hexadecimal digits", PublicKey::KIND),
            BadKey::Secret => f.write_str("it is a secret key, which nobody else should have"),
        }
    }
}

/// A public key that is trusted, and its name for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    /// Its name: that of its file, without the ending.
    pub name: String,
    /// The key.
    pub key: PublicKey,
}

/// A signature of a file. It may be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// The key that it claims to be made with.
    pub key: PublicKey,
    bytes: [u8; SIGNATURE_BYTES],
}

/// A file with signatures behind its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed<'a> {
    /// Everything before the signatures.
    pub content: &'a [u8],
    /// The signatures, the first first. They may be wrong.
    pub signatures: Vec<Signature>,
}

/// The reason why a file's signatures cannot be read, or why none of them counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unsigned {
    /// The file has no signature.
    None,
    /// A line begins like a signature and is none.
    Malformed,
    /// The file has more than [`MOST`] signatures.
    TooMany,
    /// The signature by this key does not fit the content.
    Wrong(PublicKey),
    /// The signatures fit, and their keys, of which this is the first, are not trusted.
    NotTrusted(PublicKey),
}

impl fmt::Display for Unsigned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unsigned::None => f.write_str("it is not signed"),
            Unsigned::Malformed => f.write_str("a line of it begins like a signature and is none"),
            Unsigned::TooMany => write!(f, "it has more than {MOST} signatures"),
            Unsigned::Wrong(key) => {
                write!(
                    f,
                    "its signature by key {} is wrong: it was changed since, or is another kind of file",
                    super::short(&key.0)
                )
            }
            Unsigned::NotTrusted(key) => {
                write!(f, "it is signed by key {}, which is not trusted", super::short(&key.0))
            }
        }
    }
}

impl Signature {
    fn parse(line: &[u8]) -> Option<Signature> {
        let text = core::str::from_utf8(line).ok()?.strip_prefix(MARK)?.strip_suffix('\n')?;
        let (key, signature) = text.split_once(' ')?;
        Some(Signature { key: PublicKey(from_hex(key)?), bytes: from_hex(signature)? })
    }

    fn line(&self) -> String {
        format!("{MARK}{} {}\n", self.key, hex(&self.bytes))
    }

    fn fits(&self, purpose: Purpose, of: &Hash) -> bool {
        let key = ed25519::PublicKey::new(self.key.0);
        key.verify(purpose.message(of), &ed25519::Signature::new(self.bytes)).is_ok()
    }
}

impl<'a> Signed<'a> {
    /// Tells the content of a file from the signatures behind it.
    pub fn parse(file: &'a [u8]) -> Result<Signed<'a>, Unsigned> {
        let (mut content, mut signatures) = (file, Vec::new());
        while let Some((before, line)) = content.split_last_chunk::<LINE_BYTES>() {
            if !line.starts_with(MARK.as_bytes()) {
                break;
            }
            if signatures.len() == MOST {
                return Err(Unsigned::TooMany);
            }
            signatures.push(Signature::parse(line).ok_or(Unsigned::Malformed)?);
            content = before;
        }
        signatures.reverse();
        Ok(Signed { content, signatures })
    }

    /// Returns the hash of the content.
    pub fn hash(&self) -> Hash {
        hash(self.content)
    }

    /// Returns the key among `trusted` that has signed the file as `purpose`. **Every signature
    /// must fit**: a wrong signature shows that the file is not the file that was signed.
    pub fn signer<'t>(&self, purpose: Purpose, trusted: &'t [Trusted]) -> Result<&'t Trusted, Unsigned> {
        let first = self.signatures.first().ok_or(Unsigned::None)?;
        let of = self.hash();
        if let Some(wrong) = self.signatures.iter().find(|signature| !signature.fits(purpose, &of)) {
            return Err(Unsigned::Wrong(wrong.key));
        }
        let is_by = |trusted: &&Trusted| self.signatures.iter().any(|signature| signature.key == trusted.key);
        trusted.iter().find(is_by).ok_or(Unsigned::NotTrusted(first.key))
    }
}

/// Returns the hash by which a module file is known: that of its content without signatures.
pub fn identity(file: &[u8]) -> Hash {
    hash(Signed::parse(file).map_or(file, |signed| signed.content))
}

/// Returns `file` with a signature by `key` as `purpose`, in place of an earlier one by that key.
pub fn sign(file: &[u8], purpose: Purpose, key: &SecretKey) -> Result<Vec<u8>, Unsigned> {
    let signed = Signed::parse(file)?;
    let message = purpose.message(&signed.hash());
    let own = Signature { key: key.public(), bytes: *key.0.sk.sign(message, None) };
    let mut bytes = signed.content.to_vec();
    let others = signed.signatures.into_iter().filter(|signature| signature.key != own.key);
    let all: Vec<Signature> = others.chain([own]).collect();
    if all.len() > MOST {
        return Err(Unsigned::TooMany);
    }
    all.iter().for_each(|signature| bytes.extend_from_slice(signature.line().to_string().as_bytes()));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(number: u8) -> SecretKey {
        SecretKey::from_seed([number; 32])
    }

    fn trusted(number: u8) -> Trusted {
        Trusted { name: format!("key {number}"), key: key(number).public() }
    }

    #[test]
    fn a_signature_counts_if_its_key_is_trusted_and_it_fits() {
        let file = sign(b"\x7fELF", Purpose::Module, &key(1)).unwrap();
        let signed = Signed::parse(&file).unwrap();
        assert_eq!(signed.content, b"\x7fELF");
        assert_eq!(signed.signer(Purpose::Module, &[trusted(2), trusted(1)]), Ok(&trusted(1)));
        assert_eq!(signed.signer(Purpose::Module, &[trusted(2)]), Err(Unsigned::NotTrusted(key(1).public())));
        assert_eq!(signed.signer(Purpose::Report, &[trusted(1)]), Err(Unsigned::Wrong(key(1).public())));
        assert_eq!(Signed::parse(b"\x7fELF").unwrap().signer(Purpose::Module, &[trusted(1)]), Err(Unsigned::None));
    }

    #[test]
    fn several_keys_sign_one_content() {
        let once = sign(b"text\n", Purpose::Report, &key(1)).unwrap();
        let twice = sign(&once, Purpose::Report, &key(2)).unwrap();
        let signed = Signed::parse(&twice).unwrap();
        assert_eq!(signed.signatures.len(), 2);
        assert_eq!(signed.hash(), hash(b"text\n"));
        assert_eq!(identity(&twice), hash(b"text\n"));
        assert_eq!(signed.signer(Purpose::Report, &[trusted(2)]), Ok(&trusted(2)));
        // A key signs once.
        assert_eq!(Signed::parse(&sign(&twice, Purpose::Report, &key(1)).unwrap()).unwrap().signatures.len(), 2);
        let mut many = twice.clone();
        for number in 3..=MOST as u8 {
            many = sign(&many, Purpose::Report, &key(number)).unwrap();
        }
        assert_eq!(sign(&many, Purpose::Report, &key(99)), Err(Unsigned::TooMany));
    }

    /// Files signed by one version are good for the next. Made with Python's `cryptography`:
    /// `Ed25519PrivateKey.from_private_bytes(bytes([7]) * 32).sign(b"ringfence module\0" +
    /// sha256(b"content").digest())`.
    #[test]
    fn the_format_stays() {
        let file = sign(b"content", Purpose::Module, &key(7)).unwrap();
        let text = core::str::from_utf8(&file).unwrap();
        assert_eq!(
            text,
            "content# ringfence-signature \
             ea4a6c63e29c520abef5507b132ec5f9954776aebebe7b92421eea691446d22c \
             91ae93182052b02f0bef1356ab0b6d20f3590541267b6e31cfb307eadd53f27f\
             70b15f59d7edfd7abb901feaff629059906562a8d851013640f33d3c3059ac0b\n"
        );
    }

    #[test]
    fn keys_come_back_from_their_texts() {
        let (secret, public) = (key(3), key(3).public());
        assert_eq!(SecretKey::parse(&secret.text()).map(|key| key.public()), Ok(public));
        assert_eq!(PublicKey::parse(&public.text()), Ok(public));
        assert_eq!(PublicKey::parse(&secret.text()), Err(BadKey::Secret));
        assert_eq!(SecretKey::parse(&public.text()).err(), Some(BadKey::NotSecret));
        assert_eq!(PublicKey::parse("ringfence-public-key 12"), Err(BadKey::NotPublic));
    }

    proptest! {
        /// No single changed byte leaves a file that its signer has signed.
        #[test]
        fn a_changed_byte_is_found(content in prop::collection::vec(any::<u8>(), 0..64), at in any::<prop::sample::Index>(), by in 1u8..) {
            let mut file = sign(&content, Purpose::Module, &key(1)).unwrap();
            let at = at.index(file.len());
            file[at] ^= by;
            let admitted = Signed::parse(&file).ok().and_then(|signed| {
                signed.signer(Purpose::Module, &[trusted(1)]).is_ok().then(|| (signed.content.to_vec(), signed.signatures.len()))
            });
            // Hexadecimal digits may change their case, which changes nothing.
            let same = (content.clone(), 1);
            prop_assert!(admitted.is_none() || admitted == Some(same));
        }

        #[test]
        fn nothing_read_panics(file in prop::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(signed) = Signed::parse(&file) {
                let _ = signed.signer(Purpose::Module, &[trusted(1)]);
            }
        }
    }
}
