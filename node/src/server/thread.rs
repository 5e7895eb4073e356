//! A thread of a run, which ends with it.

use super::NodeError;
use crate::runtime::Failure;
use std::sync::Arc;
use std::thread::JoinHandle;

/// A thread that is asked to end and waited for, at the latest when this is dropped: a start that
/// fails half way leaves nothing running that could still write to the disk or the log.
pub(super) struct Thread<T> {
    handle: Option<JoinHandle<T>>,
    ask: Box<dyn Fn()>,
}

impl<T: Send + 'static> Thread<T> {
    /// Starts one whose panic ends the run instead of leaving it half alive. `ask` asks it to end and
    /// may be called more than once.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn spawn(
        name: &str,
        failure: &Arc<Failure>,
        ask: impl Fn() + 'static,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, std::io::Error> {
        let watch = failure.watch(name);
        let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _watch = watch;
            body()
        })?;
        Ok(Self { handle: Some(handle), ask: Box::new(ask) })
    }

    /// Takes charge of one that runs already, and is watched.
    pub(super) fn adopt(handle: JoinHandle<T>, ask: impl Fn() + 'static) -> Self {
        Self { handle: Some(handle), ask: Box::new(ask) }
    }

    /// Asks it to end and waits for what it gives.
    ///
    /// # Errors
    /// When it panicked.
    pub(super) fn end(mut self) -> Result<T, NodeError> {
        (self.ask)();
        let handle = self.handle.take().expect("only ending and dropping take it");
        handle.join().map_err(|_| panicked())
    }
}

impl<T> Drop for Thread<T> {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            (self.ask)();
            // Its panic has been reported by its watch.
            let _ = handle.join();
        }
    }
}

/// The error of a run one of whose threads panicked.
pub(super) fn panicked() -> NodeError {
    NodeError::System(std::io::Error::other("a thread panicked"))
}
