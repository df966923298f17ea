// Node's openai asks for vectors over the Unix socket, of a model that gives none (`none`) or some (`vectors`).
import OpenAI from "openai";
import { Agent, fetch } from "undici";

const [socketPath, gives] = process.argv.slice(2);
const dispatcher = new Agent({ connect: { socketPath } });
const client = new OpenAI({ baseURL: "http://localhost/v1", apiKey: "-", fetch, fetchOptions: { dispatcher }, maxRetries: 0 });
const input = ["Turn on the light.", "Lights on!"];
if (gives === "none") {
  const error = await client.embeddings.create({ model: "default", input }).then(() => null, (error) => error);
  if (!(error instanceof OpenAI.APIError) || error.status !== 501 || error.code !== "unsupported") throw error ?? new Error("taken");
  console.log("  no vectors:", error.message);
} else {
  // In base64 unless something else is asked for, which the client turns into numbers.
  const packed = await client.embeddings.create({ model: "default", input });
  const plain = await client.embeddings.create({ model: "default", input, encoding_format: "float" });
  for (const [at, { embedding, index, object }] of plain.data.entries()) {
    const other = Array.from(packed.data[at].embedding);
    // The numbers are of single precision; JSON has the shortest digits for them.
    const same = other.every((number, place) => Math.fround(number) === Math.fround(embedding[place]));
    if (object !== "embedding" || index !== at || embedding.length !== other.length || !same) throw new Error(JSON.stringify(packed));
  }
  console.log("  vectors in base64 and as numbers: the same", plain.data[0].embedding.length, "of each of", plain.data.length, "texts");
}
await dispatcher.close();
