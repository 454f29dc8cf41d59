// SPDX-License-Identifier: Apache-2.0
//
// Talks to the server: the list of models, and a reply as a stream of events. Whatever goes wrong
// is thrown as a Problem, whose message is a sentence for people.
import { apiKey } from "./store.js";

export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function words(response, body) {
  const said = body?.error?.message ?? "";
  const wait = Number(response.headers.get("retry-after"));
  const when = wait > 0 ? ` Try again in about ${wait} second${wait === 1 ? "" : "s"}.` : "";
  switch (response.status) {
    case 401:
      return "The server asks for an API key, and this one is missing or not right.";
    case 429:
      return body?.error?.code === "rate_limit_exceeded"
        ? `Your limit is reached. ${said}${when}`
        : `The server is busy: too many requests are waiting.${when}`;
    case 503:
      return `The server is not ready. ${said}${when}`;
    default:
      return said || `The server answered with status ${response.status}.`;
  }
}

async function ask(path, options = {}) {
  const headers = { "Content-Type": "application/json" };
  if (apiKey()) headers.Authorization = `Bearer ${apiKey()}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The server can't be reached. Is it still running?");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new Problem(words(response, body), response.status);
}

export async function models() {
  return (await (await ask("/v1/models")).json()).data;
}

// The chunks of a chat completion, in order. Ends with the stream; throws if that was cut short.
export async function* chat(body, signal) {
  const response = await ask("/v1/chat/completions", { method: "POST", body: JSON.stringify(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      if (error.name === "AbortError") throw error;
      return { done: true };
    });
    if (done) throw new Problem("The connection ended before the reply was complete.");
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Problem(chunk.error.message);
      yield chunk;
    }
  }
}
