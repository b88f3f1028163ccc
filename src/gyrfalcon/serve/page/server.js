// Asks the server: the key, errors in words, server-sent events. Knows nothing of turns.

const KEY = "gyrfalcon.key";

const WORDS = {
  400: "The server refused this request",
  401: "This server asks for a key",
  403: "The server does not answer at this address",
  404: "The server has no such thing",
  408: "The request took too long to arrive",
  413: "That is more text than the server takes at once",
  429: "The server's queue is full",
  500: "The server failed",
  503: "The server is not ready",
};

/** What went wrong, for people: `title` in a few words, `message` as the server put it. */
export class ServerError extends Error {
  constructor(title, message, { status = 0, code = null, param = null } = {}) {
    super(message);
    Object.assign(this, { title, status, code, param });
  }
}

export const apiKey = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY)),
};

/** A JSON answer. Paths are relative to the page, so that it works behind a prefix, too. */
export async function ask(path, body, signal) {
  const response = await send(path, body, signal);
  try {
    return await response.json();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw broken();
  }
}

/** The data of each event of a streamed answer, parsed. An answer that breaks off is an error. `request`: its name,
 *  by which the server tells how far it is. */
export async function* events(path, body, signal, request) {
  const response = await send(path, body, signal, request);
  for await (const data of dataOf(response.body)) {
    if (data === "[DONE]") return;
    const event = JSON.parse(data);
    if (event.error) throw fromEnvelope(event.error, 500);
    yield event;
  }
  throw new ServerError(
    "The connection ended",
    "The server closed the connection before the text was complete.",
  );
}

async function send(path, body, signal, request) {
  const headers = {};
  if (request) headers["X-Request-Id"] = request;
  if (apiKey.get()) headers.Authorization = `Bearer ${apiKey.get()}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const options = { headers, signal, cache: "no-store", credentials: "omit" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let response;
  try {
    response = await fetch(new URL(path, document.baseURI), options);
  } catch (error) {
    if (signal?.aborted) throw error;
    throw unreachable();
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const retry = Number(response.headers.get("Retry-After"));
  let error = { message: `HTTP ${response.status}` };
  try {
    error = (await response.json()).error ?? error;
  } catch {
    // A proxy in between answers in HTML: the status says enough.
  }
  const failure = fromEnvelope(error, response.status);
  if (retry) failure.message += ` (in ${retry} seconds)`;
  return failure;
}

function fromEnvelope({ message, code = null, param = null }, status) {
  const title = code === "context_length_exceeded" ? "The text is too long" : WORDS[status];
  return new ServerError(title ?? WORDS[status < 500 ? 400 : 500], message, {
    status,
    code,
    param,
  });
}

function unreachable() {
  return new ServerError("The server cannot be reached", `Nothing answers at ${location.host}.`);
}

function broken() {
  return new ServerError("The connection broke", "It ended before the answer was complete.");
}

async function* dataOf(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + decoder.decode(value, { stream: true })).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const lines = block.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw broken();
  } finally {
    reader.cancel().catch(() => {});
  }
}
