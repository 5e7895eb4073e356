use super::*;
use crate::client_wire::Refusal;
use crate::membership::{ClientEntry, Limits, Role};
use crate::memory_storage::MemoryStorage;
use crate::state_machine::{Context, StateMachine, StateView};
use crate::storage::Table;
use crate::types::{ClientId, Timestamp};
use crate::view::BlockView;

struct Machine<'a> {
    view: BlockView<'a, MemoryStorage>,
    client: ClientEntry,
    limits: Limits,
    height: u64,
    answer_bytes_max: usize,
}

impl<'a> Machine<'a> {
    fn new(storage: &'a MemoryStorage) -> Self {
        let client = ClientEntry {
            key: ClientId::from_bytes([0; 32]),
            organization: String::new(),
            role: Role::Admin,
            prefix: Vec::new(),
        };
        Self {
            view: BlockView::new(storage),
            client,
            limits: Limits::default(),
            height: 1,
            answer_bytes_max: usize::MAX,
        }
    }

    fn run_bytes(&mut self, operations: &[u8]) -> Answer {
        let context = Context {
            height: Sequence(self.height),
            timestamp: Timestamp(0),
            client: &self.client,
            limits: &self.limits,
            answer_bytes_max: self.answer_bytes_max,
        };
        Answer::decode(&KeyValueStore.execute(&mut self.view, &context, operations).unwrap())
            .unwrap()
    }

    fn run(&mut self, transaction: &Transaction) -> Answer {
        self.run_bytes(&transaction.encode())
    }

    fn done(&mut self, transaction: &Transaction) -> (bool, Vec<OperationResult>) {
        match self.run(transaction) {
            Answer::Done { succeeded, results } => (succeeded, results),
            Answer::Refused(refusal) => panic!("refused: {refusal}"),
        }
    }

    fn refused(&mut self, transaction: &Transaction) -> Refusal {
        match self.run(transaction) {
            Answer::Refused(refusal) => refusal,
            done @ Answer::Done { .. } => panic!("not refused: {done:?}"),
        }
    }

    fn get(&mut self, key: &str) -> Option<KeyValue> {
        let result = self.done(&Transaction::get(key)).1.remove(0);
        let OperationResult::Get(found) = result else { panic!("not a get's: {result:?}") };
        found
    }

    fn range(&mut self, transaction: &Transaction) -> (Vec<KeyValue>, bool) {
        let result = self.done(transaction).1.remove(0);
        let OperationResult::Range { entries, more } = result else {
            panic!("not a range's: {result:?}")
        };
        (entries, more)
    }
}

#[test]
fn revisions_and_versions_follow_a_keys_life() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    let facts = |machine: &mut Machine<'_>, height, transaction: Transaction| {
        machine.height = height;
        machine.done(&transaction);
        machine.get("k").map(|k| (k.create_revision.0, k.mod_revision.0, k.version, k.value))
    };
    let v = |value: &str| value.as_bytes().to_vec();
    assert_eq!(facts(&mut machine, 3, Transaction::put("k", "a")), Some((3, 3, 1, v("a"))));
    assert_eq!(facts(&mut machine, 5, Transaction::put("k", "b")), Some((3, 5, 2, v("b"))));
    assert_eq!(facts(&mut machine, 6, Transaction::delete("k")), None);
    assert_eq!(facts(&mut machine, 8, Transaction::put("k", "")), Some((8, 8, 1, v(""))));
    let twice = Transaction::put_all([(v("k"), v("c")), (v("k"), v("d"))]);
    assert_eq!(facts(&mut machine, 9, twice), Some((8, 9, 3, v("d"))));
}

