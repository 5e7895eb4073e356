//! What somebody probably meant.

/// Longer words are cut here, so that comparing costs no more than a few thousand steps.
const CHARACTERS_MAX: usize = 64;

/// The candidate that looks most like `word`, if one looks like it at all.
///
/// Alike means few edits (a character added, left out, replaced, or swapped with its neighbour), or that one is
/// contained in the other, as where only the unit is missing: `view_change_timeout`.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: Vec<char> = word.to_lowercase().chars().take(CHARACTERS_MAX).collect();
    let text: String = word.iter().collect();
    candidates
        .into_iter()
        .filter_map(|candidate| {
            let letters: Vec<char> =
                candidate.to_lowercase().chars().take(CHARACTERS_MAX).collect();
            let edits = edits(&word, &letters);
            let contained =
                word.len() >= 3 && (candidate.contains(&text) || text.contains(candidate));
            let near = edits <= 1.max(word.len().min(letters.len()) / 3);
            (contained || near).then_some((edits, candidate))
        })
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edits between two words, a swap of neighbours counting as one (optimal string alignment).
fn edits(left: &[char], right: &[char]) -> usize {
    let mut before: Vec<usize> = Vec::new();
    let mut above: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut row = vec![i];
        for j in 1..=right.len() {
            let replaced = above[j - 1] + usize::from(left[i - 1] != right[j - 1]);
            let mut best = replaced.min(above[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut above, row);
    }
    above[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_word_finds_the_right_one() {
        let keys = [
            "id",
            "organization",
            "key",
            "address",
            "client_address",
            "view_change_timeout_ms",
            "window",
        ];
        let table = [
            ("adress", Some("address")),
            ("client_adress", Some("client_address")),
            ("organisation", Some("organization")),
            ("view_change_timeout", Some("view_change_timeout_ms")),
            ("view_change_timeout_s", Some("view_change_timeout_ms")),
            ("Key", Some("key")),
            ("kye", Some("key")),
            ("windwo", Some("window")),
            ("colour", None),
            ("", None),
        ];
        for (word, expected) in table {
            assert_eq!(nearest(word, keys), expected, "{word}");
        }
    }

    #[test]
    fn a_huge_word_costs_no_more_than_a_long_one() {
        assert_eq!(nearest(&"x".repeat(1 << 20), ["address"]), None);
    }

    #[test]
    fn edits_are_counted_once_each() {
        let count = |a: &str, b: &str| {
            edits(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>())
        };
        for (a, b, expected) in
            [("", "", 0), ("ab", "", 2), ("ab", "ba", 1), ("abc", "axc", 1), ("abc", "abcd", 1)]
        {
            assert_eq!(count(a, b), expected, "{a} {b}");
            assert_eq!(count(b, a), expected, "{b} {a}");
        }
    }
}
