// A small chat, to try the model.

import { events, request } from "./api.js";
import { h, say, show } from "./dom.js";
import { may } from "./rights.js";
import { count, rate, span } from "./words.js";

const DRAWN_MS = 60; // between two looks at what has come: many a token would be a layout of its own
const NEAR = 40; // pixels from the end: who has scrolled up wants to read there

export function chatView(section, store) {
  const talk = []; // {role, content}
  let stop = null; // ends the answer that is being written

  const log = h("div", { class: "talk", role: "log", "aria-label": "Conversation", tabindex: "0" });
  const hint = h("p", { class: "quiet" }, "Ask the model something.");
  const text = h("textarea", { id: "prompt", rows: "2", placeholder: "Write a message", onkeydown: onKey });
  const send = h("button", { type: "submit" }, "Send");
  const halt = h("button", { type: "button", hidden: true, onclick: () => stop?.abort() }, "Stop");
  const fresh = h("button", { type: "button", class: "small", hidden: true, onclick: clear }, "New chat");
  const heat = h("input", { id: "temperature", type: "number", min: "0", max: "2", step: "0.1", value: "0.7" });
  const most = h("input", { id: "most", type: "number", min: "1", max: "8192", value: "256" });
  const form = h(
    "form",
    { class: "ask", onsubmit: ask },
    h("label", { class: "unseen", for: "prompt" }, "Message"),
    text,
    h(
      "div",
      { class: "row" },
      send,
      halt,
      h("span", { class: "pair" }, h("label", { for: "temperature" }, "temperature"), heat),
      h("span", { class: "pair" }, h("label", { for: "most" }, "at most"), most, "tokens"),
    ),
  );
  const denied = h("p", { class: "quiet", hidden: true }, "Chatting takes a key with the role user.");
  section.replaceChildren(
    h("div", { class: "title-row" }, h("h2", { id: "chat-title" }, "Try the model"), fresh),
    hint,
    log,
    form,
    denied,
  );

  function onKey(event) {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  }

  function clear() {
    stop?.abort();
    talk.length = 0;
    log.replaceChildren();
    show(fresh, false);
    show(hint, true);
    text.focus();
  }

  function turn(role, content) {
    const body = h("p", { class: "turn-text" }, content);
    const note = h("p", { class: "turn-note" });
    log.append(h("div", { class: `turn ${role}` }, h("h3", { class: "unseen" }, role), body, note));
    log.scrollTop = log.scrollHeight;
    return { body, note };
  }

  /** Writes what it is given into an element, some of it at a time. */
  function writer(body) {
    const written = document.createTextNode("");
    body.append(written);
    let [waiting, timer] = ["", null];
    const flush = () => {
      clearTimeout(timer);
      timer = null;
      const follows = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;
      written.appendData(waiting);
      waiting = "";
      if (follows) log.scrollTop = log.scrollHeight;
    };
    return {
      flush,
      write(text) {
        waiting += text;
        timer ??= setTimeout(flush, DRAWN_MS);
      },
    };
  }

  async function ask(event) {
    event.preventDefault();
    const content = text.value.trim();
    if (!content || stop) return;
    text.value = "";
    talk.push({ role: "user", content });
    turn("user", content);
    show(hint, false);
    show(fresh, true);
    stop = new AbortController();
    show(halt, true);
    show(send, false);
    const shown = turn("assistant", "");
    const pen = writer(shown.body);
    log.setAttribute("aria-busy", "true");
    try {
      say(shown.note, await answer(pen, stop.signal));
    } catch (error) {
      say(shown.note, error.name === "AbortError" ? "Stopped." : error.message);
    } finally {
      pen.flush();
      talk.push({ role: "assistant", content: shown.body.textContent });
      stop = null;
      log.removeAttribute("aria-busy");
      const focused = document.activeElement === halt;
      show(halt, false);
      show(send, true);
      if (focused) send.focus();
    }
  }

  /** What there is to say of it at the end. */
  async function answer(pen, signal) {
    const model = store.state.picture?.model ?? store.state.status?.model.model;
    const began = performance.now();
    let [first, tokens] = [null, 0];
    const asked = {
      model,
      messages: talk.filter((each) => each.content),
      stream: true,
      stream_options: { include_usage: true },
      temperature: Number(heat.value),
      max_tokens: Number(most.value),
    };
    const response = await request("POST", "v1/chat/completions", { body: asked, signal });
    for await (const { data } of events(response)) {
      if (data === "[DONE]") break;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Error(chunk.error.message);
      const delta = chunk.choices[0]?.delta.content ?? "";
      if (delta) {
        first ??= performance.now();
        pen.write(delta);
      }
      tokens = chunk.usage?.completion_tokens ?? tokens;
    }
    if (first === null) return "An empty answer.";
    const seconds = (performance.now() - first) / 1000;
    const speed = tokens > 1 ? `, ${rate((tokens - 1) / seconds)} a second` : "";
    return `${count(tokens, "token")}${speed}, the first after ${span((first - began) / 1000)}`;
  }

  return (state) => {
    const allowed = may(state, "user") || !state.me;
    show(form, allowed);
    show(denied, !allowed);
    send.disabled = !state.me || Boolean(state.locked);
  };
}
