//! Commands about the network.

use super::Outcome;
use crate::{net, println, supervise};
use alloc::format;
use alloc::string::ToString;
use embassy_time::{Duration, with_timeout};
use ringfence_core::arguments::Arguments;

/// Longest wait for an address.
const LEASE_LIMIT: Duration = Duration::from_secs(10);

/// Waits until the first interface has an address. The error says what is missing.
async fn has_network() -> Outcome {
    let leased = net::wait_for_address(LEASE_LIMIT).await;
    match net::status().first() {
        None => Err("there is no network interface".to_string()),
        Some(first)
            if !first.is_alive && !net::first_driver().is_some_and(|driver| supervise::will_be_back(&driver)) =>
        {
            Err(format!("{}'s driver was ended, and stays so", first.name))
        }
        Some(_) if leased => Ok(()),
        Some(first) => Err(format!("{} got no address from DHCP within {} s", first.name, LEASE_LIMIT.as_secs())),
    }
}

pub async fn ip(arguments: Arguments<'_>) -> Outcome {
    arguments.end()?;
    let outcome = has_network().await;
    let interfaces = net::status();
    for interface in &interfaces {
        println!(
            "{}: {} via {}{}, router {}\n      {}, {} frames out, {} in",
            interface.name,
            interface.address.as_deref().unwrap_or("no address"),
            interface.driver,
            if interface.is_alive { "" } else { ", which was ended" },
            interface.router.as_deref().unwrap_or("none"),
            interface.mac,
            interface.counts.sent,
            interface.counts.received
        );
    }
    outcome
}

pub async fn ping(mut arguments: Arguments<'_>) -> Outcome {
    let word = arguments.word("the host's address")?;
    let host = word.parse().or_else(|_| arguments.wrong(&format!("'{word}' is not an IPv4 address")))?;
    let (mut count, mut limit) = (4, Duration::from_secs(2));
    while let Some(option) = arguments.optional() {
        match option {
            "-c" => count = arguments.number::<u16>("the count")?,
            "-W" => limit = Duration::from_millis(arguments.milliseconds("the limit")?),
            other => return arguments.wrong(&format!("'{other}' is not known")),
        }
    }
    has_network().await?;
    let mut answered = 0;
    for sequence in 1..=count {
        match net::client::ping(host, sequence, limit).await? {
            Some(time) => {
                answered += 1;
                println!("answer from {host}: seq={sequence} time={} us", time.as_micros());
            }
            None => println!("no answer: seq={sequence}"),
        }
    }
    println!("{count} sent, {answered} answered");
    if answered == count { Ok(()) } else { Err(format!("{} lost", count - answered)) }
}

pub async fn tcpecho(mut arguments: Arguments<'_>) -> Outcome {
    let word = arguments.word("the host's address")?;
    let host = word.parse().or_else(|_| arguments.wrong(&format!("'{word}' is not an IPv4 address")))?;
    let port = arguments.number("the port")?;
    let len_bytes: usize = arguments.number("the length")?;
    let limit = match arguments.optional() {
        None => Duration::from_secs(10),
        Some("-W") => Duration::from_millis(arguments.milliseconds("the limit")?),
        Some(other) => return arguments.wrong(&format!("'{other}' is not known")),
    };
    arguments.end()?;
    has_network().await?;
    let echoed = with_timeout(limit, net::client::echo(host, port, len_bytes)).await;
    echoed.unwrap_or(Err("not all came back in time"))?;
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
