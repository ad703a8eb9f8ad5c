//! The page: the state of the system, for a browser, over HTTP (RFC 9110) with picoserve.
//!
//! * `/`: a page that works without anything from outside ([`page.html`](../page.html))
//! * `/api`: the same as JSON ([`state`])
//! * `/metrics`: for Prometheus, in its text format ([`metrics`])
//! * `POST /do/VERB/NAME`: the action of a button ([`actions`])
//!
//! **Any client that reaches the port can look. Only a client that has the token can act**, and
//! only by the actions of the buttons. The token is in the URL that the console shows, behind `#`,
//! so that a browser sends it to nobody; the page sends it in a header, which no page of another
//! site can make a browser do.

mod actions;
mod metrics;
mod state;

use crate::shell::web;
use alloc::string::String;
use embassy_futures::join::{join, join4};
use embassy_futures::select::select;
use embassy_time::Timer;
use net::stream::{Half, Lost, Stream};
use picoserve::extract::{FromRequestParts, Query};
use picoserve::io::{ErrorType, Read, Socket, Write};
use picoserve::mem::BorrowedBuffer;
use picoserve::request::RequestParts;
use picoserve::response::{IntoResponse, Response, StatusCode};
use picoserve::routing::{get, get_service, parse_path_segment, post};
use picoserve::time::Duration;
use picoserve::{Config, Router, Server, Timeouts};

/// The most bytes of a request's head.
const REQUEST_BYTES: usize = 4096;
/// Bytes of a response that are put together before they are sent.
const PIECE_BYTES: usize = 1024;
/// The wait for an interface.
const RETRY_MS: u64 = 500;
/// The header with the token.
const TOKEN_HEADER: &str = "X-Ringfence-Token";

/// The task that serves the page, and looks at the system meanwhile. Four connections are served
/// at the same time: a browser may open one and say nothing.
pub async fn run() {
    let connections = join4(serve_one(), serve_one(), serve_one(), serve_one());
    let sampled = async {
        let Some(mut changed) = web::changes() else { return };
        loop {
            while web::served().is_none() {
                changed.changed().await;
            }
            state::sample();
            select(Timer::after_millis(state::SAMPLE_MS), changed.changed()).await;
        }
    };
    join(connections, sampled).await;
}

/// Serves one connection after the other, for ever.
async fn serve_one() {
    let Some(mut changed) = web::changes() else { return };
    let app = Router::new()
        .route("/", get_service(picoserve::response::File::html(include_str!("page.html"))))
        .route("/api", get(async |Query(asked): Query<Asked>| state::json(asked.since).map(json).ok_or(NO_MEMORY)))
        .route("/metrics", get(async || text(metrics::text())))
        .route(
            ("/do", parse_path_segment::<String>(), parse_path_segment::<String>()),
            post(async |(verb, name): (String, String), _: Allowed| json(actions::carry_out(&verb, &name).await)),
        );
    let timeouts = Timeouts {
        start_read_request: Duration::from_secs(5),
        persistent_start_read_request: Duration::from_secs(5),
        read_request: Duration::from_secs(5),
        write: Duration::from_secs(10),
    };
    let config = Config::new(timeouts);
    loop {
        let Some(port) = web::served() else {
            changed.changed().await;
            continue;
        };
        let one = async {
            match Stream::accept(port).await {
                Ok(stream) => {
                    // A peer that leaves early, or speaks something else, is nobody's fault.
                    let mut buffer = [0; REQUEST_BYTES];
                    let _ = Server::custom(&app, Timing, &config, &mut buffer).serve(Connection(stream)).await;
                }
                Err(_) => Timer::after_millis(RETRY_MS).await,
            }
        };
        select(one, changed.changed()).await;
    }
}

fn json(text: String) -> impl IntoResponse {
    Response::ok(text).with_header("Content-Type", "application/json").with_header("Cache-Control", "no-store")
}

