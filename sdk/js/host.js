// What a policy may say to its host. Without a host, in tests, it is recorded.
//
// Invariant: nothing here returns anything, so that no decision can depend on it.

let said = [];
let sink = {
  log: (level, message) => said.push({ log: level, message }),
  counterAdd: (name, value) => said.push({ counter: name, value }),
  gaugeSet: (name, value) => said.push({ gauge: name, value }),
};

/** A log line. `level` is `debug`, `info`, `warn` or `error`. The host cuts long ones. */
export function log(level, message) {
  sink.log(level, String(message));
}

/** Adds to a counter. `name` is lower case with underscores. */
export function counterAdd(name, value = 1) {
  sink.counterAdd(name, value);
}

/** Sets a gauge. */
export function gaugeSet(name, value) {
  sink.gaugeSet(name, value);
}

/** Speaks to a real host from here on: called by the build's entry module. */
export function connect(imports) {
  sink = imports;
}

/** What was said since the last call: for tests. */
export function takeSaid() {
  const taken = said;
  said = [];
  return taken;
}
