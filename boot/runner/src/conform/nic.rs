//! The tests that any network driver must pass.

use super::Bench;
use super::peer::Peer;
use crate::wire::{BROADCAST, IPV4, datagram_with_sum, echo_request, frame, syn, tagged, transport_checksum};
use anyhow::{Context, Result, bail};
use ringfence_link::event::Event;

/// A test of a network driver.
pub type Test = fn(&mut Bench, &Peer) -> Result<()>;

/// Names, meanings and functions of the tests. Each test has its own machine.
pub const TESTS: &[(&str, &str, Test)] = &[
    ("dhcp", "the interface asks for an address and gets it", dhcp),
    ("sizes", "frames of each length from 43 to 1514 bytes come back byte for byte", sizes),
    ("flood-in", "after 3000 frames at once the next is answered", flood_in),
    ("flood-out", "200 requests of the guest are all answered, and 50 of the longest frames", flood_out),
    ("ring-dry", "after 500 frames that came while nobody looked the next is answered", ring_dry),
    ("long", "a frame that is too long, up to 9000 bytes, hurts nobody", long),
    ("short", "a frame that is too short, down to 14 bytes, hurts nobody", short),
    ("vlan", "a frame with a VLAN tag hurts nobody", vlan),
    ("others", "a frame for another card is not delivered", others),
    ("hearing", "a card that is to hear all does, and then not any more; or the driver says that it cannot", hearing),
    ("groups", "a card hears a group while its interface is in it; or the driver says that it cannot", groups),
    ("mtu", "packets are as long as the interface is told, up to the longest that the driver takes", mtu),
    ("sums", "a packet with a wrong checksum is dropped, and those that go out have right ones", sums),
    ("link", "a cable that is pulled and put back is noticed, or does no harm", link),
    ("restart-in", "a driver that is ended under frames that come is back, and hears", restart_in),
    ("restart-out", "a driver that is ended under frames that go is back, and each frame was sent", restart_out),
    ("ring-change", "a driver that changes its ring or kind under frames loses no connection", ring_change),
    ("unload", "a driver that is unloaded and loaded again works, and no memory is gone", unload),
];

/// The test with each size of the card's rings, where the machine chooses it.
pub const RING_SIZE: (&str, &str, Test) =
    ("ring-size", "with rings of the smallest size and of the largest, frames come and go", ring_size);

const DATA: [u8; 100] = [0xa5; 100];

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index as u8).wrapping_mul(31) ^ len as u8).collect()
}

/// Gives the interface its address, and returns the card's Ethernet address.
fn set_up(bench: &mut Bench, peer: &Peer) -> Result<[u8; 6]> {
    bench.run("ip addr add 10.7.0.2/24 dev eth0")?;
    peer.resolve()
}

fn dhcp(bench: &mut Bench, _: &Peer) -> Result<()> {
    bench.running.type_line("ip")?;
    let has = |event| match event {
        Event::Interface(eth0) if eth0.name == "eth0" => Some(eth0.addresses.join(" ")),
        _ => None,
    };
    let address = bench.running.wait_for_event("eth0", has)?;
    if address != "10.7.0.2/24" {
        bail!("eth0 has '{address}'");
    }
    Ok(())
}

fn sizes(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    let short = 1..64;
    for len in short.chain([65, 127, 128, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 1470, 1471, 1472]) {
        peer.echo(&mac, &pattern(len))?;
    }
    Ok(())
}

fn flood_in(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for _ in 0..30 {
        peer.flood(&mac, &DATA, 100);
    }
    if peer.echoes(DATA.len()) == 0 {
        bail!("none of 3000 frames was answered");
    }
    peer.echo(&mac, &pattern(33))
}

fn flood_out(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    bench.run("ping 10.7.0.1 -c 200 -i 0")?;
    bench.run("ping 10.7.0.1 -c 50 -i 0 -s 1472")?;
    peer.echo(&mac, &pattern(34))
}

fn ring_dry(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    bench.stop()?;
    peer.flood(&mac, &DATA, 500);
    bench.go_on()?;
    peer.echoes(DATA.len());
    peer.echo(&mac, &pattern(35))
}

fn ring_size(bench: &mut Bench, peer: &Peer) -> Result<()> {
    ring_dry(bench, peer)?;
    bench.run("ping 10.7.0.1 -c 200 -i 0")?;
    bench.end_driver()?;
    let mac = peer.resolve()?;
    peer.flood(&mac, &DATA, 500);
    peer.echoes(DATA.len());
    peer.echo(&mac, &pattern(40))
}

fn long(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for len in [1473, 1474, 1480, 1600, 2000, 2034, 2048, 4000, 8000, 8958] {
        peer.send(&frame(&mac, IPV4, &echo_request(&pattern(len))));
    }
    peer.echo(&mac, &pattern(36))
}

fn short(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for len in 0..46 {
        peer.send(&frame(&mac, 0x88b5, &pattern(len)));
    }
    peer.echo(&mac, &pattern(37))
}

