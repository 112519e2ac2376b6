// The power of two choices: of a few candidates drawn by chance, takes the one with least to do.

import { Random, number, only } from "./sdk/js/index.js";

export default class Policy {
  static columns = { pick: { candidate: ["queue_len", "running"] } };
  static wishes = { stateless: "true" };

  constructor(config) {
    only(config, "choices");
    this.choices = number(config, "choices", 2, { min: 2, max: 16 });
  }

  pick(view) {
    const { rows } = view.candidates;
    const queued = view.candidates.column("queue_len");
    const running = view.candidates.column("running");
    const random = new Random(view.frame.seed);
    let best = random.below(rows);
    for (let drawn = 1; drawn < this.choices; drawn += 1) {
      const row = random.below(rows);
      if (queued[row] + running[row] < queued[best] + running[best]) best = row;
    }
    return best;
  }
}
