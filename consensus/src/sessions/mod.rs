//! Exactly once: the client table (OSDI'99 §4.2 keeps the last reply per client; we keep a window).
//!
//! A client opens sessions, one per process. In a session requests are numbered; each carries how
//! far its answers have been acknowledged, and that fence only rises. Above the fence the table
//! remembers which request executed under which number and where its answer is; a second body for
//! a number never executes. What falls at or below the fence is forgotten. All of it is replicated
//! state, in [`Table::Sessions`]:
//!
//! | key                                                     | value                              |
//! |---------------------------------------------------------|------------------------------------|
//! | `c`, client (32)                                        | [`ClientRecord`], wire encoding    |
//! | `h`, client (32), session (8, big endian)               | fence (8), height (8), index (4) of the session's last use, little endian |
//! | `p`, client (32), session (8, BE), number ÷ 32 (8, BE)  | the page's recorded requests, 52 bytes each, by number |
//!
//! A recorded request in a page is number (8), height (8), index (4), little endian, and the
//! request's digest (32). A session has at most 1,024 recorded requests (the window that
//! [`crate::message::REQUEST_WINDOW`] allows above the fence), so at most 33 pages. A block writes
//! each head and page that it touched once, however many of its requests did.
//!
//! [`SessionTable`] keeps recently used sessions parsed. After each block it holds what the storage
//! holds, so it may forget any of them at any time.

use crate::client_wire::Refusal;
use crate::message::{RequestKey, SignedRequest};
use crate::state_machine::StateView;
use crate::storage::{Storage, StorageError, Table};
use crate::types::{ClientId, RequestNumber, Sequence, SessionId};
use crate::wire;
use conclave_crypto::digest::Digest;
use conclave_crypto::{mark, mistake};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Sessions that a client has open at once; opening one more closes the one idle longest.
pub const OPEN_MAX: usize = 32;

/// Numbers in one page.
const PAGE_NUMBERS: u64 = 32;

/// Pages of one session at most: 1,024 numbers that start anywhere in a page.
const PAGES_MAX: usize = 33;

/// Sessions kept parsed.
const HOT_SESSIONS_MAX: usize = 4096;

/// Recorded requests kept parsed, in all of them together (about 56 bytes each).
const HOT_RECORDS_MAX: usize = 262_144;

const RECORD_BYTES: usize = 52;
const HEAD_BYTES: usize = 20;

/// A place in the ledger: the block, and the request in it. Ordered as executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// Which block.
    pub height: Sequence,
    /// Which request of it, from 0.
    pub index: u32,
}

/// What the ledger knows of a client that ever opened a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRecord {
    /// How many sessions it has opened.
    pub opened: u64,
    /// Those that are open, by id; at most [`OPEN_MAX`].
    pub open: Vec<Opened>,
}

/// An open session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Its id.
    pub session: SessionId,
    /// The request that opened it: the same bytes get the same answer while it is open.
    pub request: Digest,
    /// Where that request executed.
    pub place: Place,
}

/// A request that has its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Recorded {
    number: u64,
    place: Place,
    request: Digest,
}

/// One session, parsed.
#[derive(Debug, Default)]
struct Session {
    fence: u64,
    used: Place,
    /// By page number; within a page by request number. Never an empty page.
    pages: BTreeMap<u64, Vec<Recorded>>,
    /// Pages that differ from the storage, in this block.
    changed: BTreeSet<u64>,
}

/// What the table says of a numbered request.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    /// Execute it, then [`SessionTable::record`] it.
    Fresh,
    /// It executed before.
    Duplicate(Place),
    /// It may not execute.
    Refused(Refusal),
}

type SessionKey = (ClientId, SessionId);

/// The sessions that blocks use, over the storage.
#[derive(Debug, Default)]
pub struct SessionTable {
    hot: BTreeMap<SessionKey, Session>,
    touched: BTreeSet<SessionKey>,
    /// Recorded requests in `hot`.
    records: usize,
}

