// The slots: which tables each is shown, and how a call of the contract becomes a call of the policy.
//
// A slot that the contract gains gets an entry here, and nothing else changes.

import { HintsView, columns, split } from "./view.js";

const route = (call) => ({
  tables: ["request", "candidate"],
  functions: (policy, declared) => call(policy, (frame, rows, numbers, ids) => {
    const [request, candidates] = split([[declared.request, 1], [declared.candidate, rows]], numbers, ids);
    return { frame, request, candidates };
  }),
});

/** By slot: its tables, and its functions as the contract has them. `policy()` is the live instance. */
export const SLOTS = {
  hints: {
    tables: [],
    functions: (policy) => ({
      interpret(frame, protocol, headers, extensions, promptTokens, outputTokensMax, soFar) {
        const view = new HintsView(frame, protocol, headers, extensions, promptTokens, outputTokensMax);
        return policy().interpret(view, soFar) ?? null;
      },
    }),
  },
  filter: route((policy, view) => ({
    filter: (...call) => policy().filter(view(...call)) ?? null,
  })),
  score: route((policy, view) => ({
    score: (...call) => policy().score(view(...call)) ?? null,
  })),
  pick: route((policy, view) => ({
    pick: (frame, rows, numbers, ids, scores) => policy().pick(view(frame, rows, numbers, ids), scores) ?? null,
  })),
  schedule: {
    tables: ["budget", "sequence"],
    functions: (policy, declared) => ({
      order(frame, waitingRows, runningRows, numbers, ids) {
        const { budget: ofBudget, sequence } = declared;
        const shapes = [[ofBudget, 1], [sequence, waitingRows], [sequence, runningRows]];
        const [budget, waiting, running] = split(shapes, numbers, ids);
        return policy().order({ frame, budget, waiting, running }) ?? null;
      },
    }),
  },
  observe: {
    tables: ["outcome"],
    functions: (policy, declared) => ({
      observe(frame, rows, numbers, ids) {
        const [outcomes] = split([[declared.outcome, rows]], numbers, ids);
        policy().observe({ frame, outcomes });
      },
    }),
  },
};

/** The columns that a policy declares for each table of a slot. */
export function declaredBy(Policy, slot) {
  const { tables } = SLOTS[slot];
  const declared = Policy.columns?.[slot] ?? {};
  for (const table of Object.keys(declared)) {
    if (!tables.includes(table)) {
      throw new Error(`slot \`${slot}\` has no table \`${table}\`; it has ${tables.join(", ") || "none"}`);
    }
  }
  return Object.fromEntries(tables.map((table) => [table, columns(declared[table])]));
}
