//! An echo server on the host (RFC 862), for guests that check their network.

use anyhow::Result;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

/// An echo server that runs until the program ends.
pub struct Server {
    port: u16,
}

impl Server {
    /// Starts a server on a free port of the loopback interface, which guests reach as 10.0.2.2.
    pub fn start() -> Result<Server> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let port = listener.local_addr()?.port();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                std::thread::spawn(move || serve(stream));
            }
        });
        Ok(Server { port })
    }

    /// Returns the server's port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Echoes all bytes until the client closes the connection or an error occurs.
fn serve(mut stream: TcpStream) {
    let mut bytes = [0; 16384];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
