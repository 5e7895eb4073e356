//! `/livez`, `/readyz`, `/metrics` and `/status` over HTTP, on a thread of their own.

mod places;

use crate::runtime::Shared;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use places::Places;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Connections at once.
const CONNECTIONS_MAX: usize = 64;

/// A connection that sends nothing for so long is closed.
const IDLE: Duration = Duration::from_secs(60);

/// The run that is shown; there is none while the node starts.
#[derive(Clone, Default)]
pub struct Shown(Arc<Mutex<Option<Arc<Shared>>>>);

impl Shown {
    /// Shows this run from now on, or none.
    pub fn show(&self, shared: Option<&Arc<Shared>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = shared.cloned();
    }

    fn get(&self) -> Result<Arc<Shared>, (StatusCode, String)> {
        let shown = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        shown.ok_or((StatusCode::SERVICE_UNAVAILABLE, "the node is starting\n".into()))
    }
}

/// Serves on a bound socket until the process ends.
///
/// # Errors
/// When the system refuses the socket's mode or gives no thread.
pub fn serve(listener: TcpListener, shown: Shown) -> Result<(), std::io::Error> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("http".into()).spawn(move || {
        runtime.block_on(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::error!(%error, "HTTP stopped");
                    return;
                }
            };
            let places = Places::new(listener, CONNECTIONS_MAX, IDLE);
            if let Err(error) = axum::serve(places, router(shown)).await {
                tracing::error!(%error, "HTTP stopped");
            }
        });
    })?;
    Ok(())
}

fn router(shown: Shown) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/status", get(status))
        .with_state(shown)
}

type Refused = (StatusCode, String);

async fn ready(State(shown): State<Shown>) -> Result<&'static str, Refused> {
    match shown.get()?.not_ready() {
        None => Ok("ok\n"),
        Some(reason) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n"))),
    }
}

async fn metrics(State(shown): State<Shown>) -> Result<String, Refused> {
    Ok(shown.get()?.metrics_text())
}

async fn status(State(shown): State<Shown>) -> Result<Json<serde_json::Value>, Refused> {
    Ok(Json(shown.get()?.status_json()))
}