#[test]
fn compares_hold_as_the_table_says() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    for height in [4, 7] {
        machine.height = height;
        machine.done(&Transaction::put("k", "m"));
    }
    use Relation::{Equal, Greater, Less, NotEqual};
    let value = |value: &str| Target::Value(value.as_bytes().to_vec());
    // (key, target, =, !=, <, >) for k = "m", created at 4, modified at 7, version 2.
    let table = [
        ("k", value("m"), [true, false, false, false]),
        ("k", value("ma"), [false, true, true, false]),
        ("k", value(""), [false, true, false, true]),
        ("k", Target::CreateRevision(4), [true, false, false, false]),
        ("k", Target::ModRevision(8), [false, true, true, false]),
        ("k", Target::Version(1), [false, true, false, true]),
        ("absent", value(""), [false, true, false, false]),
        ("absent", Target::CreateRevision(0), [true, false, false, false]),
        ("absent", Target::ModRevision(1), [false, true, true, false]),
        ("absent", Target::Version(0), [true, false, false, false]),
    ];
    for (key, target, expected) in table {
        for (relation, expected) in [Equal, NotEqual, Less, Greater].into_iter().zip(expected) {
            let compare = Compare { key: key.into(), relation, target: target.clone() };
            let transaction = Transaction {
                compares: vec![compare.clone()],
                then: vec![Operation::Get { key: b"k".to_vec() }],
                otherwise: Vec::new(),
            };
            let (succeeded, results) = machine.done(&transaction);
            assert_eq!(succeeded, expected, "{compare:?}");
            assert_eq!(results.len(), usize::from(expected));
        }
    }
}

#[test]
fn all_compares_must_hold_and_a_mismatched_swap_reads_the_value() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    let swap = |expected: Option<&str>, new: &str| {
        Transaction::compare_and_swap("k", expected.map(|value| value.as_bytes().to_vec()), new)
    };
    assert!(machine.done(&swap(None, "a")).0, "absent as expected");
    assert!(!machine.done(&swap(None, "b")).0);
    assert!(machine.done(&swap(Some("a"), "b")).0);
    let (succeeded, results) = machine.done(&swap(Some("a"), "c"));
    assert!(!succeeded);
    assert!(matches!(&results[0], OperationResult::Get(Some(found)) if found.value == b"b"));
    let mut both = swap(Some("b"), "c");
    both.compares.push(Compare {
        key: b"other".to_vec(),
        relation: Relation::Equal,
        target: Target::Version(1),
    });
    assert!(!machine.done(&both).0);
}

#[test]
fn a_refusal_names_the_first_rule_broken_and_leaves_the_view_as_it_was() {
    let long = vec![b'k'; 5000];
    let put = |key: &[u8]| Operation::Put { key: key.to_vec(), value: b"v".to_vec() };
    let with = |then: Vec<Operation>, otherwise: Vec<Operation>| Transaction {
        compares: Vec::new(),
        then,
        otherwise,
    };
    let too_large = |what: &str, bytes: u64, limit: u64| Refusal::TooLarge {
        what: what.to_owned(),
        bytes,
        limit,
    };
    let role = Refusal::Role { role: "reader".to_owned() };
    let large = Operation::Put { key: b"w/".to_vec(), value: vec![0; (1 << 20) + 1] };
    let cases = [
        (Role::Reader, with(vec![put(b"w/k")], vec![]), role.clone()),
        (Role::Reader, with(vec![], vec![Operation::Delete { key: b"w/k".to_vec() }]), role),
        (Role::Writer, with(vec![put(b"w/a"), put(b"x")], vec![]), Refusal::Prefix),
        (Role::Writer, with(vec![put(b"w/a")], vec![put(b"w")]), Refusal::Prefix),
        (
            Role::Writer,
            with(vec![Operation::Delete { key: b"x".to_vec() }], vec![]),
            Refusal::Prefix,
        ),
        (
            Role::Writer,
            with(vec![put(&[b"w/".as_slice(), &long].concat())], vec![]),
            too_large("key", 5002, 4096),
        ),
        (Role::Writer, with(vec![large], vec![]), too_large("value", (1 << 20) + 1, 1 << 20)),
        (Role::Writer, Transaction::get(long.clone()), too_large("key", 5000, 4096)),
        (Role::Writer, Transaction::prefix(&long, None, 0), too_large("key", 5000, 4096)),
        (
            Role::Writer,
            Transaction::put("", "v"),
            Refusal::Malformed("an empty key cannot be written".to_owned()),
        ),
    ];
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    machine.client.prefix = b"w/".to_vec();
    for (role, transaction, expected) in cases {
        machine.client.role = role;
        assert_eq!(machine.refused(&transaction), expected);
    }
    let many = Transaction { then: vec![put(b"w/a"); OPERATIONS_MAX + 1], ..Default::default() };
    assert!(matches!(machine.refused(&many), Refusal::Malformed(_)));
    let trailing = [Transaction::get("k").encode(), vec![0]].concat();
    for bytes in [b"".as_slice(), &[255; 40], &trailing] {
        assert!(matches!(machine.run_bytes(bytes), Answer::Refused(Refusal::Malformed(_))));
    }
    let rows = machine.view.scan(Table::Store, b"", None, 9).unwrap();
    assert!(rows.is_empty(), "nothing was written");
}

