//! Debian's Chromium without a window, by its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>).

use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;
use tungstenite::{Message, WebSocket, client};

/// The longest wait for an answer of the browser. Waits for a state of the page end 10 s earlier.
const LIMIT: Duration = Duration::from_secs(60);

/// A browser with one page.
pub struct Browser {
    process: Child,
    socket: WebSocket<TcpStream>,
    session: Value,
    last: u64,
    _profile: TempDir,
}

impl Browser {
    /// Starts the browser, with a page of this size at `url`.
    pub fn open(url: &str, [width, height]: [u32; 2]) -> Browser {
        let profile = TempDir::new().unwrap();
        // The page is on this machine: nothing is looked up elsewhere. Containers have no sandbox
        // for it.
        let switches = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking \
                        --disable-component-update --disable-sync --hide-scrollbars --remote-debugging-port=0";
        let is_there = |name: &&&str| Command::new(name).arg("--version").output().is_ok();
        let program = ["chromium", "google-chrome"].iter().find(is_there).expect("'boot/setup.sh' installs Chromium");
        let mut process = Command::new(program)
            .args(switches.split_whitespace())
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Chromium starts");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let said = lines.find_map(|line| line.strip_prefix("DevTools listening on ").map(String::from));
        let address = said.expect("Chromium says where it listens");
        // Chromium stops when nobody reads its output.
        std::thread::spawn(move || lines.for_each(drop));
        let host = address.strip_prefix("ws://").and_then(|rest| rest.split('/').next()).unwrap();
        let stream = TcpStream::connect(host).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let (socket, _) = client(&address, stream).unwrap();
        let mut browser = Browser { process, socket, session: Value::Null, last: 0, _profile: profile };
        let target = browser.ask("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.ask("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        browser.ask("Emulation.setDeviceMetricsOverride", size);
        browser.ask("Page.navigate", json!({ "url": url }));
        browser
    }

    /// Sends a command, and returns its result.
    fn ask(&mut self, method: &str, parameters: Value) -> Value {
        self.last += 1;
        let mut command = json!({ "id": self.last, "method": method, "params": parameters });
        if !self.session.is_null() {
            command["sessionId"] = self.session.clone();
        }
        self.socket.send(Message::text(command.to_string())).unwrap();
        loop {
            let Message::Text(text) = self.socket.read().expect("Chromium answers") else { continue };
            let answer: Value = serde_json::from_str(&text).unwrap();
            if answer["id"] == self.last {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// Returns the value of an expression of the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let result = self.ask("Runtime.evaluate", parameters);
        assert!(result["exceptionDetails"].is_null(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression of the page is true.
    pub fn wait(&mut self, expression: &str) {
        let limit = LIMIT.as_millis() as u64 - 10_000;
        let until = self.value(&format!(
            "new Promise(done => {{ const end = Date.now() + {limit}; (function look() {{ \
             let is; try {{ is = {expression}; }} catch (error) {{ is = false; }} \
             if (is) done(true); else if (Date.now() > end) done(false); else setTimeout(look, 50); }})(); }})"
        ));
        let shown = if until == true { Value::Null } else { self.value("document.body.innerText") };
        assert!(until == true, "never: {expression}\n{}", shown.as_str().unwrap_or_default());
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str, code: u32) {
        // A key that makes a character presses a button only with that character.
        let text = if key == "Enter" { "\r" } else { "" };
        for kind in ["keyDown", "keyUp"] {
            let parameters =
                json!({ "type": kind, "key": key, "code": key, "text": text, "windowsVirtualKeyCode": code });
            self.ask("Input.dispatchKeyEvent", parameters);
        }
    }

    /// Returns the page as the accessibility tree has it: roles and names.
    pub fn accessible(&mut self) -> Vec<(String, String)> {
        let nodes = self.ask("Accessibility.getFullAXTree", json!({}))["nodes"].clone();
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_string();
        let all = nodes.as_array().cloned().unwrap_or_default();
        all.iter()
            .filter(|node| node["ignored"] != true)
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
