//! A store that misbehaves: an S3 endpoint that fails, lies, hangs or is slow. It costs misses and nothing else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Mutex;
use std::thread::{self, JoinHandle};

use super::*;

/// How the server answers whatever it is asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mood {
    /// As a store does.
    Works,
    Fails,
    /// Says yes to everything, with bytes that mean nothing.
    Garbage,
    /// As garbage, without an end.
    Endless,
    /// Says nothing.
    Hangs,
    /// Works, a second later.
    Slow,
    /// Hangs up.
    Gone,
    /// Promises more than it sends.
    Torn,
}

struct Faulty {
    address: SocketAddr,
    shared: Arc<Server>,
    accepting: Option<JoinHandle<()>>,
}

struct Server {
    mood: Mutex<Mood>,
    asked: AtomicU64,
    values: Mutex<BTreeMap<String, Vec<u8>>>,
    connections: Mutex<Vec<TcpStream>>,
}

impl Faulty {
    fn new(mood: Mood) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Server {
            mood: Mutex::new(mood),
            asked: AtomicU64::new(0),
            values: Mutex::new(BTreeMap::new()),
            connections: Mutex::new(Vec::new()),
        });
        let server = Arc::clone(&shared);
        let accepting = thread::spawn(move || accept(&listener, &server));
        Self { address, shared, accepting: Some(accepting) }
    }

    fn config(&self) -> Config {
        Config {
            url: format!("s3://bucket/path?endpoint=http://{}&anonymous=true", self.address),
            read_timeout_ms: 400,
            fetch_timeout_ms: 2_000,
            write_timeout_ms: 400,
            ..Config::default()
        }
    }

    fn turn(&self, mood: Mood) {
        *self.shared.mood.lock().expect("no thread failed") = mood;
    }

    fn asked(&self) -> u64 {
        self.shared.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        // Connections that hang end, and one more wakes the listener.
        self.turn(Mood::Gone);
        for connection in self.shared.connections.lock().expect("no thread failed").drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
        self.shared.asked.store(u64::MAX, Ordering::Relaxed);
        let _ = TcpStream::connect(self.address);
        self.accepting.take().map(JoinHandle::join);
    }
}

fn accept(listener: &TcpListener, server: &Arc<Server>) {
    for stream in listener.incoming().flatten() {
        if server.asked.load(Ordering::Relaxed) == u64::MAX {
            return;
        }
        let kept = stream.try_clone().expect("a socket can be had twice");
        server.connections.lock().expect("no thread failed").push(kept);
        let server = Arc::clone(server);
        thread::spawn(move || {
            while answer(&stream, &server).is_some() {}
            let _ = stream.shutdown(Shutdown::Both);
        });
    }
}

/// Answers one request; `None` when the connection is over.
fn answer(mut stream: &TcpStream, server: &Server) -> Option<()> {
    let (method, path, body) = request(stream)?;
    server.asked.fetch_add(1, Ordering::Relaxed);
    let mood = *server.mood.lock().ok()?;
    let mut send = |status: &str, len: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {len}\r\n\r\n");
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(body).ok()
    };
    match mood {
        Mood::Fails => send("500 Internal Server Error", 4, b"oops"),
        Mood::Garbage => send("200 OK", BLOCK_BYTES + 64, &vec![7; BLOCK_BYTES + 64]),
        Mood::Torn => send("200 OK", BLOCK_BYTES + 64, &[7; 100]).and(None),
        Mood::Endless => {
            send("200 OK", 1 << 40, b"")?;
            while stream.write_all(&[7; 65_536]).is_ok() {}
            None
        }
        Mood::Gone => None,
        Mood::Hangs => {
            // Until the other side or the end of the test closes it.
            let _ = stream.read(&mut [0]);
            None
        }
        Mood::Works | Mood::Slow => {
            if mood == Mood::Slow {
                thread::sleep(Duration::from_millis(1_000));
            }
            let mut values = server.values.lock().ok()?;
            match (method.as_str(), values.get(&path)) {
                ("PUT", _) => {
                    values.insert(path, body);
                    send("200 OK", 0, b"")
                }
                (_, Some(value)) => send("200 OK", value.len(), value),
                (_, None) => send("404 Not Found", 0, b""),
            }
        }
    }
}