fn vlan(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for len in [1, 18, 100, 1468, 1472] {
        peer.send(&tagged(&mac, IPV4, &echo_request(&pattern(len))));
    }
    peer.echo(&mac, &pattern(38))
}

fn others(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    let before = received(bench)?;
    let other = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 0x55];
    for _ in 0..50 {
        peer.send(&frame(&other, 0x88b5, &[0; 46]));
    }
    // A broadcast frame must be delivered.
    peer.send(&frame(&BROADCAST, 0x88b5, &[0; 46]));
    peer.echo(&mac, &pattern(39))?;
    let more = received(bench)? - before;
    if more == 0 || more >= 50 {
        bail!("of 50 frames for others and 2 for the card {more} were delivered");
    }
    Ok(())
}

/// Checks that the card delivers frames to other addresses while it is asked to, and only then.
fn hearing(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    let other = [mac[0], mac[1], mac[2], mac[3], mac[4], mac[5] ^ 0x55];
    let group = [0x01, 0, 0x5e, 0, 0, 0xfb];
    for (what, address) in [("promisc", other), ("allmulticast", group)] {
        // A driver that does not offer this is not at fault.
        match bench.try_to(&format!("ip link set eth0 {what} on"))? {
            Some(error) if error.ends_with(CANNOT_HEAR) => continue,
            Some(error) => bail!("{what}: {error}"),
            None => {}
        }
        for (on, restarts) in [(true, false), (true, true), (false, false)] {
            let is = if on { "on" } else { "off" };
            bench.run(&format!("ip link set eth0 {what} {is}"))?;
            if restarts {
                bench.end_driver()?;
            }
            let of = frames_heard(bench, peer, &mac, &address)?;
            if on != (of > FRAMES_FOR_OTHERS) {
                bail!("{what} is {is}, and of {FRAMES_FOR_OTHERS} frames for others and one for the card {of} came");
            }
        }
    }
    Ok(())
}

/// Checks that the card delivers frames to a group while the interface is in it, and only then.
fn groups(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    let group = [0x01, 0, 0x5e, 0, 0, 0xfb];
    match bench.try_to("ip maddr add 224.0.0.251 dev eth0")? {
        // A driver that does not offer this is not at fault.
        Some(error) if error.ends_with(CANNOT_HEAR) => return Ok(()),
        Some(error) => bail!("{error}"),
        None => {}
    }
    for step in ["", "a restart", "another group", "ip maddr del 224.0.0.251 dev eth0"] {
        match step {
            "" => {}
            "a restart" => bench.end_driver()?,
            "another group" => bench.run("ip maddr add 239.255.255.250 dev eth0")?,
            command => bench.run(command)?,
        }
        let is_in = !step.starts_with("ip");
        let of = frames_heard(bench, peer, &mac, &group)?;
        if is_in != (of > FRAMES_FOR_OTHERS) {
            bail!(
                "it is {} 224.0.0.251, and of {FRAMES_FOR_OTHERS} frames for that group and one for the card {of} came",
                if is_in { "in" } else { "no longer in" }
            );
        }
    }
    Ok(())
}

/// The end of the kernel's error if a driver does not set its card's filter.
const CANNOT_HEAR: &str = "cannot have its card hear that";
const FRAMES_FOR_OTHERS: u64 = 30;

/// Sends [`FRAMES_FOR_OTHERS`] frames to `address` and then one to the card. Returns how many of
/// them were delivered.
fn frames_heard(bench: &mut Bench, peer: &Peer, mac: &[u8; 6], address: &[u8; 6]) -> Result<u64> {
    // Waits until the card receives again: QEMU's model may receive nothing for a second.
    peer.echo(mac, &pattern(37))?;
    let before = received(bench)?;
    (0..FRAMES_FOR_OTHERS).for_each(|_| peer.send(&frame(address, 0x88b5, &[0; 46])));
    peer.echo(mac, &pattern(38))?;
    Ok(received(bench)? - before)
}

/// Checks that packets are cut into as many fragments as the MTU demands, and that a driver that
/// takes longer packets than usual sends and receives them.
fn mtu(bench: &mut Bench, peer: &Peer) -> Result<()> {
    const HEADERS: usize = 20 + 8;
    let mac = set_up(bench, peer)?;
    bench.run("ip link set eth0 mtu 576")?;
    let request = frame(&mac, IPV4, &echo_request(&pattern(1000)));
    // The first fragment: 556 bytes would fit behind the header, and a multiple of 8 does.
    let len = peer.wait("a fragment of the echo", &request, |frame| {
        let is_first = frame.get(12..14)? == IPV4.to_be_bytes() && frame.get(20..22)? == [0x20, 0] && frame[23] == 1;
        is_first.then(|| frame.get(16..18).map(|len| u16::from_be_bytes([len[0], len[1]])))?
    })?;
    if len != 20 + 552 {
        bail!("with an MTU of 576 bytes the first fragment has {len}");
    }
    for mtu in [1500, 2034] {
        match bench.try_to(&format!("ip link set eth0 mtu {mtu}"))? {
            // A driver that does not take longer ones is not at fault.
            Some(error) if mtu > 1500 && error.ends_with("bytes at most") => return Ok(()),
            Some(error) => bail!("{error}"),
            None => {}
        }
        peer.echo(&mac, &pattern(mtu - HEADERS))?;
        bench.end_driver()?;
        peer.echo(&mac, &pattern(mtu - HEADERS))?;
    }
    Ok(())
}

