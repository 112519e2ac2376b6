// Settings: what an operator wrote, checked. An error thrown by a policy's constructor refuses the plugin.

/** Refuses settings other than these. */
export function only(config, ...names) {
  for (const name of Object.keys(config)) {
    if (!names.includes(name)) {
      throw new Error(`unknown setting \`${name}\`; there ${names.length ? `are ${names.join(", ")}` : "is none"}`);
    }
  }
}

/** A number within bounds, or `otherwise` if it is not set. */
export function number(config, name, otherwise, { min = -Infinity, max = Infinity } = {}) {
  const value = config[name] ?? otherwise;
  if (typeof value !== "number" || !(value >= min && value <= max)) {
    throw new Error(`\`${name}\` is ${JSON.stringify(value)}; it must be a number from ${min} to ${max}`);
  }
  return value;
}
