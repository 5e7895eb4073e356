//! What happened, as one number and, if asked for, as text.
//!
//! Everything that a run does is folded into 128 bits: each event with its time, each frame with its bytes. Two runs of
//! one seed have the same hash or something in the product or the simulator is not a function of the seed.

use std::fmt;
use std::io::{BufWriter, Write};

/// The running hash, and the text where somebody wants to read it.
#[derive(Default)]
pub struct Trace {
    state: [u64; 2],
    events: u64,
    lines: Option<BufWriter<Box<dyn Write>>>,
}

impl Trace {
    /// From now on each fact is also written here, a line each.
    pub fn write_to(&mut self, writer: Box<dyn Write>) {
        self.lines = Some(BufWriter::new(writer));
    }

    /// Whether facts are written as text.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.lines.is_some()
    }

    /// Folds a number in.
    pub fn fold(&mut self, word: u64) {
        let [a, b] = self.state;
        let mixed = (a ^ word).wrapping_mul(0x9fb2_1c65_1e98_df25);
        self.state = [mixed ^ (mixed >> 29), b.rotate_left(23).wrapping_add(mixed)];
    }

    /// Folds bytes and their number in.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.events += 1;
        self.fold(bytes.len() as u64);
        let chunks = bytes.chunks_exact(8);
        let mut last = [0; 8];
        last[..chunks.remainder().len()].copy_from_slice(chunks.remainder());
        for chunk in chunks {
            self.fold(u64::from_le_bytes(chunk.try_into().expect("chunks of eight")));
        }
        self.fold(u64::from_le_bytes(last));
    }

    /// Writes a line, if somebody reads them. Times in microseconds.
    pub fn line(&mut self, now: u64, text: fmt::Arguments<'_>) {
        if let Some(lines) = &mut self.lines {
            // A trace that cannot be written is of no use, and no reason to end a run.
            let _ = writeln!(lines, "{:>6}.{:03} {text}", now / 1000, now % 1000);
        }
    }

    /// Lines written so far reach the writer.
    pub fn flush(&mut self) {
        if let Some(lines) = &mut self.lines {
            // As above.
            let _ = lines.flush();
        }
    }

    /// The hash of everything so far.
    #[must_use]
    pub fn hash(&self) -> u128 {
        let mut end = [self.state[0], self.state[1] ^ self.events];
        for word in &mut end {
            *word ^= *word >> 32;
            *word = word.wrapping_mul(0xd6e8_feb8_6659_fd93);
            *word ^= *word >> 32;
        }
        u128::from(end[0]) << 64 | u128::from(end[1])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_its_place_count() {
        let hash = |parts: &[&[u8]]| {
            let mut trace = Trace::default();
            parts.iter().for_each(|part| trace.bytes(part));
            trace.hash()
        };
        assert_eq!(hash(&[b"ab", b"c"]), hash(&[b"ab", b"c"]));
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"c", b"ab"]));
        assert_ne!(hash(&[b""]), hash(&[]));
        assert_ne!(hash(&[b"0123456789"]), hash(&[b"0123456788"]));
    }
}
