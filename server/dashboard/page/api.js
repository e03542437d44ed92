// Requests to this server, with the key that was typed in, and its events.

const KEY = "mlx-cluster-key";
export const ROLES = ["viewer", "user", "operator", "admin"];

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Kept for this tab and no longer than it is open. */
export const key = {
  get: () => sessionStorage.getItem(KEY),
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** A response with status 2xx.  Throws ApiError, and what fetch throws where nobody answers. */
export async function request(method, path, { body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method,
    headers,
    signal,
    body: body === undefined ? undefined : JSON.stringify(body),
    cache: "no-store",
  });
  if (response.ok) return response;
  throw new ApiError(response.status, await reasonOf(response));
}

export async function json(method, path, options) {
  return (await request(method, path, options)).json();
}

async function reasonOf(response) {
  try {
    const document = await response.json();
    return document.error?.message ?? document.reason ?? `Status ${response.status}.`;
  } catch {
    return `Status ${response.status}.`;
  }
}

/** Server-sent events, as they come: {kind, data}. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      text += value;
      const parts = text.split(/\r?\n\r?\n/);
      text = parts.pop();
      for (const part of parts) {
        let kind = "message";
        const lines = [];
        for (const line of part.split(/\r?\n/)) {
          if (line.startsWith("data:")) lines.push(line.slice(5).trimStart());
          else if (line.startsWith("event:")) kind = line.slice(6).trim();
        }
        if (lines.length) yield { kind, data: lines.join("\n") };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
