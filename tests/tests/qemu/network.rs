//! Real traffic through the e1000 driver, in both rings.

use ringfence::machine::{Machine, Protocol, Running};
use ringfence_link::event::{self, Event};
use ringfence_tests::{
    TIME_LIMIT, assert_says, at_prompt, boot_badly, boot_well, leave, machine, run_well, system, wait_for_address,
};
use sha2::{Digest, Sha256};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::time::Duration;

/// The conformance tests `hearing` and `groups` really run on these cards: four of their drivers
/// can set the mode, and one says that it cannot.
#[test]
fn cards_are_told_what_to_hear() {
    let told = |nic: &str, what: &[&str], more: &str| {
        let lines: Vec<String> = what.iter().map(|what| format!("ip link set eth0 {what}; ")).collect();
        let mut machine = machine(&(lines.concat() + more));
        (machine.nic, machine.hba) = (nic.into(), "none".into());
        machine
    };
    for nic in ["e1000", "rtl8139", "ne2k_pci", "virtio-net-pci"] {
        let join = "ip maddr add 224.0.0.251 dev eth0; ip; ip maddr del 224.0.0.251 dev eth0; \
                    fails ip maddr del 224.0.0.251 dev eth0; fails ip maddr add 10.0.0.1 dev eth0";
        let text = boot_well(&told(nic, &["promisc on", "allmulticast on", "promisc off"], join));
        assert_says(&text, "in groups 224.0.0.251");
        assert_says(&text, "as expected: eth0 is not in 224.0.0.251");
        assert_says(&text, "as expected: 10.0.0.1 is not a group: those are 224.0.0.0 to 239.255.255.255");
    }
    let wrong = ["promisc off", "promisc on", "allmulticast maybe"];
    let text = boot_badly(&told("pcnet", &wrong, "fails ip maddr add 224.0.0.251 dev eth0"), 2);
    assert_says(&text, "as expected: pcnet cannot have its card hear that");
    assert_says(&text, "error: pcnet cannot have its card hear that");
    assert_says(&text, "error: it must be on or off, not 'maybe'");
}

/// The conformance test `mtu` tries the longest packets on these cards only: the other drivers say
/// that theirs does not take them.
#[test]
fn cards_take_packets_as_long_as_their_drivers_say() {
    let told = |nic: &str, mtu: usize| {
        let mut machine = machine(&format!("ip link set eth0 mtu {mtu}; ip"));
        (machine.nic, machine.hba) = (nic.into(), "none".into());
        machine
    };
    for nic in ["e1000", "virtio-net-pci"] {
        let text = boot_well(&told(nic, 2034));
        let mtus = text.events().iter().filter_map(|event| match event {
            Event::Interface(eth0) if eth0.name == "eth0" => Some(eth0.mtu),
            _ => None,
        });
        assert_eq!(mtus.collect::<Vec<_>>(), [2034], "{text}");
        let most = format!("error: {} takes packets of 2034 bytes at most", nic.trim_end_matches("-pci"));
        assert_says(&boot_badly(&told(nic, 2035), 1), &most);
    }
    assert_says(&boot_badly(&told("pcnet", 1501), 1), "error: pcnet takes packets of 1500 bytes at most");
    assert_says(&boot_badly(&told("pcnet", 575), 1), "error: the MTU is 576 bytes at least");
}

#[test]
fn dhcp_and_ping_work_in_both_rings() {
    let text = boot_well(&machine(
        "ip; ping 10.0.2.2 -c 3; ring e1000 0; ping 10.0.2.2 -c 3; ring e1000 1; ping 10.0.2.2 -c 3",
    ));
    assert_says(&text, "eth0: 10.0.2.15/24 via e1000");
    assert_eq!(text.lines().filter(|line| line.contains("3 sent, 3 answered")).count(), 3);
}

