import assert from "node:assert/strict";
import { test } from "node:test";
import Policy from "./policy.js";
import { Subject, laws } from "./sdk/js/testing.js";

const candidates = { queue_len: [9, 0, 5, 0], running: [9, 1, 5, 30] };
const SEEDS = 4000;

function shares(config) {
  const subject = new Subject(Policy, config);
  const taken = [0, 0, 0, 0];
  for (let seed = 0; seed < SEEDS; seed += 1) taken[subject.pick({ candidates, frame: { seed } })] += 1 / SEEDS;
  return taken;
}

test("of two drawn by chance the less loaded is taken", () => {
  // In order of load the rows are 1, 2, 0, 3; the k-th of n is taken with a chance of (2 (n - k) + 1) / n².
  const expected = [3 / 16, 7 / 16, 5 / 16, 1 / 16];
  shares().forEach((share, row) => assert.ok(Math.abs(share - expected[row]) < 0.03, `row ${row}: ${share}`));
});

test("more choices go to the least loaded more often", () => {
  assert.ok(shares({ choices: 8 })[1] > 0.85);
});

test("the same seed takes the same row", () => {
  const subject = new Subject(Policy);
  const ask = () => subject.pick({ candidates, frame: { seed: 7 } });
  assert.equal(ask(), ask());
});

test("settings out of range are refused", () => {
  assert.throws(() => new Subject(Policy, { choices: 1 }), /choices/);
});

test("it keeps the law of its slot", () => laws.pick(Policy));