fn request(mut stream: &TcpStream) -> Option<(String, String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 65_536];
    let head_end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            more => bytes.extend(&chunk[..more]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..head_end]).to_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let len: usize = len.map_or(Some(0), |len| len.trim().parse().ok())?;
    while bytes.len() < head_end + len {
        match stream.read(&mut chunk).ok()? {
            0 => return None,
            more => bytes.extend(&chunk[..more]),
        }
    }
    let text = String::from_utf8_lossy(&bytes[..head_end]);
    let mut words = text.split(' ').map(str::to_owned);
    Some((words.next()?, words.next()?, bytes[head_end..].to_vec()))
}

/// Fetches until the store is left alone; every one is a miss.
fn check_opens(mood: Mood, expected: End) {
    let server = Faulty::new(mood);
    let rig = Rig::new(&Config { failures_max: 3, absent_ttl_ms: 0, present_ttl_ms: 0, ..server.config() });
    let mut fetches = 0;
    while rig.remote.stats().reads_state == BreakerState::Closed {
        assert_eq!(rig.fetched([1, 2, 3, 4]), (0, expected), "{mood:?}");
        fetches += 1;
        assert!(fetches <= 3, "{mood:?}: {:?}", rig.remote.stats());
    }
    let asked = server.asked();
    assert_eq!(rig.fetch([1]).err(), Some(Outcome::Open), "{mood:?}");
    assert_eq!(server.asked(), asked, "{mood:?}: an open breaker asks nothing");
    assert_eq!(rig.arena.free(), rig.arena.slots(), "{mood:?}: no slot is lost");

    // It is asked again when the wait is over, and when it is well all is well.
    rig.pass(1_000);
    server.turn(Mood::Works);
    assert_eq!(rig.fetched([1]), (0, End::Miss), "{mood:?}");
    rig.put_all([1, 2, 3]);
    assert_eq!(rig.fetched([1, 2, 3]), (3, End::All), "{mood:?}");
    assert_eq!(rig.remote.stats().reads_openings, 1, "{mood:?}");
}

#[test]
fn a_store_that_fails_is_left_alone_and_asked_again() {
    check_opens(Mood::Fails, End::Failed);
}

#[test]
fn a_store_that_hangs_is_left_alone_and_asked_again() {
    check_opens(Mood::Hangs, End::TimedOut);
}

#[test]
fn a_store_that_is_too_slow_is_left_alone_and_asked_again() {
    check_opens(Mood::Slow, End::TimedOut);
}

#[test]
fn a_store_of_garbage_is_left_alone_and_asked_again() {
    check_opens(Mood::Garbage, End::Corrupt);
}

#[test]
fn a_value_without_end_is_not_read_to_its_end() {
    check_opens(Mood::Endless, End::Corrupt);
}

#[test]
fn a_store_that_hangs_up_is_left_alone_and_asked_again() {
    check_opens(Mood::Gone, End::Failed);
}

#[test]
fn a_store_that_tears_its_values_is_left_alone_and_asked_again() {
    check_opens(Mood::Torn, End::Failed);
}

#[test]
fn a_store_that_is_not_there_is_no_error_at_start() {
    let address = Faulty::new(Mood::Gone).address;
    let url = format!("s3://bucket?endpoint=http://{address}&anonymous=true");
    let rig = Rig::new(&Config { url, failures_max: 1, ..Config::default() });
    assert_eq!(rig.fetched([1]), (0, End::Failed));
    assert_eq!(rig.fetch([1]).err(), Some(Outcome::Open));
}

