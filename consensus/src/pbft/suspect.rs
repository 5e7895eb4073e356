//! OSDI'99 §4.5.2, liveness: when a replica wants to leave a view.
//!
//! The paper's replica leaves a view when its own timer says so. Here it says SUSPECT, keeps
//! voting, and leaves when a quorum says so: one correct replica never leaves a view on its own word.
//! It may still be the only one that hears the quorum, while those who spoke are served after all. It
//! votes nowhere then until the others follow, and counts as one of the f; what they decide it fetches,
//! executes and attests, since none of that asks for a view. Nor can it hold up the others: when one
//! more of them fails, those left suspect within a timeout, its VIEW-CHANGE counts as a SUSPECT of its,
//! and with it they are the quorum that leaves. To go back would be to vote below its VIEW-CHANGE. The
//! request timer runs on each client's oldest pending request, on a clock that stands while this
//! replica misses decided batches, changes views or waits for an epoch to end.

use super::Pbft;
use super::message::Message;
use crate::engine::{Reject, To};
use crate::message::Batch;
use crate::types::{ClientId, Epoch, ReplicaId, View};
use conclave_crypto::{mark, mistake};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// A view change waits at most this many times the base timeout.
const TIMEOUT_FACTOR_MAX: u64 = 8;
/// Samples of forwarding delay that a judgement on the primary rests on.
const SAMPLES: usize = 64;
/// So many clients have an equal part of them where there are so many, and else all there are: few
/// among many cannot make a primary look slow, and few that are alone can have one judged.
const SAMPLED_CLIENTS: usize = 8;
/// A primary is not slow below this, milliseconds.
const SLOW_MS: u64 = 50;
/// A primary is slow at this many times the best of the last views.
const SLOW_FACTOR: u64 = 8;
/// At most one judgement of slowness in this time, milliseconds.
const SLOW_PAUSE_MS: u64 = 60_000;

#[derive(Default)]
pub(super) struct Suspicion {
    /// The newest SUSPECT of each peer, and until when it counts.
    heard: BTreeMap<ReplicaId, (View, u64)>,
    /// The request clock.
    pub(super) clock_ms: u64,
    /// Request timers count from here at the earliest.
    from_ms: u64,
    /// The timeout in force.
    pub(super) timeout_ms: u64,
    /// A request timer is expired.
    pub(super) expired: bool,
    /// This view's primary contradicted itself.
    pub(super) faulty: bool,
    suspected_ms: Option<u64>,
    samples: VecDeque<(ClientId, u64)>,
    /// Median delays of earlier views.
    medians: VecDeque<u64>,
    slow_until_ms: u64,
    slow_judged_ms: Option<u64>,
}

impl Suspicion {
    pub(super) fn new(timeout_ms: u64) -> Self {
        Self { timeout_ms, ..Self::default() }
    }

    /// A view was left or entered: what was held against its primary is void.
    pub(super) fn enter_view(&mut self, view: View, views_kept: usize) {
        self.heard.retain(|_, (suspected, _)| *suspected >= view);
        self.from_ms = self.clock_ms;
        self.expired = false;
        self.faulty = false;
        self.suspected_ms = None;
        self.slow_until_ms = 0;
        if self.samples.len() >= SAMPLES {
            self.medians.push_back(median(&self.samples));
            while self.medians.len() > views_kept {
                self.medians.pop_front();
            }
        }
        self.samples.clear();
    }

    /// Nothing said in one epoch counts in the next.
    pub(super) fn start_epoch(&mut self, views_kept: usize) {
        self.heard.clear();
        self.enter_view(View(0), views_kept);
    }
}

/// The lower one of two: half of the clients alone make nobody look slow.
fn median(samples: &VecDeque<(ClientId, u64)>) -> u64 {
    let mut delays: Vec<u64> = samples.iter().map(|(_, delay)| *delay).collect();
    delays.sort_unstable();
    delays.get(delays.len().saturating_sub(1) / 2).copied().unwrap_or(0)
}

impl Pbft {
    pub(super) fn base_timeout_ms(&self) -> u64 {
        self.limits.view_change_timeout_ms
    }

    /// The clock of request timers.
    pub(super) fn request_clock(&self) -> u64 {
        self.suspicion.clock_ms
    }

    /// Expiries alone double the timeout, up to a cap.
    pub(super) fn double_timeout(&mut self) {
        if mistake!("timeout-never-doubles") {
            return;
        }
        mark!("an expiry doubles the timeout");
        let longest = self.base_timeout_ms() * TIMEOUT_FACTOR_MAX;
        self.suspicion.timeout_ms = (self.suspicion.timeout_ms * 2).min(longest);
    }

    /// A client's oldest request was decided after this long: timeouts are normal again if that
    /// was within the base timeout.
    pub(super) fn on_request_decided(&mut self, waited_ms: u64) {
        if waited_ms <= self.base_timeout_ms() {
            mark!("timeouts are normal again");
            self.suspicion.timeout_ms = self.base_timeout_ms();
        }
    }

    /// One step of the request clock and of everything that rests on it.
    pub(super) fn tick_suspicion(&mut self, step_ms: u64) {
        let runs = self.active
            && self.changes.settled()
            && self.epoch_last().is_none()
            && self.agreed == self.delivered;
        if runs {
            self.suspicion.clock_ms += step_ms;
        }
        if !self.is_primary() && self.can_sign() {
            let Suspicion { clock_ms, from_ms, timeout_ms, .. } = self.suspicion;
            let overdue = self.queue.overdue(clock_ms, from_ms, timeout_ms)
                && !mistake!("request-timer-never-runs");
            self.suspicion.expired = overdue || self.rejoin_overdue(clock_ms, from_ms, timeout_ms);
        }
        self.suspect();
    }

