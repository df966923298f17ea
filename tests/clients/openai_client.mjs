// Node's openai over the Unix socket, with undici.
import OpenAI from "openai";
import { Agent, fetch } from "undici";

const dispatcher = new Agent({ connect: { socketPath: process.argv[2] } });
const client = new OpenAI({ baseURL: "http://localhost/v1", apiKey: "-", fetch, fetchOptions: { dispatcher } });
const ask = { model: "default", messages: [{ role: "user", content: "Turn on the kitchen light." }], max_tokens: 60 };
const whole = await client.chat.completions.create(ask);
let text = "";
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true })) {
  text += chunk.choices[0]?.delta?.content ?? "";
}
if (!text || text !== whole.choices[0].message.content) throw new Error(`${text} / ${JSON.stringify(whole)}`);
const response = await client.responses.create({ model: "default", input: "Turn on the kitchen light." });
if (response.output_text !== text) throw new Error(JSON.stringify(response));
console.log("  chat whole and streamed, responses:", text);
await dispatcher.close();
