// What operators may do: who leads, draining, a new start, another model, dynamic settings.

import { json } from "./api.js";
import { confirm } from "./dialog.js";
import { h, say, show } from "./dom.js";
import { may } from "./rights.js";

const AUTO = "";

export function operateView(section, store) {
  const said = h("p", { class: "said", role: "status" });
  const without = h(
    "p",
    { class: "quiet", hidden: true },
    "Leading, draining, restarting and switching models are the launcher's, and this server runs without it: start it by ./scripts/serve or python -m launcher.",
  );

  async function act(method, path, body, done) {
    say(said, "");
    try {
      const answer = await json(method, path, { body });
      say(said, done);
      if (answer.object === "launcher") store.set({ status: answer });
      return answer;
    } catch (error) {
      say(said, error.message);
      return null;
    }
  }

  const leader = picker("lead", "Leader", "Let it lead", async (node) => {
    const body = { node: node || null };
    const title = node ? `Let ${node} lead?` : "Let the strategy choose who leads?";
    if (await confirm(title, "The ranks start again if somebody else leads then. Running answers wait and go on.", "Change")) {
      await act("POST", "admin/lead", body, node ? `${node} is to lead.` : "The strategy chooses who leads.");
    }
  });
  const model = picker("model", "Model", "Load it", async (name) => {
    const text = "Running answers end first, then the ranks start again with the other model.";
    if (await confirm(`Serve ${name} instead?`, text, "Load it")) {
      await act("POST", "admin/models/switch", { model: name }, `${name} is being loaded.`);
    }
  });
  const drain = h("button", { type: "button", onclick: onDrain }, "Drain");
  const restart = h("button", { type: "button", onclick: onRestart }, "Restart all ranks");
  const buttons = h("div", { class: "row" }, drain, restart);
  const settings = settingsForm(act);

  async function onDrain() {
    const draining = store.state.status.draining;
    const text = "New requests are refused until you undo it. Running ones go on to their end.";
    if (draining || (await confirm("Take no new requests?", text, "Drain"))) {
      const path = draining ? "admin/undrain" : "admin/drain";
      await act("POST", path, undefined, draining ? "Requests are taken again." : "No new requests are taken.");
    }
  }

  async function onRestart() {
    if (await confirm("Restart all ranks?", "Running answers wait and go on when the ranks are back.", "Restart")) {
      await act("POST", "admin/restart", undefined, "The ranks start again.");
    }
  }

  section.replaceChildren(
    h("h2", { id: "operate-title" }, "Operate"),
    without,
    leader.element,
    model.element,
    buttons,
    settings.element,
    said,
  );
  return (state) => {
    const { status, models } = state;
    show(section, may(state, "operator"));
    if (!may(state, "operator")) return;
    const launcher = state.about.launcher;
    for (const part of [leader.element, model.element, buttons]) show(part, launcher);
    show(without, !launcher);
    settings.ready(state);
    if (!launcher || !status) return;
    const auto = [AUTO, `by strategy (${status.election.strategy})`];
    leader.offer([auto, ...status.nodes.map((node) => [node.name, node.name])], status.election.wanted ?? AUTO);
    const names = models.length ? models.map((each) => each.id) : [status.model.model];
    model.offer(names.map((name) => [name, name]), status.model.model);
    model.note(status.model.state === "serving" ? "" : `${status.model.state} ${status.model.wanted}${status.model.reason ? `: ${status.model.reason}` : ""}`);
    say(drain, status.draining ? "Take requests again" : "Drain");
  };
}

/** A choice and a button.  What was chosen stays until it is sent. */
function picker(id, title, action, send) {
  const select = h("select", { id });
  const button = h("button", { type: "button", onclick: () => send(select.value) }, action);
  const note = h("span", { class: "quiet" });
  const element = h("div", { class: "row labelled" }, h("label", { for: id }, title), select, button, note);
  let [shape, known] = ["", null];
  return {
    element,
    note: (text) => say(note, text),
    offer(options, current) {
      if (JSON.stringify(options) !== shape) {
        shape = JSON.stringify(options);
        const chosen = select.value;
        select.replaceChildren(...options.map(([value, text]) => h("option", { value }, text)));
        select.value = options.some(([value]) => value === chosen) ? chosen : current;
      }
      if (current !== known) select.value = current;
      known = current;
    },
  };
}

function settingsForm(act) {
  const key = h("select", { id: "setting", onchange: fillIn });
  const value = h("input", { id: "value", autocomplete: "off", spellcheck: "false" });
  const form = h(
    "form",
    { class: "row labelled", hidden: true, onsubmit: apply },
    h("label", { for: "setting" }, "Setting"),
    key,
    h("label", { class: "unseen", for: "value" }, "Value"),
    value,
    h("button", { type: "submit" }, "Change"),
  );
  let [values, revision, asking] = [new Map(), null, false];

  function fillIn() {
    value.value = values.get(key.value) ?? "";
  }

  function take({ data }) {
    const chosen = key.value;
    values = new Map(data.filter((each) => each.dynamic).map((each) => [each.key, each.value]));
    show(form, values.size > 0);
    key.replaceChildren(...[...values.keys()].map((name) => h("option", { value: name }, name)));
    if (values.has(chosen)) key.value = chosen;
    fillIn();
  }

  async function apply(event) {
    event.preventDefault();
    const answer = await act("PATCH", "v1/cluster/config", { [key.value]: value.value }, `${key.value} is ${value.value}.`);
    if (answer) take(answer);
  }

  async function refresh() {
    asking = true;
    try {
      take(await json("GET", "v1/cluster/config"));
    } catch {
      revision = null; // asked again with the next picture
    } finally {
      asking = false;
    }
  }

  return {
    element: form,
    /** Read once, and again when somebody has changed one. */
    ready({ live, picture }) {
      const current = live ? `${picture.epoch} ${picture.config_revision}` : revision;
      if (asking || current === revision) return;
      revision = current;
      refresh();
    },
  };
}