    pub(super) fn on_suspect(&mut self, from: ReplicaId, epoch: Epoch, view: View) {
        if epoch != self.epoch() || view < self.view {
            return self.reject(from, Reject::View);
        }
        let until = self.now_ms + self.base_timeout_ms();
        self.suspicion.heard.insert(from, (view, until));
        self.suspect();
    }

    /// Says SUSPECT while there is cause, and leaves the view when a quorum says so.
    pub(super) fn suspect(&mut self) {
        if !self.active || !self.can_sign() {
            return;
        }
        let mut suspecting = self.suspecting_peers();
        if !self.has_cause(&suspecting) {
            return;
        }
        let pause = self.base_timeout_ms() / 4;
        let due = self.suspicion.suspected_ms.is_none_or(|last| self.now_ms >= last + pause);
        if due {
            self.suspicion.suspected_ms = Some(self.now_ms);
            let message = Message::Suspect { epoch: self.epoch(), view: self.view };
            self.send_after(To::Others, message, 0);
        }
        if !self.suspicion.expired {
            if suspecting.len() >= self.quorum().weak() {
                mark!("f+1 SUSPECTs are joined");
            } else if suspecting.contains(&self.primary()) {
                mark!("the primary's own SUSPECT is joined");
            }
        }
        suspecting.insert(self.id());
        if suspecting.len() >= self.quorum().quorum() || mistake!("view-left-alone") {
            if self.suspicion.expired {
                self.double_timeout();
                mark!("a quorum suspects because requests are overdue");
            }
            self.start_view_change(self.view.next());
        }
    }

    /// Who wants to leave this view: by SUSPECT, or by a VIEW-CHANGE above it.
    fn suspecting_peers(&mut self) -> BTreeSet<ReplicaId> {
        let now = self.now_ms;
        self.suspicion.heard.retain(|_, (_, until)| {
            let counts = *until > now;
            if !counts {
                mark!("a SUSPECT is too old to count");
            }
            counts
        });
        let by_suspect = self.suspicion.heard.iter().filter(|(_, (view, _))| *view == self.view);
        let by_change = self.changes.senders_above(self.view);
        let id = self.id();
        by_suspect.map(|(id, _)| *id).chain(by_change).filter(|peer| *peer != id).collect()
    }

    fn has_cause(&self, suspecting: &BTreeSet<ReplicaId>) -> bool {
        self.suspicion.expired
            || self.suspicion.faulty
            || self.suspicion.slow_until_ms > self.now_ms
            || self.abstains()
            || self.proposes_in_vain()
            || suspecting.len() >= self.quorum().weak() - usize::from(mistake!("f-suspects-joined"))
            || suspecting.contains(&self.primary())
    }

    /// Whether this primary's own next batch is of a time that backups do not accept: it was cut off for
    /// long, or its clock was wrong. What O names is accepted whatever its time.
    fn proposes_in_vain(&self) -> bool {
        let next = self.agreed.next();
        let vain = self.is_primary()
            && next > self.changes.target
            && self.log.get(&next).is_some_and(|it| {
                it.prepared.is_none()
                    && it.proposed_body().is_some_and(|batch| {
                        self.wall.0.abs_diff(batch.timestamp.0) > self.limits.clock_window_ms
                    })
            });
        if vain {
            mark!("a primary whose proposal nobody accepts gives up its view");
        }
        vain
    }

    /// Whether this replica must abstain at the next undecided sequence, after a restart.
    fn abstains(&self) -> bool {
        let next = self.agreed.next();
        let Some(through) = self.signer.found_through(self.view) else { return false };
        let named = self
            .log
            .get(&next)
            .and_then(super::log::Instance::proposed)
            .is_some_and(|digest| self.signer.unreserved(self.view, next, &digest));
        let abstains = next <= through && !named;
        if abstains {
            mark!("a start abstains at the next sequence");
        }
        abstains
    }

    /// A backup times the primary by what it forwarded itself; see Clement et al. (NSDI'09) for
    /// primaries that are slow on purpose.
    pub(super) fn sample_delays(&mut self, batch: &Batch) {
        if self.is_primary() {
            return;
        }
        let of_each = SAMPLES.div_ceil(self.clients.len().clamp(1, SAMPLED_CLIENTS));
        for request in &batch.requests {
            let Some(forwarded) = self.queue.take_forwarded(&request.key()) else { continue };
            let client = request.key().client;
            let samples = &mut self.suspicion.samples;
            if samples.iter().filter(|(of, _)| *of == client).count() >= of_each
                && let Some(oldest) = samples.iter().position(|(of, _)| *of == client)
            {
                samples.remove(oldest);
            } else if samples.len() >= SAMPLES {
                samples.pop_front();
            }
            samples.push_back((client, self.now_ms.saturating_sub(forwarded)));
        }
        self.judge_slowness();
    }

    fn judge_slowness(&mut self) {
        let suspicion = &mut self.suspicion;
        let judged = suspicion.slow_judged_ms;
        if suspicion.samples.len() < SAMPLES
            || judged.is_some_and(|last| self.now_ms < last + SLOW_PAUSE_MS)
        {
            return;
        }
        let best = suspicion.medians.iter().min().copied().unwrap_or(0);
        if median(&suspicion.samples) > SLOW_MS.max(SLOW_FACTOR * best) {
            mark!("a primary is found slow");
            suspicion.slow_judged_ms = Some(self.now_ms);
            suspicion.slow_until_ms = self.now_ms + self.limits.view_change_timeout_ms;
        }
    }
}
