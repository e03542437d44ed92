// The official npm client: answers, streams, responses, errors.
import assert from "node:assert";
import OpenAI from "openai";

const [baseURL, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "none", timeout: 600_000, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];

const answer = await client.chat.completions.create({ model, messages, temperature: 0 });
assert.match(answer.choices[0].message.content, /Paris/);

let text = "";
const stream = await client.chat.completions.create({ model, messages, temperature: 0, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.equal(text, answer.choices[0].message.content);

const response = await client.responses.create({ model, input: messages[0].content });
assert.match(response.output_text, /Paris/);

await assert.rejects(
  client.chat.completions.create({ model: "gpt-9", messages }),
  (error) => error.status === 404 && error.code === "model_not_found",
);
console.log("ok");
