//! The `conclave` program against replicas that agree behind one lock.

use crate::sequencer;

use sequencer::{Mode, Sequencer};
use serde_json::Value;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const CORRECT: [Mode; 4] = [Mode::Correct; 4];

fn command(cluster: &Sequencer, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_conclave"));
    command.env_remove("CONCLAVE_HOME").arg("--home").arg(&cluster.testnet.clients[0]);
    command.args(arguments).stdin(Stdio::null());
    command
}

fn run(cluster: &Sequencer, arguments: &[&str]) -> Output {
    command(cluster, arguments).output().expect("the program of this package")
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_bench_prints_every_agreed_field() {
    let cluster = Sequencer::start(CORRECT);
    let base = ["bench", "--duration", "300ms", "--warm-up", "50ms", "-w", "json"];
    for more in [
        &["--clients", "8", "--size", "64"][..],
        &["--clients", "4", "--ops-per-transaction", "25"],
        &["--rate", "200"],
    ] {
        let output = run(&cluster, &[&base, more].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let report = json(&output);
        for field in [
            "replicas",
            "clients",
            "size_bytes",
            "ops_per_transaction",
            "duration_s",
            "operations",
            "ops_per_second",
            "p50_ms",
            "p95_ms",
            "p99_ms",
            "max_ms",
            "errors",
            "cpu_us_per_op",
        ] {
            assert!(report[field].is_number(), "{field} of {report}");
        }
        assert_eq!(report["protocol"], "pbft");
        assert_eq!(report["errors"], 0);
        let operations = report["operations"].as_u64().expect("a number");
        let each = report["ops_per_transaction"].as_u64().expect("a number");
        assert!(operations > 0 && operations.is_multiple_of(each), "{report}");
    }
}

#[test]
fn a_history_has_a_line_for_every_operation_of_every_kind() {
    let cluster = Sequencer::start(CORRECT);
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("history.jsonl");
    let file = path.to_string_lossy();
    let output = run(
        &cluster,
        &["bench", "--history", &file, "--clients", "8", "--keys", "2", "--duration", "1s"],
    );
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = std::fs::read_to_string(&path).expect("the history");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let kinds = |field: &str, value: &str| lines.iter().filter(|line| line[field] == value).count();
    for op in ["put", "get", "cas", "delete"] {
        assert!(kinds("op", op) > 0, "{op}");
    }
    for result in ["ok", "absent", "mismatch"] {
        assert!(kinds("result", result) > 0, "{result}");
    }
    assert!(lines.iter().all(|line| line["call_ns"].as_u64() < line["return_ns"].as_u64()));
}

#[test]
fn nobody_to_reach_exits_2_and_says_so() {
    let cluster = Sequencer::start([Mode::Absent; 4]);
    let output = run(&cluster, &["--timeout", "300ms", "put", "k", "v"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("cannot reach enough replicas: 0 of 4 answered"), "{text}");
}

#[test]
fn a_status_exits_by_how_many_replicas_answer_and_vote() {
    use Mode::{Absent, Changing, Correct};
    for (modes, code, said) in [
        ([Correct, Correct, Correct, Absent], 0, ""),
        ([Correct, Correct, Correct, Changing], 0, ""),
        ([Correct, Correct, Changing, Changing], 5, "2 of 4 replicas vote, 3 make a quorum"),
        ([Correct, Correct, Absent, Absent], 2, "2 of 4 answered, 3 make a quorum"),
    ] {
        let cluster = Sequencer::start(modes);
        // Who is absent answers never; who is there has long to answer on a slow machine.
        let timeout = if modes.contains(&Absent) { "10s" } else { "60s" };
        let output = run(&cluster, &["--timeout", timeout, "status"]);
        assert_eq!(output.status.code(), Some(code), "{modes:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{modes:?}: {}", stderr(&output));
        let rows = String::from_utf8_lossy(&output.stdout).lines().count();
        assert!(rows >= 5, "a row for each replica, whatever the exit code");
    }
}

#[test]
fn a_bench_without_an_answer_fails_and_says_what_to_do() {
    let cluster = Sequencer::start(CORRECT);
    let output = run(&cluster, &["bench", "--warm-up", "0s", "--duration", "0.001ms"]);
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(stderr(&output).contains("give it a longer --duration"), "{}", stderr(&output));
    let cluster = Sequencer::start([Mode::Silent; 4]);
    let bench = ["--timeout", "300ms", "bench", "--warm-up", "0s", "--duration", "1s"];
    let output = run(&cluster, &bench);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("cannot reach enough replicas"), "{}", stderr(&output));
}

#[test]
fn an_interrupted_command_exits_5() {
    let cluster = Sequencer::start([Mode::Silent; 4]);
    let mut child = command(&cluster, &["--timeout", "5m", "put", "k", "v"])
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program of this package");
    // Until it watches for the signal, the signal would just end it.
    let status = format!("/proc/{}/status", child.id());
    until(&mut child, |_| watches_for_interrupts(&std::fs::read_to_string(&status).ok()?));
    let killed = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(killed.expect("every system has `kill`").success());
    let ended = until(&mut child, |child| child.try_wait().expect("our own child"));
    assert_eq!(ended.code(), Some(5));
}

/// Whether the mask of caught signals has number 2.
fn watches_for_interrupts(status: &str) -> Option<()> {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
    let mask = u64::from_str_radix(mask.trim(), 16).ok()?;
    (mask & 0b10 != 0).then_some(())
}

/// Polls under a generous deadline.
fn until<T>(child: &mut Child, mut found: impl FnMut(&mut Child) -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    while Instant::now() < deadline {
        if let Some(found) = found(child) {
            return found;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    panic!("it never came to that");
}

#[test]
fn values_that_are_no_text_come_back_as_base64() {
    let cluster = Sequencer::start(CORRECT);
    let mut child = command(&cluster, &["put", "k", "--stdin"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("the program of this package");
    let mut stdin = child.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, &[0xff, 0, 1]).expect("it reads");
    drop(stdin);
    assert!(child.wait().expect("our own child").success());
    let found = json(&run(&cluster, &["get", "k", "-w", "json"]));
    assert_eq!((&found["key"], &found["value_base64"]), (&"k".into(), &"/wAB".into()));
    let absent = json(&run(&cluster, &["get", "nothing", "-w", "json"]));
    assert!(absent["value"].is_null() && absent["key"] == "nothing", "{absent}");
}
