// Keeps the state up to date by one stream: pictures of rank 0, and what the launcher has to say of itself.
// The launcher's stream outlives a failover; a stream that ends is opened again.  It rests while nobody looks.

import { ApiError, events, json, request } from "./api.js";
import { HISTORY_S } from "./store.js";

const SILENCE_MS = 8000; // something comes every second
const RETRY_MS = [400, 800, 1500, 3000];

const pause = (ms) => new Promise((done) => setTimeout(done, ms));

export async function follow(store) {
  document.addEventListener("visibilitychange", () => store.set({ visible: !document.hidden }));
  for (let failures = 0; ; ) {
    await store.until((state) => state.visible && !state.locked);
    try {
      await read(store, () => (failures = 0));
    } catch (error) {
      lost(store, error);
    }
    gap(store);
    await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  }
}

async function read(store, heard) {
  const stop = new AbortController();
  let patience = setTimeout(() => stop.abort(), SILENCE_MS);
  const resting = () => document.hidden && stop.abort();
  document.addEventListener("visibilitychange", resting);
  try {
    const response = await request("GET", "v1/cluster/events", { signal: stop.signal });
    for await (const { kind, data } of events(response)) {
      clearTimeout(patience);
      patience = setTimeout(() => stop.abort(), SILENCE_MS);
      heard();
      take(store, kind, JSON.parse(data));
    }
  } finally {
    clearTimeout(patience);
    stop.abort();
    document.removeEventListener("visibilitychange", resting);
  }
}

function take(store, kind, told) {
  if (kind === "launcher") store.set({ status: told, reachable: true });
  else if (kind === "gap") gap(store, told.reason);
  else if (told.error) throw new Error(told.error.message); // rank 0 broke off
  else {
    if (!store.state.live) refreshModels(store); // of a new rank 0, maybe
    const history = remember(store.state.history, told.tokens_per_s.generated);
    store.set({ picture: told, history, live: true, reachable: true });
  }
}

function gap(store, why = "") {
  store.set({ live: false, why, history: remember(store.state.history, null) });
}

export async function refreshModels(store) {
  try {
    store.set({ models: (await json("GET", "v1/models")).data });
  } catch (error) {
    lost(store, error);
  }
}

function lost(store, error) {
  if (error instanceof ApiError) {
    if (error.status === 401) store.set({ locked: error.message, me: null });
  } else if (error.name !== "AbortError" || !document.hidden) {
    store.set({ reachable: false });
  }
}

function remember(history, rate) {
  const at = performance.now() / 1000;
  if (rate === null && history.at(-1)?.rate === null) return history;
  return [...history.filter((entry) => at - entry.at < HISTORY_S), { at, rate }];
}
