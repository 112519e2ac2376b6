// Chance that can be replayed.

/**
 * A stream of numbers that follows from its seed: `view.frame.seed` in a policy.
 *
 * Numbers of 32 bits, because an interpreter has no fast integers above them. Source: splitmix32, the
 * finalizer of MurmurHash3 over a Weyl sequence.
 */
export class Random {
  #state;

  constructor(seed) {
    // A seed has 64 bits, of which a number keeps the upper 53.
    const high = Math.floor(seed / 4294967296) >>> 0;
    this.#state = (Math.imul(high, 0x9e3779b1) ^ (seed % 4294967296)) >>> 0;
  }

  /** The next 32 bits. */
  next() {
    this.#state = (this.#state + 0x9e3779b9) | 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 16), 0x85ebca6b);
    z = Math.imul(z ^ (z >>> 13), 0xc2b2ae35);
    return (z ^ (z >>> 16)) >>> 0;
  }

  /** A whole number below `end`. */
  below(end) {
    return Math.floor(this.unit() * end);
  }

  /** A number in [0, 1). */
  unit() {
    return this.next() / 4294967296;
  }
}
