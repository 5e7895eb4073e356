//! What no compiler checks: sizes, who may know what, and that nothing is left half done.
//!
//! Each rule collects all its violations before it fails, one line each, as `path:line: what is wrong`.
#![allow(clippy::unwrap_used, reason = "a test that cannot read the tree fails")]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file, its tests not counted.
const FILE_LINES_MAX: usize = 800;
/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;
/// Lines of a part of the tree, tests not counted: what each part may grow to before somebody has to look at it as a
/// whole. PBFT's figure covers epochs, Rejoin, catching up, evidence and the guards of seeded mistakes beside the paper's
/// sections.
const PART_LINES_MAX: [(&str, usize); 2] =
    [("consensus/src/pbft", 5_800), ("consensus/src/replica.rs", 400)];

/// Where the engines may be called by name. Everybody else speaks to the engine's trait.
const ENGINE_NAMES_ALLOWED: [&str; 7] = [
    "consensus/src/pbft",
    // Declares the modules.
    "consensus/src/lib.rs",
    "config",
    // The one match on the engine.
    "node/src/main.rs",
    // The client's argument parser.
    "client/src/main.rs",
    "tests",
    "benches",
];

/// Crates that do IO, know the time or are another layer, by the crate that must not depend on them.
const DEPENDENCIES_FORBIDDEN: [(&str, &[&str]); 4] = [
    (
        "crypto",
        &[
            "conclave-consensus",
            "conclave-config",
            "conclave-node",
            "conclave-client",
            "tokio",
            "rocksdb",
        ],
    ),
    (
        "consensus",
        &[
            "conclave-config",
            "conclave-node",
            "conclave-client",
            "tokio",
            "quinn",
            "quinn-proto",
            "rocksdb",
            "rustls",
            "socket2",
            "tracing-subscriber",
        ],
    ),
    ("config", &["conclave-node", "conclave-client", "tokio", "quinn", "rocksdb"]),
    ("client", &["conclave-node", "rocksdb"]),
];

/// One source file of the workspace.
struct Source {
    /// Relative to the root, with `/`.
    path: String,
    text: String,
    /// Whether the whole file is tests.
    is_test: bool,
}

impl Source {
    fn new(path: String, text: String) -> Self {
        let mut parts = path.split('/');
        let package = parts.next().unwrap_or_default();
        let is_test =
            package == "benches" || parts.any(|part| part == "tests" || part == "tests.rs");
        Self { path, text, is_test }
    }

    /// The modules that this file declares for tests alone, as paths without their ending.
    fn test_modules(&self) -> Vec<String> {
        let stem = self.path.trim_end_matches(".rs");
        let directory = match stem.rsplit_once('/') {
            Some((directory, "mod" | "lib" | "main")) => directory,
            _ => stem,
        };
        let lines: Vec<&str> = self.text.lines().map(str::trim).collect();
        let declared =
            lines.windows(2).filter(|pair| pair[0] == "#[cfg(test)]").filter_map(|pair| {
                let (_, module) = pair[1].strip_suffix(';')?.split_once("mod ")?;
                Some(format!("{directory}/{module}"))
            });
        declared.collect()
    }

    /// The lines before the module of unit tests, numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut in_tests = false;
        let mut lines = self.text.lines().peekable();
        let mut number = 0;
        std::iter::from_fn(move || {
            let line = lines.next()?;
            number += 1;
            let next_is_module = lines.peek().is_some_and(|next| next.starts_with("mod tests {"));
            in_tests = in_tests || (line == "#[cfg(test)]" && next_is_module);
            (!in_tests).then_some((number, line))
        })
    }
}

/// A line without its comment. A `//` inside a string is rare, and then the rest of the string is not looked at.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

/// The workspace's source files, sorted by path.
fn sources() -> Vec<Source> {
    let root = root();
    let mut sources = Vec::new();
    for package in ["crypto", "consensus", "config", "node", "client", "tests", "benches"] {
        collect(&root, &root.join(package), &mut sources);
    }
    assert!(sources.len() > 20, "the tree was not found at {}", root.display());
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    let test_modules: Vec<String> = sources.iter().flat_map(Source::test_modules).collect();
    for source in &mut sources {
        let stem = source.path.trim_end_matches(".rs");
        source.is_test |= test_modules.iter().any(|module| is_in(stem, module));
    }
    sources
}

