//! Connections: accepted up to a limit, with time limits on headers and on reading replies, and ended gracefully.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_io_timeout::TimeoutStream;

use super::{App, router};

/// Most bytes of request headers together.
const HEADER_LIMIT: usize = 32 << 10;
/// Most request headers.
const HEADERS: usize = 100;
/// Time for the final events of answers that were cut short.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Answers requests until `shutdown` is ready, then lets running answers finish.
///
/// After `shutdown` no connection is accepted and no answer begun. Answers that run go on for
/// [`shutdown_timeout`](super::Settings::shutdown_timeout), then end with what there is and a proper final event.
///
/// # Errors
/// When the listener fails for good.
pub async fn serve(listener: TcpListener, app: App, shutdown: impl Future<Output = ()>) -> io::Result<()> {
    let router = router(app.clone());
    let settings = &app.settings;
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(HEADER_LIMIT)
        .max_headers(HEADERS);
    let connections = Arc::new(Semaphore::new(settings.connections));
    let graceful = GracefulShutdown::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accept = async {
            // the semaphore is never closed
            let permit = Arc::clone(&connections).acquire_owned().await.ok();
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            accepted = accept => accepted,
            () = &mut shutdown => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // out of file descriptors, or a client that is gone already: neither is a reason to end
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // tokens are small writes that should leave at once
        let _ = stream.set_nodelay(true);
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(settings.write_timeout));
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    app.close();
    let (running, waiting) = app.registry.counts();
    tracing::info!(running, waiting, "shutting down");
    let mut idle = pin!(graceful.shutdown());
    let finished = tokio::time::timeout(settings.shutdown_timeout, &mut idle).await;
    if finished.is_err() {
        app.registry.stop();
        let _ = tokio::time::timeout(LAST_WORDS, idle).await;
    }
    Ok(())
}
