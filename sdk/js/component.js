// Makes a component's interfaces of a policy class. Used by the build's entry module and by `testing.js`.
//
// Invariant: a call before `configure` abstains; an exception is told to the host before it ends the call.

import * as host from "./host.js";
import { SLOTS, declaredBy } from "./slots.js";

/** The interfaces to export, by name: `describe` and one for each of `about.slots`. */
export function component(Policy, about) {
  let instance = null;
  const declared = Object.fromEntries(about.slots.map((slot) => [slot, declaredBy(Policy, slot)]));
  const interfaces = { describe: describe(Policy, about, declared, (policy) => (instance = policy)) };
  for (const slot of about.slots) {
    const functions = SLOTS[slot].functions(() => instance, declared[slot]);
    interfaces[slot] = Object.fromEntries(
      Object.entries(functions).map(([name, call]) => [
        name,
        (...view) => (instance === null ? null : telling(() => call(...view))),
      ]),
    );
  }
  return interfaces;
}

function describe(Policy, { name, version, slots }, declared, keep) {
  const inputs = slots.flatMap((slot) =>
    Object.entries(declared[slot]).map(([table, { numbers, ids }]) => ({ slot, table, numbers, ids })),
  );
  return {
    describe: () => ({ name, version, slots, inputs, wishes: Object.entries(Policy.wishes ?? {}) }),
    configure(json) {
      let policy;
      try {
        policy = new Policy(JSON.parse(json));
      } catch (error) {
        // A text is the contract's error; whatever else is thrown would be a trap.
        throw error instanceof Error ? error.message : String(error);
      }
      keep(policy);
    },
  };
}

function telling(call) {
  try {
    return call();
  } catch (error) {
    host.log("error", error instanceof Error ? `${error.message}\n${error.stack ?? ""}` : error);
    throw error;
  }
}
