//! The page, in a browser and over plain HTTP; and `get`.

use crate::browser::Browser;
use crate::network::free_port;
use ringfence::machine::{Http, Machine, Running};
use ringfence_tests::{assert_says, boot_badly, leave, machine, run_well, system, usual_kind, wait_for_address};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";
const DESKTOP: [u32; 2] = [1280, 900];
const PHONE: [u32; 2] = [360, 740];

/// A machine that serves its page, and the port of the host.
fn serving() -> (Running, u16) {
    let port = free_port();
    let mut machine = machine("");
    machine.contents.exec = None;
    machine.scratch = true;
    machine.http = Some(Http { address: Ipv4Addr::LOCALHOST, port, token: TOKEN.into() });
    let mut running = machine.start(system()).unwrap();
    wait_for_address(&mut running, [10, 0, 2, 15]);
    (running, port)
}

/// Sends a request, and returns the status and the content.
fn ask(port: u16, request: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let text = String::from_utf8_lossy(&answer);
    let (head, content) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, content.to_string())
}

/// Returns whether a request is answered.
fn is_served(port: u16) -> bool {
    let ask = || {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(b"GET /api HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = [0; 15];
        stream.read_exact(&mut answer).map(|()| answer)
    };
    let answer: std::io::Result<[u8; 15]> = ask();
    answer.is_ok_and(|answer| answer.starts_with(b"HTTP/1.1 200"))
}

fn get(port: u16, path: &str) -> (u16, String) {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
}

fn post(port: u16, path: &str, token: &str) -> (u16, String) {
    ask(port, &format!("POST {path} HTTP/1.1\r\nHost: x\r\nX-Ringfence-Token: {token}\r\nContent-Length: 0\r\n\r\n"))
}

fn state(port: u16) -> Value {
    serde_json::from_str(&get(port, "/api").1).unwrap()
}

fn ring_of(port: u16, name: &str) -> Value {
    let domains = state(port)["domains"].clone();
    domains.as_array().unwrap().iter().find(|domain| domain["name"] == name).unwrap()["ring"].clone()
}

#[test]
fn only_who_has_the_token_can_do_something_and_only_what_has_a_button() {
    let (running, port) = serving();
    for token in ["", "x", &TOKEN[1..], &format!("{TOKEN}0"), &TOKEN.replace('0', "1")] {
        assert_eq!(post(port, "/do/kill/e1000", token).0, 403, "{token}");
    }
    assert_eq!(ask(port, "POST /do/kill/e1000 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0, 403);
    assert_eq!(get(port, "/do/kill/e1000").0, 405);
    for path in
        ["/do/shutdown/e1000", "/do/promote/e1000%20--force", "/do/kill/%251", "/do/break/exit", "/do/rmmod/e1000"]
    {
        let (status, content) = post(port, path, TOKEN);
        let answer: Value = serde_json::from_str(&content).unwrap_or_default();
        assert!(status == 200 && answer["error"].is_string() && answer["command"] == "", "{path}: {status} {content}");
    }
    assert_eq!(ring_of(port, "virtio-scsi"), 1);
    let (status, content) = post(port, "/do/promote/virtio-scsi", TOKEN);
    assert!(status == 200 && content.contains("virtio-scsi: now in ring 0"), "{status} {content}");
    assert_eq!(ring_of(port, "virtio-scsi"), 0);
    assert_eq!(get(port, "/nothing").0, 404);
    // Another address of this host does not reach it.
    assert!(TcpStream::connect(("127.0.0.2", port)).is_err());
    leave(running);
}

#[test]
fn metrics_are_in_prometheus_format_and_the_state_is_json() {
    let (mut running, port) = serving();
    run_well(&mut running, "ping 10.0.2.2 -c 3 -i 0");
    let (status, text) = get(port, "/metrics");
    assert_eq!(status, 200);
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines() {
        match line.strip_prefix("# ") {
            Some(comment) => {
                let words: Vec<&str> = comment.split(' ').collect();
                assert!(["HELP", "TYPE"].contains(&words[0]), "{line}");
                families.insert(words[1].to_string());
            }
            None => {
                let (name, value) = line.rsplit_once(' ').unwrap();
                assert!(families.contains(name.split('{').next().unwrap()), "{line}");
                assert!(value.parse::<f64>().is_ok(), "{line}");
            }
        }
    }
    let kind = usual_kind();
    let name = format!("ringfence_driver_operations_total{{driver=\"e1000\",kind=\"nic\",domain_kind=\"{kind}\"}} ");
    let frames = text.lines().find_map(|line| line.strip_prefix(&*name));
    assert!(frames.unwrap().parse::<f64>().unwrap() >= 6.0, "{text}");
    let state = state(port);
    assert_eq!(state["domains"][0]["name"], "e1000");
    assert_eq!(state["domains"][0]["fence"], "fenced: it reaches what its driver was given for it");
    leave(running);
}

/// Requests that are none, that never end, and that come in numbers.
#[test]
fn a_hostile_client_harms_nobody() {
    let (mut running, port) = serving();
    let silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    for request in [
        "\r\n\r\n".to_string(),
        "\0\u{1}\u{2}\u{ff}\r\n\r\n".to_string(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(10_000)),
        format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(2000)),
        "GET /api?since=nonsense HTTP/1.1\r\nHost: x\r\n\r\n".to_string(),
        "POST /do/kill/e1000 HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n".to_string(),
        format!(
            "POST /do/{}/{} HTTP/1.1\r\nX-Ringfence-Token: {TOKEN}\r\nContent-Length: 0\r\n\r\n",
            "a".repeat(900),
            "b".repeat(900)
        ),
    ] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let _ = stream.write_all(request.as_bytes());
        // Whether it is answered or cut off, it has an end.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    drop(silent);
    // As long as all places are taken, a connection is reset.
    let began = Instant::now();
    while !is_served(port) {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody is served");
    }
    run_well(&mut running, "ping 10.0.2.2 -c 1");
    leave(running);
}

#[test]
fn the_page_is_turned_on_and_off() {
    let (mut running, port) = serving();
    run_well(&mut running, "http off");
    let refused = TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(answer)
    });
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.is_empty()));
    run_well(&mut running, "http on");
    assert_eq!(get(port, "/api").0, 200);
    // Another token: the one before is worth nothing.
    assert_eq!(post(port, "/do/kill/e1000", TOKEN).0, 403);
    leave(running);
}

