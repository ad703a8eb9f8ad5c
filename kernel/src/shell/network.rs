//! Commands about the network.

use super::Outcome;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::Ipv4Addr;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use hw::{link, println};
use net::client::{self, MAX_PING, Pinger};
use net::{self, Status};
use ringfence_abi::net::{Hearing, Offload};
use ringfence_core::arguments::Arguments;
use ringfence_link::event::Event;
use smoltcp::wire::Ipv4Cidr;

/// Parses a host's address, or looks up the address of a host name.
async fn host(arguments: &mut Arguments<'_>) -> Result<Ipv4Addr, String> {
    let word = arguments.word("the host's address or name")?;
    match word.parse() {
        Ok(address) => Ok(address),
        // A word of digits and dots only is not a name.
        Err(_) if word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') => {
            arguments.wrong(&format!("'{word}' is not an IPv4 address"))
        }
        Err(_) => {
            let addresses = client::look_up(word).await?;
            addresses.first().copied().ok_or_else(|| format!("'{word}' has no IPv4 address"))
        }
    }
}

pub async fn ip(mut arguments: Arguments<'_>) -> Outcome {
    match arguments.optional() {
        None => show().await,
        Some("addr" | "address" | "a") => address(arguments).await,
        Some("link") => set_link(arguments),
        Some("maddr" | "maddress") => group(arguments),
        Some(other) => arguments.wrong(&format!("'{other}' is not known")),
    }
}

/// Waits for an address, and shows all interfaces.
async fn show() -> Outcome {
    let outcome = net::wait_for_address().await;
    for status in net::status() {
        link::tell(&Event::Interface(status.event()));
        let Status {
            name,
            driver,
            is_alive,
            is_up,
            has_link,
            hearing,
            groups,
            mtu,
            mac,
            addresses,
            is_static,
            router,
            dns,
            card,
            counts,
            ..
        } = status;
        let addresses = if addresses.is_empty() { "no address".to_string() } else { addresses.join(" ") };
        if driver.is_empty() {
            println!("{name}: {addresses}");
            continue;
        }
        println!(
            "{name}: {addresses} via {driver}{}{}{}{}, router {}",
            if is_alive { "" } else { ", which was ended" },
            if is_up { "" } else { ", down" },
            if has_link { "" } else { ", no link" },
            match (hearing.contains(Hearing::PROMISCUOUS), hearing.contains(Hearing::ALL_MULTICAST)) {
                (true, _) => ", hears all",
                (false, true) => ", hears all groups",
                (false, false) => "",
            },
            router.map_or("none".to_string(), |router| router.to_string()),
        );
        let dns: Vec<String> = dns.iter().map(|server| server.to_string()).collect();
        let from = if is_static { ", static" } else { "" };
        let mtu = if mtu == net::MTU { String::new() } else { format!(", MTU {mtu}") };
        let dns = if dns.is_empty() { String::new() } else { format!(", names from {}", dns.join(" ")) };
        println!("      {mac}, {} frames out, {} in{from}{mtu}{dns}", counts.sent(), counts.received());
        if let Some(card) = card.filter(|card| card.queues > 1) {
            let by_queue = counts.by_queue.iter().take(card.queues).enumerate();
            let by_queue: Vec<String> =
                by_queue.map(|(queue, (sent, received))| format!("{queue}: {sent} out, {received} in")).collect();
            println!("      queues {}", by_queue.join("; "));
        }
        let sums = [(Offload::TX_CHECKSUM, "completes"), (Offload::RX_CHECKSUM, "checks")];
        let sums: Vec<&str> = sums
            .into_iter()
            .filter(|(offload, _)| card.is_some_and(|card| card.offload.contains(*offload)))
            .map(|(_, verb)| verb)
            .collect();
        if !sums.is_empty() {
            println!("      the card {} checksums", sums.join(" and "));
        }
        if !groups.is_empty() {
            let groups: Vec<String> = groups.iter().map(|group| group.to_string()).collect();
            println!("      in groups {}", groups.join(" "));
        }
        let errors = ["missed", "damaged", "not sent", "collisions"].into_iter().zip(counts.errors);
        let errors: Vec<String> =
            errors.filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")).collect();
        if !errors.is_empty() {
            println!("      {driver} says: {}", errors.join(", "));
        }
    }
    outcome
}