fn collect(root: &Path, directory: &Path, sources: &mut Vec<Source>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                collect(root, &path, sources);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            sources.push(Source::new(relative, fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Whether `path` is `prefix` or lies below it.
fn is_in(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn fail_if_any(rule: &str, violations: &str) {
    assert!(violations.is_empty(), "{rule}:\n{violations}");
}

#[test]
fn no_file_and_no_part_outgrows_its_size() {
    let mut found = String::new();
    let sources = sources();
    for source in sources.iter().filter(|source| !source.is_test) {
        let lines = source.lines().count();
        if lines > FILE_LINES_MAX {
            writeln!(found, "{}: {lines} lines without tests", source.path).unwrap();
        }
    }
    fail_if_any(&format!("a file has at most {FILE_LINES_MAX} lines; split it"), &found);
    for (part, max) in PART_LINES_MAX {
        let lines: usize = sources
            .iter()
            .filter(|source| is_in(&source.path, part) && !source.is_test)
            .map(|source| source.lines().count())
            .sum();
        if lines > max {
            writeln!(found, "{part}: {lines} lines without tests, at most {max}").unwrap();
        }
    }
    fail_if_any("a part of the tree has outgrown its size", &found);
}

#[test]
fn no_function_is_longer_than_one_can_see_at_once() {
    let mut found = String::new();
    for source in sources().iter().filter(|source| !source.is_test) {
        let lines: Vec<(usize, &str)> = source.lines().collect();
        for (index, (number, line)) in lines.iter().enumerate() {
            let Some(name) = function_name(line) else { continue };
            if line.ends_with([';', '}']) {
                continue;
            }
            // Formatted code closes a function at the indentation at which it began; a declaration in a trait ends
            // with a semicolon there.
            let indentation = &line[..line.len() - line.trim_start().len()];
            let (end, declared) = (format!("{indentation}}}"), format!("{indentation})"));
            let length = lines[index..]
                .iter()
                .position(|(_, line)| {
                    *line == end || line.starts_with(&declared) && line.ends_with(';')
                })
                .map_or(0, |length| length + 1);
            if length > FUNCTION_LINES_MAX {
                writeln!(found, "{}:{number}: {name} has {length} lines", source.path).unwrap();
            }
        }
    }
    fail_if_any(
        &format!("a function has at most {FUNCTION_LINES_MAX} lines; name its parts"),
        &found,
    );
}

/// The name of the function whose declaration starts on this line.
fn function_name(line: &str) -> Option<&str> {
    let (before, after) = code(line).split_once("fn ")?;
    let is_qualifier = |word: &str| matches!(word, "const" | "async") || word.starts_with("pub");
    if !before.split_whitespace().all(is_qualifier) {
        return None;
    }
    after.split(['(', '<']).next()
}

#[test]
fn the_engines_are_called_by_name_only_where_one_is_chosen() {
    let mut found = String::new();
    for source in sources() {
        let is_allowed = ENGINE_NAMES_ALLOWED.iter().any(|prefix| is_in(&source.path, prefix));
        if is_allowed || source.is_test {
            continue;
        }
        for (number, line) in source.lines() {
            if names_an_engine(code(line)) {
                writeln!(found, "{}:{number}: {}", source.path, line.trim()).unwrap();
            }
        }
    }
    fail_if_any("an engine is named outside of its module; go through the Engine trait", &found);
}

/// `pbft` anywhere; `raft` unless it is the end of another word, as in "draft".
fn names_an_engine(code: &str) -> bool {
    let lower = code.to_ascii_lowercase();
    let raft = lower.match_indices("raft").any(|(at, _)| match code[..at].chars().next_back() {
        Some(before) if before.is_ascii_lowercase() => code[at..].starts_with('R'),
        Some(before) => !before.is_ascii_uppercase(),
        None => true,
    });
    raft || lower.contains("pbft")
}

#[test]
fn dependencies_run_one_way_and_the_core_does_no_io() {
    let mut found = String::new();
    for (package, forbidden) in DEPENDENCIES_FORBIDDEN {
        let path = root().join(package).join("Cargo.toml");
        // What tests need is not what the crate needs.
        let manifest = fs::read_to_string(path).unwrap();
        let mut in_dependencies = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                in_dependencies =
                    line.contains("dependencies") && !line.contains("dev-dependencies");
            }
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            if in_dependencies && forbidden.contains(&name) {
                writeln!(found, "{package}/Cargo.toml: {name}").unwrap();
            }
        }
    }
    fail_if_any("a crate depends on what it must not know", &found);
}

#[test]
fn every_package_takes_part_in_the_workspaces_lints() {
    let mut found = String::new();
    for package in ["crypto", "consensus", "config", "node", "client", "tests", "benches"] {
        let manifest = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        if !manifest.contains("[lints]\nworkspace = true") {
            writeln!(found, "{package}/Cargo.toml: [lints] workspace = true is missing").unwrap();
        }
    }
    fail_if_any("the lints are the workspace's", &found);
}

#[test]
fn only_the_wire_module_knows_the_encoder() {
    let mut found = String::new();
    for source in sources() {
        // In two pieces, so that this line is no violation.
        let encoder = concat!("bincode", "::");
        for (number, line) in source.text.lines().enumerate() {
            let allowed = source.path == "consensus/src/wire.rs" || source.is_test;
            if !allowed && code(line).contains(encoder) {
                writeln!(found, "{}:{}: {}", source.path, number + 1, line.trim()).unwrap();
            }
        }
    }
    fail_if_any("encode and decode through conclave_consensus::wire", &found);
}

#[test]
fn nothing_is_skipped_and_nothing_is_left_to_do() {
    // In two pieces each, so that this list is no violation.
    let forbidden = [
        (concat!("#[ign", "ore"), "a test that does not run proves nothing"),
        (concat!("to", "do!("), "finish it or take it out"),
        (concat!("unimple", "mented!("), "finish it or take it out"),
        (concat!("d", "bg!("), "log it or take it out"),
        (concat!("FIX", "ME"), "fix it"),
        (concat!("XX", "X"), "fix it"),
    ];
    let mut found = String::new();
    for source in sources() {
        for (number, line) in source.text.lines().enumerate() {
            for (word, why) in forbidden {
                if line.contains(word) {
                    writeln!(found, "{}:{}: {word}: {why}", source.path, number + 1).unwrap();
                }
            }
        }
    }
    fail_if_any("something is left half done", &found);
}

#[test]
fn the_rules_see_what_they_are_about() {
    for named in [
        "use crate::pbft::Engine;",
        "PbftEngine::new()",
        "Raft",
        "let raft = 1;",
        "\"raft\"",
        "MyRaft",
    ] {
        assert!(names_an_engine(named), "{named}");
    }
    for other in ["let draft = 1;", "craft()", "let Draft = 2;"] {
        assert!(!names_an_engine(other), "{other}");
    }
    assert_eq!(function_name("    pub(crate) async fn run<T>(x: T) {"), Some("run"));
    assert_eq!(function_name("pub const fn id(self) -> u64 {"), Some("id"));
    assert_eq!(function_name("    // fn in a comment("), None);
    assert_eq!(function_name("    let call: fn(u8) -> u8 = f;"), None);
    let text = "fn a() {}\n#[cfg(test)]\npub(crate) mod fixture;\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n";
    let source = Source::new("node/src/x.rs".to_owned(), text.to_owned());
    assert_eq!(source.test_modules(), ["node/src/x/fixture"]);
    let root = Source::new("node/src/lib.rs".to_owned(), text.to_owned());
    assert_eq!(root.test_modules(), ["node/src/fixture"]);
    assert_eq!(source.lines().take(1).collect::<Vec<_>>(), [(1, "fn a() {}")]);
    assert_eq!(source.lines().count(), 3);
    assert!(is_in("config/src/lib.rs", "config") && !is_in("configs/lib.rs", "config"));
}