impl SessionTable {
    /// Opens a session, perhaps closing one, or says why not. `place` is where the request executes.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn open(
        &mut self,
        view: &mut dyn StateView,
        request: &SignedRequest,
        close: Option<SessionId>,
        place: Place,
    ) -> Result<Result<SessionId, Refusal>, StorageError> {
        let client = request.key().client;
        let session = SessionId(request.key().number.0);
        let row = view.get(Table::Sessions, &client_key(&client))?;
        let mut record = parse_client(row.as_deref())?;
        if session.0 != record.opened.saturating_add(1) && !mistake!("session-opened-again") {
            let same = |open: &Opened| open.session == session && open.request == request.digest();
            return Ok(if record.open.iter().any(same) {
                mark!("an OpenSession that comes again gets its session again");
                Ok(session)
            } else {
                mark!("an OpenSession with a wrong count is refused");
                Err(Refusal::OpenCount { opened: record.opened })
            });
        }
        if let Some(at) = record.open.iter().position(|open| Some(open.session) == close) {
            mark!("a client closes a session with a new one");
            self.close(view, client, record.open.remove(at).session)?;
        }
        if record.open.len() >= OPEN_MAX {
            mark!("the session idle longest is closed for a new one");
            let at = self.idle_longest(view, client, &record.open)?;
            self.close(view, client, record.open.remove(at).session)?;
        }
        record.opened = session.0;
        record.open.push(Opened { session, request: request.digest(), place });
        view.set(Table::Sessions, client_key(&client).to_vec(), Some(wire::encode(&record)));
        self.hot.insert((client, session), Session { used: place, ..Session::default() });
        self.touched.insert((client, session));
        Ok(Ok(session))
    }

    fn idle_longest(
        &mut self,
        view: &dyn StateView,
        client: ClientId,
        open: &[Opened],
    ) -> Result<usize, StorageError> {
        let mut longest = (Place { height: Sequence(u64::MAX), index: u32::MAX }, 0);
        for (at, opened) in open.iter().enumerate() {
            let key = (client, opened.session);
            let used = match self.hot.get(&key) {
                Some(session) => session.used,
                None => match view.get(Table::Sessions, &head_key(&key))? {
                    Some(head) => parse_head(&head)?.1,
                    None => opened.place,
                },
            };
            longest = longest.min((used, at));
        }
        Ok(longest.1)
    }

    fn close(
        &mut self,
        view: &mut dyn StateView,
        client: ClientId,
        session: SessionId,
    ) -> Result<(), StorageError> {
        let key = (client, session);
        self.touched.remove(&key);
        if let Some(session) = self.hot.remove(&key) {
            self.records -= session.records();
        }
        // The storage's pages, not the parsed ones: one that this block emptied is there still.
        let (from, to) = page_range(&key);
        for (page, _) in view.scan(Table::Sessions, &from, Some(&to), PAGES_MAX + 1)? {
            view.set(Table::Sessions, page, None);
        }
        view.set(Table::Sessions, head_key(&key).to_vec(), None);
        Ok(())
    }

    /// Raises the fence to what the request acknowledges, and says whether it may execute.
    ///
    /// # Errors
    /// When the storage fails.
    pub fn admit(
        &mut self,
        view: &dyn StateView,
        request: &SignedRequest,
        place: Place,
    ) -> Result<Admission, StorageError> {
        let RequestKey { client, session: id, number } = request.key();
        let key = (client, id);
        if !self.load(view, key)? {
            mark!("a request in a session that is not open is refused");
            return Ok(Admission::Refused(Refusal::NotOpen(id)));
        }
        let Some(session) = self.hot.get_mut(&key) else {
            return Ok(Admission::Refused(Refusal::NotOpen(id)));
        };
        if session.used.height != place.height {
            self.touched.insert(key);
        }
        session.used = place;
        self.records -= session.raise_fence(request.acknowledged().0);
        if number.0 <= session.fence {
            mark!("a request below the fence is stale");
            return Ok(Admission::Refused(Refusal::Stale(number)));
        }
        Ok(match session.find(number.0) {
            _ if mistake!("duplicate-executed") => Admission::Fresh,
            Some(recorded) if recorded.request == request.digest() => {
                Admission::Duplicate(recorded.place)
            }
            Some(_) if mistake!("conflict-executed") => Admission::Fresh,
            Some(_) => {
                mark!("one number with two bodies");
                Admission::Refused(Refusal::Conflict(number))
            }
            None => Admission::Fresh,
        })
    }

    /// Records a request that [`Self::admit`] called fresh just before.
    ///
    /// # Panics
    /// If it did not.
    pub fn record(&mut self, request: &SignedRequest, place: Place) {
        let RequestKey { client, session, number: RequestNumber(number) } = request.key();
        let session = self.hot.get_mut(&(client, session)).expect("admitted just before");
        let page = session.pages.entry(number / PAGE_NUMBERS).or_default();
        let at = page.partition_point(|recorded| recorded.number < number);
        page.insert(at, Recorded { number, place, request: request.digest() });
        session.changed.insert(number / PAGE_NUMBERS);
        self.records += 1;
    }

    /// Makes a session hot; false when it is not open.
    fn load(&mut self, view: &dyn StateView, key: SessionKey) -> Result<bool, StorageError> {
        if self.hot.contains_key(&key) {
            return Ok(true);
        }
        let Some(head) = view.get(Table::Sessions, &head_key(&key))? else {
            return Ok(false);
        };
        let (fence, used) = parse_head(&head)?;
        let mut session = Session { fence, used, ..Session::default() };
        let (from, to) = page_range(&key);
        for (row_key, row) in view.scan(Table::Sessions, &from, Some(&to), PAGES_MAX + 1)? {
            session.pages.insert(page_number(&row_key)?, parse_page(&row)?);
        }
        self.records += session.records();
        self.hot.insert(key, session);
        Ok(true)
    }

    /// Writes what the block changed, and forgets sessions over the caps.
    ///
    /// # Panics
    /// If a touched session is not hot, which only a bug here can cause.
    pub fn flush(&mut self, view: &mut dyn StateView) {
        for key in std::mem::take(&mut self.touched) {
            let session = self.hot.get_mut(&key).expect("a touched session is hot");
            view.set(Table::Sessions, head_key(&key).to_vec(), Some(session.head()));
            for page in std::mem::take(&mut session.changed) {
                let row = session.pages.get(&page).map(|page| encode_page(page));
                view.set(Table::Sessions, page_key(&key, page).to_vec(), row);
            }
        }
        self.evict();
    }

    /// Forgets the sessions idle longest, an eighth of the caps at once so that it is rare.
    fn evict(&mut self) {
        if self.hot.len() <= HOT_SESSIONS_MAX && self.records <= HOT_RECORDS_MAX {
            return;
        }
        let mut by_use: Vec<(Place, SessionKey)> =
            self.hot.iter().map(|(key, session)| (session.used, *key)).collect();
        by_use.sort_unstable();
        for (_, key) in by_use {
            if self.hot.len() <= HOT_SESSIONS_MAX / 8 * 7 && self.records <= HOT_RECORDS_MAX / 8 * 7
            {
                break;
            }
            if let Some(session) = self.hot.remove(&key) {
                self.records -= session.records();
            }
        }
    }
}

