// Turns with a tool, streams and structure by the AI SDK, over each API that it speaks.
// Usage: ai_sdk.mjs http://127.0.0.1:8080 FOLDER_WITH_PACKAGES
import { createRequire } from "node:module";

const [base, packages] = process.argv.slice(2);
const require = createRequire(`${packages}/package.json`);
const { generateObject, generateText, stepCountIs, streamText, tool } = require("ai");
const { createOpenAI } = require("@ai-sdk/openai");
const { createAnthropic } = require("@ai-sdk/anthropic");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const { z } = require("zod");

const settings = { baseURL: `${base}/v1`, apiKey: "any" };
const openai = createOpenAI(settings);
const models = {
  "chat completions": openai.chat("tiny-agent"),
  responses: openai.responses("tiny-agent"),
  messages: createAnthropic(settings)("tiny-agent"),
  compatible: createOpenAICompatible({ ...settings, name: "host", supportsStructuredOutputs: true, includeUsage: true })("tiny-agent"),
};
let failed = 0;

async function check(name, body) {
  try {
    await body();
    console.log(`ok   ${name}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name}\n${error.stack}`);
  }
}

function expect(condition, value) {
  if (!condition) throw new Error(JSON.stringify(value));
}

for (const [name, model] of Object.entries(models)) {
  await check(`${name}: an agent calls a tool and answers`, async () => {
    const read = [];
    const read_file = tool({
      description: "Reads a file.",
      inputSchema: z.object({ path: z.string() }),
      execute: async ({ path }) => (read.push(path), "silver river garden"),
    });
    const { text, steps } = await generateText({
      model, tools: { read_file }, prompt: "what do the notes say?", stopWhen: stepCountIs(4), maxRetries: 0,
    });
    expect(read.join() === "notes.txt" && text.includes("the notes were read"), { read, text, steps: steps.length });
  });
  await check(`${name}: text is streamed`, async () => {
    const { textStream, usage } = streamText({ model, prompt: "hello", maxOutputTokens: 64, maxRetries: 0 });
    const pieces = [];
    for await (const piece of textStream) pieces.push(piece);
    const { inputTokens, outputTokens } = await usage;
    expect(pieces.join("").length > 0 && inputTokens > 0 && outputTokens > 0, { pieces, inputTokens, outputTokens });
  });
  await check(`${name}: an object fits its schema`, async () => {
    const schema = z.object({ kind: z.enum(["cat", "dog"]), legs: z.number().int().min(0).max(4) });
    const { object } = await generateObject({ model, schema, prompt: "name an animal", maxRetries: 0 });
    expect(schema.safeParse(object).success, object);
  });
}
console.log(failed ? `${failed} failed` : "all passed");
process.exit(failed ? 1 : 0);
