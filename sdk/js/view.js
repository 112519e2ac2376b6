// What a policy is shown: the clock, a seed, and tables of the columns that it declared.
//
// Invariant: a table hands out declared columns only; a name that was not declared is an error.

/** Rows times declared columns, each column one contiguous run of the flat lists. */
export class Table {
  #columns;
  #numbers;
  #ids;
  #numbersAt;
  #idsAt;

  constructor(columns, rows, numbers, ids, numbersAt = 0, idsAt = 0) {
    this.rows = rows;
    this.#columns = columns;
    this.#numbers = numbers;
    this.#ids = ids;
    this.#numbersAt = numbersAt;
    this.#idsAt = idsAt;
  }

  /** A declared column of numbers, a cell a row. Look it up once, before the loop over rows. */
  column(name) {
    const at = this.#numbersAt + position(this.#columns.numbers, name) * this.rows;
    return this.#numbers.slice(at, at + this.rows);
  }

  /** A declared column of ids. Equal ids are equal numbers; 0 means none. */
  ids(name) {
    const at = this.#idsAt + position(this.#columns.ids, name) * this.rows;
    return this.#ids.slice(at, at + this.rows);
  }

  /** A declared number of a table that has one row. */
  value(name) {
    return this.#numbers[this.#numbersAt + position(this.#columns.numbers, name)];
  }

  /** A declared id of a table that has one row. */
  id(name) {
    return this.#ids[this.#idsAt + position(this.#columns.ids, name)];
  }
}

function position(declared, name) {
  const index = declared.indexOf(name);
  if (index < 0) {
    throw new Error(`column \`${name}\` was not declared; declared are ${declared.join(", ") || "none"}`);
  }
  return index;
}

/** Splits the flat lists of a call into tables, in the order of `shapes`: `[columns, rows]` each. */
export function split(shapes, numbers, ids) {
  let [numbersAt, idsAt] = [0, 0];
  return shapes.map(([columns, rows]) => {
    const table = new Table(columns, rows, numbers, ids, numbersAt, idsAt);
    numbersAt += columns.numbers.length * rows;
    idsAt += columns.ids.length * rows;
    return table;
  });
}

/** Columns of a table as an author writes them: a list of numbers, or `{ numbers, ids }`. */
export function columns(declared = []) {
  if (Array.isArray(declared)) return { numbers: declared, ids: [] };
  return { numbers: declared.numbers ?? [], ids: declared.ids ?? [] };
}

/** What a caller said about a request, raw. */
export class HintsView {
  constructor(frame, protocol, headers, extensions, promptTokens, outputTokensMax) {
    Object.assign(this, { frame, protocol, headers, extensions, promptTokens });
    this.outputTokensMax = outputTokensMax ?? null;
  }

  /** Value of a header that is there and not blank, or null. Names are in lower case. */
  header(name) {
    const found = this.headers.find(([key]) => key === name);
    return found?.[1].trim() || null;
  }

  /** An extension object of the body, parsed; null if it is not there or no JSON. */
  extension(name) {
    const found = this.extensions.find(([key]) => key === name);
    if (!found) return null;
    try {
      return JSON.parse(found[1]);
    } catch {
      return null;
    }
  }
}

/** Values of the column `event` of an outcome. */
export const Event = Object.freeze({ firstToken: 0, finished: 1, failed: 2 });
