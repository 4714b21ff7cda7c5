//! The server on a loopback socket: connections, limits and shutdown.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use gemma_serve::http::{App, Backend, Settings, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::fake::Fake;

struct Running {
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<std::io::Result<()>>,
}

async fn start(fake: Fake, settings: Settings) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let app = App::new(vec![Arc::new(fake) as Arc<dyn Backend>], settings);
    let (stop, stopped) = oneshot::channel::<()>();
    let task = tokio::spawn(serve(listener, app, async move {
        let _ = stopped.await;
    }));
    Running { address, stop: Some(stop), task }
}

impl Running {
    async fn send(&self, text: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).await.expect("a connection");
        stream.write_all(text.as_bytes()).await.expect("the request is sent");
        stream
    }

    async fn stop(mut self) {
        self.stop.take().expect("stopped once").send(()).expect("the server listens");
        tokio::time::timeout(Duration::from_secs(10), self.task)
            .await
            .expect("in time")
            .expect("no panic")
            .expect("no error");
    }
}

fn request(body: &str) -> String {
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

async fn read_all(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut text)).await;
    String::from_utf8_lossy(&text).into_owned()
}

#[tokio::test]
async fn running_answers_finish_when_the_server_is_asked_to_stop() {
    let fake = Fake::new("one two three four five six").with_delay(Duration::from_millis(30));
    let running = start(fake, Settings::default()).await;
    let stream = running.send(&request(r#"{"prompt":"a","max_tokens":50,"stream":true}"#)).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    let address = running.address;
    let reader = tokio::spawn(read_all(stream));
    running.stop().await;
    let text = reader.await.expect("no panic");
    assert!(text.contains("\"finish_reason\":\"stop\"") && text.contains("data: [DONE]"), "{text}");
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn answers_that_take_too_long_end_with_a_final_event() {
    let fake = Fake::new(&"word ".repeat(60)).with_delay(Duration::from_millis(100));
    let settings = Settings { shutdown_timeout: Duration::from_millis(100), ..Settings::default() };
    let running = start(fake, settings).await;
    let stream = running.send(&request(r#"{"prompt":"a","max_tokens":100,"stream":true}"#)).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let reader = tokio::spawn(read_all(stream));
    running.stop().await;
    let text = reader.await.expect("no panic");
    assert!(text.contains("\"finish_reason\":\"length\"") && text.contains("data: [DONE]"), "{text}");
}

#[tokio::test]
async fn a_connection_that_closes_cancels_its_answer() {
    for stream in ["true", "false"] {
        let fake = Fake::new(&"word ".repeat(60)).with_delay(Duration::from_millis(20));
        let live = Arc::clone(&fake.live);
        let running = start(fake, Settings::default()).await;
        let body = format!(r#"{{"prompt":"a","max_tokens":100,"stream":{stream}}}"#);
        let connection = running.send(&request(&body)).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(live.load(Ordering::SeqCst), 1);
        drop(connection);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert_eq!(live.load(Ordering::SeqCst), 0, "stream: {stream}");
        running.stop().await;
    }
}

#[tokio::test]
async fn slow_and_oversized_headers_end_their_connection_alone() {
    let settings = Settings { header_timeout: Duration::from_millis(100), ..Settings::default() };
    let running = start(Fake::new("x"), settings).await;
    let slow = running.send("GET /health HTTP/1.1\r\nhost: x\r\nx-slow: ").await;
    let many: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
    let many = running.send(&format!("GET /health HTTP/1.1\r\nhost: x\r\n{many}\r\n")).await;
    let long =
        running.send(&format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(100_000))).await;
    let nonsense = running.send("\u{1}\u{2}\u{3} nonsense\r\n\r\n").await;
    for stream in [slow, many, long, nonsense] {
        assert!(!read_all(stream).await.contains("200 OK"));
    }
    let good = running.send("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(read_all(good).await.contains("200 OK"));
    running.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_dropped() {
    let settings = Settings { write_timeout: Duration::from_millis(200), ..Settings::default() };
    let running = start(Fake::new("x"), settings).await;
    // many times what the buffers of a socket hold
    let one = "GET /openapi.json HTTP/1.1\r\nhost: x\r\n\r\n";
    let stream = running.send(&one.repeat(400)).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let good = running.send("GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(read_all(good).await.contains("200 OK"), "others are served");
    let replies = read_all(stream).await.matches("200 OK").count();
    assert!(replies < 400, "the connection was closed, and what did not fit into it is lost");
    running.stop().await;
}