fn text(text: String) -> impl IntoResponse {
    Response::ok(text).with_header("Cache-Control", "no-store")
}

/// A request that is not carried out: the status, and the reason.
struct Refused(StatusCode, &'static str);

impl IntoResponse for Refused {
    async fn write_to<R: Read, W: picoserve::response::ResponseWriter<Error = R::Error>>(
        self,
        connection: picoserve::response::Connection<'_, R>,
        writer: W,
    ) -> Result<picoserve::ResponseSent, W::Error> {
        Response::new(self.0, self.1).write_to(connection, writer).await
    }
}

const NO_MEMORY: Refused = Refused(StatusCode::SERVICE_UNAVAILABLE, "there is no memory for an answer");
const NOT_ALLOWED: Refused = Refused(StatusCode::FORBIDDEN, "this needs the token in the URL that the console shows");

/// The page's query: the time after which looks and marks are wanted, in milliseconds since boot.
#[derive(serde::Deserialize)]
struct Asked {
    #[serde(default)]
    since: u64,
}

/// A request that may do something.
struct Allowed;

impl<'r, State> FromRequestParts<'r, State> for Allowed {
    type Rejection = Refused;

    async fn from_request_parts(_: &'r State, request: &RequestParts<'r>) -> Result<Allowed, Refused> {
        let given = request.headers().get(TOKEN_HEADER);
        let is_allowed = given.is_some_and(|given| web::is_allowed(given.as_raw()));
        is_allowed.then_some(Allowed).ok_or(NOT_ALLOWED)
    }
}

/// The kernel's clock, for picoserve.
struct Timing;
/// The kernel's executor, for picoserve.
struct Kernel;

impl picoserve::time::Timer<Kernel> for Timing {
    async fn delay(&self, duration: Duration) {
        Timer::after_millis(duration.as_millis()).await;
    }
}

/// A connection, for picoserve.
struct Connection(Stream);

struct Reader<'a>(Half<'a>);
struct Writer<'a>(Half<'a>);

impl ErrorType for Reader<'_> {
    type Error = Lost;
}

impl Read for Reader<'_> {
    async fn read(&mut self, to: &mut [u8]) -> Result<usize, Lost> {
        self.0.read(to).await
    }
}

impl ErrorType for Writer<'_> {
    type Error = Lost;
}

impl embedded_io_async::Write for Writer<'_> {
    async fn write(&mut self, from: &[u8]) -> Result<usize, Lost> {
        embedded_io_async::Write::write(&mut self.0, from).await
    }

    async fn flush(&mut self) -> Result<(), Lost> {
        embedded_io_async::Write::flush(&mut self.0).await
    }
}

impl Write for Writer<'_> {
    async fn write_with<F: FnOnce(picoserve::mem::BorrowedCursor<'_>) -> R, R>(&mut self, then: F) -> Result<R, Lost> {
        let mut room = [0; PIECE_BYTES];
        let mut buffer = BorrowedBuffer::new(&mut room);
        let result = then(buffer.unfilled());
        embedded_io_async::Write::write_all(&mut self.0, buffer.filled()).await?;
        Ok(result)
    }
}

impl Socket<Kernel> for Connection {
    type Error = Lost;
    type ReadHalf<'a> = Reader<'a>;
    type WriteHalf<'a> = Writer<'a>;

    fn split(&mut self) -> (Reader<'_>, Writer<'_>) {
        let (reader, writer) = self.0.halves();
        (Reader(reader), Writer(writer))
    }

    async fn abort<T: picoserve::time::Timer<Kernel>>(self, _: &Timeouts, _: &T) -> Result<(), picoserve::Error<Lost>> {
        Ok(())
    }

    async fn shutdown<T: picoserve::time::Timer<Kernel>>(
        self,
        _: &Timeouts,
        _: &T,
    ) -> Result<(), picoserve::Error<Lost>> {
        self.0.close();
        Ok(())
    }
}
