// Keeps the state up to date: pictures of rank 0 as they come, the launcher's status in between.
// Both go on by themselves after a failover, and rest while nobody looks at the page.

import { ApiError, events, json, request } from "./api.js";
import { HISTORY_S } from "./store.js";

const SILENCE_MS = 8000; // pictures come every second
const RETRY_MS = [400, 800, 1500, 3000];
const CALM_MS = 2000; // between two looks at the launcher
const TENSE_MS = 700; // while nothing is served

const pause = (ms) => new Promise((done) => setTimeout(done, ms));
const awake = (state) => state.visible && !state.locked;

export function follow(store) {
  document.addEventListener("visibilitychange", () => store.set({ visible: !document.hidden }));
  followPictures(store);
  if (store.state.about.launcher) followLauncher(store);
}

async function followPictures(store) {
  for (let failures = 0; ; ) {
    await store.until((state) => awake(state) && (!state.status || state.status.state === "serving"));
    try {
      await readPictures(store, () => (failures = 0));
    } catch (error) {
      lost(store, error);
    }
    store.set({ live: false, history: remember(store.state.history, null) });
    await pause(RETRY_MS[Math.min(failures++, RETRY_MS.length - 1)]);
  }
}

async function readPictures(store, heard) {
  const stop = new AbortController();
  let patience = setTimeout(() => stop.abort(), SILENCE_MS);
  const resting = () => document.hidden && stop.abort();
  document.addEventListener("visibilitychange", resting);
  try {
    const response = await request("GET", "v1/cluster/events", { signal: stop.signal });
    refreshModels(store);
    for await (const data of events(response)) {
      clearTimeout(patience);
      patience = setTimeout(() => stop.abort(), SILENCE_MS);
      heard();
      const picture = JSON.parse(data);
      const history = remember(store.state.history, picture.tokens_per_s.generated);
      store.set({ picture, history, live: true, reachable: true });
    }
  } finally {
    clearTimeout(patience);
    stop.abort();
    document.removeEventListener("visibilitychange", resting);
  }
}

async function followLauncher(store) {
  for (;;) {
    await store.until(awake);
    await look(store);
    await pause(store.state.live ? CALM_MS : TENSE_MS);
  }
}

/** The launcher's status, now. */
export async function look(store) {
  try {
    const status = await json("GET", "admin/status", { signal: AbortSignal.timeout(SILENCE_MS) });
    store.set({ status, reachable: true });
  } catch (error) {
    lost(store, error, true);
  }
}

export async function refreshModels(store) {
  try {
    store.set({ models: (await json("GET", "v1/models")).data });
  } catch (error) {
    lost(store, error);
  }
}

/** decides: whether this tells that nobody is there; with a launcher, rank 0 may well be away. */
function lost(store, error, decides = !store.state.about.launcher) {
  if (error instanceof ApiError) {
    if (error.status === 401) store.set({ locked: error.message, me: null });
  } else if (decides && error.name !== "AbortError") {
    store.set({ reachable: false });
  }
}

function remember(history, rate) {
  const at = performance.now() / 1000;
  if (rate === null && history.at(-1)?.rate === null) return history;
  return [...history.filter((entry) => at - entry.at < HISTORY_S), { at, rate }];
}