/// The page as a person sees and uses it, in both widths.
#[test]
fn a_person_breaks_promotes_and_reads() {
    let (running, port) = serving();
    for size in [DESKTOP, PHONE] {
        let mut browser = Browser::open(&format!("http://127.0.0.1:{port}/#{TOKEN}"), size);
        browser.wait("document.querySelectorAll('.domain').length >= 2");
        // Nothing is wider than the screen.
        assert_eq!(browser.value("document.documentElement.scrollWidth <= innerWidth"), true, "{size:?}");
        browser.value("[...document.querySelectorAll('#attacks button')].find(of => of.textContent == 'Write to the kernel').click()");
        browser.wait("document.getElementById('said').innerText.includes('the driver was ended')");
        browser.wait("document.querySelector('#faults pre').innerText.includes('drivers/rogue/src/attacks.rs:')");
        assert_eq!(browser.value("document.querySelector('#faults summary').innerText.includes('#PF writing')"), true);
        // The rogue has no claim to ring 0 now, and its button says so.
        let refused = "[...document.querySelectorAll('.domain')].find(of => of.ariaLabel == 'rogue')";
        browser.wait(&format!(
            "{refused}.querySelector('button').disabled && {refused}.innerText.includes('stays in ring 1: it faulted')"
        ));
        let e1000 = "[...document.querySelectorAll('.domain')].find(of => of.ariaLabel == 'e1000')";
        browser.value(&format!("{e1000}.querySelector('button').click()"));
        browser.wait(&format!("{e1000}.className.includes('trusted') && {e1000}.innerText.includes('ring 0')"));
        browser.wait("document.getElementById('marks').innerText.includes('e1000 promoted')");
        browser.value(&format!("{e1000}.querySelector('button').click()"));
        browser.wait(&format!("!{e1000}.className.includes('trusted')"));
        browser.wait("document.getElementById('marks').innerText.includes('e1000 demoted')");
        browser.wait("document.querySelectorAll('#chart polyline').length >= 2");
    }
    leave(running);
}

