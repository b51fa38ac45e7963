// The one door to the API: adds the key, reads errors, streams answers.

export const settings = JSON.parse(document.body.dataset.settings);

const KEY = "polysome.key";

export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => sessionStorage.setItem(KEY, value),
  forget: () => sessionStorage.removeItem(KEY),
};

/** What went wrong, in words for a person. `status` 0: nothing answered. */
export class ApiError extends Error {
  constructor(status, message, { code = null, param = null, retryAfter = null } = {}) {
    super(message);
    Object.assign(this, { status, code, param, retryAfter });
  }
}

/** Ask; gives the Response. Throws ApiError, and AbortError when `signal` says so. */
export async function send(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.authorization = `Bearer ${key.get()}`;
  if (json !== undefined) sent["content-type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers: sent, signal, body: json === undefined ? body : JSON.stringify(json) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached. Is it running, and are you online?");
  }
  if (response.ok) return response;
  throw await told(response);
}

/** Ask; gives the JSON. */
export async function ask(path, options) {
  return (await send(path, options)).json();
}

/** Ask, and ask again a few times while the server is busy; `waiting(seconds)` is told before each pause. */
export async function patiently(path, options, waiting) {
  for (let attempt = 0; ; attempt += 1) {
    try {
      return await ask(path, options);
    } catch (error) {
      if (!(error instanceof ApiError) || ![429, 503].includes(error.status) || attempt === 4) throw error;
      const seconds = Math.min(20, Math.max(error.retryAfter ?? 1, 2 ** attempt));
      waiting(seconds);
      await pause(1000 * seconds, options.signal);
    }
  }
}

export function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}

/** The events of a streamed answer, parsed; an error in the stream is thrown. */
export async function* stream(path, options) {
  const response = await send(path, { ...options, method: "POST" });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    held += (value ?? "").replaceAll("\r", "");
    const events = held.split("\n\n");
    held = events.pop();
    for (const event of events) {
      const data = event.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const content = JSON.parse(data);
      if (content.error) throw new ApiError(502, content.error.message, content.error);
      yield content;
    }
    if (done) throw new ApiError(0, "The connection ended before the answer was complete.");
  }
}

async function told(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Not of the API's shape: a proxy answered in its place.
    error = { message: `The server answered ${response.status} ${response.statusText}.` };
  }
  const wait = Number.parseFloat(response.headers.get("retry-after"));
  return new ApiError(response.status, error.message, { ...error, retryAfter: Number.isNaN(wait) ? null : wait });
}