impl Session {
    fn records(&self) -> usize {
        self.pages.values().map(Vec::len).sum()
    }

    /// Drops what lies at or below the new fence; says how many records that were.
    fn raise_fence(&mut self, acknowledged: u64) -> usize {
        if acknowledged <= self.fence {
            return 0;
        }
        if !mistake!("fence-not-raised") {
            self.fence = acknowledged;
        }
        let mut dropped = 0;
        // At most PAGES_MAX rounds: each empties a page or ends.
        while let Some(mut entry) = self.pages.first_entry() {
            let page = entry.get_mut();
            let below = page.partition_point(|recorded| recorded.number <= acknowledged);
            if below == 0 {
                break;
            }
            dropped += below;
            mark!("the fence rises and what lies below is forgotten");
            self.changed.insert(*entry.key());
            if below < entry.get().len() {
                entry.get_mut().drain(..below);
                break;
            }
            entry.remove();
        }
        dropped
    }

    fn find(&self, number: u64) -> Option<&Recorded> {
        let page = self.pages.get(&(number / PAGE_NUMBERS))?;
        let at = page.binary_search_by_key(&number, |recorded| recorded.number).ok()?;
        page.get(at)
    }

    fn head(&self) -> Vec<u8> {
        let mut head = Vec::with_capacity(HEAD_BYTES);
        head.extend_from_slice(&self.fence.to_le_bytes());
        head.extend_from_slice(&self.used.height.0.to_le_bytes());
        head.extend_from_slice(&self.used.index.to_le_bytes());
        head
    }
}

