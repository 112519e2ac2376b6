// For tests of policies, in Node: cases with named columns, and the laws of each slot.
//
// Invariant: a case shows a policy exactly the columns that it declared, through the calls of the contract.

import assert from "node:assert/strict";
import { component } from "./component.js";
import { Random } from "./random.js";
import { SLOTS, declaredBy } from "./slots.js";

export { takeSaid } from "./host.js";

/** Cases that a law is checked on. Chosen: well under a second. */
const CASES = 300;

/** A policy under test, asked as a host would ask it. */
export class Subject {
  #Policy;
  #interfaces;

  /** Errors: the settings are refused. */
  constructor(Policy, config = {}) {
    this.#Policy = Policy;
    const slots = Object.keys(SLOTS).filter((slot) => typeof Policy.prototype[method(slot)] === "function");
    this.#interfaces = component(Policy, { name: "under-test", version: "0.0.0", slots });
    try {
      this.#interfaces.describe.configure(JSON.stringify(config));
    } catch (message) {
      throw new Error(message);
    }
  }

  /** Asks a filter. `candidates` has a list of cells for each column that matters; the others are 0. */
  filter(view) {
    return this.#interfaces.filter.filter(...this.#route("filter", view));
  }

  /** Asks a scorer. */
  score(view) {
    return this.#interfaces.score.score(...this.#route("score", view));
  }

  /** Asks a picker; `view.scores` are the scores, 0 if there are none. */
  pick(view) {
    const [frame, rows, numbers, ids] = this.#route("pick", view);
    return this.#interfaces.pick.pick(frame, rows, numbers, ids, view.scores ?? Array(rows).fill(0));
  }

