//! HTTP: `get` fetches a file, and `http` turns the page on and off ([`crate::page`] serves it).

use super::files::{path_of, replace_whole};
use super::{Outcome, said};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU16, Ordering};
use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::watch::{Receiver, Watch};
use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};
use hw::{console, link, memory, println};
use net::client;
use net::stream::Stream;
use ringfence_core::arguments::Arguments;
use ringfence_core::path::shown;
use ringfence_link::event::{Event, Sha256};
use spin::Mutex;

/// The port of HTTP (RFC 9110, 4.2.1).
pub const PORT: u16 = 80;
/// The most tasks that wait for a change of [`CHANGED`].
pub const WAITING: usize = 5;

/// Told when the page is turned on or off.
type Changed = Watch<CriticalSectionRawMutex, u16, WAITING>;

/// The port that the page is served at; 0 if it is off.
static SERVED: AtomicU16 = AtomicU16::new(0);
static CHANGED: Changed = Watch::new();
/// The token that a request must have to do something; if there is none, nothing can be done.
static TOKEN: Mutex<Option<String>> = Mutex::new(None);

/// Turns the page on at `port`, or off if that is 0. `token` allows requests to do something.
pub fn serve(port: u16, token: Option<String>) {
    *TOKEN.lock() = token;
    SERVED.store(port, Ordering::Relaxed);
    CHANGED.sender().send(port);
}

/// Returns the port that the page is served at.
pub fn served() -> Option<u16> {
    Some(SERVED.load(Ordering::Relaxed)).filter(|port| *port > 0)
}

/// Returns a receiver that waits until the page is turned on or off, for one of [`WAITING`] tasks.
pub fn changes() -> Option<Receiver<'static, CriticalSectionRawMutex, u16, WAITING>> {
    CHANGED.receiver()
}

/// Returns whether `given` allows a request to do something. Takes a time that does not depend on
/// where a wrong one differs.
pub fn is_allowed(given: &[u8]) -> bool {
    let token = TOKEN.lock();
    let Some(token) = token.as_deref().map(str::as_bytes) else { return false };
    token.len() == given.len() && token.iter().zip(given).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// Makes a token, if the CPU has random numbers.
fn new_token() -> Option<String> {
    let random = x86_64::instructions::random::RdRand::new()?;
    Some(format!("{:016x}{:016x}", random.get_u64()?, random.get_u64()?))
}

pub async fn http(mut arguments: Arguments<'_>) -> Outcome {
    match arguments.word("on or off")? {
        "off" => {
            arguments.end()?;
            serve(0, None);
            Ok(())
        }
        "on" => {
            let port = match arguments.optional() {
                None => PORT,
                Some(word) => arguments.as_number("the port", word)?,
            };
            arguments.end()?;
            if port == 0 {
                return Err("the port must be 1 to 65535".into());
            }
            net::wait_for_address().await?;
            let addresses = net::status().into_iter().filter(|status| !status.driver.is_empty());
            let address = addresses.flat_map(|status| status.addresses).next().unwrap_or_default();
            let address = address.split('/').next().unwrap_or_default();
            turn_on(port, new_token(), &format!("{address}:{port}"));
            Ok(())
        }
        other => arguments.wrong(&format!("'{other}' is not known; there are on and off")),
    }
}

/// Turns the page on, and shows its URL; `host` is how a browser reaches it.
pub fn turn_on(port: u16, token: Option<String>, host: &str) {
    match &token {
        Some(token) => println!("http://{host}/#{token}"),
        None => println!("http://{host}/ only shows: there are no random numbers for a token here"),
    }
    serve(port, token);
}

/// The most bytes that are fetched.
const MOST_BYTES: usize = 8 << 20;
/// The most bytes that are shown, if they go to no file.
const MOST_SHOWN: usize = 64 << 10;
/// The most bytes of a response's head, and the most lines.
const MOST_HEAD: usize = 8 << 10;
const MOST_HEADERS: usize = 64;
/// The longest that a file takes.
const LONGEST: Duration = Duration::from_secs(300);
/// The longest silence of a server.
const SILENCE: Duration = Duration::from_secs(10);

/// A URL of HTTP.
struct Url<'a> {
    host: &'a str,
    port: u16,
    /// The path and the query.
    path: &'a str,
}

impl Url<'_> {
    fn parse(text: &str) -> Result<Url<'_>, String> {
        let rest = match text.split_once("://") {
            None => text,
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("'{scheme}' is not known here, only http")),
        };
        let rest = rest.split_once('#').map_or(rest, |(before, _)| before);
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (host, port) = match authority.split_once(':') {
            None => (authority, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| format!("'{port}' is no port"))?),
        };
        if host.is_empty() {
            return Err(format!("'{text}' names no host"));
        }
        Ok(Url { host, port, path })
    }
}