/// Where a request executed, if the stored table remembers it. For readers beside the executor.
///
/// # Errors
/// When the storage fails.
pub fn recorded<S: Storage>(
    storage: &S,
    request: &SignedRequest,
) -> Result<Option<Place>, StorageError> {
    let RequestKey { client, session, number } = request.key();
    if session == SessionId(0) {
        let row = storage.get(Table::Sessions, &client_key(&client))?;
        let record = parse_client(row.as_deref())?;
        let found = record.open.iter().find(|open| open.request == request.digest());
        return Ok(found.map(|open| open.place));
    }
    let key = page_key(&(client, session), number.0 / PAGE_NUMBERS);
    let Some(row) = storage.get(Table::Sessions, &key)? else {
        return Ok(None);
    };
    let page = parse_page(&row)?;
    let found = page.iter().find(|recorded| recorded.request == request.digest());
    Ok(found.map(|recorded| recorded.place))
}

fn client_key(client: &ClientId) -> [u8; 33] {
    let mut key = [b'c'; 33];
    key[1..].copy_from_slice(client.as_bytes());
    key
}

fn head_key((client, session): &SessionKey) -> [u8; 41] {
    let mut key = [b'h'; 41];
    key[1..33].copy_from_slice(client.as_bytes());
    key[33..].copy_from_slice(&session.0.to_be_bytes());
    key
}

fn page_key((client, session): &SessionKey, page: u64) -> [u8; 49] {
    let mut key = [b'p'; 49];
    key[1..33].copy_from_slice(client.as_bytes());
    key[33..41].copy_from_slice(&session.0.to_be_bytes());
    key[41..].copy_from_slice(&page.to_be_bytes());
    key
}

/// All pages of a session: page numbers are at most u64::MAX / 32, so the end is above them.
fn page_range(key: &SessionKey) -> ([u8; 49], [u8; 49]) {
    (page_key(key, 0), page_key(key, u64::MAX))
}

fn page_number(key: &[u8]) -> Result<u64, StorageError> {
    let bytes = key.get(41..).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u64::from_be_bytes).ok_or_else(|| corrupt("a page's key"))
}

fn parse_client(row: Option<&[u8]>) -> Result<ClientRecord, StorageError> {
    row.map_or_else(
        || Ok(ClientRecord::default()),
        |row| wire::decode(row, wire::CONTROL_BYTES_MAX).map_err(|_| corrupt("a client's row")),
    )
}

fn parse_head(row: &[u8]) -> Result<(u64, Place), StorageError> {
    let row: &[u8; HEAD_BYTES] = row.try_into().map_err(|_| corrupt("a session's head"))?;
    Ok((number_at(row, 0), place_at(row, 8)))
}

fn encode_page(page: &[Recorded]) -> Vec<u8> {
    let mut row = Vec::with_capacity(page.len() * RECORD_BYTES);
    for Recorded { number, place, request } in page {
        row.extend_from_slice(&number.to_le_bytes());
        row.extend_from_slice(&place.height.0.to_le_bytes());
        row.extend_from_slice(&place.index.to_le_bytes());
        row.extend_from_slice(request.as_bytes());
    }
    row
}

fn parse_page(row: &[u8]) -> Result<Vec<Recorded>, StorageError> {
    let (records, rest) = row.as_chunks::<RECORD_BYTES>();
    if !rest.is_empty() || records.is_empty() || records.len() > PAGE_NUMBERS as usize {
        return Err(corrupt("a session's page"));
    }
    Ok(records
        .iter()
        .map(|record| {
            let mut request = [0; 32];
            request.copy_from_slice(&record[20..]);
            Recorded {
                number: number_at(record, 0),
                place: place_at(record, 8),
                request: Digest::from_bytes(request),
            }
        })
        .collect())
}

/// The number at an offset that the caller's array length covers.
fn number_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn place_at(bytes: &[u8], at: usize) -> Place {
    let mut index = [0; 4];
    index.copy_from_slice(&bytes[at + 8..at + 12]);
    Place { height: Sequence(number_at(bytes, at)), index: u32::from_le_bytes(index) }
}

fn corrupt(what: &str) -> StorageError {
    StorageError {
        operation: "decode",
        location: Table::Sessions.name().to_owned(),
        reason: format!("{what} is not what was written"),
    }
}

#[cfg(test)]
mod tests;