#[test]
fn the_page_works_without_a_mouse_and_for_a_screen_reader() {
    let (running, port) = serving();
    let mut browser = Browser::open(&format!("http://127.0.0.1:{port}/#{TOKEN}"), DESKTOP);
    browser.wait("document.querySelectorAll('.domain').length >= 2");
    // Tab reaches each button, in order, with a focus that can be seen.
    let mut reached = Vec::new();
    for _ in 0..40 {
        browser.press("Tab", 9);
        let label = browser.value("document.activeElement.ariaLabel || document.activeElement.textContent");
        reached.push(label.as_str().unwrap_or_default().to_string());
    }
    for wanted in
        ["To the content", "Promote to ring 0: e1000", "Kill e1000", "Trace virtio-scsi", "Write to the kernel"]
    {
        assert!(reached.iter().any(|label| label.trim() == wanted), "{wanted}: {reached:?}");
    }
    browser.value("[...document.querySelectorAll('button')].find(of => of.ariaLabel == 'Panic').focus()");
    browser.press("Enter", 13);
    browser.wait("document.getElementById('said').innerText.includes('break panic')");
    // The focus stays where it was while the page changes.
    browser.wait("document.querySelectorAll('#faults details').length == 1");
    assert_eq!(browser.value("document.activeElement.ariaLabel"), "Panic");
    let nodes = browser.accessible();
    let has = |role: &str, name: &str| nodes.iter().any(|(own, text)| own == role && text.contains(name));
    for (role, name) in [
        ("heading", "Domains"),
        ("region", "Throughput"),
        ("group", "e1000"),
        ("button", "Promote to ring 0: e1000"),
        ("image", "Frames or requests a second over three minutes"),
        ("rowheader", "virtio-scsi"),
        ("columnheader", "Crossings/s"),
        ("status", ""),
    ] {
        assert!(has(role, name), "no {role} '{name}': {nodes:#?}");
    }
    assert!(nodes.iter().all(|(role, name)| role != "button" || !name.is_empty()), "{nodes:#?}");
    leave(running);
}

/// Without the token the page shows everything. Its buttons are disabled, and a note says why.
#[test]
fn without_the_token_the_page_only_shows() {
    let (running, port) = serving();
    let mut browser = Browser::open(&format!("http://127.0.0.1:{port}/"), DESKTOP);
    browser.wait("document.querySelectorAll('.domain').length >= 2");
    assert_eq!(browser.value("[...document.querySelectorAll('button')].every(of => of.disabled)"), true);
    assert_eq!(browser.value("!document.getElementById('why-not').hidden"), true);
    leave(running);
}

/// Serves one answer after the other on the host, which the guest reaches at 10.0.2.2.
fn server(answers: &'static [&'static [u8]]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for answer in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let count = stream.read(&mut request).unwrap_or(0);
            assert!(request[..count].starts_with(b"GET /a?b HTTP/1.0\r\nHost: 10.0.2.2:"));
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn get_fetches_by_http_and_names_what_is_wrong() {
    let port = server(&[
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello, and more",
        b"HTTP/1.0 200 OK\r\n\r\nuntil the end\x1b[2J",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        b"",
    ]);
    let url = format!("http://10.0.2.2:{port}/a?b");
    let commands = [
        &*format!("get {url}; ").repeat(8),
        "get ftp://10.0.2.2/; get http:///x; get http://10.0.2.2:x/; get http://10.0.2.2:1/",
    ];
    let text = boot_badly(&Machine { hba: "none".into(), ..machine(&commands.concat()) }, 10);
    assert_says(&text, "hello");
    assert_says(&text, "until the end?[2J");
    for error in [
        "error: the server says 404 Not Found",
        "error: the answer ends after 44 bytes",
        "error: the answer comes in pieces, which nobody has asked for",
        "error: the answer is not HTTP: invalid HTTP version",
        "error: the answer says no length that can be",
        "error: the answer ends after 0 bytes",
        "error: 'ftp' is not known here, only http",
        "error: 'http:///x' names no host",
        "error: 'x' is no port",
        "error: the connection was refused",
    ] {
        assert_says(&text, error);
    }
}
