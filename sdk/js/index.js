// Write Pointsman policies in JavaScript: a class with a method for each slot, and the columns it wants.
//
// Used by a policy's own module. Tests use `testing.js`; the build alone uses `component.js`.

export * as host from "./host.js";
export { Random } from "./random.js";
export { number, only } from "./config.js";
export { Event } from "./view.js";
