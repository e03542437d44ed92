// The list of nodes: what each Mac holds and how it is.

import { h, Keyed, say, show } from "./dom.js";
import { hueOf, nodesOf } from "./nodes.js";
import { bytes, NONE, percent, span } from "./words.js";

const MANY = 4; // nodes, beyond which they stand below the ring, side by side

export function nodesView(list) {
  let latest;
  const rows = new Keyed(list, (node) => node.name, () => card());
  function card() {
    const name = h("h3", { class: "node-name" });
    const tag = h("span", { class: "tag" }, "leads");
    const state = h("span", { class: "node-state" });
    const where = h("p", { class: "node-where" });
    const note = h("p", { class: "node-note" });
    const [gpu, memory] = [meter("GPU", true), meter("Memory", true)];
    const [cpu, busy] = [meter("CPU", false), meter("Stage busy", false)];
    const facts = h("p", { class: "node-facts" });
    const element = h(
      "li",
      { class: "node" },
      h("div", { class: "node-head" }, name, tag, state),
      where,
      note,
      h("div", { class: "meters" }, busy.element, gpu.element, memory.element, cpu.element),
      facts,
    );
    return {
      element,
      update(node) {
        element.className = `node hue-${hueOf(node.name, latest)} is-${node.state}`;
        element.classList.toggle("out", node.out);
        say(name, node.name);
        name.title = node.name;
        show(tag, node.leads);
        say(state, stateOf(node));
        say(where, whereOf(node));
        show(note, Boolean(node.note));
        say(note, node.note);
        busy.set(node.load, percent(node.load));
        gpu.set(...part(node.gpu?.active_bytes, node.gpu?.limit_bytes));
        memory.set(...part(node.machine?.memory_used, node.machine?.memory_total));
        const cores = node.machine ? node.machine.cpu_percent / 100 : null;
        cpu.set(cores, percent(cores));
        say(facts, factsOf(node));
      },
    };
  }
  return (state) => {
    latest = state;
    const nodes = nodesOf(state);
    list.parentElement.classList.toggle("many", nodes.length > MANY);
    rows.update(nodes);
  };
}

function stateOf(node) {
  if (node.out) return "out";
  return node.progress !== null && node.progress < 1 && node.state !== "ready"
    ? `${node.state}, ${percent(node.progress)}`
    : node.state;
}

function whereOf(node) {
  const parts = [];
  if (node.rank !== null) parts.push(`rank ${node.rank}`);
  if (node.layers) {
    const { first, last } = node.layers;
    parts.push(`layers ${first}–${last}${node.numLayers ? ` of ${node.numLayers}` : ""}`);
  }
  if (node.host) parts.push(node.host);
  return parts.join(" · ");
}

function factsOf(node) {
  const parts = [];
  if (node.weights) parts.push(`weights ${bytes(node.weights)}`);
  if (node.machine?.temperature_c != null) parts.push(`${Math.round(node.machine.temperature_c)} °C`);
  if (node.machine?.power_w != null) parts.push(`${node.machine.power_w.toFixed(0)} W`);
  if (node.beat !== null) parts.push(`heartbeat ${span(node.beat)}`);
  if (node.failures) parts.push(`failed ${node.failures} ×`);
  return parts.map((part) => part.replaceAll(" ", "\u00a0")).join(" · ") || NONE; // none is torn apart
}

function part(used, total) {
  if (used == null) return [null, NONE];
  if (!total) return [null, bytes(used)];
  const [some, all] = [bytes(used), bytes(total)];
  const unit = all.slice(all.indexOf(" "));
  return [used / total, `${some.endsWith(unit) ? some.slice(0, -unit.length) : some} / ${all}`];
}

/** scarce: that little is left is bad. */
function meter(title, scarce) {
  const bar = h("span", { class: "meter-bar" });
  const value = h("span", { class: "meter-value" }, NONE);
  const track = h("span", { class: "meter-track", "aria-hidden": "true" }, bar);
  const element = h("div", { class: "meter" }, h("span", { class: "meter-title" }, title), value, track);
  return {
    element,
    set(share, text) {
      say(value, text);
      bar.style.width = `${100 * Math.min(1, Math.max(0, share ?? 0))}%`;
      element.classList.toggle("high", scarce && share > 0.9);
    },
  };
}