  /** Asks a scheduler. */
  order({ frame, budget = {}, waiting = {}, running = {}, waitingRows, runningRows }) {
    const { budget: ofBudget, sequence } = declaredBy(this.#Policy, "schedule");
    const rows = [waitingRows ?? rowsOf(waiting), runningRows ?? rowsOf(running)];
    const [numbers, ids] = flat([[ofBudget, one(budget), 1], [sequence, waiting, rows[0]], [sequence, running, rows[1]]]);
    return this.#interfaces.schedule.order(whole(frame), ...rows, numbers, ids);
  }

  /** Tells an observer. */
  observe({ frame, outcomes = {}, rows }) {
    const count = rows ?? rowsOf(outcomes);
    const [numbers, ids] = flat([[declaredBy(this.#Policy, "observe").outcome, outcomes, count]]);
    this.#interfaces.observe.observe(whole(frame), count, numbers, ids);
  }

  /** Asks an interpreter of hints. `headers` and `extensions` are objects; an extension may be any JSON. */
  interpret({ frame, protocol = "openai-chat", headers = {}, extensions = {}, promptTokens = 0, outputTokensMax = null, soFar = {} }) {
    const texts = Object.entries(extensions).map(([name, it]) => [name, typeof it === "string" ? it : JSON.stringify(it)]);
    const hints = { ...NO_HINTS, ...soFar };
    return this.#interfaces.hints.interpret(whole(frame), protocol, Object.entries(headers), texts, promptTokens, outputTokensMax, hints);
  }

  #route(slot, { frame, request = {}, candidates = {}, rows }) {
    const declared = declaredBy(this.#Policy, slot);
    const count = rows ?? rowsOf(candidates);
    const [numbers, ids] = flat([[declared.request, one(request), 1], [declared.candidate, candidates, count]]);
    return [whole(frame), count, numbers, ids];
  }
}

/** Hints of a caller who said nothing. */
export const NO_HINTS = Object.freeze({
  session: null, parent: null, class: null, priority: null, strictTier: null, deadlineMs: null,
  expectedOutputTokens: null, speculativePrefill: null, sessionFinal: null, attributes: [],
});

const method = (slot) => ({ hints: "interpret", schedule: "order" })[slot] ?? slot;
const whole = (frame) => ({ nowMs: 1_700_000_000_000, seed: 1, ...frame });
const one = (row) => Object.fromEntries(Object.entries(row).map(([name, cell]) => [name, [cell]]));
const rowsOf = (cells) => Object.values(cells)[0]?.length ?? 0;

function flat(tables) {
  const [numbers, ids] = [[], []];
  for (const [declared, cells, rows] of tables) {
    for (const name of Object.keys(cells)) {
      const all = [...declared.numbers, ...declared.ids];
      assert.ok(all.includes(name), `the policy does not declare \`${name}\`; it declares ${all.join(", ") || "nothing"}`);
      assert.equal(cells[name].length, rows, `\`${name}\` needs a cell a row`);
    }
    for (const name of declared.numbers) numbers.push(...(cells[name] ?? Array(rows).fill(0)).map(Math.fround));
    for (const name of declared.ids) ids.push(...(cells[name] ?? Array(rows).fill(0)));
  }
  return [numbers, ids];
}

/**
 * The law of each slot, checked over seeded cases. Two instances are asked the same: a policy is a function of
 * its settings, its past and the view, so they must agree. A failure names its seed.
 */
export const laws = {
  filter(Policy, config) {
    twice("filter", Policy, config, routeCase, (subject, view) => subject.filter(view), (keep, { rows }) => {
      assert.equal(keep.length, rows, "one flag a candidate");
      assert.ok(keep.includes(true), "a filter keeps at least one candidate");
    });
  },
  score(Policy, config) {
    twice("score", Policy, config, routeCase, (subject, view) => subject.score(view), (scores, { rows }) => {
      assert.equal(scores.length, rows, "one score a candidate");
      for (const score of scores) assert.ok(score >= 0 && score <= 1, `score ${score} is not in [0, 1]`);
    });
  },
  pick(Policy, config) {
    twice("pick", Policy, config, routeCase, (subject, view) => subject.pick(view), (row, { rows }) => {
      assert.ok(Number.isInteger(row) && row >= 0 && row < rows, `row ${row} is not a candidate`);
    });
  },
  schedule(Policy, config) {
    const drawn = (random, seed) => {
      const [waitingRows, runningRows] = [random.below(41), random.below(17)];
      const { budget, sequence } = declaredBy(Policy, "schedule");
      const rows = (count) => cells(sequence, count, random);
      return { frame: { seed }, budget: first(cells(budget, 1, random)), waiting: rows(waitingRows), running: rows(runningRows), waitingRows, runningRows };
    };
    twice("schedule", Policy, config, drawn, (subject, view) => subject.order(view), (order, { waitingRows }) => {
      const sorted = [...order].sort((a, b) => a - b);
      assert.deepEqual(sorted, [...Array(waitingRows).keys()], "not a permutation of the waiting sequences");
    });
  },
  observe(Policy, config) {
    const subject = new Subject(Policy, config);
    subject.observe({ rows: 0 });
    for (let seed = 1; seed <= CASES; seed += 1) {
      const random = new Random(seed);
      const rows = random.below(9);
      subject.observe({ outcomes: cells(declaredBy(Policy, "observe").outcome, rows, random), rows });
    }
  },
  hints(Policy, config) {
    const [oneOf, other] = [new Subject(Policy, config), new Subject(Policy, config)];
    const silence = oneOf.interpret({});
    if (silence !== null) assert.deepEqual({ ...silence }, { ...NO_HINTS }, "out of silence came a hint");
    for (const text of ["", "{", "null", "[]", '"text"', '{"agent_hints": 7}', '{"session_control": []}']) {
      const junk = { headers: { "x-session-id": text }, extensions: { nvext: text, metadata: text } };
      assert.deepEqual(oneOf.interpret(junk), other.interpret(junk), `\`${text}\`: two instances disagree`);
    }
  },
};

function routeCase(random, seed, Policy, slot) {
  const rows = 1 + random.below(40);
  const { request, candidate } = declaredBy(Policy, slot);
  const scores = Array.from({ length: rows }, () => random.below(5) / 4);
  return { frame: { seed }, request: first(cells(request, 1, random)), candidates: cells(candidate, rows, random), rows, scores };
}

function twice(slot, Policy, config, draw, ask, check) {
  const [oneOf, other] = [new Subject(Policy, config), new Subject(Policy, config)];
  for (let seed = 1; seed <= CASES; seed += 1) {
    const view = draw(new Random(seed), seed, Policy, slot);
    try {
      const answer = ask(oneOf, view);
      assert.deepEqual(ask(other, view), answer, "two instances disagree");
      if (answer !== null) check(answer, view);
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
  }
}

/** Cells of the magnitudes that a host shows, often equal ones; ids are few. */
function cells(declared, rows, random) {
  const drawn = {};
  for (const name of declared.numbers) {
    const end = ["kv_used", "health"].includes(name) ? 1 : random.below(2) ? 8 : 40_000;
    const same = random.below(4) === 0 ? random.unit() : null;
    drawn[name] = Array.from({ length: rows }, () => {
      const unit = same ?? random.unit();
      return end > 1 ? Math.floor(unit * end) : unit;
    });
  }
  for (const name of declared.ids) {
    const distinct = ["worker", "sequence"].includes(name);
    drawn[name] = Array.from({ length: rows }, (_, row) => (distinct ? row + 1 : random.below(6)));
  }
  return drawn;
}

const first = (drawn) => Object.fromEntries(Object.entries(drawn).map(([name, [cell]]) => [name, cell]));
