// Starts the page: who looks, what they may see, and the views.

import { ApiError, json, key } from "./api.js";
import { nodesView } from "./cards.js";
import { chatView } from "./chat.js";
import { h, say, show } from "./dom.js";
import { eventsView } from "./events.js";
import { follow } from "./feed.js";
import { figuresView } from "./figures.js";
import { operateView } from "./operate.js";
import { requestsView } from "./requests.js";
import { ringView } from "./ring.js";
import { initialState, Store } from "./store.js";
import { timelineView } from "./timeline.js";
import { story } from "./words.js";

const store = new Store(initialState());
const place = (id) => document.getElementById(id);

function mastheadView() {
  const [name, text, identity] = [place("name"), place("story"), place("identity")];
  const who = h("span", { class: "who" });
  const forget = h("button", { type: "button", class: "small", onclick: () => change("") }, "Forget the key");
  const input = h("input", { id: "key", type: "password", autocomplete: "off", spellcheck: "false" });
  const form = h(
    "form",
    { class: "row key-form", onsubmit: (event) => (event.preventDefault(), change(input.value.trim())) },
    h("label", { for: "key" }, "API key"),
    input,
    h("button", { type: "submit" }, "Look inside"),
  );
  const why = h("span", { class: "quiet", id: "key-why" });
  input.setAttribute("aria-describedby", "key-why");
  identity.after(form);
  identity.append(who, forget);
  form.append(why);
  return (state) => {
    const told = story(state);
    const title = state.status?.cluster ?? state.picture?.name ?? "mlx-cluster";
    say(name, title);
    say(text, told.text);
    document.body.dataset.tone = told.tone;
    document.title = told.tone === "bad" ? `(!) ${title}` : title;
    show(form, Boolean(state.locked));
    place("main").classList.toggle("locked", Boolean(state.locked));
    say(why, key.get() ? state.locked : "Kept in this tab, and only as long as it is open.");
    show(forget, Boolean(key.get()) && !state.locked);
    say(who, state.me && key.get() ? `${state.me.name}, ${state.me.role}` : "");
  };
}

/** Another key, or none. */
async function change(value) {
  key.set(value);
  if (!value) location.reload(); // ends what the old one still has open
  store.set({ me: null, picture: null, status: null, live: false, locked: "" });
  await identify();
}

async function identify() {
  if (store.state.about.key_needed && !key.get()) {
    store.set({ locked: "A key is needed." });
    return;
  }
  try {
    store.set({ me: await json("GET", "v1/access"), locked: "", reachable: true });
  } catch (error) {
    store.set(error instanceof ApiError ? { locked: error.message, me: null } : { reachable: false });
  }
}

async function start() {
  for (const view of [
    mastheadView(),
    ringView(place("ring")),
    nodesView(place("nodes")),
    figuresView(place("figures")),
    timelineView(place("timeline"), store),
    requestsView(place("requests"), store),
    chatView(place("chat"), store),
    eventsView(place("events")),
    operateView(place("operate"), store),
  ]) {
    store.subscribe(view);
  }
  store.set({ about: await json("GET", "dashboard/about.json") });
  await identify();
  follow(store);
}

start();