#[test]
fn a_redis_that_is_not_there_costs_a_time_out() {
    let address = Faulty::new(Mood::Gone).address;
    let config = Config { url: format!("redis://{address}"), failures_max: 1, ..Config::default() };
    let rig = Rig::new(&Config { read_timeout_ms: 100, ..config });
    let fetched = rig.fetch([1]).expect("it is accepted");
    assert!(matches!(fetched.end, End::TimedOut | End::Failed), "{:?}", fetched.end);
    assert_eq!(rig.fetch([1]).err(), Some(Outcome::Open));
}

#[test]
fn writes_are_tried_again_and_then_given_up() {
    let server = Faulty::new(Mood::Fails);
    let rig = Rig::new(&Config { failures_max: 4, ..server.config() });
    rig.put_all([1]);
    let stats = rig.remote.stats();
    assert_eq!((server.asked(), stats.write_errors, stats.puts_failed), (3, 3, 1), "{stats:?}");
    // One more failure opens the breaker of writes; reads are asked as before.
    rig.put_all([2]);
    assert_eq!((server.asked(), rig.put(3)), (4, Outcome::Open));
    assert_eq!(rig.remote.stats().reads_state, BreakerState::Closed);
    server.turn(Mood::Works);
    assert_eq!(rig.fetched([1]), (0, End::Miss));
    rig.pass(1_000);
    rig.put_all([3]);
    assert_eq!(rig.arena.free(), rig.arena.slots());
}

#[test]
fn a_full_queue_declines_and_never_waits() {
    let server = Faulty::new(Mood::Hangs);
    let config =
        Config { writes_max: 3, fetches_max: 2, in_flight_max: 1, failures_max: 1000, ..server.config() };
    let rig = Rig::new(&Config { read_timeout_ms: 2_000, write_timeout_ms: 60_000, ..config });
    let outcomes: Vec<Outcome> = (1..6).map(|name| rig.put(name)).collect();
    assert_eq!(outcomes[..3], [Outcome::Accepted; 3]);
    assert_eq!(outcomes[3..], [Outcome::Full; 2]);
    assert_eq!(rig.put(1), Outcome::Needless, "it is being written");
    let ask = || {
        let slot = rig.arena.take().expect("a slot is free");
        rig.remote.fetch(&[BlockName(9)], vec![slot], |_| ())
    };
    assert_eq!([ask(), ask(), ask()], [Outcome::Accepted, Outcome::Accepted, Outcome::Full]);
    let stats = rig.remote.stats();
    assert_eq!((stats.writes, stats.fetches, stats.declined_full), (3, 2, 3), "{stats:?}");
}

#[test]
fn closing_ends_what_hangs_and_tells_who_waits() {
    let server = Faulty::new(Mood::Hangs);
    let config = Config { read_timeout_ms: 60_000, fetch_timeout_ms: 60_000, ..server.config() };
    let Rig { remote, arena, .. } = Rig::new(&config);
    let (told, done) = mpsc::channel();
    let slot = arena.take().expect("a slot is free");
    let outcome =
        remote.fetch(&[BlockName(1)], vec![slot], move |fetched| told.send(fetched).expect("it waits"));
    assert_eq!(outcome, Outcome::Accepted);
    assert_eq!(remote.put(BlockName(2), arena.take().expect("a slot is free").freeze()), Outcome::Accepted);
    let started = tokio::time::Instant::now();
    drop(remote);
    assert!(started.elapsed() < CLOSE_MAX * 3, "{:?}", started.elapsed());
    assert_eq!(done.recv_timeout(PATIENCE).expect("it is told").end, End::Closed);
}

#[test]
fn a_fetch_takes_no_longer_than_its_time() {
    let server = Faulty::new(Mood::Works);
    let rig = Rig::new(&Config { read_timeout_ms: 2_500, fetch_timeout_ms: 2_600, ..server.config() });
    rig.put_all(1..9);
    rig.remote.forget();
    server.turn(Mood::Slow);
    // One, then two at once: the third round would begin within the time and end after it.
    let fetched = rig.fetch(1..9).expect("it is accepted");
    assert_eq!((fetched.blocks.len(), fetched.end), (3, End::TimedOut));
    assert!(fetched.took < Duration::from_millis(4_000), "{:?}", fetched.took);
}