/// Each interface takes a megabyte of the kernel's heap, whether its driver is alive or not.
#[test]
fn there_are_four_interfaces_and_no_more() {
    // A device is free again when its driver was ended, so one device is enough.
    let fill: String = ["rogue-nic", "rogue-nic.2", "rogue-nic.3", "rogue-nic.4"]
        .map(|name| format!("insmod rogue-nic; kill {name}; "))
        .concat();
    let mut machine = machine(&format!("{fill}insmod rogue-nic; policy rogue-nic.3 restart; sleep 200"));
    machine.contents.autoload = false;
    let text = boot_badly(&machine, 1);
    assert_says(&text, "error: rogue-nic: init: refused: there can be 4 network interfaces (four at most)");
    // A successor takes over the interface of its predecessor.
    assert!(text.restarts("rogue-nic.3") > 0, "{text}");
}

/// Returns a port that is free at the moment.
pub fn free_port() -> u16 {
    ringfence::machine::free_port().unwrap()
}

/// Starts a machine whose shell waits for input, with the servers' ports forwarded.
pub fn serving(ports: &[(Protocol, u16, u16)]) -> Running {
    let mut machine = Machine { timeout: Some(TIME_LIMIT), hba: "none".into(), ..Machine::default() };
    machine.forwards = ports.to_vec();
    let mut running = machine.start(system()).unwrap();
    wait_for_address(&mut running, [10, 0, 2, 15]);
    running
}