#[test]
fn readers_read_and_an_empty_prefix_allows_every_key() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    machine.done(&Transaction::put("anything", "v"));
    machine.client.role = Role::Reader;
    machine.client.prefix = b"w/".to_vec();
    assert!(machine.get("anything").is_some());
    let compares = Transaction::compare_and_swap("anything", None, "v").compares;
    let read = Transaction { compares, ..Transaction::prefix(b"any", None, 0) };
    assert!(!machine.done(&read).0);
}

#[test]
fn a_transaction_whose_reads_outgrow_an_answer_writes_nothing() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    machine.done(&Transaction::put("large", vec![1; 1 << 20]));
    let get = Operation::Get { key: b"large".to_vec() };
    let mut then = vec![Operation::Put { key: b"new".to_vec(), value: b"v".to_vec() }];
    then.extend(vec![get.clone(); 3]);
    let fits = Transaction { then: then.clone(), ..Transaction::default() };
    then.push(get);
    let outgrows = Transaction { then, ..Transaction::default() };
    assert!(
        matches!(machine.refused(&outgrows), Refusal::TooLarge { what, .. } if what == "answer")
    );
    assert_eq!(machine.get("new"), None);
    machine.done(&fits);
    assert!(machine.get("new").is_some());
    machine.answer_bytes_max = 100;
    assert!(matches!(machine.refused(&Transaction::get("large")), Refusal::TooLarge { .. }));
    machine.done(&Transaction::put("still", "written"));
}

#[test]
fn ranges_are_paged_by_limit_and_by_bytes() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    for index in 0..200u32 {
        machine.done(&Transaction::put(format!("p/{index:03}"), vec![7; 20_000]));
    }
    machine.done(&Transaction::put("q", "outside"));
    let (entries, more) = machine.range(&Transaction::prefix(b"p/", None, 5));
    assert_eq!((entries.len(), more), (5, true));
    let (all, more) = machine.range(&Transaction::prefix(b"p/19", None, 10));
    assert_eq!((all.len(), more), (10, false), "the limit is met exactly by what there is");
    let mut from = None;
    let mut seen = Vec::new();
    for _ in 0..9 {
        let (entries, more) = machine.range(&Transaction::prefix(b"p/", from, 0));
        let bytes: usize = entries.iter().map(|entry| entry.value.len()).sum();
        assert!(bytes <= RANGE_BYTES_MAX);
        seen.extend(entries.into_iter().map(|entry| entry.key));
        if !more {
            break;
        }
        from = seen.last().map(|last| crate::view::after(last));
    }
    let expected: Vec<Vec<u8>> = (0..200).map(|n| format!("p/{n:03}").into_bytes()).collect();
    assert_eq!(seen, expected);
    let nothing =
        Operation::Range { from: b"z".to_vec(), to: Some(b"a".to_vec().into()), limit: 0 };
    assert_eq!(machine.range(&Transaction::of(nothing)), (Vec::new(), false));
}

#[test]
fn a_row_that_was_not_written_here_stops_the_replica() {
    let storage = MemoryStorage::new();
    let mut machine = Machine::new(&storage);
    machine.view.set(Table::Store, b"k".to_vec(), Some(vec![0; 23]));
    let context = Context {
        height: Sequence(1),
        timestamp: Timestamp(0),
        client: &machine.client,
        limits: &machine.limits,
        answer_bytes_max: 1000,
    };
    let operations = Transaction::get("k").encode();
    assert!(KeyValueStore.execute(&mut machine.view, &context, &operations).is_err());
}