/// Asks for connections, and for echoes of datagrams, some with a wrong checksum. An answer to the
/// right one after the wrong ones shows that these are not answered any more: the last of them came
/// just before.
fn sums(bench: &mut Bench, peer: &Peer) -> Result<()> {
    const DISCARD: u16 = 9;
    const ECHO: u16 = 7;
    type Build = fn(u16, u16) -> Vec<u8>;
    const KINDS: [(u8, Build); 2] = [
        (6, |port, error| syn([port, DISCARD], error)),
        (17, |port, error| datagram_with_sum([port, ECHO], &pattern(usize::from(port % 64)), error)),
    ];
    let mac = set_up(bench, peer)?;
    for wrong in (4000..4040u16).step_by(2) {
        let (protocol, build) = KINDS[usize::from(wrong / 2 % 2)];
        for _ in 0..3 {
            peer.send(&frame(&mac, IPV4, &build(wrong, 1)));
        }
        let right = wrong + 1;
        let request = frame(&mac, IPV4, &build(right, 0));
        // The port that is answered, and the segment or datagram of the answer.
        let (port, answer) = peer.wait("an answer", &request, |frame| {
            let is_it =
                frame.get(12..14)? == IPV4.to_be_bytes() && frame.get(14)? == &0x45 && frame.get(23)? == &protocol;
            let len = usize::from(u16::from_be_bytes(frame.get(16..18)?.try_into().ok()?));
            let answer = frame.get(34..14 + len).filter(|_| is_it)?;
            let port = u16::from_be_bytes(answer.get(2..4)?.try_into().ok()?);
            (port == wrong || port == right).then(|| (port, answer.to_vec()))
        })?;
        if port == wrong {
            bail!("a packet of protocol {protocol} with a wrong checksum is answered");
        }
        if transport_checksum(protocol, &answer) != [0, 0] {
            bail!("a packet of protocol {protocol} comes with a wrong checksum");
        }
    }
    Ok(())
}

/// Returns the number of frames that the driver has delivered.
fn received(bench: &mut Bench) -> Result<u64> {
    bench.running.type_line("ip")?;
    let count = |event| match event {
        Event::Interface(eth0) if eth0.name == "eth0" => Some(eth0.received),
        _ => None,
    };
    bench.running.wait_for_event("eth0", count)
}

fn link(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for up in [false, true, false, true] {
        bench.set_link(up)?;
    }
    peer.echo(&mac, &pattern(40))
}

fn restart_in(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    for _ in 0..3 {
        peer.flood(&mac, &DATA, 100);
        bench.end_driver()?;
        peer.flood(&mac, &DATA, 100);
        peer.echo(&mac, &pattern(41))?;
    }
    Ok(())
}

fn restart_out(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    const PING: &str = "ping 10.7.0.1 -c 300 -i 0 -W 1000";
    for _ in 0..5 {
        peer.requests();
        bench.running.type_line(&format!("{PING} &"))?;
        bench.end_driver()?;
        bench.end_driver()?;
        // An answer that arrives while the card is in reset is lost, as on any wire.
        bench.ended(PING)?;
        let came = peer.requests();
        if came != 300 {
            bail!("of 300 requests {came} came");
        }
    }
    peer.echo(&mac, &pattern(42))
}

fn ring_change(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let mac = set_up(bench, peer)?;
    let moves = bench.moves();
    for line in moves.iter().chain(&moves) {
        peer.flood(&mac, &DATA, 50);
        bench.run(line)?;
        peer.flood(&mac, &DATA, 50);
        peer.echo(&mac, &pattern(43))?;
    }
    Ok(())
}

fn unload(bench: &mut Bench, peer: &Peer) -> Result<()> {
    let name = bench.name.clone();
    let mut free = Vec::new();
    for _ in 0..3 {
        bench.run(&format!("rmmod {name}"))?;
        free.push(bench.free_frames()?);
        bench.load(1)?;
        let mac = set_up(bench, peer).context("loaded again")?;
        peer.echo(&mac, &pattern(44))?;
    }
    // The first round allocates tables that are kept, so only the later rounds are compared.
    if free[1] != free[2] {
        bail!("{} frames of memory are gone", free[1].abs_diff(free[2]));
    }
    Ok(())
}
