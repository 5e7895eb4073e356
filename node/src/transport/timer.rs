//! Timers that are seldom moved.
//!
//! quinn moves a connection's timer with each packet: an acknowledgement puts it off until the connection is idle, the
//! next packet brings it back to when that would count as lost. Each time it comes nearer, tokio wakes the thread that
//! waits for sockets, even if that is the one that moved it: with a lone client three or four system calls for each
//! request. Here a timer that is put off stays armed as it was, and is armed anew when it fires too early: once in the time
//! after which a packet counts as lost, at most.

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;
use tokio::time::Sleep;

/// tokio, with such timers.
#[derive(Debug)]
pub(super) struct PatientRuntime;

impl Runtime for PatientRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let sleep = Box::pin(tokio::time::sleep_until(at.into()));
        Box::pin(Timer { sleep, armed: at, wanted: at })
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        TokioRuntime.spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}

/// Invariant: `armed` is when `sleep` fires, and never later than `wanted`.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    armed: Instant,
    wanted: Instant,
}

impl Timer {
    fn arm(&mut self, at: Instant) {
        self.sleep.as_mut().reset(at.into());
        self.armed = at;
    }
}

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.wanted = at;
        if at < self.armed {
            self.arm(at);
        }
    }

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(Future::poll(self.sleep.as_mut(), context));
            if self.armed == self.wanted {
                return Poll::Ready(());
            }
            let wanted = self.wanted;
            self.arm(wanted);
        }
    }
}

impl fmt::Debug for Timer {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Timer").field("wanted", &self.wanted).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    async fn fired(timer: &mut Pin<Box<dyn AsyncTimer>>) -> Instant {
        poll_fn(|context| timer.as_mut().poll(context)).await;
        Instant::now()
    }

    #[tokio::test]
    async fn a_timer_fires_when_it_was_last_told_to_however_it_was_moved() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timer = PatientRuntime.new_timer(at(5));
        assert!(fired(&mut timer).await >= at(5));
        timer.as_mut().reset(at(10));
        timer.as_mut().reset(at(3_600_000));
        timer.as_mut().reset(at(30));
        assert!(fired(&mut timer).await >= at(30), "put off, and brought back in part");
        timer.as_mut().reset(at(3_600_000));
        let waits = poll_fn(|context| Poll::Ready(timer.as_mut().poll(context).is_pending()));
        assert!(waits.await, "put off again");
        timer.as_mut().reset(at(40));
        assert!(fired(&mut timer).await >= at(40), "and not for ever");
    }
}
