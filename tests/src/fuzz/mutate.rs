//! Changes to valid inputs: bits, bytes, lengths, numbers, pieces.

/// Makes inputs out of a corpus.
pub(super) struct Mutator {
    state: u64,
    text: bool,
}

/// Numbers at which things go wrong.
const EDGES: [u64; 12] =
    [0, 1, 2, 7, 127, 255, 256, 65_535, u32::MAX as u64, 1 << 32, i64::MAX as u64, u64::MAX];

/// Words that mean something in a text of ours.
const WORDS: [&str; 14] = [
    "0",
    "-1",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "\"\"",
    "[]",
    "{}",
    "null",
    "\\u0000",
    "\u{202e}",
    "\n",
    "[[replicas]]",
    "= ",
];

impl Mutator {
    pub(super) fn new(seed: u64, text: bool) -> Self {
        // xorshift cannot leave 0.
        Self { state: seed | 1, text }
    }

    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }

    /// A number below `limit`; 0 when that is 0.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.random() >> 11) as usize % limit }
    }

    /// True once in `n`.
    pub(super) fn chance(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// A changed input; now and then one from nothing.
    pub(super) fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        if corpus.is_empty() || self.chance(100) {
            let length = self.below(512);
            return (0..length).map(|_| self.random().to_le_bytes()[0]).collect();
        }
        let mut input = corpus[self.below(corpus.len())].clone();
        let changes = 1 + self.below(4);
        for _ in 0..changes {
            if self.text && self.chance(2) {
                self.change_text(&mut input);
            } else {
                self.change(&mut input, corpus);
            }
        }
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len());
        match self.below(10) {
            0 | 1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.random().to_le_bytes()[0];
                }
            }
            3 => self.number(input, at),
            4 => input.truncate(at),
            5 => {
                let more = self.below(16);
                let bytes: Vec<u8> = (0..more).map(|_| self.random().to_le_bytes()[0]).collect();
                input.extend(bytes);
            }
            6 => {
                // A piece twice.
                let end = (at + self.below(64)).min(input.len());
                let piece = input[at.min(end)..end].to_vec();
                input.splice(at.min(end)..at.min(end), piece);
            }
            7 => {
                // A piece less.
                let end = (at + 1 + self.below(64)).min(input.len());
                input.drain(at.min(end)..end);
            }
            8 => {
                // The head of this and the tail of another.
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len());
                let tail = other[from..].to_vec();
                input.truncate(at);
                input.extend(tail);
            }
            _ => {
                // A field of another, in the same place.
                let other = &corpus[self.below(corpus.len())];
                let length = [1, 2, 4, 8, 32, 64][self.below(6)];
                let field = other.get(at..at + length).map(<[u8]>::to_vec);
                if let (Some(field), Some(place)) = (field, input.get_mut(at..at + length)) {
                    place.copy_from_slice(&field);
                }
            }
        }
    }

    /// A number at an edge, or one more or less than it was.
    fn number(&mut self, input: &mut [u8], at: usize) {
        let width = [2, 4, 8][self.below(3)];
        let Some(place) = input.get_mut(at..at + width) else { return };
        let mut bytes = [0; 8];
        bytes[..width].copy_from_slice(place);
        let old = u64::from_le_bytes(bytes);
        let new = match self.below(3) {
            0 => EDGES[self.below(EDGES.len())],
            1 => old.wrapping_add(1),
            _ => old.wrapping_sub(1),
        };
        place.copy_from_slice(&new.to_le_bytes()[..width]);
    }

    fn change_text(&mut self, input: &mut Vec<u8>) {
        let Ok(text) = std::str::from_utf8(input) else { return };
        let mut lines: Vec<String> = text.split('\n').map(str::to_owned).collect();
        let (at, other) = (self.below(lines.len()), self.below(lines.len()));
        match self.below(5) {
            0 => _ = lines.remove(at),
            1 => {
                let line = lines[at].clone();
                lines.insert(other, line);
            }
            2 => lines.swap(at, other),
            3 => {
                // Another number, or a word, where one stands.
                let word = WORDS[self.below(WORDS.len())];
                let line = &mut lines[at];
                let digits = line.find(|c: char| c.is_ascii_digit()).map(|from| {
                    let rest = &line[from..];
                    let length = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
                    from..from + length
                });
                match digits {
                    Some(digits) => line.replace_range(digits, word),
                    None => line.push_str(word),
                }
            }
            _ => {
                let line = lines[at].clone();
                let half = (0..=line.len() / 2).rev().find(|half| line.is_char_boundary(*half));
                lines[other].push_str(&line[..half.unwrap_or(0)]);
            }
        }
        *input = lines.join("\n").into_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::Mutator;

    #[test]
    fn one_seed_makes_one_sequence_of_inputs_and_they_differ() {
        let corpus = vec![b"one = 1\ntwo = 2\n".to_vec(), vec![7; 100]];
        let inputs = |seed| {
            let mut mutator = Mutator::new(seed, true);
            (0..1000).map(|_| mutator.input(&corpus)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        let distinct: std::collections::BTreeSet<_> = inputs(3).into_iter().collect();
        assert!(distinct.len() > 700, "{}", distinct.len());
    }
}