/// Runs `add A/N dev ethX [via R]` and `del A[/N] dev ethX`.
async fn address(mut arguments: Arguments<'_>) -> Outcome {
    let verb = arguments.optional();
    if matches!(verb, None | Some("show")) {
        arguments.end()?;
        return show().await;
    }
    let word = arguments.word("the address")?;
    let (address, prefix_len) = match word.split_once('/') {
        Some((address, prefix_len)) => (address, prefix_len.parse::<u8>().ok().filter(|len| *len <= 32)),
        None => (word, Some(32)),
    };
    let (Ok(address), Some(prefix_len)) = (address.parse::<Ipv4Addr>(), prefix_len) else {
        return arguments.wrong(&format!("'{word}' is not an IPv4 address with a prefix length, as in 10.0.2.15/24"));
    };
    let (mut interface, mut router) = (None, None);
    while let Some(option) = arguments.optional() {
        match option {
            "dev" => interface = Some(arguments.word("the interface")?.to_string()),
            "via" => {
                let word = arguments.word("the router's address")?;
                let Ok(address) = word.parse() else {
                    return arguments.wrong(&format!("'{word}' is not an IPv4 address"));
                };
                router = Some(address);
            }
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    let Some(interface) = interface else { return arguments.wrong("the interface is missing: dev ethX") };
    match verb {
        Some("add") => net::add_address(&interface, Ipv4Cidr::new(address, prefix_len), router),
        Some("del") => net::remove_address(&interface, address),
        other => arguments.wrong(&format!("'{}' is not known", other.unwrap_or_default())),
    }
}

/// Runs `add GROUP dev ethX` and `del GROUP dev ethX`.
fn group(mut arguments: Arguments<'_>) -> Outcome {
    let verb = arguments.word("add or del")?;
    if !matches!(verb, "add" | "del") {
        return arguments.wrong(&format!("it must be add or del, not '{verb}'"));
    }
    let word = arguments.word("the group")?;
    let Ok(group) = word.parse::<Ipv4Addr>() else {
        return arguments.wrong(&format!("'{word}' is not an IPv4 address"));
    };
    match arguments.word("dev")? {
        "dev" => {}
        other => return arguments.wrong(&format!("'{other}' is not known")),
    }
    let interface = arguments.word("the interface")?;
    arguments.end()?;
    if verb == "add" { net::join(interface, group) } else { net::leave(interface, group) }
}

/// `set ethX up|down`, `set ethX mtu BYTES`, `set ethX promisc|allmulticast on|off`.
fn set_link(mut arguments: Arguments<'_>) -> Outcome {
    match arguments.word("set")? {
        "set" => {}
        other => return arguments.wrong(&format!("'{other}' is not known")),
    }
    let interface = arguments.word("the interface")?;
    let what = match arguments.word("up or down")? {
        word @ ("up" | "down") => {
            arguments.end()?;
            return net::set_up(interface, word == "up");
        }
        "mtu" => {
            let mtu = arguments.number("the MTU")?;
            arguments.end()?;
            return net::set_mtu(interface, mtu);
        }
        "promisc" => Hearing::PROMISCUOUS,
        "allmulticast" => Hearing::ALL_MULTICAST,
        other => return arguments.wrong(&format!("it must be up, down, mtu, promisc or allmulticast, not '{other}'")),
    };
    let on = match arguments.word("on or off")? {
        "on" => true,
        "off" => false,
        other => return arguments.wrong(&format!("it must be on or off, not '{other}'")),
    };
    arguments.end()?;
    net::set_hearing(interface, what, on)
}

/// Parses a time in seconds, with up to three digits after the point.
fn seconds(arguments: &Arguments, word: &str) -> Result<Duration, String> {
    const MOST_S: u64 = 86_400;
    let (whole, part) = word.split_once('.').unwrap_or((word, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let milliseconds = format!("{part:0<3}").parse::<u64>().ok().filter(|_| part.len() <= 3 && digits(part));
    let whole = whole.parse::<u64>().ok().filter(|whole| *whole <= MOST_S);
    match (whole, milliseconds) {
        (Some(whole), Some(milliseconds)) => Ok(Duration::from_millis(whole * 1000 + milliseconds)),
        _ => arguments.wrong(&format!("'{word}' is no time in seconds, at most {MOST_S}")),
    }
}

/// The results of pings.
#[derive(Default)]
struct Trips {
    sent: u64,
    times_us: Vec<u64>,
}

impl Trips {
    /// The number of times that are kept. Further answers are only counted.
    const KEPT: usize = 65536;

    fn print(&self) {
        let Trips { sent, times_us } = self;
        let answered = times_us.len() as u64;
        let lost = sent - answered;
        match (times_us.iter().min(), times_us.iter().max()) {
            (Some(min), Some(max)) => {
                let average = times_us.iter().sum::<u64>() / answered;
                println!("{sent} sent, {answered} answered, {lost} lost; min/avg/max {min}/{average}/{max} us");
            }
            _ => println!("{sent} sent, {answered} answered, {lost} lost"),
        }
    }
}

pub async fn ping(mut arguments: Arguments<'_>) -> Outcome {
    let host = host(&mut arguments).await?;
    let (mut count, mut limit, mut interval, mut len_bytes) = (4, Duration::from_secs(2), Duration::from_secs(1), 56);
    while let Some(option) = arguments.optional() {
        match option {
            "-c" => count = arguments.number::<u16>("the count")?,
            "-W" => limit = Duration::from_millis(arguments.milliseconds("the limit")?),
            "-i" => {
                let word = arguments.word("the interval")?;
                interval = seconds(&arguments, word)?;
            }
            "-s" => len_bytes = arguments.number::<usize>("the size")?,
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    if len_bytes > MAX_PING {
        return arguments.wrong(&format!("the size is {MAX_PING} bytes at most"));
    }
    let mut trips = Trips::default();
    let mut pinger = Pinger::open(host, len_bytes).await?;
    for sequence in 1..=count {
        let next = Instant::now() + interval;
        let trip = pinger.ping(sequence, limit).await;
        // If this ping cannot be sent, the next one cannot either: its driver may be gone for good.
        let Ok(trip) = trip else {
            if trips.sent > 0 {
                trips.print();
            }
            return trip.map(drop);
        };
        trips.sent += 1;
        match trip {
            Some(time) => {
                println!("answer from {host}: seq={sequence} time={} us", time.as_micros());
                if trips.times_us.len() < Trips::KEPT {
                    trips.times_us.push(time.as_micros());
                }
            }
            None => println!("no answer: seq={sequence}"),
        }
        if sequence < count {
            Timer::at(next).await;
        }
    }
    trips.print();
    match trips.sent - trips.times_us.len() as u64 {
        0 => Ok(()),
        lost => Err(format!("{lost} lost")),
    }
}

pub async fn nslookup(mut arguments: Arguments<'_>) -> Outcome {
    let name = arguments.word("the name")?;
    arguments.end()?;
    let addresses = client::look_up(name).await?;
    addresses.iter().for_each(|address| println!("{name} {address}"));
    if addresses.is_empty() { Err(format!("'{name}' has no IPv4 address")) } else { Ok(()) }
}

pub async fn tcpecho(mut arguments: Arguments<'_>) -> Outcome {
    let host = host(&mut arguments).await?;
    let port = arguments.number("the port")?;
    let len_bytes: usize = arguments.number("the length")?;
    let limit = match arguments.optional() {
        None => Duration::from_secs(10),
        Some("-W") => Duration::from_millis(arguments.milliseconds("the limit")?),
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    if !host.is_loopback() {
        net::wait_for_address().await?;
    }
    let echoed = with_timeout(limit, client::echo(host, port, len_bytes)).await;
    echoed.unwrap_or(Err("not all came back in time".to_string()))?;
    println!("{len_bytes} bytes came back as they were");
    Ok(())
}

pub async fn echoed(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let last = net::status().into_iter().find_map(|interface| interface.echoed);
    let last = last.ok_or("no stream was echoed to its end yet")?;
    super::print_sum(&last.sum(), last.len_bytes);
    Ok(())
}