/// Returns bytes without a repeating pattern.
pub fn pattern(len_bytes: usize) -> Vec<u8> {
    (0..len_bytes as u64).map(|index| (index.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// Opens a stream to a server of the guest.
pub fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream
}

/// Opens a stream to an echo server of the guest, and sends one byte there and back. libslirp 4.7
/// loses the data that it has read from the host if a SYN-ACK comes twice (`sbreserve` empties its
/// buffer). It comes twice if the guest gets the answer to it late: under load, or because its
/// driver was ended.
pub fn echoing(port: u16) -> TcpStream {
    let mut stream = connect(port);
    stream.write_all(b"x").unwrap();
    assert_eq!(read(&mut stream, 1), b"x");
    stream
}

/// Reads the next `len_bytes` bytes from `stream`.
pub fn read(stream: &mut TcpStream, len_bytes: usize) -> Vec<u8> {
    let mut bytes = vec![0; len_bytes];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sends `data` to the echo server and returns the echo.
fn echo(port: u16, data: &[u8]) -> Vec<u8> {
    let mut stream = connect(port);
    let mut writer = stream.try_clone().unwrap();
    let sent = data.to_vec();
    let sender = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    sender.join().unwrap();
    back
}

#[test]
fn tcp_echo_returns_every_byte() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let data = pattern(2 << 20);
    assert!(echo(port, &data) == data, "the echo differs");
    // The guest reports the data that passed through it.
    let echoed = Event::Data { bytes: data.len() as u64, sha256: event::Sha256(Sha256::digest(&data).into()) };
    running.type_line("echoed").unwrap();
    running.wait_for_event("what was echoed", |event| (event == echoed).then_some(())).unwrap();
    leave(running);
}

#[test]
fn a_driver_changes_rings_in_the_middle_of_a_stream() {
    let port = free_port();
    let mut running = serving(&[(Protocol::Tcp, port, 7)]);
    let (mut stream, data) = (echoing(port), pattern(256 << 10));
    for change in 0..12 {
        let ring = change % 2;
        stream.write_all(&data).unwrap();
        run_well(&mut running, &format!("ring e1000 {ring}"));
        assert!(read(&mut stream, data.len()) == data, "the echo differs");
    }
    leave(running);
}

#[test]
fn udp_echo_discard_and_character_generator_work() {
    let (udp, discard, chargen) = (free_port(), free_port(), free_port());
    let running = serving(&[(Protocol::Udp, udp, 7), (Protocol::Tcp, discard, 9), (Protocol::Tcp, chargen, 19)]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    socket.connect(("127.0.0.1", udp)).unwrap();
    for len_bytes in [1, 100, 1400] {
        let data = pattern(len_bytes);
        socket.send(&data).unwrap();
        let mut back = [0; 2048];
        let received = socket.recv(&mut back).unwrap();
        assert_eq!(&back[..received], data);
    }
    let mut sink = connect(discard);
    sink.write_all(&pattern(1 << 20)).unwrap();
    sink.shutdown(Shutdown::Write).unwrap();
    // The server closes the connection when it has read everything, and sends nothing.
    assert_eq!(sink.read_to_end(&mut Vec::new()).unwrap(), 0);
    let lines = read(&mut connect(chargen), 74 * 95);
    for (number, line) in lines.chunks(74).enumerate() {
        let expected: Vec<u8> = (0..72).map(|column| b' ' + ((number + column) % 95) as u8).collect();
        assert_eq!(line, [expected.as_slice(), b"\r\n"].concat());
    }
    leave(running);
}

/// Packets that wait for an absent host do not delay packets to others.
#[test]
fn a_host_that_is_not_there_delays_no_other() {
    let run = boot_badly(&machine("ip; ping 10.0.2.99 -c 1 -W 200; ping 10.0.2.2 -c 1 -W 5000"), 1);
    assert_says(&run.to_string(), "no answer: seq=1");
    assert_says(&run.to_string(), "answer from 10.0.2.2: seq=1");
}

/// A packet longer than a frame is sent in fragments, and its answer is put together from fragments
/// (RFC 791, 2.3).
#[test]
fn packets_longer_than_a_frame_come_back() {
    let text = boot_well(&machine("ip; ping 10.0.2.2 -c 1 -s 4000; ping 127.0.0.1 -c 1 -s 4000; ping 10.0.2.15 -c 1"));
    assert_eq!(text.matches("1 sent, 1 answered, 0 lost").count(), 3, "{text}");
}

/// After the driver has ended, there is nobody to send the requests, so ping does not wait.
#[test]
fn a_ping_ends_with_its_driver() {
    let script = "ip; policy e1000 stop; ping 10.0.2.2 -c 60000 &; sleep 100; kill e1000; wait";
    let text = boot_badly(&machine(script), 1);
    assert_says(&text, "error: eth0's driver was ended, and stays so");
    assert!(text.lines().any(|line| line.contains(" sent, ") && line.contains("; min/avg/max ")), "{text}");
}

/// Two cards, of which the first has no router. A packet takes the interface that has a route for
/// it. An address that is set by hand needs no DHCP server.
#[test]
fn the_way_is_chosen_by_route() {
    let mut machine = machine(
        "ping 10.0.2.2 -c 1; ip addr add 10.7.0.2/24 dev eth0; ip; fails ping 10.7.0.9 -c 1 -W 300; ping 10.0.2.2 -c 1; \
         ip link set eth0 down; ip; ip addr del 10.7.0.2 dev eth0; ip link set eth0 up; fails ip addr add x dev eth0; \
         fails ip addr add 1.2.3.4/24 dev eth9",
    );
    // Nothing is connected to the other end of the first card's cable.
    machine.network = Some("hubport,hubid=9".into());
    let second = ["-netdev", "user,id=net1", "-device", "e1000,netdev=net1"];
    machine.extra = second.map(Into::into).to_vec();
    let text = boot_well(&machine);
    assert_eq!(text.matches("1 sent, 1 answered, 0 lost").count(), 2, "{text}");
    assert_says(&text, "eth0: 10.7.0.2/24 via e1000, router none");
    assert_says(&text, "eth0: 10.7.0.2/24 via e1000, down, router none");
    assert_says(&text, "eth1: 10.0.2.15/24 via e1000.2, router 10.0.2.2");
    assert_says(&text, "as expected: 'x' is not an IPv4 address with a prefix length");
    assert_says(&text, "as expected: there is no interface 'eth9'; 'ip' lists them");
}

#[test]
fn the_cards_of_one_family_are_called_what_they_are() {
    for (card, name) in [("e1000", "82540EM"), ("e1000-82544gc", "82544GC"), ("e1000-82545em", "82545EM")] {
        let mut machine = machine("ip; ping 10.0.2.2 -c 1");
        (machine.nic, machine.hba) = (card.into(), "none".into());
        assert_says(&boot_well(&machine), &format!("e1000| {name} at 52:54:00:12:34:56"));
    }
}

/// A network of the host and one guest, in which a card can have several queues: QEMU offers none
/// to a card on its user network. Dropping it removes it.
struct Tap(String);

impl Tap {
    /// Returns `None` where the test may not make one.
    fn new() -> Option<Tap> {
        let name = format!("rf{}", std::process::id() % 1_000_000);
        let ip = |line: &str| {
            let words = line.split(' ');
            std::process::Command::new("ip").args(words).output().is_ok_and(|output| output.status.success())
        };
        if !ip(&format!("tuntap add dev {name} mode tap multi_queue")) {
            return None;
        }
        let tap = Tap(name);
        let name = &tap.0;
        let is_up = ip(&format!("addr add 10.77.0.1/24 dev {name}")) && ip(&format!("link set {name} up"));
        is_up.then_some(tap)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["link", "del", &self.0]).status();
    }
}

/// Connections are spread over the queues, in both rings and after a restart, and the card does the
/// checksums.
#[test]
fn connections_share_the_queues_of_a_card() {
    let Some(tap) = Tap::new() else {
        eprintln!("skipped: only root can make a network with several queues (ip tuntap add)");
        return;
    };
    let mut machine = machine("");
    (machine.nic, machine.hba) = ("virtio-net-pci,mq=on,vectors=5".into(), "none".into());
    machine.network = Some(format!("tap,ifname={},script=no,downscript=no,queues=4", tap.0));
    let mut running = at_prompt(machine);
    for line in ["ip addr add 10.77.0.2/24 dev eth0", "ring virtio-net 0", "kill virtio-net", "ip"] {
        run_well(&mut running, line);
        let echo = |seed: u8, mut stream: TcpStream| {
            stream.set_read_timeout(Some(TIME_LIMIT)).unwrap();
            let data: Vec<u8> = (0..100_000).map(|index| (index as u8).wrapping_mul(seed)).collect();
            let mut writing = stream.try_clone().unwrap();
            let mut came = vec![0; data.len()];
            std::thread::scope(|scope| {
                scope.spawn(|| writing.write_all(&data).unwrap());
                stream.read_exact(&mut came).unwrap();
            });
            assert!(came == data, "the echo differs");
        };
        // The server has a socket for the next connection when it has answered the last one.
        let streams: Vec<TcpStream> = (0..16).map(|_| TcpStream::connect("10.77.0.2:7").unwrap()).collect();
        std::thread::scope(|scope| {
            (1..).zip(streams).for_each(|(seed, stream)| drop(scope.spawn(move || echo(seed, stream))));
        });
        // Frames that nobody answers, all to one queue, take the buffers of that queue alone.
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        socket.set_broadcast(true).unwrap();
        for _ in 0..500 {
            socket.send_to(b"to nobody", "10.77.0.255:4").unwrap();
        }
    }
    running.type_line("ip").unwrap();
    running.type_line("shutdown").unwrap();
    let text = running.finish(|_| ()).unwrap().text();
    assert_says(&text, "the card completes and checks checksums");
    let queues = text.lines().find_map(|line| line.trim().strip_prefix("queues ")).expect("the queues are shown");
    let counts: Vec<u64> = queues.split([' ', ';', ':', ',']).filter_map(|word| word.parse().ok()).collect();
    // The number of a queue, and the numbers of frames that it has sent and received.
    let (queues, []) = counts.as_chunks::<3>() else { panic!("{queues}") };
    assert_eq!(queues.iter().map(|[queue, ..]| *queue).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert!(queues.iter().all(|[_, sent, _]| *sent > 100), "{queues:?}");
    assert!(queues.iter().filter(|[.., received]| *received > 100).count() > 1, "{queues:?}");
}