/// A response's head.
struct Head {
    status: u16,
    reason: String,
    /// The length of the content, if it is said.
    len_bytes: Option<usize>,
    /// Where it begins.
    content: usize,
}

/// Reads the head of a response; `None` if more of it must come.
fn head_of(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let content = match response.parse(bytes) {
        Ok(httparse::Status::Complete(content)) => content,
        Ok(httparse::Status::Partial) if bytes.len() >= MOST_HEAD => {
            return Err(format!("the head of the answer has more than {MOST_HEAD} bytes"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("the answer is not HTTP: {error}")),
    };
    let header = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        core::str::from_utf8(header.value).ok()
    };
    if header("transfer-encoding").is_some_and(|coding| !coding.eq_ignore_ascii_case("identity")) {
        return Err("the answer comes in pieces, which nobody has asked for".into());
    }
    let len_bytes = header("content-length").map(|text| text.trim().parse());
    let len_bytes = len_bytes.transpose().map_err(|_| "the answer says no length that can be")?;
    let (status, reason) = (response.code.unwrap_or(0), response.reason.unwrap_or("").to_string());
    Ok(Some(Head { status, reason, len_bytes, content }))
}

pub async fn get(mut arguments: Arguments<'_>) -> Outcome {
    let url = Url::parse(arguments.word("the URL")?)?;
    let path = arguments.optional().map(path_of).transpose()?;
    arguments.end()?;
    let fetched = with_timeout(LONGEST, fetch(&url)).await;
    let content = fetched.map_err(|_| format!("the answer has no end after {} s", LONGEST.as_secs()))??;
    match path {
        Some(path) => {
            replace_whole(&path, &content).await?;
            println!("{} bytes are in {path}", content.len());
        }
        None => {
            let first = content.get(..MOST_SHOWN).unwrap_or(&content);
            String::from_utf8_lossy(first).lines().for_each(|line| println!("{}", shown(line)));
            if first.len() < content.len() {
                println!("{} more bytes are not shown; 'get URL FILE' keeps them", content.len() - first.len());
            }
        }
    }
    let sha256 = Sha256(ringfence_core::evidence::hash(&content));
    link::tell(&Event::Data { bytes: content.len() as u64, sha256 });
    Ok(())
}

/// Fetches the resource at a URL. Asks in HTTP/1.0, so that the answer comes as it is, and ends.
async fn fetch(url: &Url<'_>) -> Result<Vec<u8>, String> {
    let Url { host, port, path } = url;
    let address = match host.parse() {
        Ok(address) => address,
        Err(_) => *client::look_up(host).await?.first().ok_or("the host has no address")?,
    };
    let stream = Stream::connect(address, *port).await?;
    let (mut reader, mut writer) = stream.halves();
    let request =
        format!("GET {path} HTTP/1.0\r\nHost: {host}:{port}\r\nUser-Agent: Ringfence\r\nConnection: close\r\n\r\n");
    writer.write_all(request.as_bytes()).await.map_err(said)?;
    let (mut bytes, mut head, mut piece) = (Vec::new(), None, [0; 2048]);
    loop {
        let read = with_timeout(SILENCE, reader.read(&mut piece)).await;
        let count = read.map_err(|_| format!("nothing came for {} s", SILENCE.as_secs()))?.map_err(said)?;
        let piece = piece.get(..count).unwrap_or_default();
        if bytes.len() + count > MOST_BYTES || !memory::has_room(bytes.len() + count) {
            return Err(format!("there is no room for more than {} bytes", bytes.len()));
        }
        bytes.try_reserve(count).map_err(|_| "out of memory")?;
        bytes.extend_from_slice(piece);
        if head.is_none() {
            head = head_of(&bytes)?;
        }
        match &head {
            Some(Head { content, len_bytes: Some(len_bytes), .. }) if bytes.len() - content >= *len_bytes => {
                bytes.truncate(content + len_bytes);
                break;
            }
            Some(Head { len_bytes: None, .. }) if count == 0 => break,
            _ if count == 0 => return Err(format!("the answer ends after {} bytes", bytes.len())),
            _ => {}
        }
    }
    let Some(Head { status, reason, content, .. }) = head else { return Err("there is no answer".into()) };
    if !(200..300).contains(&status) {
        return Err(format!("the server says {status} {}", console::printable(&reason)));
    }
    bytes.drain(..content);
    Ok(bytes)
}
