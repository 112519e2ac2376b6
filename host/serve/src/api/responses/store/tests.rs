use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::json;

use super::*;

const BOUNDS: Bounds = Bounds { entries_max: 100, bytes_max: 1 << 20, ttl_ms: 1000 };

fn record(id: &str, previous: Option<&str>, first: &str, created_ms: u64) -> Record {
    Record {
        id: id.to_owned(),
        previous: previous.map(str::to_owned),
        first: first.to_owned(),
        created_ms,
        input: vec![json!({"type": "message", "text": "a"})],
        response: json!({"id": id, "output": [{"type": "message"}]}),
    }
}

fn put(store: &Store, tenant: &str, ids: &[&str], at_ms: u64) {
    for (i, id) in ids.iter().enumerate() {
        let previous = (i > 0).then(|| ids[i - 1]);
        store.put(tenant, &record(id, previous, ids[0], at_ms + i as u64));
    }
}

async fn ids(store: &Arc<Store>, tenant: &str, last: &str, now_ms: u64) -> Result<Vec<String>, String> {
    let chain = store.chain(tenant, last, now_ms).await.map_err(|e| e.to_string())?;
    Ok(chain.into_iter().map(|record| record.id).collect())
}

fn on_both(check: impl AsyncFn(Arc<Store>)) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let disk = Store::in_folder(folder.path(), BOUNDS).expect("the folder is empty");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    for store in [Store::in_memory(BOUNDS), disk] {
        runtime.block_on(check(Arc::new(store)));
    }
}

#[test]
fn a_conversation_is_read_from_its_beginning() {
    on_both(async |store| {
        put(&store, "acme", &["a", "b", "c"], 10);
        assert_eq!(ids(&store, "acme", "c", 20).await, Ok(vec!["a".into(), "b".into(), "c".into()]));
        assert_eq!(ids(&store, "acme", "a", 20).await, Ok(vec!["a".into()]));
        let found = store.get("acme", "b", 20).await.expect("it can be read");
        assert_eq!(found, Some(record("b", Some("a"), "a", 11)));
    });
}

#[test]
fn another_tenants_response_is_as_good_as_absent() {
    on_both(async |store| {
        put(&store, "acme", &["a"], 10);
        assert_eq!(ids(&store, "", "a", 20).await, Err("response `a` is not stored".into()));
        // A tenant's name cannot be chosen so that its keys are another's.
        assert_eq!(ids(&store, "acm", "ea", 20).await, Err("response `ea` is not stored".into()));
        assert!(!store.remove("other", "a", 20));
        assert!(store.remove("acme", "a", 20));
        assert!(!store.remove("acme", "a", 20));
    });
}

#[test]
fn a_deleted_link_ends_what_follows_it() {
    on_both(async |store| {
        put(&store, "t", &["a", "b", "c"], 10);
        store.remove("t", "b", 20);
        assert_eq!(ids(&store, "t", "c", 20).await, Err("response `b` is not stored".into()));
        assert_eq!(ids(&store, "t", "a", 20).await, Ok(vec!["a".into()]));
    });
}

#[test]
fn a_conversation_is_kept_for_its_time_after_its_last_turn() {
    on_both(async |store| {
        put(&store, "t", &["a"], 0);
        store.put("t", &record("b", Some("a"), "a", 900));
        assert_eq!(ids(&store, "t", "b", 1800).await.map(|ids| ids.len()), Ok(2));
        assert_eq!(ids(&store, "t", "a", 1900).await, Err("response `a` is not stored".into()));
        put(&store, "t", &["z"], 1900);
        assert_eq!(store.size().0, 1);
    });
}

#[tokio::test]
async fn what_was_saved_is_there_after_the_file_is_opened_again() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let open = || Arc::new(Store::in_folder(folder.path(), BOUNDS).expect("the folder can be used"));
    let store = open();
    put(&store, "t", &["a", "b"], 10);
    store.put("t", &record("c", Some("b"), "a", 12)).expect("it is written").await.expect("it was saved");
    store.remove("t", "a", 20);
    store.close();
    assert!(matches!(store.get("t", "c", 20).await, Err(StoreError::Closed)));
    let store = open();
    assert_eq!(store.size().0, 2);
    assert_eq!(store.get("t", "c", 20).await.expect("it can be read"), Some(record("c", Some("b"), "a", 12)));
    assert_eq!(ids(&store, "t", "c", 20).await, Err("response `a` is not stored".into()));
}

#[test]
fn the_conversation_that_rested_longest_goes_first_and_as_a_whole() {
    let store = Store::in_memory(Bounds { entries_max: 4, ..BOUNDS });
    put(&store, "t", &["a", "b"], 0);
    put(&store, "t", &["m", "n"], 10);
    store.put("t", &record("c", Some("b"), "a", 20));
    assert_eq!(store.size().0, 3, "m and n went");
    let mut index = store.index.lock();
    assert!(["a", "b", "c"].iter().all(|id| index.is_fresh(&key("t", id), BOUNDS, 20)));
    assert!(index.evict(Bounds { entries_max: 2, ..BOUNDS }, 20).iter().any(|gone| **gone == *key("t", "a")));
}

#[derive(Clone, Debug)]
enum Op {
    Put { id: u8, first: u8, bytes: u64 },
    Remove(u8),
    Evict(usize),
}

fn any_op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (any::<u8>(), 0..8u8, 1..50u64).prop_map(|(id, first, bytes)| Op::Put { id, first, bytes }),
        1 => any::<u8>().prop_map(Op::Remove),
        1 => (0..40usize).prop_map(Op::Evict),
    ]
}

proptest! {
    /// Whatever the operations: bounds hold after an eviction, nothing is counted twice, and a conversation of
    /// several does not lose a part of itself.
    #[test]
    fn the_index_agrees_with_a_list(ops in vec(any_op(), 1..60)) {
        let name = |n: u8| -> Arc<str> { format!("{n}").into() };
        let mut index = Index::default();
        let mut model: Vec<(Arc<str>, Arc<str>, u64)> = Vec::new();
        for (now, op) in ops.into_iter().enumerate() {
            match op {
                Op::Put { id, first, bytes } => {
                    model.retain(|(key, ..)| *key != name(id));
                    model.push((name(id), name(first), bytes));
                    index.insert(name(id), Place { first: name(first), created_ms: now as u64, bytes });
                }
                Op::Remove(id) => {
                    let there = model.iter().any(|(key, ..)| *key == name(id));
                    model.retain(|(key, ..)| *key != name(id));
                    prop_assert_eq!(index.remove(&name(id)), there);
                }
                Op::Evict(entries_max) => {
                    let gone = index.evict(Bounds { entries_max, ..BOUNDS }, 0);
                    model.retain(|(key, ..)| !gone.contains(key));
                    prop_assert!(model.len() <= entries_max);
                }
            }
            prop_assert_eq!(index.size(), (model.len(), model.iter().map(|(.., bytes)| bytes).sum()));
        }
    }
}
